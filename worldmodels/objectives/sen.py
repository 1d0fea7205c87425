"""SEN: from one view and the action, predict the other view so that it is found among all predictions and views.

Paper: Park et al. 2022, Learning symmetric embeddings for equivariant world models (arXiv 2204.11371), in the
contrastive form and with the sizes of seq-JEPA's comparison (sheet seq_jepa, 1.8): a linear predictor on projections.
"""

from __future__ import annotations

from typing import Any

from tensordict import TensorDict
from torchrl.data import Composite

from worldmodels.keys import ACTION
from worldmodels.losses import nt_xent
from worldmodels.objectives.two_views import ConditionalObjective, goal_stats


class SEN(ConditionalObjective):
    """Contrasts predicted with real projections.

    Args:
        spec: one row of the source.
        temperature: tau.
        shared: see ``ConditionalObjective``.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        temperature: int | float = 0.5,
        **shared: Any,
    ) -> None:
        super().__init__(spec, has_last_norm=True, **shared)
        self.temperature = temperature

    def loss(self, batch: TensorDict) -> TensorDict:
        """NT-Xent of the second view's projection and its prediction."""
        first, second = self.pair(batch)
        prediction, goal = self.predict(first, batch[ACTION][:, 0]), self.projector(second)  # [B, P]
        losses = {"equivariant": nt_xent(prediction, goal, temperature=self.temperature)}
        return self.report(losses, first, **goal_stats(prediction, goal))
