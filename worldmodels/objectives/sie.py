"""SIE: one half of the latent is invariant, the other moves with the action as a linear map that the action chooses.

Paper: Garrido et al. 2023, Self-supervised learning of split invariant equivariant representations (arXiv 2302.10283),
with the sizes and weights of seq-JEPA's comparison (sheet seq_jepa, 1.8). Terms are those of VICReg; both halves are
decorrelated together, and the variance of predictions is kept up, too, because the chosen map may shrink it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.keys import ACTION
from worldmodels.losses import decorrelation, deviation_hinge
from worldmodels.nn.projector import Projector
from worldmodels.objectives.two_views import ViewObjective, goal_stats, last_row
from worldmodels.predictors.hypernetwork import ActionMap


class SIE(ViewObjective):
    """Splits the latent in an invariant and an equivariant half.

    Args:
        spec: one row of the source.
        projector: factory ``projector(dim)``, called for each half.
        shared: encoder and views, see ``ViewObjective``.

    Raises:
        ValueError: if the encoder's width is odd.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        projector: Callable[[int], Projector],
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        if self.encoder.dim % 2:
            raise ValueError(f"SIE halves the latent: the encoder's width, {self.encoder.dim}, must be even")
        self.invariant_projector, self.projector = (projector(self.encoder.dim // 2) for _ in range(2))
        self.predictor = ActionMap(self.projector.dim, self.action_dim)

    def loss(self, batch: TensorDict) -> TensorDict:
        """The terms, unweighted."""
        latents = self.pair(batch)
        halves = [latent.chunk(2, -1) for latent in latents]
        (first, second), (start, goal) = (  # invariant and equivariant projections of both views, [B, P] each
            [net(half[i]).float() for half in halves]
            for i, net in enumerate((self.invariant_projector, self.projector))
        )
        prediction = self.predictor(start, batch[ACTION][:, 0]).float()
        whole = [torch.cat(parts, -1) for parts in ((first, start), (second, goal))]  # [B, 2 P]
        losses = {
            "invariance": F.mse_loss(first, second),
            "equivariance": F.mse_loss(prediction, goal),
            "variance": (deviation_hinge(whole[0]) + deviation_hinge(whole[1])) / 2,
            "variance_prediction": deviation_hinge(prediction) / 2,
            "covariance": decorrelation(whole[0]) + decorrelation(whole[1]),
        }
        return self.report(losses, latents[0], **goal_stats(prediction, goal))

    @torch.no_grad()
    def foresee(self, views: TensorDict) -> Tensor:
        """Predict the equivariant projection [B, P] of the view that the last action leads to."""
        obs, action = last_row(views)
        return self.predictor(self.anchor(obs), action)

    @torch.no_grad()
    def anchor(self, obs: TensorDict) -> Tensor:
        """The equivariant projection of single views [B]: [B, P]."""
        return self.projector(self.encode(obs).chunk(2, -1)[1])
