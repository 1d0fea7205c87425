"""One-step latent prediction (BYOL style): the plainest JEPA on transitions, and the least an objective can be.

A predictor maps (latent of s, action) to the target encoder's latent of s'; the orthonormality regulariser keeps the
latent from collapsing. It is the representation loss of BYOL* in TD-JEPA's comparison (sheet td_jepa, section 1.8).

Sources: Grill et al. 2020 (BYOL); Guo et al. 2022 (BYOL-Explore); TD-JEPA (arXiv 2510.00739), baseline BYOL*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Composite

from worldmodels.core import Encoder, Objective, Phase, Target
from worldmodels.keys import ACTION, LOSS, OBSERVATION, POOLED, STAT
from worldmodels.losses import orthonormality
from worldmodels.nn.mlp import MLP


class LatentPrediction(Objective):
    """Predicts the next latent from this one and the action.

    Args:
        spec: one step; needs observation and action.
        encoder: perception, a factory or a module shared with other objectives.
        net: factory of the latent map on top, ``net(in_dim)``.
        target: factory of its target.
        width, depth: of the predictor; num_members: of its ensemble.
    """

    window = 2

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        net: Callable[..., Any],
        target: Callable[[nn.Module], Target],
        width: int,
        depth: int,
        num_members: int = 2,
    ) -> None:
        super().__init__()
        self.encoder = encoder if isinstance(encoder, nn.Module) else encoder(spec)
        self.net = net(self.encoder.dim)
        in_dim = self.net.dim + spec[ACTION].shape[-1]
        self.predictor = MLP(in_dim, self.net.dim, width=width, depth=depth, num_members=num_members)
        self.target = target(self.net)

    def phases(self) -> tuple[Phase, ...]:
        """A single one."""
        online = [*self.encoder.parameters(), *self.net.parameters()]
        params = {"latent_net": online, "latent_predictor": list(self.predictor.parameters())}
        return (Phase("latent_prediction", self.loss, params),)

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Move running statistics."""
        self.encoder.observe(batch[OBSERVATION][:, 0])
        return batch

    def loss(self, batch: TensorDict) -> TensorDict:
        """Regress: mean || P(f(s), a) - f^-(s') ||^2 over members and dimensions, + lambda R(f(s))."""
        latent = self.net(self.encoder(batch[OBSERVATION][:, 0])[POOLED])  # [B, D]
        with torch.no_grad():
            goal = self.target(self.encoder(batch[OBSERVATION][:, 1])[POOLED])  # [B, D]
        prediction = self.predictor(torch.cat([latent, batch[ACTION][:, 0]], dim=-1))  # [K, B, D]
        losses = {
            "prediction": (prediction.float() - goal).square().mean(),
            "orthonormality_latent": orthonormality(latent),
        }
        return TensorDict({LOSS: losses, STAT: {"prediction_target_variance": goal.var(0).mean()}})

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """Return "latent" [B, D]."""
        return TensorDict({"latent": self.net(self.encoder(obs)[POOLED])}, batch_size=obs.batch_size)
