"""RLDP: forward-backward representations whose B is learned by predicting latents several steps ahead.

B unrolls a latent model, h_0 = B(s), h_{t+1} = P(h_t, a_t), against B^-(s_t); the measure loss trains F alone, with B
detached. Inference is that of FB.

Source: RLDP, "regularized latent dynamics prediction", as in TD-JEPA's comparison (sheet td_jepa, section 1.8). Differs
from its code: the horizon is used (pitfall 16: there it stays at one step). Its text does not say which states are
regularised: here s, where B has a gradient anyway.

A window has ``horizon`` + 1 rows of the store. With ``env.action_chunk`` = h, rows lie h steps apart and an action is a
chunk of h: the horizon is then ``horizon`` * h steps. Transitions within the last ``horizon`` - 1 rows of a trajectory
begin no window, so they are trained on only as what is predicted.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from agents.fb import FB
from agents.zero_shot import Transition
from worldmodels.keys import ACTION, LOSS, OBSERVATION, POOLED, STAT
from worldmodels.losses import orthonormality
from worldmodels.predictors.dynamics import LatentDynamics


class RLDP(FB):
    """Forward-backward agent with a latent-predictive B.

    Args:
        dynamics: factory of P, ``dynamics(task_dim, action_dim)``.
        horizon: H, latent steps predicted, at least 1.
        **scaffold: see ``ZeroShotAgent``.
    """

    def __init__(self, spec: Any, *, dynamics: Any, horizon: int = 5, **scaffold: Any) -> None:
        super().__init__(spec, **scaffold)
        if horizon < 1:
            raise ValueError(f"RLDP predicts at least one step ahead; got horizon={horizon}")
        self.horizon, self.window = horizon, horizon + 1
        self.dynamics: LatentDynamics = dynamics(self.task_dim, self.action_dim)

    def representation_groups(self) -> dict[str, list[nn.Parameter]]:
        """Those of FB, and the latent model."""
        return {**super().representation_groups(), "dynamics": list(self.dynamics.parameters())}

    def representation_loss(self, batch: TensorDict) -> TensorDict:
        """Measure loss of F + latent loss of B and P + lambda R(B(s))."""
        step = self.transition(batch)
        with torch.no_grad():
            backward = self.task_net(step.next_task_x)  # [B, d]
        task = self.task_net(step.task_x)  # B(s) [B, d]
        losses = {
            "measure": self.bellman_residual(step, backward),
            "latent": self.latent_loss(task, batch, step),
            "orthonormality_task": orthonormality(task),
        }
        return TensorDict({LOSS: losses, STAT: {"latent_std": backward.std(0).mean()}})

    def latent_loss(self, task: Tensor, batch: TensorDict, step: Transition) -> Tensor:
        """Mean over members, samples and t = 1 .. H of || h_t - B^-(s_t) ||^2, with h_0 = ``task`` [B, d]."""
        rows = batch[OBSERVATION]
        with torch.no_grad():
            later = [self.task_encoder(rows[:, t])[POOLED] for t in range(2, self.window)]
            target = self.task_target(torch.stack([step.next_task_x, *later]))  # [H, B, d]
        latent = self.dynamics.rollout(task, batch[ACTION][:, : self.horizon])  # [H, K, B, d]
        return (latent.float() - target[:, None]).square().sum(-1).mean()

    def imagine(self, latent: Tensor, actions: Tensor) -> Tensor:
        """See ``core.Dynamics``: of B, "task"; differentiable in the actions."""
        return self.dynamics.imagine(latent, actions)
