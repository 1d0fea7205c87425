"""Arrays end to end in one npz: with "episode_ends", or as OGBench has them, with "terminals" on last rows."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from envs.demonstration_files.recording import Recording, cut


def detect_ends(path: Path) -> bool:
    """Whether it is an npz with "episode_ends"."""
    return "episode_ends" in _names(path)


def read_ends(path: Path) -> Iterator[Recording]:
    """Episodes of "action" and its companions."""
    columns = _columns(path)
    yield from cut(columns, columns.pop("episode_ends").astype(np.int64), path=path, action="action")


def detect_terminals(path: Path) -> bool:
    """Whether it is an npz with "terminals"."""
    return "terminals" in _names(path)


def read_terminals(path: Path) -> Iterator[Recording]:
    """Episodes of "actions" and their companions."""
    columns = _columns(path)
    ends = np.flatnonzero(columns["terminals"]) + 1
    yield from cut(columns, ends, path=path, action="actions")


def _names(path: Path) -> set[str]:
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return set()
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _columns(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
