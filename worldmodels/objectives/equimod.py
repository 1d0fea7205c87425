"""EquiMod: SimCLR, and beside it predictions of one view from the other and the action, contrasted in the same way.

Paper: Devillers and Lefort 2023 (arXiv 2211.01244), with the sizes of seq-JEPA's comparison (sheet seq_jepa, 1.8). As
there, the equivariance loss goes from view to view; in the paper from the untransformed picture to each view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensordict import TensorDict
from torchrl.data import Composite

from worldmodels.keys import ACTION
from worldmodels.losses import nt_xent
from worldmodels.nn.projector import Projector
from worldmodels.objectives.two_views import ConditionalObjective, goal_stats


class EquiMod(ConditionalObjective):
    """An invariant and an equivariant NT-Xent, each on projections of its own.

    Args:
        spec: one row of the source.
        projector: factory ``projector(dim)``, called for each loss.
        temperature: tau of both losses.
        shared: see ``ConditionalObjective``.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        projector: Callable[[int], Projector],
        temperature: int | float = 0.1,
        **shared: Any,
    ) -> None:
        super().__init__(spec, projector=projector, has_last_norm=True, **shared)
        self.invariant_projector, self.temperature = projector(self.encoder.dim), temperature

    def loss(self, batch: TensorDict) -> TensorDict:
        """NT-Xent of both views' invariant projections, and of the second view's other one and its prediction."""
        first, second = self.pair(batch)
        prediction, goal = self.predict(first, batch[ACTION][:, 0]), self.projector(second)  # [B, P]
        alike = self.invariant_projector(first), self.invariant_projector(second)
        losses = {
            "invariant": nt_xent(*alike, temperature=self.temperature),
            "equivariant": nt_xent(prediction, goal, temperature=self.temperature),
        }
        return self.report(losses, first, **goal_stats(prediction, goal))
