"""robomimic's HDF5: data/demo_I/{actions, obs/..., rewards, dones, states}; a file a task, numbers may have gaps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from envs.demonstration_files import hdf5
from envs.demonstration_files.recording import Recording, natural


def detect(path: Path) -> bool:
    """Whether the first file has a group "data"."""
    return "data" in hdf5.first_keys(path)


def read(path: Path) -> Iterator[Recording]:
    """Episodes of all files, in the order of their numbers; the observations after each step are left out."""
    for file in hdf5.files_of(path):
        with hdf5.opened(file) as root:
            hdf5.need(root, ["data"], str(file))
            for demo in sorted(root["data"], key=natural):
                where, group = f"{file}: {demo}", root["data"][demo]
                hdf5.need(group, ["actions", "obs"], where)
                columns = {name: data for name, data in hdf5.arrays(group).items() if not name.startswith("next_obs/")}
                yield Recording(where, columns, np.asarray(columns.pop("actions")), file.stem)
