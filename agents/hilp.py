"""HILP: features in which distance is the time between states, learned as a goal-conditioned value function.

V(s, g) = -||f(s) - f(g)|| is trained by expectile regression on -1 per step until the goal; psi = f centred. The
successor features of psi then act for any reward, as in ``agents.sf``.

Paper: Park, Kreiman and Levine, "Foundation Policies with Hilbert Representations" (2024); layout and constants as in
TD-JEPA's comparison (sheet td_jepa, section 1.8). Needs goals from the same trajectory: ``relabel`` in its config.
A goal is pursued along N(f(g) - f(s)), recomputed at every decision (section 2).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn

from agents.goals import arrival, choose_goals, draw_goals, is_same
from agents.sf import SuccessorFeatures
from agents.zero_shot import Transition
from worldmodels.core import Target, TaskRule
from worldmodels.keys import FUTURE, NOISE, OBSERVATION, POOLED
from worldmodels.losses import expectile
from worldmodels.nn.mlp import project


def temporal_value(state: Tensor, goal: Tensor) -> Tensor:
    """-||state - goal|| over the last dimension, kept away from zero where its gradient is undefined."""
    return -(state - goal).square().sum(-1).clamp(min=1e-6).sqrt()


class HILP(SuccessorFeatures):
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

    def draw_noise(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Also draw which goals are random and which states they are."""
        batch = super().draw_noise(batch, generator)
        device = batch[NOISE, "action"].device
        drawn = {"goal": draw_goals(batch.shape[0], self.random_goal_ratio, generator, device)}
        return batch.set(NOISE, batch[NOISE].copy().update(drawn))

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Also put random states of the batch in the place of some futures: the goals of this update."""
        batch = super().prepare(batch)
        goal = choose_goals(batch, FUTURE, batch[NOISE, "goal"])
        return batch.set(FUTURE, TensorDict({OBSERVATION: goal}, batch_size=batch.batch_size))

    def feature_losses(self, batch: TensorDict, step: Transition, state: Tensor) -> dict[str, Tensor]:
        """Expectile regression of V(s, g) on r + gamma V^-(s', g), with r = -1 until the goal is reached."""
        goal_obs = batch[FUTURE][OBSERVATION]
        goal = self.task_encoder(goal_obs)[POOLED].detach()  # [B, X]
        is_goal = is_same(batch[OBSERVATION][:, 0], goal_obs)  # [B]
        with torch.no_grad():
            pairs = [(self.task_target, self.task_net), (self.second_target, self.second_net)]
            goals = [t(goal) for t, _ in pairs]  # [B, d] each
            next_values = [temporal_value(t(step.next_task_x), g) for (t, _), g in zip(pairs, goals, strict=True)]
            values = [temporal_value(t(step.task_x), g) for (t, _), g in zip(pairs, goals, strict=True)]
            pessimistic = arrival(is_goal, torch.minimum(*next_values), self.discount)
            advantage = pessimistic - torch.stack(values).mean(0)
            targets = [arrival(is_goal, v, self.discount) for v in next_values]
        embedded = [net(step.task_x) for _, net in pairs]  # f(s) [B, d] each
        loss = sum(
            expectile(target - temporal_value(here, net(goal)), self.expectile, advantage).mean()
            for target, here, (_, net) in zip(targets, embedded, pairs, strict=True)
        )
        with torch.no_grad():
            self.center.lerp_(embedded[0].float().mean(0), self.center_rate)
        return {"hilbert": loss}

    def task_from_goal(self, features: Tensor, goal: Tensor) -> TaskRule:
        """The direction to the goal from wherever the agent is."""
        return functools.partial(self.direction, goal)

    @torch.no_grad()
    def direction(self, goal: Tensor, obs: TensorDict) -> Tensor:
        """N(f(g) - f(s)) [B, d] for a goal with features [d] and observations [B]."""
        return project(goal - self.task_features(self.task_encoder(obs)[POOLED]))
