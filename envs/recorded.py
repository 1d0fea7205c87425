"""Demonstrations that users bring, in any format of ``envs.demonstration_files``, as a source to imitate.

There is no simulator behind them, so policies are judged on held-out episodes and never played.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrl.data import Bounded, Categorical, TensorSpec, Unbounded

from envs.demonstration_files.formats import FORMATS, find_format
from envs.demonstration_files.selection import Episode, Selection
from envs.demonstrations import Demonstration, Demonstrations
from worldmodels.keys import ACTION, PIXELS, TASK_INDEX

_CONSTANT = 1e-6  # range of a channel of actions, relative to its size, below which it counts as constant


class RecordedDemonstrations(Demonstrations):
    """Windows of recorded episodes; split by episode, and all statistics are those of training episodes.

    Actions are scaled to [-1, 1] by the least and greatest of training, each number by its own: action = low + (scaled
    + 1) / 2 (high - low); numbers that never change are 0. Those of tests are cut off at -1 and 1. ``describe`` tells
    low and high. A row has "state", "task_index" and, if asked for, "environment_state" and "pixels".

    Args:
        path: file or folder.
        format: a name of ``FORMATS``; None: found by what is there.
        state: columns joined, names or patterns; None: the format's own.
        environment_state: likewise, what else of the scene the policy sees.
        cameras: whose pictures are "pixels", joined along channels.
        size: their side in pixels.
        success: column that is above 0 somewhere in episodes that succeeded; None: all count as demonstrations.
        uses_failures: whether the other episodes are rows of training, without actions that count; else left out.
        skips_broken: whether episodes with numbers that are not finite are left out; else they are refused.
        demonstrations: for training; None: all that are not for tests. Fewer are the first ones of more.
        test_share: of the (successful) episodes.
        labelled_share: of the training demonstrations whose actions count.
        seed: of the split and of the share.
        device: of batches.

    Raises:
        ImportError: naming what must be installed for the format.
        FileNotFoundError: if there is no such path, or a file of the data set is missing.
        ValueError: naming the file and what is wrong with it, or the setting.
    """

    def __init__(
        self,
        *,
        path: str | os.PathLike[str] | None,
        format: str | None = None,
        state: str | Sequence[str] | None = None,
        environment_state: str | Sequence[str] | None = None,
        cameras: Sequence[str] = (),
        size: int = 96,
        success: str | None = None,
        uses_failures: bool = False,
        skips_broken: bool = False,
        demonstrations: int | None = None,
        test_share: int | float = 0.1,
        labelled_share: int | float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if path is None:
            raise ValueError(f"env.path=null: give a file or folder of demonstrations ({', '.join(FORMATS)})")
        if not 0 < test_share < 1 or size < 1 or (demonstrations is not None and demonstrations < 1):
            raise ValueError(
                f"env.test_share={test_share} lies between 0 and 1; env.size={size} and "
                f"env.demonstrations={demonstrations} are at least 1"
            )
        self.path = Path(path).expanduser()
        self.format = find_format(self.path, format)
        self._selection = Selection(
            _names(state) or [FORMATS[self.format].state], _names(environment_state), list(cameras), size, success
        )
        self.left_out: dict[str, list[str]] = {"failed": [], "not finite": [], "equal to another": []}
        episodes = self._usable(uses_failures=uses_failures, skips_broken=skips_broken)
        self._parts = _split(episodes, test_share=float(test_share), demonstrations=demonstrations, seed=seed)
        self._tasks = list(dict.fromkeys(name for episode in episodes for name in episode.task.tolist()))
        self._layout = episodes[0].layout
        self._fit()
        super().__init__(
            self._seen(episodes[0], device),
            self._low.shape[0],
            device=device,
            labelled_share=labelled_share,
            seed=seed,
        )
        self.use("train")
        sizes = ", ".join(f"{len(found)} episodes for {part}" for part, found in self._parts.items())
        print(
            f"{self.path}: {self.format}, {sizes}; left out: {self._counts()}. There is no simulator: no rollouts",
            file=sys.stderr,
        )

    def read(self, part: str) -> Sequence[Demonstration]:
        """Episodes of "train" or "test"."""
        return [
            Demonstration(
                {**episode.observation, TASK_INDEX: np.array([self._tasks.index(name) for name in episode.task])},
                self._scaled(episode.action),
                episode.is_success,
                episode.name,
            )
            for episode in self._parts[part]
        ]

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, for JSON: enough to build the same observations and to play the actions."""
        tested = np.concatenate([episode.action for episode in self._parts["test"]])
        beyond = ((tested < self._low) | (tested > self._high)).any(1)
        return {
            "path": str(self.path),
            "format": self.format,
            "columns": {key: columns for key, columns in self._layout.items() if key != ACTION},
            "cameras": list(self._selection.cameras),
            "tasks": self._tasks,
            "action": {"low": self._low.tolist(), "high": self._high.tolist(), "scaled_to": [-1, 1]},
            "test_actions_cut_off": float(beyond.mean()),
            "episodes": {part: [episode.name for episode in found] for part, found in self._parts.items()},
            "left_out": self.left_out,
            "rows": {part: sum(len(one.action) for one in found) for part, found in self._parts.items()},
        }

    def _usable(self, *, uses_failures: bool, skips_broken: bool) -> list[Episode]:
        """All episodes but those that are left out, which are noted."""
        found: dict[bytes, Episode] = {}
        first: Episode | None = None
        for recording in FORMATS[self.format].read(self.path):
            episode = self._selection.read(recording)
            first = first or episode
            if episode.layout != first.layout:
                raise ValueError(
                    f"{episode.name} has {_told(episode.layout)}, but {first.name} has {_told(first.layout)}: all "
                    "episodes need the same"
                )
            numbers = [episode.action, *episode.observation.values()]
            content = hashlib.sha256(b"".join(values.tobytes() for values in numbers)).digest()
            if not (episode.is_success or uses_failures):
                self.left_out["failed"].append(episode.name)
            elif skips_broken and not all(np.isfinite(values).all() for values in numbers):
                self.left_out["not finite"].append(episode.name)
            elif content in found:
                self.left_out["equal to another"].append(f"{episode.name} = {found[content].name}")
            else:
                found[content] = episode
        if first is None:
            raise ValueError(f"{self.path}: there is no episode in it")
        if not any(episode.is_success for episode in found.values()):
            raise ValueError(
                f"{self.path}: no episode is left to imitate; left out: {self._counts()}. Those succeed in which "
                f"env.success={self._selection.success} is above 0; null takes all"
            )
        return list(found.values())

    def _counts(self) -> str:
        return ", ".join(f"{len(names)} {why}" for why, names in self.left_out.items() if names) or "none"

    def _fit(self) -> None:
        """Least and greatest actions of training. What is not finite is refused later, by the name of its episode."""
        actions = np.concatenate([episode.action for episode in self._parts["train"]])
        finite = np.where(np.isfinite(actions), actions, np.nan)
        self._low, self._high = np.fmin.reduce(finite), np.fmax.reduce(finite)  # [A]
        self._middle, half = (self._high + self._low) / 2, (self._high - self._low) / 2
        changes = half > _CONSTANT * np.maximum(np.abs(self._middle), 1)
        self._scale = np.divide(1, half, out=np.zeros_like(half), where=changes)

    def _scaled(self, action: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # infinite actions are refused after this
            scaled = (action - self._middle) * self._scale
        return np.where(np.isfinite(scaled), np.clip(scaled, -1, 1), scaled)

    def _seen(self, episode: Episode, device: torch.device | str) -> dict[str, TensorSpec]:
        """Specs of an observation's entries."""
        seen: dict[str, TensorSpec] = {
            key: Bounded(0, 255, value.shape[1:], dtype=torch.uint8, device=device)
            if key == PIXELS
            else Unbounded(value.shape[1:], device=device)
            for key, value in episode.observation.items()
        }
        return seen | {TASK_INDEX: Categorical(len(self._tasks), shape=(), dtype=torch.int64, device=device)}


def _names(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _split(
    episodes: Sequence[Episode], *, test_share: float, demonstrations: int | None, seed: int
) -> dict[str, list[Episode]]:
    """Successful episodes for tests, drawn; of the others the wanted number, and all failures, for training."""
    solved = [episode for episode in episodes if episode.is_success]
    order = np.random.default_rng(seed).permutation(len(solved))
    num_test = max(1, round(test_share * len(solved)))
    most = len(solved) - num_test
    if most < max(1, demonstrations or 1):
        raise ValueError(
            f"of {len(solved)} demonstrations {num_test} are for tests (env.test_share={test_share}); {most} are left, "
            f"env.demonstrations={demonstrations} are wanted for training, at least 1"
        )
    train = {solved[i].name for i in order[num_test:][:demonstrations]}
    test = [solved[i] for i in sorted(order[:num_test])]
    return {"train": [one for one in episodes if one.name in train or not one.is_success], "test": test}


def _told(layout: dict[str, dict[str, int]]) -> str:
    return "; ".join(f"{key} [{sum(columns.values())}] of {', '.join(columns)}" for key, columns in layout.items())
