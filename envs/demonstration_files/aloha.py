"""ACT's HDF5: a file an episode, {action, observations/{qpos, qvel, images/CAMERA}}, a folder a task.

Files of a real robot (attribute "sim" is false) hold the action that led to an observation beside it, late by the time
of one step; as in the authors' own code, row t then gets the action of row t - 1, and the first row its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from envs.demonstration_files import hdf5
from envs.demonstration_files.recording import Recording


def detect(path: Path) -> bool:
    """Whether the first file is an episode."""
    return {"action", "observations"} <= hdf5.first_keys(path)


def read(path: Path) -> Iterator[Recording]:
    """An episode a file."""
    for file in hdf5.files_of(path):
        with hdf5.opened(file) as root:
            hdf5.need(root, ["action", "observations"], str(file))
            columns = hdf5.arrays(root)
            action = np.asarray(columns.pop("action"))
            if not root.attrs.get("sim", True):
                action = np.concatenate([action[:1], action[:-1]])
            yield Recording(str(file), columns, action, file.resolve().parent.name)
