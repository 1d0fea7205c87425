"""Demonstrations by scripted experts and the tasks to try policies in: what every source of them shares.

No file is downloaded: ``envs.oracle_attempts`` makes the demonstrations on this machine. Attempts and environments see
the same numbers in a row: the body's own state, the scene with all that tells what is to be done, and the task.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Categorical, Unbounded

from envs.demonstrations import Demonstration, Demonstrations
from envs.oracle_attempts import Expert, collect, success_rate
from envs.stepping import Maker, task_number
from envs.suite import SimulatedTasks
from worldmodels.keys import ENVIRONMENT_STATE, STATE, TASK_INDEX


class OracleDemonstrations(Demonstrations):
    """Demonstrations of some tasks, learned together: windows of those for training, or of others through ``split``.

    A row has "state" [S], "environment_state" [E] and "task_index". Episodes end at their first success.

    Args:
        expert: who demonstrates.
        make: (names, max_steps) -> what builds the environments, whose observations end with the number of the task.
        state_dim: S; the rest of an attempt's row is the scene.
        tasks: names, known ones.
        max_steps: end of an attempt, and of an episode of ``tasks``.
        demonstrations: successful attempts of each task for training. Fewer are the first ones of more.
        test_demonstrations: likewise, from other starts, for tests.
        labelled_share: of the training demonstrations whose actions count.
        uses_failures: whether failed attempts, made in between, are rows too, without actions that count.
        seed: of start states and of the share.
        data_dir: where demonstrations are kept; None: ``oracle_attempts.default_data_dir``.
        workers: processes that collect; None: one a core.
        device: of batches.

    Raises:
        ValueError: for impossible numbers, a task named twice, damaged files, or an expert that fails too often.
    """

    def __init__(
        self,
        expert: Expert,
        make: Callable[[tuple[str, ...], int], Maker],
        *,
        state_dim: int,
        tasks: Sequence[str],
        max_steps: int,
        demonstrations: int = 40,
        test_demonstrations: int = 10,
        labelled_share: int | float = 1.0,
        uses_failures: bool = False,
        seed: int = 0,
        data_dir: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        counts = {"demonstrations": demonstrations, "test_demonstrations": test_demonstrations}
        for key, count in (counts | {"tasks": len(tasks), "max_steps": max_steps}).items():
            if count < 1:
                raise ValueError(f"env.{key}={count}: at least one is needed")
        if seed < 0:
            raise ValueError(f"env.seed={seed} must not be negative")
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"env.tasks={list(tasks)} names a task twice")
        width, action_dim = expert.widths
        seen = {
            STATE: Unbounded((state_dim,), device=device),
            ENVIRONMENT_STATE: Unbounded((width - state_dim,), device=device),
            TASK_INDEX: Categorical(len(tasks), shape=(), dtype=torch.int64, device=device),
        }
        super().__init__(seen, action_dim, device=device, labelled_share=labelled_share, seed=seed)
        names = tuple(tasks)
        self.tasks = OracleTasks(make(names, max_steps), names, state_dim, self.device)
        self._state_dim, self._uses_failures = state_dim, uses_failures
        self._attempts = collect(
            expert,
            names,
            {"train": demonstrations, "test": test_demonstrations},
            data_dir=data_dir,
            max_steps=max_steps,
            seed=seed,
            workers=workers,
        )
        self.use("train")

    def read(self, part: str) -> Sequence[Demonstration]:
        """Episodes of "train" or "test"."""
        return [
            Demonstration(self._named(attempt.observation, number), attempt.action, attempt.is_success)
            for number, name in enumerate(self.tasks.names)
            for attempt in self._attempts[name, part]
            if attempt.is_success or (self._uses_failures and part == "train")
        ]

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, for JSON: tasks, rows, and how often the experts succeeded."""
        rates = {
            name: success_rate([*self._attempts[name, "train"], *self._attempts[name, "test"]])
            for name in self.tasks.names
        }
        return {"expert_success": rates, "demonstrations": self.num_demonstrations, "rows": self.store.num_rows}

    def _named(self, rows: np.ndarray, number: int) -> dict[str, np.ndarray]:
        """The entries of a task's rows [T, S + E]."""
        flat = np.concatenate([rows, np.full((len(rows), 1), number, np.float32)], 1)
        return {key: value.numpy() for key, value in entries(torch.from_numpy(flat), self._state_dim).items()}


class OracleTasks(SimulatedTasks):
    """Tasks to try policies in; an episode ends at its first success, or at the time limit.

    Args:
        maker: builds the environments.
        names: tasks, in the order of "task_index".
        state_dim: S.
        device: of observations.
    """

    goal_names: tuple[str, ...] = ()  # what is to be done is in the observation

    def __init__(self, maker: Maker, names: tuple[str, ...], state_dim: int, device: torch.device) -> None:
        super().__init__(maker, entries=partial(entries, state_dim=state_dim), device=device)
        self.names, self.max_steps = names, maker.max_steps

    def maze(self) -> None:
        """There are no walls to draw on."""

    def _number(self, task: str) -> int:
        return task_number(task, self.names, of="this source")


def entries(flat: Tensor, state_dim: int) -> dict[str, Tensor]:
    """The named entries of observations float32 [..., S + E + 1] as environments give them."""
    state, scene, task = flat.split([state_dim, flat.shape[-1] - state_dim - 1, 1], -1)
    return {STATE: state, ENVIRONMENT_STATE: scene, TASK_INDEX: task.squeeze(-1).long()}
