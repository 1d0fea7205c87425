"""Push-T: a disc pushes a T-shaped block to where a T is drawn; people demonstrate it (Chi et al., arXiv 2303.04137).

The demonstrations are the user's file; see ``read_columns``. All of them are there to be imitated: people stop where
they are content, which is seldom at the coverage that the benchmark calls a success.
"""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Bounded, Unbounded

from envs.demonstrations import Demonstration, Demonstrations
from envs.pusht_env import (
    ACTION_DIM,
    HORIZON,
    SCENE_DIM,
    SIZE,
    STATE_DIM,
    SUCCESS,
    PushTMaker,
    keypoints,
    pictures,
)
from envs.stepping import task_number
from envs.suite import SimulatedTasks
from worldmodels.keys import ENVIRONMENT_STATE, PIXELS, STATE

FILE = "pusht_lowdim.npz"
_WIDTHS = {"state": 5, "action": 2}


class PushT(Demonstrations):
    """Human demonstrations: windows of those for training, or of others through ``split``.

    A row has "state" [2], the agent's x and y, and "environment_state" [18], x and y of nine points on the block, all
    in units of the table's 512 x 512 picture; and "pixels" [3, size, size], where pictures are asked for. Data and
    rollouts show the same ones, drawn from the state. Actions are places to which the agent is sent, from -1 to 1
    across the table. Ten rows are a second.

    Args:
        path: the demonstrations' file, or its folder.
        observation: "state"; or "pixels", pictures as well, which encoders see in the place of the nine points.
        size: pixels a side of the pictures.
        demonstrations: for training; None: all that are not for tests. Fewer are the first ones of more.
        test_demonstrations: drawn by ``seed``.
        max_steps: end of an episode of ``tasks``.
        success_coverage: share of the goal to be covered for success there; ACT-JEPA's authors take 0.9.
        labelled_share: of the training demonstrations whose actions count.
        seed: of which demonstrations are for tests, their order, and the share.
        device: of batches.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if pymunk is not installed.
        ValueError: without a path; for impossible numbers, or a damaged file.
    """

    def __init__(
        self,
        *,
        path: str | os.PathLike[str] | None,
        observation: str = STATE,
        size: int = 96,
        demonstrations: int | None = None,
        test_demonstrations: int = 16,
        max_steps: int = HORIZON,
        success_coverage: int | float = SUCCESS,
        labelled_share: int | float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 < success_coverage < 1:
            raise ValueError(f"env.success_coverage={success_coverage} must be a share between 0 and 1")
        if observation not in (STATE, PIXELS):
            raise ValueError(f"env.observation={observation}: policies see the {STATE}, or {PIXELS}")
        if max_steps < 1 or seed < 0 or size < 1:
            raise ValueError(
                f"env.max_steps={max_steps}, env.size={size}, env.seed={seed}: at least 1, 1, and not negative"
            )
        columns = read_columns(path)
        ends = columns.pop("episode_ends")
        num, most = len(ends), len(ends) - test_demonstrations
        wanted = most if demonstrations is None else demonstrations
        if test_demonstrations < 1 or not 1 <= wanted <= most:
            raise ValueError(
                f"env.demonstrations={demonstrations}, env.test_demonstrations={test_demonstrations}: at least one of "
                f"each is needed, and there are {num}"
            )
        seen = {
            STATE: Unbounded((STATE_DIM,), device=device),
            ENVIRONMENT_STATE: Unbounded((SCENE_DIM,), device=device),
        }
        shown = size if observation == PIXELS else None
        if shown is not None:
            seen[PIXELS] = Bounded(0, 255, (3, size, size), dtype=torch.uint8, device=device)
        super().__init__(seen, ACTION_DIM, device=device, labelled_share=labelled_share, seed=seed)
        order = np.random.default_rng(seed).permutation(num).tolist()
        self._numbers = {"train": order[test_demonstrations:][:wanted], "test": order[:test_demonstrations]}
        pieces = {key: np.split(values, ends[:-1]) for key, values in columns.items()}
        self._episodes = list(zip(pieces["state"], pieces["action"], strict=True))
        self._size = shown
        self.tasks = PushTTasks(max_steps, float(success_coverage), self.device, size=shown)
        self.use("train")

    def read(self, part: str) -> Sequence[Demonstration]:
        """Episodes of "train" or "test", as policies see them."""
        found = (self._episodes[number] for number in self._numbers[part])
        return [
            Demonstration(
                {key: value.numpy() for key, value in entries(torch.from_numpy(state), size=self._size).items()},
                (action * 2 / SIZE - 1).astype(np.float32),
            )
            for state, action in found
        ]

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, for JSON: rows, and which of the file's demonstrations are for what."""
        return {"rows": self.store.num_rows, "demonstrations": self._numbers}


class PushTTasks(SimulatedTasks):
    """The task "push-t", to try policies in; an episode ends at its first success, or after ``max_steps``.

    Args:
        max_steps: end of an episode.
        success_coverage: see ``PushT``.
        device: of observations.
        size: of their pictures; None: there are none.
    """

    names = ("push-t",)
    goal_names: tuple[str, ...] = ()  # the goal is always the same

    def __init__(
        self, max_steps: int, success_coverage: float, device: torch.device, *, size: int | None = None
    ) -> None:
        super().__init__(
            PushTMaker(max_steps, success_coverage), entries=functools.partial(entries, size=size), device=device
        )
        self.max_steps = max_steps

    def maze(self) -> None:
        """There are no walls to draw on."""

    def _number(self, task: str) -> int:
        return task_number(task, self.names, of="Push-T")


def entries(states: Tensor, *, size: int | None = None) -> dict[str, Tensor]:
    """What is seen where agent x, y and block x, y, angle are ``states`` [N, 5]; pictures, if a size is given."""
    state = states.numpy()
    points = torch.from_numpy(keypoints(state[:, 2:])).float()
    seen = {STATE: states[:, :STATE_DIM].float(), ENVIRONMENT_STATE: points}
    if size is not None:
        seen[PIXELS] = torch.from_numpy(np.moveaxis(pictures(state, size), -1, 1).copy())
    return seen


def read_columns(path: str | os.PathLike[str] | None) -> dict[str, np.ndarray]:
    """The demonstrations of a file, or of "pusht_lowdim.npz" in a folder.

    Returns:
        "state" float64 [N, 5], agent x, y and block x, y, angle before "action" float64 [N, 2], the place that the
        agent is sent to, all in units of the picture; "episode_ends" int64 [M], rows up to the end of each episode.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: without a path, or if the file is something else.
    """
    needed = "state [N, 5], action [N, 2] and episode_ends [M]"
    if path is None:
        raise ValueError(f"env.path=null: give the people's demonstrations, env.path=FOLDER with {FILE} ({needed})")
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise FileNotFoundError(f"env.path={path}: there is no {file}; a file with {needed} is needed")
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            columns = {key: arrays[key].astype(np.float64) for key in _WIDTHS}
            ends = arrays["episode_ends"].astype(np.int64)
    except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"env.path={path}: {file} cannot be read ({error}); an npz with {needed} is needed") from error
    if ends.ndim != 1 or not len(ends) or (np.diff(ends, prepend=0) < 1).any():
        raise ValueError(f"{file}: episode_ends must grow from episode to episode")
    for key, width in _WIDTHS.items():
        if columns[key].shape != (ends[-1], width):
            raise ValueError(f"{file}: {key} is {list(columns[key].shape)}, needed is {[int(ends[-1]), width]}")
    return columns | {"episode_ends": ends}
