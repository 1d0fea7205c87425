"""Contrastive symmetric TD-JEPA: one encoder phi, trained by FB's measure loss instead of the latent TD loss.

T(phi(s), z, a) . phi(s') models the successor measure of pi_z, so phi is state encoder and backward map at once: FB
with F = T and B = phi, or TD-JEPA that contrasts instead of regressing.

Paper: Bagatella et al., TD-JEPA (arXiv 2510.00739), ablation; no released code. The sheet (td_jepa, section 1.3) gives
the loss alone. By the measure's theory rewards are averaged, as in FB, and goals are not whitened.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.fb import measure_loss
from agents.td_jepa import SymmetricTDJEPA
from agents.zero_shot import average, mean_direction
from worldmodels.keys import LOSS, OBSERVATION, POOLED, STAT
from worldmodels.losses import orthonormality
from worldmodels.nn.mlp import project


class ContrastiveTDJEPA(SymmetricTDJEPA):
    """Symmetric agent with the measure loss."""

    def representation_loss(self, batch: TensorDict) -> TensorDict:
        """Measure loss with F = T(phi(s), z, a) and B = phi(s'), + lambda R(phi(s))."""
        step = self.transition(batch)
        with torch.no_grad():
            next_state = self.state_target(step.next_x)  # [B, d]
            future = self.next_successor(step, next_state)
            target = future @ next_state.T  # [B, B]
        state = self.state_net(step.x)  # phi(s) [B, d]
        arrived = self.state_net(self.encoder(batch[OBSERVATION][:, 1])[POOLED])  # phi(s'), with gradient [B, d]
        prediction = self.predictor(state, step.z, step.action)  # [K, B, d]
        losses = {
            "measure": measure_loss(prediction, arrived, target, step.discount),
            "orthonormality_state": orthonormality(state),
        }
        self.track_second_moment(state.detach())
        return TensorDict({LOSS: losses, STAT: {"latent_std": state.detach().std(0).mean()}})

    def task_from_reward(self, features: Tensor, reward: Tensor, weight: Tensor | None = None) -> Tensor:
        """E[r phi], without inverse covariance."""
        return average(features, reward, weight)

    def task_from_goal(self, features: Tensor, goal: Tensor) -> Tensor:
        """Phi of the goal."""
        return project(goal)

    def task_from_demonstration(self, shown: Tensor) -> Tensor:
        """Mean phi of the states shown."""
        return mean_direction(shown)
