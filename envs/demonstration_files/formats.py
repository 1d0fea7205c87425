"""The table of formats; a new one is a module and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from envs.demonstration_files import aloha, flat_npz, flat_zarr, lerobot, minari, robomimic
from envs.demonstration_files.recording import Recording
from worldmodels.spelling import did_you_mean


class Format(NamedTuple):
    """One way to keep demonstrations."""

    detect: Callable[[Path], bool]
    read: Callable[[Path], Iterator[Recording]]
    state: str
    """Columns that are the state if nobody says otherwise: a pattern."""
    looks: str
    """How it is recognised, for messages."""


FORMATS = {
    "lerobot": Format(lerobot.detect, lerobot.read, "observation.state", "a folder with meta/info.json"),
    "zarr": Format(flat_zarr.detect, flat_zarr.read, "state", "a zarr folder with data/action and meta/episode_ends"),
    "npz": Format(flat_npz.detect_ends, flat_npz.read_ends, "state", "an npz with action and episode_ends"),
    "ogbench": Format(
        flat_npz.detect_terminals, flat_npz.read_terminals, "observations", "an npz with actions and terminals"
    ),
    "robomimic": Format(robomimic.detect, robomimic.read, "obs/*", "HDF5 with data/demo_I"),
    "act": Format(aloha.detect, aloha.read, "observations/qpos", "HDF5 files with action and observations"),
    "minari": Format(minari.detect, minari.read, "observations*", "HDF5 with episode_I"),
}


def find_format(path: Path, name: str | None = None) -> str:
    """Name of the format of what is at ``path``, or ``name`` if it is a known one.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if there is no such format, or none fits.
    """
    if not path.exists():
        raise FileNotFoundError(f"env.path={path}: there is no such file or folder")
    if name is not None:
        if name not in FORMATS:
            hint = did_you_mean(name, FORMATS) or "."
            raise ValueError(f"env.format={name}: no such format{hint} There are {', '.join(FORMATS)}")
        return name
    for known, one in FORMATS.items():
        if one.detect(path):
            return known
    looks = "; ".join(f"{known}: {one.looks}" for known, one in FORMATS.items())
    raise ValueError(f"env.path={path} is in none of the known formats ({looks})")
