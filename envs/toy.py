"""A point in a box: data, tasks and environments in pure torch, so that whole runs and evaluations take milliseconds.

The point moves by 0.1 times the action within [-1, 1] x [-1, 1]. Everything is a function of seeds. It offers what
``envs.ogbench`` offers, and stands in for it wherever a test needs a benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from envs.episodes import StoredEpisodes
from envs.stepping import task_number
from envs.suite import Maze, plain_fields
from envs.vector import ALIVE, SUCCESS, TRUNCATED
from worldmodels.keys import ACTION, OBSERVATION, PHYSICS, REWARD, STATE, TERMINATED

_SPEED = 0.1
_RADIUS = 0.25  # of a goal
_GOALS = {"task1": (0.6, 0.6), "task2": (-0.6, 0.6), "task3": (-0.6, -0.6), "task4": (0.6, -0.6), "task5": (0.0, 0.0)}
_MAX_STEPS = 40


class Toy(StoredEpisodes):
    """Random walks of a point in a box.

    Args:
        device: of batches.
        trajectories: number of walks, at least 1.
        steps: transitions of each, at least 1.
        seed: of the walks.
        action_chunk: as in ``envs.ogbench``.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        trajectories: int = 100,
        steps: int = 50,
        seed: int = 0,
        action_chunk: int = 1,
    ) -> None:
        if min(trajectories, steps, action_chunk) < 1:
            raise ValueError(f"{trajectories=}, {steps=}, {action_chunk=}: at least one of each")
        super().__init__((2,), 2, device=device, action_chunk=action_chunk)
        generator = Generator().manual_seed(seed)
        action = _smooth(torch.rand(trajectories, steps + 1, 2, generator=generator) * 2 - 1)  # [M, T, 2]
        state = torch.empty_like(action)
        state[:, 0] = torch.rand(trajectories, 2, generator=generator) * 2 - 1
        for t in range(steps):
            state[:, t + 1] = move(state[:, t], action[:, t])
        ends = torch.zeros(trajectories, steps + 1, dtype=torch.bool)
        ends[:, -1] = True
        rows = TensorDict(
            {
                OBSERVATION: {STATE: state.flatten(0, 1)},
                ACTION: action.flatten(0, 1),
                TERMINATED: torch.zeros(ends.numel(), dtype=torch.bool),
            },
            batch_size=[ends.numel()],
        )
        self.keep(rows.to(self.device), ends.flatten())
        self.tasks = ToyTasks(self.device)

    def physics_at(self, rows: Tensor) -> TensorDict:
        """Position "qpos" in these rows [n] and the move that led there "qvel", float64 [n, 2] on the CPU."""
        here, before = (
            self.store.rows(index)[OBSERVATION, STATE].cpu().double() for index in (rows, (rows - 1).clamp(min=0))
        )
        return TensorDict({"qpos": here, "qvel": here - before}, batch_size=rows.shape)


class ToyTasks:
    """Reach one of five places; the protocol of ``envs.ogbench_tasks.OGBenchTasks``."""

    names = goal_names = tuple(_GOALS)
    max_steps = _MAX_STEPS
    tolerance = _RADIUS

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reward(self, task: str, labelled: TensorDict) -> Tensor:
        """0 near the goal, else -1: float32 [N]."""
        missed = _distance(labelled[PHYSICS, "qpos"], self._goal(task)) > _RADIUS
        return -missed.float().to(self._device)

    def fields(self, td: TensorDict) -> dict[str, Tensor]:
        """Named arrays [N, 2] on the CPU: "state", "action", "qpos", "qvel", "xy"."""
        found = plain_fields(td)
        return found | ({"xy": found["qpos"]} if "qpos" in found else {})

    def goal_of(self, task: str) -> TensorDict:
        """The observation at the goal, batch size []."""
        return self.goal_observation(self._goal(task))

    def goal_observation(self, values: Sequence[float]) -> TensorDict:
        """The observation at a place, batch size []."""
        if len(values) != 2 or max(abs(float(value)) for value in values) > 1:
            raise ValueError(f"goal {list(values)}: toy needs 2 numbers within [-1, 1], x, y")
        return TensorDict({STATE: torch.tensor([float(v) for v in values], device=self._device)}, batch_size=[])

    def make(
        self,
        task: str,
        *,
        num_envs: int,
        seed: int,
        workers: int = 0,
        max_steps: int | None = None,
        ends_on_success: bool = True,
    ) -> ToyEnv:
        """Environments of one task; all in one tensor, so ``workers`` makes no difference."""
        options = {"max_steps": max_steps, "device": self._device, "ends_on_success": ends_on_success}
        return ToyEnv(self._goal(task), num_envs=num_envs, seed=seed, **options)

    def maze(self) -> Maze:
        """The box, as walls around 2 x 2 squares."""
        walls = np.ones((4, 4), dtype=bool)
        walls[1:3, 1:3] = False
        return Maze(walls, 1.0, (-1.5, -1.5))

    def close(self) -> None:
        """Nothing is held."""

    def _goal(self, task: str) -> tuple[float, float]:
        return list(_GOALS.values())[task_number(task, self.names, of="toy") - 1]


class ToyEnv:
    """N points stepped as one; the interface of ``envs.vector.VectorEnv``.

    Args:
        goal: to be reached.
        num_envs: N.
        seed: of the start states.
        max_steps: end of an episode.
        device: of what it returns.
        ends_on_success: otherwise episodes go on to ``max_steps``.
    """

    def __init__(
        self,
        goal: tuple[float, float],
        *,
        num_envs: int,
        seed: int,
        max_steps: int | None,
        device: torch.device,
        ends_on_success: bool = True,
    ) -> None:
        self.num_envs, self._seed, self._device = num_envs, seed, device
        self._goal, self._max_steps, self._ends_on_success = goal, max_steps or _MAX_STEPS, ends_on_success
        self._state = torch.zeros(num_envs, 2)
        self.alive = torch.ones(num_envs, dtype=torch.bool)

    def reset(self) -> TensorDict:
        """Begin at the places of the seed; "success" tells which are goals already."""
        generator = Generator().manual_seed(self._seed)
        # One draw an environment, so that episode i is the same however many there are.
        self._state = torch.stack([torch.rand(2, generator=generator) * 2 - 1 for _ in range(self.num_envs)])
        self._terminated = torch.zeros(self.num_envs, dtype=torch.bool)
        self._steps = 0
        self.alive = ~self._terminated
        still = torch.zeros(self.num_envs)
        return self._row(still, (_distance(self._state, self._goal) <= _RADIUS).float())

    def step(self, td: TensorDict) -> TensorDict:
        """Move the points that have not arrived; success is judged before the action, as in OGBench."""
        alive = self.alive
        arrived = (_distance(self._state, self._goal) <= _RADIUS) & alive
        moved = move(self._state, td[ACTION].detach().cpu().float())
        self._state = torch.where(alive[:, None], moved, self._state)
        if self._ends_on_success:
            self._terminated = self._terminated | arrived
        self._steps += 1
        reward = torch.where(alive, arrived.float() - 1, 0.0)
        self.alive = alive & ~self._terminated & (self._steps < self._max_steps)
        return self._row(reward, arrived.float())

    def render(self, index: int) -> np.ndarray:
        """The box from above, uint8 [64, 64, 3]: the goal gold, the point blue."""
        picture = np.full((64, 64, 3), 255, np.uint8)
        for place, color in ((self._goal, (242, 169, 0)), (self._state[index].tolist(), (31, 78, 156))):
            column, row = (int((value + 1) / 2 * 59) for value in place)
            picture[60 - row - 1 : 60 - row + 4, column : column + 5] = color
        return picture

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> ToyEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _row(self, reward: Tensor, success: Tensor) -> TensorDict:
        truncated = torch.full_like(self._terminated, self._steps >= self._max_steps) & ~self._terminated
        out = TensorDict(
            {
                OBSERVATION: TensorDict({STATE: self._state.to(self._device)}, [self.num_envs]),
                REWARD: reward.to(self._device),
                SUCCESS: success.to(self._device),
                TERMINATED: self._terminated.to(self._device),
                TRUNCATED: truncated.to(self._device),
                ALIVE: self.alive.to(self._device),
            },
            [self.num_envs],
        )
        position = self._state.double()
        out[PHYSICS] = TensorDict({"qpos": position, "qvel": torch.zeros_like(position)}, [self.num_envs])
        return out


def move(state: Tensor, action: Tensor) -> Tensor:
    """Where a point [..., 2] goes by an action [..., 2]."""
    return (state + _SPEED * action.clamp(-1, 1)).clamp(-1, 1)


def _smooth(noise: Tensor) -> Tensor:
    """Actions [M, T, 2] that keep their direction for a while, so that walks cross the box."""
    held = noise[:, ::5].repeat_interleave(5, dim=1)[:, : noise.shape[1]]
    return (0.8 * held + 0.4 * noise).clamp(-1, 1)


def _distance(points: Tensor, goal: Sequence[float]) -> Tensor:
    return (points - torch.tensor(goal, dtype=points.dtype, device=points.device)).norm(dim=-1)
