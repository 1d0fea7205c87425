"""What an agent does while it explores a DMC domain, written as ExoRL's episodes, for env=dmc and for coverage.

::

    ROOT/walker/rnd/buffer/episode_000000_1000.npz ...    where env=dmc looks; provenance.json says who made them

Episode k of environment i (both from 0) of N is file k * N + i: a function of the run alone. So a run that goes on
after a stop replays the running episodes, and writes those that came after its checkpoint again, the same to the bit.
"""

from __future__ import annotations

import os
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDict
from torch import Tensor

from envs.dmc_collect import random_episode
from envs.dmc_coverage import Cells
from envs.dmc_domains import EPISODE_STEPS, Domain
from envs.dmc_envs import DMCEnv
from envs.exorl_files import (
    Episode,
    EpisodeFile,
    claim,
    default_data_dir,
    list_episodes,
    provenance,
    read,
    write_episode,
)
from envs.vector import TRUNCATED
from worldmodels.files import disk_errors
from worldmodels.keys import OBSERVATION, PHYSICS, STATE

MADE_BY = "an explorer of this framework (agent=rnd), not ExoRL's"


class EpisodeWriter:
    """Writes the episodes of ``envs.online.Online``; a ``Recorder``.

    Args:
        source: ``envs.dmc.DMC`` that shows states.
        num_envs: N; seed: of the run's episodes, for the provenance.
        data_dir: ROOT; None: $EXORL_DATA_DIR, else ~/.worldmodels/exorl.
        explorer: name of the folder.

    Raises:
        ValueError: pictures instead of states; at the first step, if the folder holds episodes of something else.
    """

    def __init__(
        self,
        source: Any,
        *,
        num_envs: int,
        seed: int,
        data_dir: str | os.PathLike[str] | None = None,
        explorer: str = "rnd",
    ) -> None:
        if STATE not in source.spec[OBSERVATION].keys():
            raise ValueError(
                "explored episodes hold states: env.observation=state (pictures are drawn from them later)"
            )
        if EPISODE_STEPS % source.action_chunk:
            raise ValueError(
                f"env.action_chunk={source.action_chunk} does not divide an episode's {EPISODE_STEPS} steps"
            )
        self.domain: Domain = source.facts
        root = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
        self.folder = root / self.domain.name / explorer / "buffer"
        self.num_envs = num_envs
        self.num_episodes = 0
        """Written by this run."""
        self._settings = {"domain": self.domain.name, "explorer": explorer, "seed": seed, "num_envs": num_envs}
        self._is_claimed = False
        self._rows: list[
            tuple[np.ndarray, np.ndarray, np.ndarray]
        ] = []  # observation, action, physics of N environments

    # --- what envs.online.TaskEnv calls ---------------------------------------------------------------------------
    def begin(self, number: int, rows: TensorDict, *, is_replayed: bool) -> None:
        """Episodes begin; see ``envs.online.Recorder``."""
        if not self._is_claimed:
            self._claim(is_resumed=is_replayed)
            self._is_claimed = True
        self.num_episodes = (number - 1) * self.num_envs
        self._rows = [self._row(np.zeros((self.num_envs, self.domain.action_dim), np.float32), rows)]

    def step(self, action: Tensor, rows: TensorDict) -> None:
        """One step of all environments; the last one of their episodes writes these.

        Raises:
            DiskFullError: no room.
        """
        self._rows.append(self._row(action.clamp(-1, 1).cpu().numpy(), rows))
        if bool(rows[TRUNCATED].all()):
            seen, actions, physics = (
                np.stack(part, axis=1) for part in zip(*self._rows, strict=True)
            )  # [N, T + 1, ...]
            goes_on = np.ones(seen.shape[1], np.float32)
            with disk_errors(self.folder):
                for i in range(self.num_envs):
                    write_episode(self.folder, self.num_episodes + i, Episode(seen[i], actions[i], goes_on, physics[i]))
            self.num_episodes += self.num_envs
            self._rows = []

    # --- what the evaluation of coverage asks ---------------------------------------------------------------------
    @cached_property
    def cells(self) -> Cells:
        """Where states are counted."""
        return Cells(self.domain)

    def explored(self, index: int) -> np.ndarray:
        """Physics float64 [T + 1, P] of an episode of this run."""
        path = self.folder / f"episode_{index:06d}_{EPISODE_STEPS}.npz"
        return read(EpisodeFile(path, index, EPISODE_STEPS), self.domain).physics

    def wandered(self, index: int) -> np.ndarray:
        """Physics float64 [T + 1, P] of an episode of random actions, those of ``envs.dmc_collect``."""
        return random_episode(self._env, seed=0, index=index).physics

    @cached_property
    def _env(self) -> DMCEnv:
        return DMCEnv(self.domain, self.domain.tasks[0])

    def _row(self, action: np.ndarray, rows: TensorDict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts = [rows[PHYSICS, key].numpy() for key in ("qpos", "qvel", "act") if key in rows[PHYSICS].keys()]
        return rows[OBSERVATION, STATE].cpu().numpy(), action, np.concatenate(parts, axis=-1)

    def _claim(self, *, is_resumed: bool) -> None:
        """Note in the folder who writes there; refuse one that holds what is not this run's."""
        note, is_full = provenance(self.folder), any(list_episodes(self.folder))
        if is_full and not is_resumed:
            raise ValueError(
                f"{self.folder} holds episodes already; move them away, or write elsewhere: env.data_dir=... or "
                "relabel.recorder.explorer=rnd2"
            )
        if is_full and (note is None or note["settings"] != self._settings):
            raise ValueError(f"{self.folder} holds episodes of another run than the one that goes on here")
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            packages = ("mujoco", "dm_control", "numpy", "torch")
            claim(self.folder, made_by=MADE_BY, settings=self._settings, packages=packages)
        print(f"{self.folder}: episodes are written there", file=sys.stderr)
