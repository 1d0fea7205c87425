"""TD-JEPA: latent-predictive representations for zero-shot RL, learned by temporal differences.

Two encoders predict each other's future under every policy pi_z. T_phi maps the state latent phi(s) to the discounted
sum of future task latents psi; T_psi maps psi(s) to that of future state latents phi. T_phi is at once the successor
features of psi: the value of task z is T_phi . z, which trains the actor and needs no reward.

Paper: Bagatella et al., TD-JEPA (arXiv 2510.00739, ICLR 2026). Differs: the predictor's weights get no gradient in the
actor phase (the released code computes and discards them), and inference by least squares is rank-safe. Where the paper
and its code disagree we follow the code: no factor 1/2 in the TD loss.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F

from agents.zero_shot import ZeroShotAgent, regress
from worldmodels.keys import LOSS, STAT
from worldmodels.losses import orthonormality
from worldmodels.predictors.successor import latent_td_loss, successor_target
from worldmodels.targets import EMA


def health(prediction: Tensor, target: Tensor, features: Tensor) -> dict[str, Tensor]:
    """What shows a collapse: cosine of ``prediction`` [K, B, D] to ``target`` [B, D], spread of target and latent."""
    with torch.no_grad():
        return {
            "cosine": F.cosine_similarity(prediction.mean(0), target, dim=-1).mean(),
            "target_variance": target.var(0).mean(),
            "latent_std": features.std(0).mean(),
        }


class TDJEPA(ZeroShotAgent):
    """The asymmetric agent: a state encoder phi and a task encoder psi.

    Args:
        task_predictor: factory of T_psi, ``task_predictor(task_dim, task_dim, action_dim, state_dim)``.
        **scaffold: see ``ZeroShotAgent``; its ``predictor`` is T_phi.
    """

    def __init__(self, spec: Any, *, task_predictor: Any, target: Any, **scaffold: Any) -> None:
        super().__init__(spec, target=target, **scaffold)
        self.task_predictor = task_predictor(self.task_dim, self.task_dim, self.action_dim, self.state_net.dim)
        self.task_target: EMA = target(self.task_net)
        self.task_predictor_target: EMA = target(self.task_predictor)

    def representation_groups(self) -> dict[str, list[nn.Parameter]]:
        """Phi with its encoder, psi with its own, and the two predictors."""
        return {
            **self.critic_groups(),
            "task_net": self.task_parameters(),
            "task_predictor": list(self.task_predictor.parameters()),
        }

    def representation_loss(self, batch: TensorDict) -> TensorDict:
        """L_phi + L_psi + lambda_phi R(phi) + lambda_psi R(psi) (eq. 6-8)."""
        step = self.transition(batch)
        with torch.no_grad():
            next_state = self.state_target(step.next_x)  # phi^-(s') [B, L]
            next_task = self.task_target(step.next_task_x)  # psi^-(s') [B, d]
            action = self.next_action(step, next_state)
            # Crossed on purpose: T_phi predicts psi, T_psi predicts phi.
            future_task = self.bootstrap(self.predictor_target, next_state, step, action)
            future_state = self.bootstrap(self.task_predictor_target, next_task, step, action)
            target_task = successor_target(next_task, future_task, step.discount)  # y_phi [B, d]
            target_state = successor_target(next_state, future_state, step.discount)  # y_psi [B, L]

        state, task = self.state_net(step.x), self.task_net(step.task_x)  # phi(s) [B, L], psi(s) [B, d]
        prediction = self.predictor(state, step.z, step.action)  # [K, B, d]
        losses = {
            "td_state": latent_td_loss(prediction, target_task),
            "td_task": latent_td_loss(self.task_predictor(task, step.z, step.action), target_state),
            "orthonormality_state": orthonormality(state),
            "orthonormality_task": orthonormality(task),
        }
        self.track_second_moment(task.detach())
        return TensorDict({LOSS: losses, STAT: health(prediction, target_task, task)})

    def task_from_reward(self, features: Tensor, reward: Tensor, weight: Tensor | None = None) -> Tensor:
        """Least squares in psi."""
        return regress(features, reward, weight)


class SymmetricTDJEPA(ZeroShotAgent):
    """The symmetric agent: one encoder is both phi and psi, one predictor, one loss.

    Args:
        task_net: factory of that encoder: the paper gives it the task encoder's layout.
        task_encoder, state_net: there are none; None.
        **scaffold: see ``ZeroShotAgent``.
    """

    def __init__(
        self, spec: Any, *, task_net: Any, task_encoder: Any = None, state_net: Any = None, **scaffold: Any
    ) -> None:
        for name, given in {"task_encoder": task_encoder, "state_net": state_net}.items():
            if given is not None:
                kind = type(self).__name__
                raise ValueError(f"{kind} has a single encoder with task_net on top: agent.{name} must be null")
        super().__init__(spec, task_encoder=None, task_net=task_net, state_net=task_net, **scaffold)
        del self.task_net

    def task_features(self, task_x: Tensor) -> Tensor:
        """Phi is psi."""
        return self.state_net(task_x)

    def representation_groups(self) -> dict[str, list[nn.Parameter]]:
        """The encoder and the predictor."""
        return self.critic_groups()

    def representation_loss(self, batch: TensorDict) -> TensorDict:
        """|| T(phi(s), z, a) - phi^-(s') - gamma T^- ||^2 + lambda R(phi)."""
        step = self.transition(batch)
        with torch.no_grad():
            next_state = self.state_target(step.next_x)  # [B, d]
            future = self.next_successor(step, next_state)
            target = successor_target(next_state, future, step.discount)  # [B, d]
        state = self.state_net(step.x)  # [B, d]
        prediction = self.predictor(state, step.z, step.action)  # [K, B, d]
        losses = {"td_state": latent_td_loss(prediction, target), "orthonormality_state": orthonormality(state)}
        self.track_second_moment(state.detach())
        return TensorDict({LOSS: losses, STAT: health(prediction, target, state)})

    def task_from_reward(self, features: Tensor, reward: Tensor, weight: Tensor | None = None) -> Tensor:
        """Least squares in phi."""
        return regress(features, reward, weight)
