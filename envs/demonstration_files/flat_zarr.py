"""Diffusion policy's zarr: data/{action, state, img, ...} end to end, meta/episode_ends.

Needs zarr: pip install 'worldmodels[imitation]'.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from envs.demonstration_files.recording import Recording, cut

_READ_WHOLE = 2**27  # bytes: of larger arrays, such as pictures, only the rows that are asked for are read


def detect(path: Path) -> bool:
    """Whether the folder is a group of version 2 or 3 with ends of episodes."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json")) and (path / "meta/episode_ends").is_dir()


def read(path: Path) -> Iterator[Recording]:
    """Episodes in order.

    Raises:
        ImportError: if zarr is not installed.
        ValueError: if an array cannot be read: a codec that is not there, a chunk that is damaged.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError(f"{path} needs zarr: pip install 'worldmodels[imitation]'") from error
    root = zarr.open_group(str(path), mode="r")
    try:
        ends = np.asarray(root["meta/episode_ends"], np.int64)
        columns = {name: array[:] if array.nbytes <= _READ_WHOLE else array for name, array in root["data"].arrays()}
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no readable zarr of demonstrations: {error}") from error
    yield from cut(columns, ends, path=path, action="action")
