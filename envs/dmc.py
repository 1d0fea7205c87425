"""DeepMind Control domains with ExoRL's exploration data: what a body did without a task, and tasks to do with it."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from envs.dmc_collect import collect as collect_random
from envs.dmc_domains import Domain, find_domain, models
from envs.dmc_pixels import SIZE, Pictures
from envs.dmc_tasks import DMCTasks
from envs.episodes import StoredEpisodes
from envs.exorl_files import DamagedError, EpisodeFile, default_data_dir, find_folder, list_episodes, provenance, read
from envs.picture_rows import with_pictures
from worldmodels.keys import ACTION, OBSERVATION, STATE, TERMINATED

_MAX_DEVIATION = 1e-3  # of an observation from its physics, in units of 1 + its size: far above rounding


class DMC(StoredEpisodes):
    """Windows of one domain's episodes, held on the training device and sampled there.

    Episodes are looked for in ``data_dir``, or else $EXORL_DATA_DIR, or else ~/.worldmodels/exorl, where ExoRL's own
    folders are DOMAIN/EXPLORER/buffer. Where there are none, random actions make some.

    Args:
        domain: "point_mass_maze", "walker", "cheetah" or "quadruped".
        observation: "state", or "pixels": 64 x 64, drawn from "physics" the first time and kept beside the episodes.
        pictures: "fast" without shadows and reflections, or "default" as ExoRL's; see ``envs.rendering``.
        data_dir: ExoRL's root, a domain's folder, or the folder of the episodes itself.
        explorer: whose episodes, the name of a folder; None takes "rnd" where it is, "random" where no other is.
        collect: whether to make episodes with random actions where there are none (and explorer allows it).
        collect_episodes: how many.
        workers: processes that collect and draw; None: one a core.
        seed: of the collection.
        device: where batches are wanted.
        max_episodes: use this many, from the first. The published TD-JEPA numbers used 5000. 0 neither reads nor makes
            any: the body and its tasks, for an agent that gathers its own experience.
        max_device_bytes: more pictures than that stay on disk, memory-mapped; only sampled ones travel to the device.
        frame_stack: of pictures; 1 for states.
        action_chunk: steps an action decides: see ``TrajectoryStore``.

    Raises:
        ValueError: no episodes, another domain's, damaged or odd ones, an impossible setting: one line each.
    """

    def __init__(
        self,
        *,
        domain: str,
        observation: str = "state",
        pictures: str = "fast",
        data_dir: str | os.PathLike[str] | None = None,
        explorer: str | None = None,
        collect: bool = True,
        collect_episodes: int = 300,
        workers: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        max_episodes: int | None = None,
        max_device_bytes: int = 8 * 2**30,
        frame_stack: int = 1,
        action_chunk: int = 1,
    ) -> None:
        self.facts: Domain = find_domain(domain)
        if observation not in ("state", "pixels"):
            raise ValueError(f"env.observation={observation}: there are state and pixels")
        if pictures not in ("fast", "default"):
            raise ValueError(f"env.pictures={pictures}: there are fast and default")
        shape = (3, SIZE, SIZE) if observation == "pixels" else (self.facts.observation_dim,)
        options = {"device": device, "frame_stack": frame_stack, "action_chunk": action_chunk}
        super().__init__(shape, self.facts.action_dim, **options)
        if max_episodes is not None and max_episodes < 0:
            raise ValueError(f"max_episodes={max_episodes}: null takes all, 0 reads none")
        self.pictures = Pictures(frame_stack, pictures == "fast") if observation == "pixels" else None
        """How episodes are seen; None: by states."""
        self.left_out: list[str] = []
        """What is wrong with files that are not whole."""
        self.folder: Path | None = None
        if max_episodes != 0:
            root = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
            make = (collect_episodes, seed) if collect and explorer in (None, "random") else None
            self.folder = self._find(root, explorer, make, workers)
            self._open(self.folder, max_episodes, workers, max_device_bytes)
            self._say_what_it_is()

    def physics_at(self, rows: Tensor) -> TensorDict:
        """The simulator's state in these rows [n]: "qpos", "qvel" (and "act" of the quadruped) float64, on the CPU."""
        return self.physics[rows.cpu().long()]

    @cached_property
    def tasks(self) -> DMCTasks:
        """The domain's tasks."""
        return DMCTasks(self.facts, self.device, pictures=self.pictures)

    @cached_property
    def provenance(self) -> dict[str, Any] | None:
        """How the episodes were made, if that was on some machine of ours; None for published ones."""
        return None if self.folder is None else provenance(self.folder)

    def describe(self) -> dict[str, Any]:
        """What data this is, for the run's ``source.json``."""
        if self._store is None:
            return {"domain": self.facts.name, "episodes": 0}
        return {
            "domain": self.facts.name,
            "folder": str(self.folder),
            "episodes": self.store.num_trajectories,
            "transitions": self.store.num_transitions,
            "pictures": None if self.pictures is None else self.pictures._asdict(),
            "left_out": self.left_out,
            "provenance": self.provenance,
        }

    def _find(self, root: Path, explorer: str | None, make: tuple[int, int] | None, workers: int | None) -> Path:
        """The folder of the episodes; ``make`` = (how many, seed) of random ones where there are none."""
        domain = self.facts.name
        folder = find_folder(domain, root, explorer)
        if make is not None and (folder is None or _is_short(folder, make[0])):
            folder = root / domain / "random" / "buffer" if folder is None else folder
            better = f"python -m worldmodels.run agent=rnd env=dmc env.domain={domain} explores farther"
            print(f"{folder}: making {make[0]} episodes with random actions; {better}", file=sys.stderr)
            collect_random(domain, folder=folder, episodes=make[0], workers=workers, seed=make[1])
        if folder is None:
            raise ValueError(_nothing_found(self.facts, root, explorer))
        return folder

    def _open(self, folder: Path, max_episodes: int | None, workers: int | None, max_device_bytes: int) -> None:
        self._paths: list[Path] = []  # of files that are whole
        rows, ends = self._load(folder, list(list_episodes(folder))[:max_episodes])
        if self.pictures is not None:
            rows = with_pictures(
                rows,
                self._paths,
                domain=self.facts,
                device=self.device,
                is_fast=self.pictures.is_fast,
                workers=workers,
                max_device_bytes=max_device_bytes,
            )
        self.keep(rows, ends)

    def _load(self, folder: Path, files: list[EpisodeFile]) -> tuple[TensorDict, torch.Tensor]:
        """Rows of all whole files, and their ends; ``physics`` of the same rows."""
        facts, total = self.facts, sum(file.steps + 1 for file in files)
        state = torch.empty(total, facts.observation_dim, device=self.device)
        action = torch.empty(total, facts.action_dim, device=self.device)
        terminated = torch.zeros(total, dtype=torch.bool)
        ends, physics = torch.zeros(total, dtype=torch.bool), torch.empty(total, facts.physics_dim, dtype=torch.float64)
        observe, num = models().Observer(facts), 0
        for file in files:
            try:
                episode = read(file, facts)
            except DamagedError as error:
                self.left_out.append(str(error))
                continue
            _check_physics(file.path, episode.observation, episode.physics, observe)
            self._paths.append(file.path)
            rows = slice(num, num + len(episode.observation))
            num = rows.stop
            state[rows] = torch.from_numpy(episode.observation)
            physics[rows] = torch.from_numpy(episode.physics)
            # The file's action t led to row t; ours is taken from row t. The last row's leads nowhere.
            action[rows] = torch.from_numpy(np.roll(episode.action, -1, axis=0))
            terminated[rows] = torch.from_numpy(np.roll(episode.discount, -1, axis=0) == 0)
            terminated[num - 1], ends[num - 1] = False, True
        if num == 0:
            raise ValueError(f"{folder}: none of its {len(files)} files is whole; {self.left_out[0]}")
        parts = {key: torch.from_numpy(part) for key, part in facts.split(physics[:num].numpy()).items()}
        self.physics = TensorDict(parts, batch_size=[num])
        """The simulator's state in every row [N], float64 on the CPU."""
        rows = TensorDict({ACTION: action[:num], TERMINATED: terminated[:num].to(self.device)}, batch_size=[num])
        rows[OBSERVATION, STATE] = state[:num]
        return rows, ends[:num]

    def _say_what_it_is(self) -> None:
        made = "" if self.provenance is None else f", {self.provenance['made_by']}"
        size = f"{self.store.num_trajectories:,} episodes, {self.store.num_transitions:,} transitions"
        print(f"{self.folder}: {size}{made}", file=sys.stderr)
        if self.left_out:
            print(f"{len(self.left_out)} files are left out, such as: {self.left_out[0]}", file=sys.stderr)


def _check_physics(path: Path, observation: np.ndarray, physics: np.ndarray, observe: Any) -> None:
    """Whether an episode's physics shows what was observed, in its middle and at its end."""
    rows = [len(physics) // 2, len(physics) - 1]
    shown = observe(physics[rows])
    seen = observation[rows, : shown.shape[1]]
    deviation = np.abs(seen - shown) / (1 + np.abs(shown))
    if deviation.max() > _MAX_DEVIATION:
        row, entry = np.unravel_index(int(deviation.argmax()), deviation.shape)
        raise ValueError(
            f"{path}: physics does not reproduce the observation: in row {rows[row]}, entry {entry} is "
            f"{seen[row, entry]:.5g}, but physics gives {shown[row, entry]:.5g}. If these files are of another "
            f"MuJoCo, run python -m envs.regenerate folder={path.parent} domain=..."
        )


def _is_short(folder: Path, episodes: int) -> bool:
    """Whether ``folder`` holds fewer than so many episodes of random actions, as after an interruption."""
    note = provenance(folder)
    is_ours = note is not None and note["settings"]["explorer"] == "random"
    return is_ours and sum(1 for _ in list_episodes(folder)) < episodes


def _nothing_found(facts: Domain, root: Path, explorer: str | None) -> str:
    name = explorer or "rnd"
    return (
        f"there are no episodes of {facts.name} in {root}: put ExoRL's files at "
        f"{root}/{facts.name}/{name}/buffer/episode_000000_1000.npz, ... (or set env.data_dir or $EXORL_DATA_DIR), "
        f"or make some: python -m envs.dmc_collect domain={facts.name} (random actions), "
        f"python -m worldmodels.run agent=rnd env=dmc env.domain={facts.name} (explores)"
    )
