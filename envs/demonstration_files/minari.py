"""Minari's data/main_data.hdf5, read without the package.

An episode_I has T actions and T + 1 observations, as infos often have, too; the last one, after which nothing was done,
is left out. Entries of a dictionary are groups: observations/desired_goal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from envs.demonstration_files import hdf5
from envs.demonstration_files.recording import Recording, Rows, natural


def detect(path: Path) -> bool:
    """Whether the first file has episodes."""
    return any(name.startswith("episode_") for name in hdf5.first_keys(path))


def read(path: Path) -> Iterator[Recording]:
    """Episodes in the order of their numbers."""
    for file in hdf5.files_of(path):
        with hdf5.opened(file) as root:
            for episode in sorted((name for name in root if name.startswith("episode_")), key=natural):
                where, group = f"{file}: {episode}", root[episode]
                hdf5.need(group, ["actions", "observations"], where)
                columns = hdf5.arrays(group)
                if "actions" not in columns:
                    raise ValueError(f"{where}: actions are a dictionary of {', '.join(group['actions'])}, not vectors")
                action = np.asarray(columns.pop("actions"))
                for name, column in columns.items():
                    if column.shape[:1] == (len(action) + 1,):
                        columns[name] = Rows(column, 0, len(action))
                yield Recording(where, columns, action, file.resolve().parent.parent.name)
