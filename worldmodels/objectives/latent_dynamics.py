"""A latent model of what actions do, to plan with: predicts several steps ahead in latent space, without decoder.

The model unrolls h_0 = f(s_0), h_{t+1} = P(h_t, a_t) against the target encoder's f^-(s_t). Variance and covariance
terms keep latents from collapsing. An inverse model tells the action that leads from here towards a later state; its
gradient reaches the encoder, and it is the planner's control without search.

Source: Sobal et al., "Learning from Reward-Free Offline Data: A Case for Planning with Latent Dynamics Models" (PLDM,
arXiv 2502.14819). Differs: targets follow by moving average; the inverse model looks at a future of the trajectory,
not at the next state alone; there is no term for slowness; P is an ensemble.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Encoder, Objective, Phase, Target
from worldmodels.keys import ACTION, FUTURE, LOSS, OBSERVATION, POOLED, STAT
from worldmodels.losses import decorrelation, deviation_hinge
from worldmodels.nn.mlp import MLP
from worldmodels.objectives.two_views import rows, spread
from worldmodels.predictors.dynamics import LatentDynamics


class LatentDynamicsModel(Objective):
    """Predicts latents under actions.

    Batches need "future" (``envs.relabel.Futures``).

    Args:
        spec: one step; needs observation and action.
        encoder: perception, a factory or a module shared with other objectives.
        net: factory of the latent map on top, ``net(in_dim)``.
        dynamics: factory of P, ``dynamics(latent_dim, action_dim)``.
        target: factory of the target of ``net``.
        horizon: H, steps predicted, at least 1.
        width, depth: of the inverse model.

    Raises:
        ValueError: if there is no step to predict.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        net: Callable[[int], Any],
        dynamics: Callable[[int, int], LatentDynamics],
        target: Callable[[nn.Module], Target],
        horizon: int,
        width: int,
        depth: int,
    ) -> None:
        super().__init__()
        if horizon < 1:
            raise ValueError(f"objective.horizon={horizon}: at least one step is predicted")
        self.window = horizon + 1
        self.encoder = encoder if isinstance(encoder, nn.Module) else encoder(spec)
        self.net = net(self.encoder.dim)
        action_dim = spec[ACTION].shape[-1]
        self.dynamics = dynamics(self.net.dim, action_dim)
        self.inverse = MLP(2 * self.net.dim, action_dim, width=width, depth=depth)
        self.target = target(self.net)

    def phases(self) -> tuple[Phase, ...]:
        """A single one."""
        online = [*self.encoder.parameters(), *self.net.parameters()]
        models = {"dynamics": list(self.dynamics.parameters()), "inverse": list(self.inverse.parameters())}
        return (Phase("latent_dynamics", self.loss, {"latent_net": online, **models}),)

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Move running statistics."""
        self.encoder.observe(batch[OBSERVATION][:, 0])
        return batch

    def loss(self, batch: TensorDict) -> TensorDict:
        """Mean over members, steps t = 1 .. H and dimensions of (h_t - f^-(s_t))^2; VICReg's terms; inverse model."""
        seen = self.encoder(rows(batch[OBSERVATION], slice(None)))[POOLED]  # [B (H + 1), X]
        latent = self.net(seen)  # [B (H + 1), D]
        first = latent.unflatten(0, (-1, self.window))[:, 0]  # [B, D]
        goal = self.target(seen).unflatten(0, (-1, self.window))[:, 1:].transpose(0, 1)  # [H, B, D]
        reached = self.dynamics.rollout(first, batch[ACTION][:, :-1])  # [H, K, B, D]
        future = self.net(self.encoder(batch[FUTURE][OBSERVATION])[POOLED])  # [B, D]
        losses = {
            "prediction": (reached.float() - goal[:, None]).square().mean(),
            "variance": deviation_hinge(latent),
            "covariance": decorrelation(latent),
            "inverse": (self._towards(first, future).float() - batch[ACTION][:, 0]).square().mean(),
        }
        with torch.no_grad():
            still = (first - goal).square().mean()  # error of predicting that nothing moves
            stats = {"error_over_still": losses["prediction"] / still, **spread(latent)}
        return TensorDict({LOSS: losses, STAT: stats})

    def _towards(self, latent: Tensor, goal: Tensor) -> Tensor:
        return self.inverse(torch.cat([latent, goal], dim=-1))

    # --- what planners and evaluators ask for -----------------------------------------------------------------------
    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """Return "latent" [B, D]."""
        return TensorDict({"latent": self.net(self.encoder(obs)[POOLED])}, batch_size=obs.batch_size)

    def imagine(self, latent: Tensor, actions: Tensor) -> Tensor:
        """See ``core.Dynamics``; differentiable in the actions."""
        return self.dynamics.imagine(latent, actions)

    @torch.no_grad()
    def towards(self, latent: Tensor, goal: Tensor) -> Tensor:
        """Actions [B, A], within [-1, 1], from latents [B, D] towards those of goals [B, D]."""
        return self._towards(latent, goal).clamp(-1, 1)
