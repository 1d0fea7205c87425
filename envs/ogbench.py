"""OGBench: offline data sets of mazes and robot arms, with five tasks each to be solved without their rewards."""

from __future__ import annotations

import hashlib
import os
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from envs.episodes import StoredEpisodes
from envs.ogbench_files import DataFile, find
from envs.ogbench_names import Dataset, find_dataset
from envs.ogbench_tasks import OGBenchTasks
from envs.replay import load_rows
from worldmodels.keys import ACTION, OBSERVATION, PIXELS, STATE, TERMINATED

_COLUMNS = {"observations": OBSERVATION, "actions": ACTION}


class OGBench(StoredEpisodes):
    """Windows of one OGBench data set, held on the training device and sampled there.

    The file is looked for in ``data_dir``, $OGBENCH_DATA_DIR and ~/.ogbench/data; if it is nowhere, it is downloaded,
    or collected on this machine where the behaviour policy ships with ogbench. "terminated" is never true.

    Args:
        dataset: name, such as "pointmaze-medium-navigate-v0".
        data_dir: folder of NAME.npz and NAME-val.npz.
        device: where batches are wanted.
        split: "train" or "val".
        download: whether to try ogbench's server.
        collect: whether to collect what cannot be downloaded.
        transitions: size of the training data to collect; None: as published. Files of another size are not used.
        workers: processes that collect; None: one a core.
        seed: of the collection; None: 0, and any file will do.
        max_device_bytes: larger data stays on disk, memory-mapped; only sampled rows travel to the device.
        max_episodes: use this many trajectories from the start. The published TD-JEPA numbers used 1000: a fifth of
            "stitch", a tenth of "explore", all of "navigate" and "play".
        frame_stack: pictures joined along channels; states have 1.
        action_chunk: steps an action decides: rows of a window lie so far apart, and "action" joins what was done.

    Raises:
        ValueError: unknown name, a damaged or foreign file, an impossible setting: one line each.
    """

    def __init__(
        self,
        *,
        dataset: str,
        data_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        split: str = "train",
        download: bool = True,
        collect: bool = True,
        transitions: int | None = None,
        workers: int | None = None,
        seed: int | None = None,
        max_device_bytes: int = 8 * 2**30,
        max_episodes: int | None = None,
        frame_stack: int = 1,
        action_chunk: int = 1,
    ) -> None:
        self.facts: Dataset = find_dataset(dataset)
        if split not in ("train", "val"):
            raise ValueError(f"split={split!r}: OGBench has train and val")
        shape = self.facts.observation_shape  # of a row in the file
        shape = (shape[2], *shape[:2]) if self.facts.is_visual else shape
        options = {"device": device, "frame_stack": frame_stack, "action_chunk": action_chunk}
        super().__init__(shape, self.facts.action_dim, **options)
        path = find(
            self.facts,
            data_dir,
            is_downloaded=download,
            is_collected=collect,
            transitions=transitions,
            workers=workers,
            seed=seed,
        )
        if split == "val":
            path = path.with_name(f"{path.stem}-val.npz")
            if not path.exists():
                raise ValueError(f"{path} is missing; it belongs beside {self.facts.name}.npz")
        self.split = split
        self._file = DataFile(path, self.facts, max_episodes=max_episodes)
        self.keep(self._load(shape, max_device_bytes), torch.from_numpy(self._file.ends))
        self._say_what_it_is()

    def physics_at(self, rows: Tensor) -> TensorDict | None:
        """The simulator's state in these rows [n]: "qpos", "qvel" float64, "button_states" int64; None if unknown."""
        if self.physics is None:
            return None
        index = rows.cpu().long()
        return TensorDict({k: _exact(v[index]) for k, v in self.physics.items()}, batch_size=rows.shape)

    @cached_property
    def physics(self) -> TensorDict | None:
        """The simulator's state in every row [N], on the CPU as stored, read when first used; None if unknown."""
        keys = self._file.physics_keys
        if not keys:
            return None
        columns = {key: torch.from_numpy(self._file.column(key)) for key in keys}
        return TensorDict(columns, batch_size=[self._file.num_rows])

    @cached_property
    def tasks(self) -> OGBenchTasks:
        """The benchmark's five tasks."""
        return OGBenchTasks(self)

    @property
    def path(self) -> Path:
        """The file in use."""
        return self._file.path

    @cached_property
    def provenance(self) -> dict[str, Any] | None:
        """How the file was made, if it was collected on some machine; None for published files."""
        return self._file.provenance()

    def _load(self, shape: tuple[int, ...], max_device_bytes: int) -> TensorDict:
        name, kind = (PIXELS, torch.uint8) if self.facts.is_visual else (STATE, torch.float32)
        shapes = {
            f"{OBSERVATION}/{name}": (shape, kind),
            ACTION: ((self.facts.action_dim,), torch.float32),
            TERMINATED: ((), torch.bool),
        }
        path, stat = self._file.path, self._file.path.stat()
        mark = hashlib.sha256(f"{stat.st_size}/{stat.st_mtime_ns}/{self._file.num_rows}".encode()).hexdigest()[:10]
        return load_rows(
            shapes,
            self._file.num_rows,
            self._fill,
            device=self.device,
            max_device_bytes=max_device_bytes,
            unpacked=path.with_name(f".{path.stem}.unpacked-{mark}"),
        )

    def _fill(self, rows: TensorDict) -> None:
        for column, key in _COLUMNS.items():
            target = rows[key] if key == ACTION else next(iter(rows[key].values()))
            for span, values in self._file.blocks(column):
                block = torch.from_numpy(values)
                target[span] = (block.movedim(-1, 1) if key != ACTION and self.facts.is_visual else block).to(
                    target.dtype
                )

    def _say_what_it_is(self) -> None:
        note = self.provenance
        if note is not None and self.split == "train":
            settings = note["settings"]
            print(
                f"{self.path}: collected locally, {settings['transitions']:,} of {self.facts.transitions:,} published "
                f"transitions, seed {settings['seed']}",
                file=sys.stderr,
            )


def _exact(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values.long()
