"""HILP: features in which distance is the time between states, learned as a goal-conditioned value function.

V(s, g) = -||f(s) - f(g)|| is trained by expectile regression on -1 per step until the goal; psi = f centred. The
successor features of psi then act for any reward, as in ``agents.sf``.

Paper: Park, Kreiman and Levine, "Foundation Policies with Hilbert Representations" (2024); layout and constants as in
TD-JEPA's comparison (sheet td_jepa, section 1.8). Needs goals from the same trajectory: ``relabel`` in its config.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from agents.sf import RandomSF
from agents.zero_shot import Transition
from worldmodels.core import Target
from worldmodels.keys import FUTURE, NOISE, OBSERVATION, POOLED
from worldmodels.losses import expectile


def temporal_value(state: Tensor, goal: Tensor) -> Tensor:
    """-||state - goal|| over the last dimension, kept away from zero where its gradient is undefined."""
    return -(state - goal).square().sum(-1).clamp(min=1e-6).sqrt()


class HILP(RandomSF):
    """Successor features of Hilbert features.

    Args:
        random_goal_ratio: share of goals that are states of other trajectories; the rest lie in the same one's future.
        expectile: tau of the value regression.
        center_rate: of the running mean of f that is subtracted from the features.
        **scaffold: see ``ZeroShotAgent``; ``task_net`` builds each of the two feature nets and must not be normalised.
    """

    def __init__(
        self,
        spec: Any,
        *,
        target: Any,
        task_net: Any,
        random_goal_ratio: float = 0.375,
        expectile: float = 0.5,
        center_rate: float = 0.005,
        **scaffold: Any,
    ) -> None:
        super().__init__(spec, target=target, task_net=task_net, **scaffold)
        if self.task_net.is_normalized:
            raise ValueError("HILP measures distances between features: task_net needs is_normalized=false")
        self.random_goal_ratio, self.expectile, self.center_rate = random_goal_ratio, expectile, center_rate
        self.second_net = task_net(self.task_encoder.dim)
        self.task_target: Target = target(self.task_net)
        self.second_target: Target = target(self.second_net)
        self.register_buffer("center", torch.zeros(self.task_dim))

    def task_features(self, task_x: Tensor) -> Tensor:
        """Centred features of the first net."""
        return self.task_net(task_x) - self.center

    def feature_groups(self) -> dict[str, list[nn.Parameter]]:
        """Both feature nets, with their encoder."""
        return {"task_net": [*self.task_parameters(), *self.second_net.parameters()]}

    def draw_noise(self, batch: TensorDict, generator: torch.Generator) -> TensorDict:
        """Also draw which goals are random and which states they are."""
        batch = super().draw_noise(batch, generator)
        num, like = batch.shape[0], {"generator": generator, "device": batch.device or batch[NOISE, "action"].device}
        extra = {
            "is_random_goal": torch.rand(num, **like) < self.random_goal_ratio,
            "random_goal": torch.randperm(num, **like),
        }
        return batch.set(NOISE, batch[NOISE].copy().update(extra))

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Also put random states of the batch in the place of some futures: the goals of this update."""
        batch, noise = super().prepare(batch), batch[NOISE]
        random_goal = batch[OBSERVATION][:, 1][noise["random_goal"]]
        goal = random_goal.where(noise["is_random_goal"], batch[FUTURE][OBSERVATION])
        return batch.set(FUTURE, TensorDict({OBSERVATION: goal}, batch_size=batch.batch_size))

    def feature_losses(self, batch: TensorDict, step: Transition) -> dict[str, Tensor]:
        """Expectile regression of V(s, g) on r + gamma V^-(s', g), with r = -1 until the goal is reached."""
        goal = self.task_encoder(batch[FUTURE][OBSERVATION])[POOLED].detach()  # [B, X]
        is_goal = (step.task_x == goal).all(-1)  # [B]; exact equality of states
        reward, mask = is_goal.float() - 1, (~is_goal).float()

        with torch.no_grad():
            pairs = [(self.task_target, self.task_net), (self.second_target, self.second_net)]
            next_values = [temporal_value(t(step.next_task_x), t(goal)) for t, _ in pairs]
            values = [temporal_value(t(step.task_x), t(goal)) for t, _ in pairs]
            pessimistic = reward + self.discount * mask * torch.minimum(*next_values)
            advantage = pessimistic - torch.stack(values).mean(0)
            targets = [reward + self.discount * mask * v for v in next_values]
            features = self.task_net(step.task_x)
            self.center.lerp_(features.float().mean(0), self.center_rate)
        loss = sum(
            expectile(target - temporal_value(net(step.task_x), net(goal)), self.expectile, advantage).mean()
            for target, (_, net) in zip(targets, pairs, strict=True)
        )
        return {"hilbert": loss}
