"""Conditional BYOL: the predictor also sees the action that leads from one view to the other.

A baseline of seq-JEPA (arXiv 2505.03176; sheet seq_jepa, 1.8), whose code predicts in one direction only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Encoder, Target, Views
from worldmodels.keys import ACTION, OBSERVATION, POOLED
from worldmodels.losses import cosine_distance
from worldmodels.nn.projector import Projector
from worldmodels.objectives.two_views import ConditionalObjective, goal_stats, rows


class ConditionalBYOL(ConditionalObjective):
    """The first view and the action predict the second view.

    Args:
        spec, encoder, views, projector, action_width, hidden: as of ``ConditionalObjective``.
        target: factory of the target networks.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        views: Callable[[Composite], Views],
        projector: Callable[[int], Projector],
        hidden: Sequence[int],
        target: Callable[[nn.Module], Target],
        action_width: int = 128,
    ) -> None:
        heads = {"projector": projector, "hidden": hidden, "action_width": action_width}
        super().__init__(spec, encoder=encoder, views=views, **heads)
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
