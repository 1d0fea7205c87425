"""BYOL on pictures: from one view predict the other's projection in a network that follows by moving average.

Paper: Grill et al. 2020 (arXiv 2006.07733). Sizes as in seq-JEPA's comparison (sheet seq_jepa, 1.8). ``agents.byol`` is
the reinforcement-learning method of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Target
from worldmodels.keys import OBSERVATION, POOLED
from worldmodels.losses import cosine_distance
from worldmodels.nn.projector import Projector
from worldmodels.objectives.two_views import ViewObjective, goal_stats, rows


class BYOLImage(ViewObjective):
    """Each view predicts the other.

    Args:
        spec: one row of the source.
        projector: factory ``projector(dim)``.
        hidden: widths of the predictor's hidden layers.
        target: factory of the target networks.
        shared: encoder and views, see ``ViewObjective``.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        projector: Callable[[int], Projector],
        hidden: Sequence[int],
        target: Callable[[nn.Module], Target],
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        self.projector = projector(self.encoder.dim)
        self.predictor = Projector(self.projector.dim, [*hidden, self.projector.dim])
        self.target, self.target_projector = target(self.encoder), target(self.projector)

    def loss(self, batch: TensorDict) -> TensorDict:
        """Sum over both directions of || prediction - target ||^2 of unit vectors, which is 2 - 2 cos (eq. 2)."""
        latents = self.pair(batch)
        predictions = [self.predictor(self.projector(latent)) for latent in latents]
        goals = [self.goal(rows(batch[OBSERVATION], slice(t, t + 1))) for t in (1, 0)]  # of the other view
        distances = [cosine_distance(p, g) for p, g in zip(predictions, goals, strict=True)]
        return self.report({"prediction": 2 * sum(distances)}, latents[0], **goal_stats(predictions[0], goals[0]))

    def goal(self, obs: TensorDict) -> Tensor:
        """The target networks' projection of single views [B]: [B, P], no gradient."""
        return self.target_projector(self.target(obs)[POOLED])
