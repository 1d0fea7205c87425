"""SimCLR: two views of a sample must find each other among the views of other samples.

Paper: Chen et al. 2020 (arXiv 2002.05709). Sizes as in seq-JEPA's comparison (sheet seq_jepa, 1.8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensordict import TensorDict
from torchrl.data import Composite

from worldmodels.losses import nt_xent
from worldmodels.nn.projector import Projector
from worldmodels.objectives.two_views import ViewObjective


class SimCLR(ViewObjective):
    """Contrasts projected latents.

    Args:
        spec: one row of the source.
        projector: factory ``projector(dim)``.
        temperature: tau.
        shared: encoder and views, see ``ViewObjective``.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        projector: Callable[[int], Projector],
        temperature: int | float = 0.5,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        self.projector, self.temperature = projector(self.encoder.dim), temperature

    def loss(self, batch: TensorDict) -> TensorDict:
        """NT-Xent of both views' projections."""
        first, second = self.pair(batch)
        contrast = nt_xent(self.projector(first), self.projector(second), temperature=self.temperature)
        return self.report({"contrast": contrast}, first)
