"""Small data in KITTI's layout, made by hand: cars on empty ground."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from worldmodels.formats.kitti import Calibration
from worldmodels.formats.kitti_text import Objects, write_objects

SIZE = (375, 1242)
CALIBRATION = Calibration(
    np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
    np.eye(3),
    np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, -0.3]]),
)
CAR = (4.0, 1.6, 1.5)


def labels(boxes: np.ndarray, types: list[str]) -> Objects:
    """Fully visible objects."""
    found = CALIBRATION.objects_of(boxes, types, SIZE)
    nothing = np.zeros(len(types))
    return Objects(
        **{**vars(found), "truncated": nothing, "occluded": nothing.astype(np.int64)}  # no result's fillers
    )


def write_frame(folder: Path, name: str, points: np.ndarray, boxes: np.ndarray, types: list[str]) -> None:
    """One frame's scan, labels and calibration."""
    training = folder / "training"
    for kind in ("velodyne", "calib"):
        (training / kind).mkdir(parents=True, exist_ok=True)
    (training / f"velodyne/{name}.bin").write_bytes(points.astype("<f4").tobytes())
    (training / f"calib/{name}.txt").write_text(CALIBRATION.text())
    write_objects(training / f"label_2/{name}.txt", labels(boxes, types))


def write_kitti(folder: Path, *, train: int = 4, val: int = 2, points: int = 200, seed: int = 0) -> Path:
    """``train`` and ``val`` frames of ground points and two cars with ten points each, a van in every second frame."""
    random = np.random.default_rng(seed)
    names = [f"{i:06d}" for i in range(train + val)]
    for i, name in enumerate(names):
        ground = random.uniform((-30, -20, -2.1), (60, 20, -1.9), (points + 10 * i, 3))
        boxes = np.array([[12.0 + i, 2.0, -1.0, *CAR, 0.3 * i], [25.0, -4.0 - i, -1.0, *CAR, 1.5]])
        types = ["Car", "Car"]
        on_cars = boxes[:, None, :3] + random.uniform(-0.5, 0.5, (2, 10, 3))
        if i % 2:
            boxes, types = np.concatenate([boxes, [[40.0, 3.0, -0.8, 5.0, 2.0, 2.0, 0.0]]]), [*types, "Van"]
        xyz = np.concatenate([ground, on_cars.reshape(-1, 3)])
        write_frame(folder, name, np.concatenate([xyz, random.uniform(0, 1, (len(xyz), 1))], 1), boxes, types)
    (folder / "ImageSets").mkdir(exist_ok=True)
    (folder / "ImageSets/train.txt").write_text("\n".join(names[:train]) + "\n")
    (folder / "ImageSets/val.txt").write_text("\n".join(names[train:]) + "\n")
    sizes = {"training (height,width)": dict.fromkeys(names, SIZE)}
    (folder / "image_sizes.json").write_text(json.dumps(sizes))
    return folder
