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
import os
import struct
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from envs.scans import Frame, LabelledScans
from worldmodels.formats.kitti import TYPES, USUAL_SIZE, Calibration, read_scan, training_difficulty
from worldmodels.formats.kitti_text import DONT_CARE, read_objects

_SIZES = "image_sizes.json"
_SIZES_KEY = "training (height,width)"
_LAYOUT = "ImageSets/train.txt, ImageSets/val.txt and training/{velodyne,label_2,calib}"


class Kitti(LabelledScans):
    """Frames of a folder in KITTI's layout.

    Args:
        data_dir: the folder.
        classes: types to detect, in the order of "box_class". Objects of other types are counted and left out; a
            ``Frame`` still has them in ``objects``.
        train_frames, val_frames: use so many, from the start of the list; None: all.
        label_fraction: share p of the training frames, the FIRST int(N * p): the published label-efficiency sets.
        is_cropped: whether only points that fall into the image are kept, as nothing else is labelled.
        is_labelled: whether labels are read; without, every frame has no boxes and label_2 may be absent.
        is_missing_skipped: whether listed frames whose files are absent are counted and left out, not refused.
        device, max_points, limits, max_device_bytes: see ``LabelledScans``.

    Raises:
        FileNotFoundError: no such folder, list, or files of a listed frame; it names the layout.
        ValueError: a damaged scan, label or calibration: it names file, line and key.

    Points that are not finite are counted and dropped. Where neither ``image_sizes.json`` nor an image tells a frame's
    size, 375 x 1242 is taken and a warning says so once.
    """

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike[str] | None,
        classes: Sequence[str] = ("Car", "Pedestrian", "Cyclist"),
        train_frames: int | None = None,
        val_frames: int | None = None,
        label_fraction: int | float = 1.0,
        is_cropped: bool = True,
        is_labelled: bool = True,
        is_missing_skipped: bool = False,
        device: torch.device | str = "cpu",
        max_points: int | None = None,
        limits: Sequence[int | float] | None = None,
        max_device_bytes: int = 8 * 2**30,
    ) -> None:
        if data_dir is None:
            raise ValueError(f"env.data_dir is null: give the folder that holds {_LAYOUT}. Or use env=lidar_scenes")
        if not 0 < label_fraction <= 1:
            raise ValueError(f"env.label_fraction={label_fraction}: a share of the training frames, above 0, at most 1")
        if unknown := [name for name in classes if name not in TYPES or name == DONT_CARE]:
            raise ValueError(f"env.classes: KITTI has no {', '.join(unknown)}; it has {', '.join(TYPES[:-1])}")
        self.data_dir = Path(data_dir).expanduser()
        if not (self.data_dir / "training").is_dir():
            raise FileNotFoundError(f"env.data_dir={data_dir}: there is no KITTI data; it needs {_LAYOUT}")
        self.label_fraction, self.is_cropped, self.is_labelled = label_fraction, is_cropped, is_labelled
        self.is_missing_skipped = is_missing_skipped
        self._most = {"train": train_frames, "val": val_frames}
        self._sizes = _read_sizes(self.data_dir / _SIZES)
        self._is_warned = False
        super().__init__(
            where=str(self.data_dir),
            classes=classes,
            channels=4,
            device=device,
            max_points=max_points,
            limits=limits,
            max_device_bytes=max_device_bytes,
        )

    def _names(self, split: str) -> list[str]:
        if split not in self._most:
            raise ValueError(f"split={split!r}: KITTI's labelled frames are train and val")
        path, most = self.data_dir / f"ImageSets/{split}.txt", self._most[split]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file; KITTI data need {_LAYOUT}")
        names = path.read_text(encoding="utf-8").split()
        if len(set(names)) != len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise ValueError(f"{path} names {twice} more than once")
        if most is not None:
            if not 1 <= most <= len(names):
                raise ValueError(f"env.{split}_frames={most}: {path} has {len(names)} frames")
            names = names[:most]
        if split == "train":
            count = int(len(names) * self.label_fraction)
            if not count:
                raise ValueError(f"env.label_fraction={self.label_fraction}: nothing is left of {len(names)} frames")
            names = names[:count]
        names = self._present(names, path)
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
