"""Conditional BYOL: the predictor also sees the action that leads from one view to the other.

A baseline of seq-JEPA (arXiv 2505.03176; sheet seq_jepa, 1.8), whose code predicts in one direction only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Target
from worldmodels.keys import ACTION, OBSERVATION, POOLED
from worldmodels.losses import cosine_distance
from worldmodels.objectives.two_views import ConditionalObjective, goal_stats, rows


class ConditionalBYOL(ConditionalObjective):
    """The first view and the action predict the second view.

    Args:
        spec: one row of the source.
        target: factory of the target networks.
        shared: see ``ConditionalObjective``.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        target: Callable[[nn.Module], Target],
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        self.target, self.target_projector = target(self.encoder), target(self.projector)

    def loss(self, batch: TensorDict) -> TensorDict:
        """2 - 2 cos of the second view's projection and its prediction."""
        obs = batch[OBSERVATION]
        latent = self.encode(rows(obs, slice(0, 1)))
        prediction, goal = self.predict(latent, batch[ACTION][:, 0]), self.anchor(rows(obs, slice(1, 2)))  # [B, P]
        losses = {"prediction": 2 * cosine_distance(prediction, goal)}
        return self.report(losses, latent, **goal_stats(prediction, goal))

    @torch.no_grad()
    def anchor(self, obs: TensorDict) -> Tensor:
        """The target networks' projection [B, P] of single views [B]."""
        return self.target_projector(self.target(obs)[POOLED])
