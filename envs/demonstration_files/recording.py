"""What every format is read as: episodes whose columns are loaded when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Camera = Callable[[int], np.ndarray]  # side S in pixels -> uint8 [T, 3, S, S]


class Recording(NamedTuple):
    """One episode, as it is recorded. Columns may belong to an open file: take what is needed before the next one."""

    name: str
    """Of the file and the episode in it, for messages and for the record."""
    columns: Mapping[str, Any]
    """Arrays [T, ...], loaded by ``numpy.asarray``: what was seen, and marks such as rewards; by their names there."""
    action: np.ndarray
    """[T, A], in units of the recording."""
    task: str | np.ndarray
    """Name of the task, of the episode or of each row [T]."""
    cameras: Mapping[str, Camera] = {}
    """Pictures that are no columns, such as videos."""


class Rows:
    """Rows ``first`` to before ``last`` of an array that may be on disk; loaded by ``numpy.asarray``."""

    def __init__(self, array: Any, first: int, last: int) -> None:
        self._array, self._first, self._last = array, first, last
        self.dtype, self.ndim, self.shape = array.dtype, array.ndim, (last - first, *array.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The rows."""
        return np.asarray(self._array[self._first : self._last], dtype)


def cut(columns: Mapping[str, Any], ends: np.ndarray, *, path: Path, action: str) -> Iterator[Recording]:
    """Episodes of columns that hold them end to end.

    Args:
        columns: arrays [N, ...].
        ends: row after the last one of each episode, [M].
        path: of the file, for messages.
        action: name of the column of actions.

    Raises:
        ValueError: if there is no such column, or the ends are not those of N rows.
    """
    if action not in columns:
        raise ValueError(f"{path}: there is no {action}; it has {', '.join(sorted(columns))}")
    num = columns[action].shape[0]
    if not len(ends) or ends[-1] != num or (np.diff(ends, prepend=0) < 1).any():
        raise ValueError(f"{path}: ends of episodes must rise to {num}, the number of actions; they are {ends}")
    whole = {name: array for name, array in columns.items() if array.ndim and array.shape[0] == num}
    for number, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        rows = {name: Rows(array, int(first), int(last)) for name, array in whole.items()}
        yield Recording(f"{path}: episode {number}", rows, np.asarray(rows.pop(action)), path.stem)


def natural(text: Any) -> list[Any]:
    """Key to sort names by, where demo_10 comes after demo_9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(text))]
