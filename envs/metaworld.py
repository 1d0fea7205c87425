"""Meta-World: fifty tasks of one robot arm, demonstrated by the scripted experts that ship with it (arXiv 1910.10897).

The demonstrations are made on this machine by ``envs.metaworld_collect``; no file is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Categorical, Unbounded

from envs.demonstrations import Demonstration, Demonstrations
from envs.metaworld_collect import collect, success_rate
from envs.metaworld_envs import ACTION_DIM, HORIZON, SCENE_DIM, STATE_DIM, MetaWorldMaker, task_names
from envs.stepping import task_number
from envs.suite import SimulatedTasks
from worldmodels.keys import ENVIRONMENT_STATE, STATE, TASK_INDEX


class MetaWorld(Demonstrations):
    """Demonstrations of some tasks, learned together: windows of those for training, or of others through ``split``.

    A row has "state" [4], the hand's x, y, z in metres and how far the gripper is open (0..1); "environment_state"
    [17], up to two objects' positions and quaternions, zero where there is none, and the goal's position; and
    "task_index". Actions move the hand by at most 1 cm along x, y, z, and close the gripper. Episodes end at their
    first success.

    Args:
        tasks: names, such as "door-open".
        demonstrations: successful attempts of each task for training. Fewer are the first ones of more.
        test_demonstrations: likewise, from other starts, for tests.
        max_steps: end of an attempt, and of an episode of ``tasks``; at most 500.
        labelled_share: of the training demonstrations whose actions count.
        uses_failures: whether failed attempts, made in between, are rows too, without actions that count.
        seed: of start states and of the share.
        data_dir: where demonstrations are kept; None: $METAWORLD_DATA_DIR, else ~/.worldmodels/metaworld.
        workers: processes that collect; None: one a core.
        device: of batches.

    Raises:
        ImportError: if Meta-World is not installed.
        ValueError: for unknown tasks, impossible numbers, damaged files, or an expert that fails too often.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[str],
        demonstrations: int = 40,
        test_demonstrations: int = 10,
        max_steps: int = 200,
        labelled_share: int | float = 1.0,
        uses_failures: bool = False,
        seed: int = 0,
        data_dir: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        names = tuple(name.removesuffix("-v3") for name in tasks)
        counts = {"demonstrations": demonstrations, "test_demonstrations": test_demonstrations}
        for key, count in (counts | {"tasks": len(names)}).items():
            if count < 1:
                raise ValueError(f"env.{key}={count}: at least one is needed")
        if not 1 <= max_steps <= HORIZON:
            raise ValueError(f"env.max_steps={max_steps}: Meta-World's episodes have 1 to {HORIZON} steps")
        if seed < 0:
            raise ValueError(f"env.seed={seed} must not be negative")
        for name in names:
            task_number(name, task_names(), of="Meta-World")
        if len(set(names)) < len(names):
            raise ValueError(f"env.tasks={list(names)} names a task twice")
        seen = {
            STATE: Unbounded((STATE_DIM,), device=device),
            ENVIRONMENT_STATE: Unbounded((SCENE_DIM,), device=device),
            TASK_INDEX: Categorical(len(names), shape=(), dtype=torch.int64, device=device),
        }
        super().__init__(seen, ACTION_DIM, device=device, labelled_share=labelled_share, seed=seed)
        self.tasks = MetaWorldTasks(names, max_steps, self.device)
        self._uses_failures = uses_failures
        self._attempts = collect(
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
            Demonstration(_named(attempt.observation, number), attempt.action, attempt.is_success)
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


class MetaWorldTasks(SimulatedTasks):
    """Tasks to try policies in; an episode ends at its first success, or after ``max_steps``.

    Args:
        names: tasks, in the order of "task_index".
        max_steps: end of an episode.
        device: of observations.
    """

    goal_names: tuple[str, ...] = ()  # what is to be done is in the observation

    def __init__(self, names: tuple[str, ...], max_steps: int, device: torch.device) -> None:
        super().__init__(MetaWorldMaker(names, max_steps), entries=entries, device=device)
        self.names, self.max_steps = names, max_steps

    def maze(self) -> None:
        """There are no walls to draw on."""

    def _number(self, task: str) -> int:
        return task_number(task, self.names, of="this source")


def entries(flat: Tensor) -> dict[str, Tensor]:
    """The named entries of observations [..., 22] as ``MetaWorldEnv`` gives them, float32."""
    state, scene, task = flat.split([STATE_DIM, SCENE_DIM, 1], -1)
    return {STATE: state, ENVIRONMENT_STATE: scene, TASK_INDEX: task.squeeze(-1).long()}


def _named(rows: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """The same of rows [T, 21] of a task's file."""
    flat = np.concatenate([rows, np.full((len(rows), 1), number, np.float32)], 1)
    return {key: value.numpy() for key, value in entries(torch.from_numpy(flat)).items()}
