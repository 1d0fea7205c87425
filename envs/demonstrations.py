"""Sources of demonstrations: padded windows of them, which actions may be learned from, and what they are scaled by."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Categorical, TensorSpec

from envs.episodes import StoredEpisodes
from worldmodels.keys import ACTION, HAS_ACTION, OBSERVATION, TASK_INDEX, TERMINATED

PARTS = ("train", "test")
MIN_STD = 0.01  # of a channel that (nearly) never changes


class Demonstration(NamedTuple):
    """One episode: a row holds what was seen and what was then done."""

    observation: dict[str, np.ndarray]  # each [T, ...]
    action: np.ndarray  # float32 [T, A]
    is_success: bool = True  # whether the last action solved the task
    name: str = ""  # of its file and place there, for messages


class Demonstrations(StoredEpisodes):
    """Windows of demonstrations. They begin at every row; where one reaches beyond its episode, "is_padded" is true.

    "has_action" is true in rows whose actions may be learned from: those of successful episodes, and of these, in
    training, a share. All rows serve what learns without actions.

    Args:
        seen: specs of the observation's entries by name.
        action_dim: A; actions are within [-1, 1].
        device: where batches are wanted.
        labelled_share: of the successful training episodes of each task, drawn by ``seed``; at least one each.
        seed: of that draw.

    Raises:
        ValueError: if the share is not in (0, 1].
    """

    def __init__(
        self,
        seen: Mapping[str, TensorSpec],
        action_dim: int,
        *,
        device: torch.device | str,
        labelled_share: int | float = 1.0,
        seed: int = 0,
    ) -> None:
        if not 0 < labelled_share <= 1:
            raise ValueError(f"env.labelled_share={labelled_share} must be above 0 and at most 1")
        super().__init__(seen, action_dim, device=device, is_padded=True)
        self.spec[HAS_ACTION] = Categorical(2, shape=(), dtype=torch.bool, device=self.device)
        self._labelled_share, self._seed = float(labelled_share), seed

    @abstractmethod
    def read(self, part: str) -> Sequence[Demonstration]:
        """Episodes of "train" or "test"."""

    def split(self, name: str) -> Demonstrations:
        """The same source on another part: "train" or "test".

        Raises:
            ValueError: if there is no such part.
        """
        if name not in PARTS:
            raise ValueError(f"there is no part {name}; parts are {', '.join(PARTS)}")
        other = copy.copy(self)
        other.use(name)
        return other

    def use(self, part: str) -> None:
        """Read a part and sample from it.

        Raises:
            ValueError: if there are no episodes, none that solves its task, or one has no row, other entries or shapes
                than ``spec`` says, or numbers that are not finite.
        """
        episodes = self.read(part)
        if not episodes:
            raise ValueError(f"there are no demonstrations for {part}")
        for number, episode in enumerate(episodes):
            self._check(episode, episode.name or f"{part} episode {number}")
        if not any(episode.is_success for episode in episodes):
            raise ValueError(
                f"none of the {len(episodes)} {part} episodes solves its task: there is nothing to imitate"
            )
        lengths = torch.tensor([len(episode.action) for episode in episodes])
        last = lengths.cumsum(0) - 1
        ends = torch.zeros(int(last[-1]) + 1, dtype=torch.bool)
        ends[last] = True
        success = torch.tensor([episode.is_success for episode in episodes])
        terminated = torch.zeros_like(ends)
        terminated[last] = success
        observation = {
            key: torch.from_numpy(np.concatenate([episode.observation[key] for episode in episodes])).to(entry.dtype)
            for key, entry in self.spec[OBSERVATION].items()
        }
        rows = {
            OBSERVATION: TensorDict(observation, [len(ends)]),
            ACTION: torch.from_numpy(np.concatenate([episode.action for episode in episodes])).float(),
            TERMINATED: terminated,
            HAS_ACTION: self._labelled(episodes, part).repeat_interleave(lengths),
        }
        self.keep(TensorDict(rows, [len(ends)]).to(self.device), ends)
        self.num_demonstrations = int(success.sum())

    def statistics(self) -> TensorDict:
        """What to normalise by, over the rows of this part; of actions, over those that may be learned from.

        Returns:
            "mean" and "std", each with an entry for every floating-point entry of an observation, such as "state"
            [S], and "action" [A]: float32, on the device, no "std" below 0.01.
        """
        rows = self.store.rows(self.store.starts(1))
        values = {
            key: rows[OBSERVATION, key]
            for key, entry in self.spec[OBSERVATION].items()
            if entry.dtype.is_floating_point
        }
        values[ACTION] = rows[ACTION][rows[HAS_ACTION]]
        found = {key: torch.std_mean(value.double(), 0, correction=0) for key, value in values.items()}
        mean = {key: mean.float() for key, (_, mean) in found.items()}
        std = {key: std.float().clamp(min=MIN_STD) for key, (std, _) in found.items()}
        return TensorDict({"mean": mean, "std": std}, device=self.device)

    def physics_at(self, rows: Tensor) -> None:
        """Demonstrations tell what was seen and done, not the simulator's state."""

    def _labelled(self, episodes: Sequence[Demonstration], part: str) -> Tensor:
        """Whether actions of each episode count, bool [M]."""
        labelled = torch.tensor([episode.is_success for episode in episodes])
        if part != "train" or self._labelled_share == 1:
            return labelled
        generator = np.random.default_rng(self._seed)
        tasks = np.array(
            [
                int(episode.observation[TASK_INDEX][0]) if TASK_INDEX in episode.observation else 0
                for episode in episodes
            ]
        )
        for task in np.unique(tasks):
            order = generator.permutation(np.flatnonzero((tasks == task) & labelled.numpy()))
            labelled[torch.from_numpy(order[math.ceil(self._labelled_share * len(order)) :])] = False
        return labelled

    def _check(self, episode: Demonstration, where: str) -> None:
        num, width = len(episode.action), self.spec[ACTION].shape[-1]
        if num < 1 or episode.action.shape != (num, width):
            raise ValueError(f"{where}: action is {list(episode.action.shape)}, needed is [T, {width}], T at least 1")
        wanted = {key: (num, *entry.shape) for key, entry in self.spec[OBSERVATION].items()}
        found = {key: value.shape for key, value in episode.observation.items()}
        if found != wanted:
            raise ValueError(f"{where}: observations are {_shapes(found)}, needed are {_shapes(wanted)}")
        for key, value in {ACTION: episode.action, **episode.observation}.items():
            if not np.isfinite(value).all():
                row = int(np.argwhere(~np.isfinite(value))[0][0])
                raise ValueError(f"{where}: {key} is not finite in row {row}. Repair the file or leave the episode out")
        if float(np.abs(episode.action).max()) > 1.001:
            raise ValueError(f"{where}: an action of {np.abs(episode.action).max():.3g}; actions lie within [-1, 1]")


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key} {list(shape)}" for key, shape in sorted(shapes.items()))
