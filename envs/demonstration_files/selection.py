"""Which columns of a recording are what an observation has, and one recording as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from envs.demonstration_files.pictures import pictures
from envs.demonstration_files.recording import Recording
from worldmodels.keys import ACTION, ENVIRONMENT_STATE, PIXELS, STATE


class Episode(NamedTuple):
    """One recording, read."""

    name: str
    observation: dict[str, np.ndarray]  # each [T, ...]
    action: np.ndarray  # float32 [T, A], in units of the recording
    task: np.ndarray  # str [T]
    is_success: bool
    layout: dict[str, dict[str, int]]  # columns behind each vector, and how many numbers of it are theirs


class Selection(NamedTuple):
    """What is taken of recordings."""

    state: Sequence[str]
    """Names of columns, joined; patterns such as "obs/robot0_*" take vectors only."""
    environment_state: Sequence[str]
    """Likewise; nothing if empty."""
    cameras: Sequence[str]
    """Names of columns or videos, their pictures joined along channels."""
    size: int
    """Side of the pictures, pixels."""
    success: str | None
    """Name of the column that is above 0 somewhere if the episode succeeded; None: all did."""

    def read(self, recording: Recording) -> Episode:
        """One recording as numbers.

        Raises:
            ValueError: naming the file and what it lacks.
        """
        vectors = {STATE: self.state, ENVIRONMENT_STATE: self.environment_state}
        columns = {key: _matching(recording, names, f"env.{key}") for key, names in vectors.items() if names}
        parts = {key: {name: _vectors(recording, name) for name in names} for key, names in columns.items()}
        action = _action(recording)
        observation = {key: _joined(values, f"{recording.name}: {key}") for key, values in parts.items()}
        layout = {key: {name: value.shape[1] for name, value in values.items()} for key, values in parts.items()}
        if self.cameras:
            observation[PIXELS] = np.concatenate([pictures(recording, name, self.size) for name in self.cameras], 1)
        is_success = self.success is None or bool((_column(recording, self.success, "env.success") > 0).any())
        task = np.broadcast_to(recording.task, len(action))
        layout[ACTION] = {ACTION: action.shape[1]}
        return Episode(recording.name, observation, action, task, is_success, layout)


def _matching(recording: Recording, names: Sequence[str], setting: str) -> list[str]:
    """Columns that are named, in this order, or whose names match a pattern."""
    found: list[str] = []
    for wanted in names:
        if wanted in recording.columns:
            matches = [wanted]
        else:
            matches = [name for name in _vector_columns(recording.columns) if fnmatchcase(name, wanted)]
        if not matches:
            have = [f"{name} {list(column.shape[1:])}" for name, column in sorted(recording.columns.items())]
            raise ValueError(
                f"{recording.name}: there is no {wanted}, which {setting} names or is by default; columns are "
                f"{', '.join(have) or 'none'}. Name some: {setting}=[...]"
            )
        found += matches
    return list(dict.fromkeys(found))


def _vector_columns(columns: Mapping[str, Any]) -> list[str]:
    """Those of numbers [T] or [T, D], but no bytes, which are pictures' files."""
    return [
        name
        for name, column in sorted(columns.items())
        if column.ndim <= 2 and column.dtype.kind in "fiub" and column.dtype != np.uint8
    ]


def _vectors(recording: Recording, name: str) -> np.ndarray:
    values = _column(recording, name, "the state")
    return values.reshape(len(values), math.prod(values.shape[1:])).astype(np.float32)


def _column(recording: Recording, name: str, setting: str) -> np.ndarray:
    """A column's numbers [T, ...]."""
    if name not in recording.columns:
        have = ", ".join(sorted(recording.columns))
        raise ValueError(f"{recording.name}: {setting}={name}, but columns are {have}")
    try:
        values = np.asarray(recording.columns[name])
    except (OSError, RuntimeError, ValueError) as error:  # a damaged chunk, a codec that is not installed
        raise ValueError(f"{recording.name}: {name} cannot be read: {error}") from error
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{recording.name}: {name} has values of type {values.dtype}, no numbers")
    return values


def _action(recording: Recording) -> np.ndarray:
    action = recording.action
    if action.ndim != 2 or action.dtype.kind not in "fiu":
        raise ValueError(
            f"{recording.name}: action is {action.dtype} {list(action.shape)}; vectors [T, A] are needed, no numbers "
            "of discrete actions"
        )
    return action.astype(np.float32)


def _joined(values: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    lengths = {name: len(value) for name, value in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where} cannot be joined from columns of different lengths, {lengths}")
    return np.concatenate([*values.values()], 1)
