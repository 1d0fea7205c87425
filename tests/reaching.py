"""Demonstrations in the toy box: a point goes to one of five goals, which it sees. For tests of imitation.

Episodes end at the goal, so their lengths differ and windows are padded. It takes what ``envs.toy.Toy`` takes, so that
``env=toy env.source._target_=tests.reaching.Reaching`` composes.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Categorical, Unbounded

from envs.episodes import StoredEpisodes
from envs.toy import ToyEnv, ToyTasks, move
from worldmodels.keys import (
    ACTION,
    ENVIRONMENT_STATE,
    HAS_ACTION,
    OBSERVATION,
    STATE,
    TASK_INDEX,
    TERMINATED,
)

RADIUS = 0.25


class Reaching(StoredEpisodes):
    """Straight ways to goals.

    Args:
        device: of batches.
        trajectories: demonstrations.
        steps: at most so many in each.
        seed: of start states; the test part has another.
        action_chunk: steps that an action decides.
        labelled_share: of demonstrations whose actions are known.
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
        device = torch.device(device)
        seen = {
            STATE: Unbounded((2,), device=device),
            ENVIRONMENT_STATE: Unbounded((2,), device=device),
            TASK_INDEX: Categorical(5, shape=(), dtype=torch.int64, device=device),
        }
        super().__init__(seen, 2, device=device, action_chunk=action_chunk, is_padded=True)
        self._choices = {"trajectories": trajectories, "steps": steps, "action_chunk": action_chunk}
        self.seed, self.tasks = seed, ReachingTasks(self.device)
        generator, rows, ends = Generator().manual_seed(seed), [], []
        for number in range(trajectories):
            task = number % 5
            goal = torch.tensor(self.tasks.places[task], dtype=torch.float32)
            state = torch.rand(2, generator=generator) * 2 - 1
            has_action = bool(torch.rand((), generator=generator) < labelled_share)
            for step in range(steps):
                action = ((goal - state) / 0.1).clamp(-1, 1)
                has_arrived = bool((goal - state).norm() <= RADIUS)
                observation = {STATE: state, ENVIRONMENT_STATE: goal, TASK_INDEX: torch.tensor(task)}
                flags = {TERMINATED: torch.tensor(has_arrived), HAS_ACTION: torch.tensor(has_action)}
                rows.append(TensorDict({OBSERVATION: observation, ACTION: action, **flags}))
                ends.append(has_arrived or step == steps - 1)
                if has_arrived:
                    break
                state = move(state, action)
        self.rows: Any = torch.stack(rows)
        self.keep(self.rows.to(self.device), torch.tensor(ends))

    def split(self, part: str) -> Reaching:
        """Other demonstrations of the same tasks."""
        assert part == "test"
        return Reaching(device=self.device, **self._choices, seed=self.seed + 1)

    def statistics(self) -> TensorDict:
        """Mean and standard deviation of states and actions."""
        leaves = {name: self.rows[OBSERVATION, name] for name in (STATE, ENVIRONMENT_STATE)}
        leaves[ACTION] = self.rows[ACTION]
        mean = {name: leaf.mean(0) for name, leaf in leaves.items()}
        std = {name: leaf.std(0).clamp(min=1e-2) for name, leaf in leaves.items()}
        return TensorDict({"mean": mean, "std": std}).to(self.device)

    def physics_at(self, rows: Tensor) -> None:
        """Not told."""


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
