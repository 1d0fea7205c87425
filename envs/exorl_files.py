"""Episodes in ExoRL's layout: one npz file each, found, read, checked, written.

::

    ROOT/walker/rnd/buffer/episode_000000_1000.npz        index, then steps T; ROOT/DOMAIN/EXPLORER/buffer as unzipped

    row          0        1        2      ...    T        T + 1 rows of every key
    observation  s0       s1       s2            sT
    action       (zeros)  a0       a1            aT-1     the action in row t LED TO row t; row 0's is a dummy
    physics      of s0    of s1    ...                    float64: positions, velocities, actuator states
    reward       of the explorer: never used for tasks; 4 numbers a row in the point mass's rnd files
    discount     1 where the episode goes on, 0 where it ended

Source: ExoRL (Yarats et al. 2022); sheet td_jepa, section 3.1.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.dmc_domains import DOMAINS, EPISODE_STEPS, Domain
from worldmodels.files import atomic_write, atomic_write_json

KEYS = ("observation", "action", "reward", "discount", "physics")
PROVENANCE = "provenance.json"
_NAME = re.compile(r"episode_(\d+)_(\d+)\.npz")
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, UnicodeDecodeError, OSError)


class DamagedError(ValueError):
    """A file that is not whole, such as one whose download was cut off."""


class Episode(NamedTuple):
    """T steps, in the file's rows: ``action[t]`` led to row t."""

    observation: np.ndarray  # float32 [T + 1, S]
    action: np.ndarray  # float32 [T + 1, A]
    discount: np.ndarray  # float32 [T + 1]
    physics: np.ndarray  # float64 [T + 1, P]
    reward: np.ndarray | None = None  # float32 [T + 1, R], the explorer's; None if it was not asked for


class EpisodeFile(NamedTuple):
    """A file and what its name says."""

    path: Path
    index: int
    steps: int


def default_data_dir() -> Path:
    """Where ExoRL's folders live if nobody says otherwise: $EXORL_DATA_DIR, else ~/.worldmodels/exorl."""
    return Path(os.environ.get("EXORL_DATA_DIR") or "~/.worldmodels/exorl").expanduser()


def find_folder(domain: str, root: Path, explorer: str | None = None) -> Path | None:
    """The folder of a domain's episodes below ``root``, or ``root`` itself; None if there is none.

    Args:
        explorer: whose; None takes "rnd" where it is, "random" only where no other is.
    """
    for base in (root / domain, root):
        if explorer is not None:
            names = [explorer]
        else:
            found = sorted(path.name for path in base.glob("*") if path.is_dir()) if base.is_dir() else []
            names = sorted({"", *found} - set(DOMAINS), key=lambda name: (name != "", name != "rnd", name == "random"))
        for name in names:
            for folder in (base / name / "buffer", base / name):
                if any(list_episodes(folder)):
                    return folder
    return None


def list_episodes(folder: Path) -> Iterator[EpisodeFile]:
    """The episodes of a folder, sorted by name: every machine trains on the same ones."""
    names = sorted(path.name for path in folder.glob("episode_*.npz")) if folder.is_dir() else []
    for name in names:
        if found := _NAME.fullmatch(name):
            yield EpisodeFile(folder / name, int(found[1]), int(found[2]))


def read(file: EpisodeFile, domain: Domain, *, with_reward: bool = False) -> Episode:
    """Read and check one episode.

    Raises:
        DamagedError: if the file is not whole.
        ValueError: another domain's shapes, another length, numbers that are not finite, actions beyond 1, a discount
            other than 0 and 1: one line that names file, key and row.
    """
    path = file.path
    wanted = [key for key in KEYS if with_reward or key != "reward"]
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as archive:
            if missing := [key for key in wanted if key not in archive.files]:
                raise ValueError(f"{path}: {missing[0]} is missing; it has {', '.join(archive.files)}")
            columns = {key: archive[key] for key in wanted}
    except _DAMAGE as error:
        raise DamagedError(f"{path} is not whole ({error})") from error
    except ValueError as error:
        text = str(error)
        if str(path) in text:
            raise
        raise DamagedError(f"{path} is not whole ({text})") from error  # numpy's word for a cut array
    _check(file, domain, columns)
    reward = columns["reward"].astype(np.float32) if with_reward else None
    return Episode(
        columns["observation"].astype(np.float32, copy=False),
        columns["action"].astype(np.float32, copy=False),
        columns["discount"].astype(np.float32, copy=False).reshape(-1),
        columns["physics"].astype(np.float64, copy=False),
        reward,
    )


def write_episode(folder: Path, index: int, episode: Episode) -> Path:
    """Write one episode, atomically: a reader sees all of it or nothing. Returns its path.

    Raises:
        DiskFullError: no room.
    """
    steps = len(episode.observation) - 1
    reward = np.zeros((steps + 1, 1), np.float32) if episode.reward is None else episode.reward
    file = io.BytesIO()
    np.savez_compressed(
        file,
        observation=episode.observation.astype(np.float32),
        action=episode.action.astype(np.float32),
        reward=reward.astype(np.float32).reshape(steps + 1, -1),
        discount=episode.discount.astype(np.float32).reshape(steps + 1, 1),
        physics=episode.physics.astype(np.float64),
    )
    path = folder / f"episode_{index:06d}_{steps}.npz"
    atomic_write(path, file.getvalue())
    return path


def provenance(folder: Path) -> dict[str, Any] | None:
    """What ``claim`` noted in a folder of episodes; None for published ones."""
    note = folder / PROVENANCE
    return json.loads(note.read_text()) if note.exists() else None


def claim(folder: Path, *, made_by: str, settings: dict[str, Any], packages: Sequence[str]) -> None:
    """Note in a folder who makes its episodes, how, with which versions of ``packages``, by which command, and when."""
    content = {
        "made_by": made_by,
        "settings": settings,
        "versions": {name: version(name) for name in packages},
        "command": " ".join(sys.orig_argv),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    atomic_write_json(folder / PROVENANCE, content)


def _check(file: EpisodeFile, domain: Domain, columns: dict[str, Any]) -> None:
    path = file.path
    widths = {"observation": domain.observation_dim, "action": domain.action_dim, "physics": domain.physics_dim}
    for key, width in widths.items():
        shape = columns[key].shape
        if len(shape) != 2 or shape[1] != width:
            sizes = (columns["observation"].shape[-1:], columns["action"].shape[-1:])
            fits = [d.name for d in DOMAINS.values() if sizes == ((d.observation_dim,), (d.action_dim,))]
            hint = f"; these are sizes of {fits[0]}: env.domain={fits[0]}" if fits and fits != [domain.name] else ""
            raise ValueError(f"{path}: {key} has shape {list(shape)}, but {domain.name} needs [T + 1, {width}]{hint}")
    for key, values in columns.items():
        if len(values) != file.steps + 1:
            raise ValueError(f"{path}: {key} has {len(values)} rows, but the name says {file.steps} steps and one more")
    if file.steps != EPISODE_STEPS:
        raise ValueError(f"{path}: an episode of {file.steps} steps, but those of ExoRL have {EPISODE_STEPS}")
    for key in widths:
        is_good = np.isfinite(columns[key]).all(-1)
        if not is_good.all():
            raise ValueError(f"{path}: {key} is not finite in row {int(np.flatnonzero(~is_good)[0])}")
    if (largest := float(np.abs(columns["action"]).max())) > 1.001:
        raise ValueError(f"{path}: an action of {largest:.3g}, but actions lie within [-1, 1]")
    discount = columns["discount"].reshape(-1)
    is_odd = (discount != 0) & (discount != 1)
    if is_odd.any():
        row = int(np.flatnonzero(is_odd)[0])
        raise ValueError(
            f"{path}: discount is {discount[row]:.4g} in row {row}; 1 (goes on) or 0 (ended) is needed. How far "
            f"an agent looks ahead is agent.discount, not the data's"
        )
