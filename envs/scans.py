"""LiDAR scans with boxes, whatever the format: kept ragged on the device, given out as padded rows.

A reader (``envs.kitti``, ``envs.once``, ``envs.waymo``) says which frames a split has and reads one; this file does the
rest.
"""

from __future__ import annotations

import hashlib
import os
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Bounded, Composite, Unbounded

from envs.point_store import PointStore
from worldmodels.core import Policy
from worldmodels.formats.kitti import Calibration
from worldmodels.formats.kitti_text import Objects
from worldmodels.geometry.boxes import corners, points_in_boxes
from worldmodels.keys import BOX_CLASS, BOXES, FRAME, NUM_POINTS, OBSERVATION, POINTS

_READERS = 4  # threads that read scans ahead
_CACHE = "~/.worldmodels/scans"


class Frame(NamedTuple):
    """One frame as it was read: what evaluators and pictures need."""

    name: str  # as in the list of frames
    points: Tensor  # float32 [P, C], without padding
    boxes: Tensor  # float32 [M, 7] of the source's classes
    box_class: Tensor  # int64 [M]
    difficulty: Tensor  # int64 [M], as the format counts it, 0 where it has none; -1 is too hard to be pasted elsewhere
    calibration: Calibration | None = None  # None where the format has no camera in this form
    image_size: tuple[int, int] | None = None  # height, width in pixels
    objects: Objects | None = None  # every line of a KITTI label, of other classes too


class ObjectBank(NamedTuple):
    """Every labelled object of the training frames with its points: what ground-truth sampling pastes from."""

    store: PointStore  # K clouds, relative to the box's centre, not turned
    boxes: Tensor  # float32 [K, 7], where it was
    box_class: Tensor  # int64 [K]
    difficulty: Tensor  # int64 [K]
    num_points: Tensor  # int64 [K]
    frame: Tensor  # int64 [K], training frame it is from


class Split:
    """The frames of one split, read once: rows for batches, ``Frame`` for those who judge.

    Args:
        frames: as read; their points move into the store.
    """

    def __init__(self, frames: Iterable[Frame], channels: int, *, device: torch.device, **memory: Any) -> None:
        self._frames: list[Frame] = []

        def clouds() -> Iterator[np.ndarray]:
            for frame in frames:
                nothing = frame.points.new_empty(0, channels)  # a slice of the points would keep them all in memory
                self._frames.append(frame._replace(points=nothing))
                yield frame.points.numpy()

        self.store = PointStore.build(clouds(), channels, device=device, **memory)
        num, most = len(self._frames), max([1, *(len(f.boxes) for f in self._frames)])
        boxes, box_class = torch.zeros(num, most, 7), torch.full((num, most), -1)
        for i, frame in enumerate(self._frames):
            boxes[i, : len(frame.boxes)], box_class[i, : len(frame.boxes)] = frame.boxes, frame.box_class
        self.boxes, self.box_class, self.device = boxes.to(device), box_class.to(device), device

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        """Frame ``index`` with all its points, on the device."""
        frame = self._frames[index]
        tensors = {key: getattr(frame, key).to(self.device) for key in ("boxes", "box_class", "difficulty")}
        return frame._replace(points=self.store.cloud(index), **tensors)

    def __iter__(self) -> Iterator[Frame]:
        return (self[i] for i in range(len(self)))

    @property
    def labels(self) -> Sequence[Frame]:
        """The frames without their points, on the host: nothing is read or copied for them."""
        return self._frames

    @property
    def names(self) -> list[str]:
        """Names of the frames, in order."""
        return [frame.name for frame in self._frames]

    def rows(self, index: Tensor) -> TensorDict:
        """Frames ``index`` int64 [B]: batch size [B], leaves [B, 1, ...], as ``LabelledScans.sample`` gives them."""
        index = index.to(self.device)
        points, num_points = self.store.rows(index)
        seen = {POINTS: points[:, None], NUM_POINTS: num_points[:, None]}
        labels = {BOXES: self.boxes[index][:, None], BOX_CLASS: self.box_class[index][:, None], FRAME: index[:, None]}
        return TensorDict({OBSERVATION: TensorDict(seen, [len(index), 1]), **labels}, [len(index)])

    def batches(self, batch_size: int) -> Iterator[TensorDict]:
        """All frames in order, ``batch_size`` at a time; the last batch may be smaller."""
        for first in range(0, len(self), batch_size):
            yield self.rows(torch.arange(first, min(first + batch_size, len(self))))

    def spec(self, num_classes: int) -> Composite:
        """One row."""
        at = {"device": self.device}
        whole = {"dtype": torch.int64, **at}
        seen = {
            POINTS: Unbounded((self.store.width, self.store.points.shape[-1]), **at),
            NUM_POINTS: Bounded(0, self.store.width, (), **whole),
        }
        most = self.boxes.shape[1]
        labels = {
            BOXES: Unbounded((most, 7), **at),
            BOX_CLASS: Bounded(-1, num_classes - 1, (most,), **whole),
            FRAME: Bounded(0, max(1, len(self) - 1), (), **whole),
        }
        return Composite({OBSERVATION: Composite(seen, **at), **labels}, **at)


class Layout(NamedTuple):
    """What tells one format's folders from another's."""

    name: str  # of the data
    types: Sequence[str]  # of objects
    channels: int  # numbers a point has
    folder: str  # without this one there are no data
    files: str  # all of them, for messages


class LabelledScans(ABC):
    """A source of single scans with boxes, split into train and val; batches come from train.

    Args:
        layout: of the folder; every reader has its own.
        data_dir: the folder.
        classes: types to detect, in the order of "box_class"; objects of other types are counted and left out.
        label_fraction: share p of the training frames, the FIRST int(N * p): the published label-efficiency sets.
        device: of batches.
        max_points: scans with more points lose a random part, the same in every run; None keeps all.
        limits: x, y, z from, then to, metres: points outside in x or y and boxes without a corner inside are dropped.
        max_device_bytes: more scans than that stay on disk, memory-mapped.

    Frames without a point are dropped from train, where there is nothing to learn from them, and stay in val, where
    what is not found counts. What was dropped is counted in ``notes`` and told once.

    Raises:
        FileNotFoundError: no such folder; it names the layout.
        ValueError: a choice that cannot be; it names the key.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        data_dir: str | os.PathLike[str] | None,
        classes: Sequence[str],
        label_fraction: int | float = 1.0,
        device: torch.device | str = "cpu",
        max_points: int | None = None,
        limits: Sequence[int | float] | None = None,
        max_device_bytes: int = 8 * 2**30,
    ) -> None:
        if data_dir is None:
            raise ValueError(
                f"env.data_dir is null: give the folder that holds {layout.files}. Or use env=lidar_scenes"
            )
        if not 0 < label_fraction <= 1:
            raise ValueError(f"env.label_fraction={label_fraction}: a share of the training frames, above 0, at most 1")
        if unknown := [name for name in classes if name not in layout.types]:
            raise ValueError(
                f"env.classes: {layout.name} has no {', '.join(unknown)}; it has {', '.join(layout.types)}"
            )
        self.layout, self.data_dir, self.label_fraction = layout, Path(data_dir).expanduser(), label_fraction
        if not (self.data_dir / layout.folder).is_dir():
            raise FileNotFoundError(f"env.data_dir={data_dir}: there is no {layout.name} data; it needs {layout.files}")
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"env.classes={list(classes)}: at least one name, each once")
        if max_points is not None and max_points < 1:
            raise ValueError(f"env.max_points={max_points}: at least one point")
        if limits is not None and (len(limits) != 6 or not all(limits[i] < limits[i + 3] for i in range(3))):
            raise ValueError(f"env.limits={list(limits)}: x, y, z from, then x, y, z to, each greater")
        self.where, self.classes = str(self.data_dir), tuple(classes)
        self.device, self.max_points = torch.device(device), max_points
        self.limits = None if limits is None else np.asarray(limits, dtype=np.float64)
        self.counted: Counter[str] = Counter()
        self._max_bytes, self._splits = max_device_bytes, {}
        train = self.frames("train")
        if not len(train):
            raise ValueError(f"{self.where}: no training frame has a point. {'; '.join(self.notes)}")
        self.spec = train.spec(len(self.classes))

    @abstractmethod
    def _names(self, split: str) -> list[str]:
        """Frames of "train" or "val", in order; raises a ValueError for other words."""

    @abstractmethod
    def _read(self, name: str) -> tuple[Frame, Mapping[str, int]]:
        """Read one frame with its points and boxes, and count what was left out. Called from several threads."""

    def _listed(self, split: str) -> list[str]:
        """Names that ImageSets/``split``.txt lists, each once."""
        path = self.data_dir / f"ImageSets/{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file; {self.layout.name} data need {self.layout.files}")
        names = path.read_text(encoding="utf-8").split()
        if len(set(names)) != len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise ValueError(f"{path} names {twice} more than once")
        return names

    def _first(self, names: list[str]) -> list[str]:
        """The training frames that ``label_fraction`` leaves."""
        count = int(len(names) * self.label_fraction)
        if names and not count:
            raise ValueError(f"env.label_fraction={self.label_fraction}: nothing is left of {len(names)} frames")
        return names[:count]

    @property
    def notes(self) -> list[str]:
        """What was dropped while reading, and how often."""
        return _told(self.counted)

    def frames(self, split: str) -> Split:
        """The frames of "train" or "val", read when first asked for."""
        if split not in self._splits:
            names = self._names(split)
            if not names:
                raise ValueError(f"{self.where}: no frame is left of {split}. {'; '.join(self.notes)}")
            mark = hashlib.sha256(f"{self.where}/{split}/{os.getpid()}/{id(self)}".encode()).hexdigest()[:12]
            before = self.counted.copy()
            self._splits[split] = Split(
                self._all(names, is_train=split == "train"),
                self.layout.channels,
                device=self.device,
                max_device_bytes=self._max_bytes,
                spill=Path(_CACHE).expanduser() / f"{mark}.f32",
            )
            if self.counted - before:
                print(f"{self.where}, {split}: {'; '.join(_told(self.counted - before))}", file=sys.stderr)
        return self._splits[split]

    def _all(self, names: list[str], *, is_train: bool) -> Iterator[Frame]:
        with ThreadPoolExecutor(_READERS) as pool:
            for first in range(0, len(names), 64):  # so that no more than that waits in memory
                for frame, left_out in pool.map(self._read, names[first : first + 64]):
                    self.counted.update(left_out)
                    kept = self._limited(frame)
                    if is_train and not len(kept.points):
                        self.counted["training frames without a point were left out"] += 1
                    else:
                        yield kept

    def _limited(self, frame: Frame) -> Frame:
        """Apply ``limits`` and ``max_points``."""
        points, boxes = frame.points, frame.boxes
        if self.limits is not None:
            low, high = torch.from_numpy(self.limits).split(3)
            points = points[((points[:, :2] >= low[:2]) & (points[:, :2] <= high[:2])).all(1)]
            place = corners(boxes.double())  # [M, 8, 3]
            inside = ((place >= low) & (place <= high)).all(-1).any(-1)
            if not inside.all():
                self.counted["boxes outside env.limits were left out"] += int((~inside).sum())
            frame = frame._replace(
                boxes=boxes[inside], box_class=frame.box_class[inside], difficulty=frame.difficulty[inside]
            )
        if self.max_points is not None and len(points) > self.max_points:
            seed = int.from_bytes(hashlib.sha256(frame.name.encode()).digest()[:4], "little")
            chosen = np.random.default_rng(seed).choice(len(points), self.max_points, replace=False)
            points = points[torch.from_numpy(np.sort(chosen))]
            self.counted["scans were thinned out to env.max_points"] += 1
        return frame._replace(points=points)

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw training frames uniformly: batch size [B], leaves [B, 1, ...].

        Raises:
            ValueError: if ``window`` is not 1: frames are single scans.
        """
        if window != 1:
            raise ValueError(f"window={window}: frames of {self.where} are single scans. Use objective=ad_l_jepa")
        train = self.frames("train")
        return train.rows(torch.randint(len(train), (batch_size,), generator=generator, device=generator.device))

    def attach(self, policy: Policy | None) -> None:  # noqa: B027 (every subclass is fixed data)
        """Fixed data needs no policy."""

    def objects(self) -> ObjectBank:
        """The ground-truth database of the training frames; built when first asked for."""
        return self._bank

    @cached_property
    def _bank(self) -> ObjectBank:
        train, clouds, counts = self.frames("train"), [], []
        for frame in train:
            inside = points_in_boxes(frame.points, frame.boxes)  # [P, M]
            which, place = inside.T.nonzero().unbind(1)  # ordered by object
            cloud = frame.points[place].clone()
            cloud[:, :3] -= frame.boxes[which, :3]
            clouds.append(cloud)
            counts.append(inside.sum(0))
        count = torch.cat(counts)
        store = PointStore(
            torch.cat(clouds), count, device=self.device, width=max(1, int(count.max())) if len(count) else 1
        )
        frame = torch.arange(len(train), device=self.device).repeat_interleave(
            torch.tensor([len(c) for c in counts], device=self.device)
        )
        join = lambda key: torch.cat([getattr(f, key) for f in train.labels]).to(self.device)  # noqa: E731
        return ObjectBank(store, join("boxes"), join("box_class"), join("difficulty"), count, frame)

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, for JSON."""
        splits = {name: len(split) for name, split in self._splits.items()}
        return {"data": self.where, "classes": list(self.classes), "frames": splits, "notes": self.notes}


def _told(counted: Counter[str]) -> list[str]:
    return [f"{count:,} {what}" for what, count in sorted(counted.items())]
