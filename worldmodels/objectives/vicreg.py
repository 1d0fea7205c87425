"""VICReg: projections of two views are alike, every dimension varies, and no two dimensions vary together.

Paper: Bardes et al. 2022 (arXiv 2105.04906). As in its released code, invariance is a mean over dimensions and variance
the mean of both views' (the paper sums both); weights are chosen for that. Sizes: sheet seq_jepa, 1.8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensordict import TensorDict
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.losses import decorrelation, deviation_hinge
from worldmodels.nn.projector import Projector
from worldmodels.objectives.two_views import ViewObjective


class VICReg(ViewObjective):
    """Variance, invariance and covariance of projected latents.

    Args:
        spec: one row of the source.
        projector: factory ``projector(dim)``.
        shared: encoder and views, see ``ViewObjective``.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        projector: Callable[[int], Projector],
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        self.projector = projector(self.encoder.dim)

    def loss(self, batch: TensorDict) -> TensorDict:
        """The three terms, unweighted."""
        latent, other = self.pair(batch)
        first, second = self.projector(latent).float(), self.projector(other).float()  # [B, P]
        losses = {
            "invariance": F.mse_loss(first, second),
            "variance": (deviation_hinge(first) + deviation_hinge(second)) / 2,
            "covariance": decorrelation(first) + decorrelation(second),
        }
        return self.report(losses, latent)
