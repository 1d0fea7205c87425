"""Demonstrations in the toy box: a point goes to one of five goals, which it sees. For tests of imitation.

Episodes end at the goal, so their lengths differ and windows are padded. It takes what ``envs.toy.Toy`` takes, so that
``env=toy env.source._target_=tests.reaching.Reaching`` composes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Categorical, Unbounded

from envs.demonstrations import Demonstration, Demonstrations
from envs.toy import ToyEnv, ToyTasks
from worldmodels.keys import ENVIRONMENT_STATE, OBSERVATION, STATE, TASK_INDEX

RADIUS, SPEED = 0.25, 0.1


class Reaching(Demonstrations):
    """Straight ways to goals.

    Args:
        device: of batches.
        trajectories: demonstrations of each part.
        steps: at most so many in each.
        seed: of start states.
        action_chunk: must be 1.
        labelled_share: see ``Demonstrations``.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        trajectories: int = 100,
        steps: int = 50,
        seed: int = 0,
        action_chunk: int = 1,
        labelled_share: int | float = 1.0,
    ) -> None:
        assert action_chunk == 1
        seen = {
            STATE: Unbounded((2,), device=device),
            ENVIRONMENT_STATE: Unbounded((2,), device=device),
            TASK_INDEX: Categorical(5, shape=(), dtype=torch.int64, device=device),
        }
        super().__init__(seen, 2, device=device, labelled_share=labelled_share, seed=seed)
        self.num, self.steps, self.seed = trajectories, steps, seed
        self.tasks = ReachingTasks(self.device)
        self.use("train")

    def read(self, part: str) -> list[Demonstration]:
        """Other starts in other parts."""
        generator = np.random.default_rng([self.seed, part == "test"])
        return [self._way(number % 5, generator.uniform(-1, 1, 2)) for number in range(self.num)]

    def _way(self, task: int, state: np.ndarray) -> Demonstration:
        goal, states, actions, has_arrived = np.array(self.tasks.places[task]), [], [], False
        while not has_arrived and len(states) < self.steps:
            has_arrived = np.linalg.norm(goal - state) <= RADIUS  # judged before the step, as in the toy
            states.append(state)
            actions.append(np.clip((goal - state) / SPEED, -1, 1))
            state = np.clip(state + SPEED * actions[-1], -1, 1)
        num = len(states)
        seen = {
            STATE: np.stack(states).astype(np.float32),
            ENVIRONMENT_STATE: np.tile(goal.astype(np.float32), (num, 1)),
            TASK_INDEX: np.full(num, task),
        }
        return Demonstration(seen, np.stack(actions).astype(np.float32), bool(has_arrived))


class ReachingTasks(ToyTasks):
    """Go to the goal that is seen."""

    @property
    def places(self) -> list[tuple[float, float]]:
        """Goals, in the order of tasks."""
        return [self._goal(name) for name in self.names]

    def make(self, task: str, **options: Any) -> Any:
        """Environments of one task."""
        chosen = {"num_envs": options["num_envs"], "seed": options["seed"], "max_steps": options.get("max_steps")}
        return ReachingEnv(list(self.names).index(task), self._goal(task), **chosen, device=self._device)


class ReachingEnv(ToyEnv):
    """Observations as in the data."""

    def __init__(self, index: int, goal: tuple[float, float], **options: Any) -> None:
        super().__init__(goal, **options)
        self._index = index

    def _row(self, reward: Tensor, success: Tensor) -> TensorDict:
        out, num = super()._row(reward, success), self.num_envs
        observation = out[OBSERVATION].copy()
        observation[ENVIRONMENT_STATE] = torch.tensor(self._goal, device=self._device).expand(num, -1)
        observation[TASK_INDEX] = torch.full((num,), self._index, device=self._device)
        return out.set(OBSERVATION, observation)
