"""Data in KITTI's layout, real or simulated.

::

    DATA_DIR/ImageSets/{train,val}.txt           a frame a line, such as 000123
    DATA_DIR/training/velodyne/000123.bin        float32 x, y, z, reflectance
    DATA_DIR/training/label_2/000123.txt         objects
    DATA_DIR/training/calib/000123.txt           P2, R0_rect, Tr_velo_to_cam
    DATA_DIR/image_sizes.json                    {"training (height,width)": {"000123": [375, 1242]}}; or
    DATA_DIR/training/image_2/000123.png         of which only the header is read

Source: KITTI object benchmark; sheet ad_l_jepa, sections 2.5, 3.1 and 3.2.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.scans import Frame, LabelledScans, Layout
from worldmodels.formats.kitti import TYPES, USUAL_SIZE, Calibration, read_scan, training_difficulty
from worldmodels.formats.kitti_text import DONT_CARE, read_objects

_SIZES = "image_sizes.json"
_SIZES_KEY = "training (height,width)"
LAYOUT = Layout(
    name="KITTI",
    types=TYPES[:-1],
    channels=4,
    folder="training",
    files="ImageSets/train.txt, ImageSets/val.txt and training/{velodyne,label_2,calib}",
)


class Kitti(LabelledScans):
    """Frames of a folder in KITTI's layout.

    Args:
        train_frames, val_frames: use so many, from the start of the list; None: all.
        is_cropped: whether only points that fall into the image are kept, as nothing else is labelled.
        is_labelled: whether labels are read; without, every frame has no boxes and label_2 may be absent.
        is_missing_skipped: whether listed frames whose files are absent are counted and left out, not refused.
        chosen: data_dir, label_fraction, device, max_points, limits, max_device_bytes: see ``LabelledScans``. A
            ``Frame`` has objects of all types in ``objects``.

    Raises:
        FileNotFoundError: no such folder, list, or files of a listed frame; it names the layout.
        ValueError: a damaged scan, label or calibration: it names file, line and key.

    Points that are not finite are counted and dropped. Where neither ``image_sizes.json`` nor an image tells a frame's
    size, 375 x 1242 is taken and a warning says so once.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str] = ("Car", "Pedestrian", "Cyclist"),
        train_frames: int | None = None,
        val_frames: int | None = None,
        is_cropped: bool = True,
        is_labelled: bool = True,
        is_missing_skipped: bool = False,
        **chosen: Any,
    ) -> None:
        self.is_cropped, self.is_labelled, self.is_missing_skipped = is_cropped, is_labelled, is_missing_skipped
        self._most = {"train": train_frames, "val": val_frames}
        self._is_warned = False
        super().__init__(LAYOUT, classes=classes, **chosen)

    def _names(self, split: str) -> list[str]:
        if split not in self._most:
            raise ValueError(f"split={split!r}: KITTI's labelled frames are train and val")
        names, most = self._listed(split), self._most[split]
        if most is not None:
            if not 1 <= most <= len(names):
                raise ValueError(f"env.{split}_frames={most}: ImageSets/{split}.txt has {len(names)} frames")
            names = names[:most]
        if split == "train":
            names = self._first(names)
        names = self._present(names, self.data_dir / f"ImageSets/{split}.txt")
        self._warn_of_unknown_sizes(names)
        return names

    def _present(self, names: list[str], listed: Path) -> list[str]:
        """The frames all of whose files are there."""
        kinds = {"velodyne": "bin", "calib": "txt", **({"label_2": "txt"} if self.is_labelled else {})}
        have = {kind: {p.name for p in (self.data_dir / "training" / kind).glob(f"*.{kinds[kind]}")} for kind in kinds}
        lost = {name: [k for k, end in kinds.items() if f"{name}.{end}" not in have[k]] for name in names}
        lost = {name: where for name, where in lost.items() if where}
        if lost and not self.is_missing_skipped:
            name, where = next(iter(lost.items()))
            raise FileNotFoundError(
                f"{listed} names {len(lost)} frames whose files are absent, first {name} in training/{where[0]}. "
                f"Remove them from the list, or set env.is_missing_skipped=true"
            )
        if lost:
            self.counted[f"frames of {listed.name} whose files are absent were left out"] += len(lost)
        return [name for name in names if name not in lost]

    def _read(self, name: str) -> tuple[Frame, Mapping[str, int]]:
        folder, left_out = self.data_dir / "training", Counter[str]()
        points, num_bad = read_scan(folder / f"velodyne/{name}.bin")
        if num_bad:
            left_out["points that are not finite were left out"] += num_bad
        calibration = Calibration.read(folder / f"calib/{name}.txt")
        size = self._size(name)
        if self.is_cropped:
            points = points[calibration.in_view(points, size)]
        if not self.is_labelled:
            nothing = torch.zeros(0, dtype=torch.int64)
            cloud = torch.from_numpy(points)
            return Frame(name, cloud, torch.zeros(0, 7), nothing, nothing, calibration, size), left_out
        objects = read_objects(folder / f"label_2/{name}.txt", has_score=False)
        for kind in objects.type:
            if kind not in TYPES:
                left_out[f"objects of the type {kind}, which KITTI does not have, were left out"] += 1
            elif kind not in self.classes and kind != DONT_CARE:
                left_out[f"objects of the type {kind} were left out"] += 1
        chosen = [i for i, kind in enumerate(objects.type) if kind in self.classes]
        mine = objects.select(np.array(chosen, dtype=np.int64))
        frame = Frame(
            name=name,
            points=torch.from_numpy(points),
            boxes=torch.from_numpy(calibration.boxes_of(mine)).float(),
            box_class=torch.tensor([self.classes.index(kind) for kind in mine.type], dtype=torch.int64),
            difficulty=torch.from_numpy(training_difficulty(mine)),
            calibration=calibration,
            image_size=size,
            objects=objects,
        )
        return frame, left_out

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        return _read_sizes(self.data_dir / _SIZES)

    def _size(self, name: str) -> tuple[int, int]:
        """Height and width of a frame's image."""
        if name in self._sizes:
            return self._sizes[name]
        image = self.data_dir / f"training/image_2/{name}.png"
        if image.is_file():
            return png_size(image)
        return USUAL_SIZE

    def _warn_of_unknown_sizes(self, names: list[str]) -> None:
        images = {path.stem for path in (self.data_dir / "training/image_2").glob("*.png")}
        unknown = [name for name in names if name not in self._sizes and name not in images]
        if unknown and not self._is_warned:
            self._is_warned = True
            warnings.warn(
                f"{self.data_dir}: neither {_SIZES} nor training/image_2 tells the size of {len(unknown)} images, "
                f"first {unknown[0]}; {USUAL_SIZE[0]} x {USUAL_SIZE[1]} is taken",
                stacklevel=2,
            )


def png_size(path: Path) -> tuple[int, int]:
    """Height and width of a PNG image, from its header.

    Raises:
        ValueError: if it is no PNG file.
    """
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise ValueError(f"{path} is no PNG image")
    width, height = struct.unpack(">II", head[16:24])
    return height, width


def _read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text())[_SIZES_KEY]
        return {name: (int(height), int(width)) for name, (height, width) in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = f'{{"{_SIZES_KEY}": {{"000123": [375, 1242]}}}}'
        raise ValueError(f"{path} is not of the form {wanted}: {error!r}") from error
