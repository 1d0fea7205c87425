"""Data in ONCE's layout: raw sequences, of which a part of the frames has boxes.

::

    DATA_DIR/ImageSets/{train,val}.txt                  a sequence a line, such as 000076
    DATA_DIR/data/000076/000076.json                    "frames": [{"frame_id": "1616343527200", "annos": {...}}, ...]
    DATA_DIR/data/000076/lidar_roof/1616343527200.bin   float32 x, y, z, intensity

``annos`` has "names" and "boxes_3d", rows of centre x, y, z, length, width, height, heading: already those of this
package. Poses, cameras and image boxes are not read.

Source: Mao et al., ONCE, NeurIPS 2021 Datasets; sheet ad_l_jepa, section 3.5.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from envs.scans import Frame, LabelledScans, Layout
from worldmodels.formats.kitti import read_scan

TYPES = ("Car", "Bus", "Truck", "Pedestrian", "Cyclist")
LAYOUT = Layout(
    name="ONCE",
    types=TYPES,
    channels=4,
    folder="data",
    files="ImageSets/{train,val}.txt and data/SEQUENCE/{SEQUENCE.json,lidar_roof/FRAME.bin}",
)


class Once(LabelledScans):
    """Frames of a folder in ONCE's layout; a frame's name is SEQUENCE/FRAME.

    Args:
        splits: name of the list of sequences for train and for val, such as {"train": "raw_small", "val": "val"}.
        is_labelled: whether only frames with boxes are used, as detection needs; otherwise all frames, without boxes,
            for pre-training.
        chosen: data_dir, label_fraction, device, max_points, limits, max_device_bytes: see ``LabelledScans``.

    Raises:
        FileNotFoundError: no such folder, list, sequence or scan.
        ValueError: a damaged scan or JSON file; boxes and names that do not match; a box without size.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str] = TYPES,
        splits: Mapping[str, str] | None = None,
        is_labelled: bool = True,
        **chosen: Any,
    ) -> None:
        self.lists = {"train": "train", "val": "val", **(splits or {})}
        self.is_labelled = is_labelled
        self._annotations: dict[str, Mapping[str, Any] | None] = {}  # of every frame of the splits read so far
        super().__init__(LAYOUT, classes=classes, **chosen)

    def _names(self, split: str) -> list[str]:
        if split not in self.lists:
            raise ValueError(f"split={split!r}: there are {', '.join(self.lists)}")
        names: list[str] = []
        for sequence in self._listed(self.lists[split]):
            for frame in self._sequence(sequence):
                name, annotation = f"{sequence}/{frame['frame_id']}", frame.get("annos")
                if self.is_labelled and annotation is None:
                    self.counted["frames without boxes were left out"] += 1
                    continue
                names.append(name)
                self._annotations[name] = annotation if self.is_labelled else None
        return self._first(names) if split == "train" else names

    def _sequence(self, name: str) -> list[Mapping[str, Any]]:
        path = self.data_dir / f"data/{name}/{name}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file; ONCE data need {LAYOUT.files}")
        try:
            frames = json.loads(path.read_text(encoding="utf-8"))["frames"]
            _ = [frame["frame_id"] for frame in frames]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path} must hold {{"frames": [{{"frame_id": ...}}]}}: {error!r}') from error
        return frames

    def _read(self, name: str) -> tuple[Frame, Mapping[str, int]]:
        sequence, frame = name.split("/")
        left_out = Counter[str]()
        points, num_bad = read_scan(self.data_dir / f"data/{sequence}/lidar_roof/{frame}.bin")
        if num_bad:
            left_out["points that are not finite were left out"] += num_bad
        kinds, boxes = _boxes(self._annotations[name], name)
        for kind in kinds:
            if kind not in self.classes:
                left_out[f"objects of the type {kind} were left out"] += 1
        chosen = [i for i, kind in enumerate(kinds) if kind in self.classes]
        return Frame(
            name=name,
            points=torch.from_numpy(points),
            boxes=torch.from_numpy(boxes[np.array(chosen, dtype=np.int64)]).float(),
            box_class=torch.tensor([self.classes.index(kinds[i]) for i in chosen], dtype=torch.int64),
            difficulty=torch.zeros(len(chosen), dtype=torch.int64),  # ONCE tells none: all may be pasted
        ), left_out


def _boxes(annotation: Mapping[str, Any] | None, frame: str) -> tuple[list[str], np.ndarray]:
    """Names, and boxes float64 [M, 7], of a frame."""
    if annotation is None:
        return [], np.zeros((0, 7))
    if missing := [key for key in ("names", "boxes_3d") if key not in annotation]:
        raise ValueError(f"frame {frame}: annos has no {missing[0]}")
    kinds = [str(kind) for kind in annotation["names"]]
    boxes = np.array(annotation["boxes_3d"], dtype=np.float64).reshape(-1, 7)
    if len(boxes) != len(kinds):
        raise ValueError(f"frame {frame}: {len(kinds)} names but {len(boxes)} boxes_3d")
    if not np.isfinite(boxes).all() or (boxes[:, 3:6] <= 0).any():
        raise ValueError(f"frame {frame}: boxes_3d must be finite, with positive length, width and height")
    return kinds, boxes
