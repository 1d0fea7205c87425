"""Successor features of features that something else learns; without such a loss, of fixed random ones.

F(phi(s), z, a) regresses on psi(s') + gamma F^-: a linear reward in psi has value F . z. Random features (``agent=sf``)
are the plainest control; Laplacian, BYOL*, HILP and ICVF* add a loss of psi.

Source: Barreto et al. 2017; Borsa et al. 2019 (universal successor features); layout and scales as in TD-JEPA's
comparison (sheet td_jepa, section 1.8). Differs from its text, as its code does: psi(s') is the online network.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from agents.td_jepa import health
from agents.zero_shot import Transition, ZeroShotAgent, regress
from worldmodels.keys import LOSS, STAT
from worldmodels.predictors.successor import successor_target


class SuccessorFeatures(ZeroShotAgent):
    """Successor features of psi; subclasses add ``feature_losses`` to learn it, or leave it random."""

    def feature_losses(self, batch: TensorDict, step: Transition, state: Tensor) -> dict[str, Tensor]:
        """Named losses of psi, none for random features; ``state`` is phi(s) [B, L] with gradient."""
        return {}

    def feature_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that ``feature_losses`` trains."""
        return {}

    def representation_groups(self) -> dict[str, list[nn.Parameter]]:
        """The critic's networks and, in subclasses, those of the features."""
        return {**self.critic_groups(), **self.feature_groups()}

    def representation_loss(self, batch: TensorDict) -> TensorDict:
        """K/2 mean (F - psi(s') - gamma F^-)^2 + feature losses."""
        step = self.transition(batch)
        with torch.no_grad():
            features = self.task_features(step.next_task_x)  # psi(s') [B, d]
            next_state = self.state_target(step.next_x)
            future = self.next_successor(step, next_state)
            target = successor_target(features, future, step.discount)
        state = self.state_net(step.x)  # [B, L]
        prediction = self.predictor(state, step.z, step.action)  # [K, B, d]
        regression = 0.5 * (prediction.float() - target).square().mean((1, 2)).sum()
        self.track_second_moment(features)
        losses = {"successor": regression, **self.feature_losses(batch, step, state)}
        return TensorDict({LOSS: losses, STAT: health(prediction.detach(), target, features)})

    def task_from_reward(self, features: Tensor, reward: Tensor, weight: Tensor | None = None) -> Tensor:
        """Least squares in psi."""
        return regress(features, reward, weight)
