"""Forward-backward representations: successor measures factored as F(phi(s), z, a) . B(s').

The measure that policy pi_z leaves behind is modelled as F B^T times the data's distribution, so Q for reward r is
F . z with z = E[r(s) B(s)]: inference is an average, without any inverse.

Paper: Touati and Ollivier, "Learning One Representation to Optimize All Rewards" (2021); layout, explicit state encoder
and loss scales as in TD-JEPA's comparison (sheet td_jepa, section 1.8).
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from agents.zero_shot import Transition, ZeroShotAgent, average, mean_direction
from worldmodels.core import Target
from worldmodels.keys import LOSS, OBSERVATION, POOLED, STAT
from worldmodels.losses import orthonormality
from worldmodels.nn.mlp import project


def measure_loss(forward: Tensor, backward: Tensor, target: Tensor, discount: Tensor) -> Tensor:
    """Squared Bellman residual of the successor measure.

    Args:
        forward: F(s, z, a), [K, B, d]; backward: B(s') [B, d]; target: the next step's measure, [B, B].
        discount: [B], zero where the episode terminated.

    Source: FB, Touati and Ollivier 2021, appendix; scaled as the released code: half the sum over members of the mean
    over pairs, minus the sum over members of the mean diagonal.
    """
    num = backward.shape[0]
    measure = forward.float() @ backward.T  # [K, B, B]
    residual = measure - discount[:, None] * target
    diagonal = residual.diagonal(dim1=1, dim2=2)  # [K, B]
    off_diagonal = (residual.square().sum() - diagonal.square().sum()) / (num * (num - 1))
    return 0.5 * off_diagonal - diagonal.mean(1).sum()


class FB(ZeroShotAgent):
    """Forward-backward agent: ``task_net`` is B, ``predictor`` is F. Goals are not whitened.

    Args:
        **scaffold: see ``ZeroShotAgent``.
    """

    def __init__(self, spec: Any, *, target: Any, **scaffold: Any) -> None:
        super().__init__(spec, target=target, **scaffold)
        self.task_target: Target = target(self.task_net)

    def representation_groups(self) -> dict[str, list[nn.Parameter]]:
        """F's side, with the state encoder, and B's side."""
        return {**self.critic_groups(), "task_net": self.task_parameters()}

    def representation_loss(self, batch: TensorDict) -> TensorDict:
        """Measure loss + lambda R(B(s'))."""
        step = self.transition(batch)
        # B reads next states, so it is through them that its encoder learns.
        backward = self.task_net(self.task_encoder(batch[OBSERVATION][:, 1])[POOLED])  # [B, d]
        losses = {"measure": self.bellman_residual(step, backward), "orthonormality_task": orthonormality(backward)}
        return TensorDict({LOSS: losses, STAT: {"latent_std": backward.detach().std(0).mean()}})

    def bellman_residual(self, step: Transition, backward: Tensor) -> Tensor:
        """Measure loss of F with ``backward`` = B(s') [B, d]."""
        with torch.no_grad():
            next_state = self.state_target(step.next_x)
            future = self.next_successor(step, next_state)
            target = future @ self.task_target(step.next_task_x).T  # [B, B]
        forward = self.predictor(self.state_net(step.x), step.z, step.action)  # [K, B, d]
        self.track_second_moment(backward.detach())
        return measure_loss(forward, backward, target, step.discount)

    def task_from_reward(self, features: Tensor, reward: Tensor, weight: Tensor | None = None) -> Tensor:
        """E[r B], without inverse covariance."""
        return average(features, reward, weight)

    def task_from_goal(self, features: Tensor, goal: Tensor) -> Tensor:
        """B of the goal."""
        return project(goal)

    def task_from_demonstration(self, shown: Tensor) -> Tensor:
        """Mean B of the states shown."""
        return mean_direction(shown)
