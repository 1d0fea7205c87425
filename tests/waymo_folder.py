"""Small data of Waymo as OpenPCDet processes them, made by hand."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

PROCESSED = "waymo_processed_data_v0_5_0"
TYPES = ("Vehicle", "Pedestrian", "Cyclist", "Sign", "Vehicle")
SIZES = ((4.6, 2.0, 1.7), (0.9, 0.8, 1.7), (1.8, 0.8, 1.7), (0.1, 0.6, 0.6), (4.6, 2.0, 1.7))
COUNTS = (10, 4, 10, 3, 0)  # points on each; nobody sees the second vehicle


def write_waymo(folder: Path, *, frames: int = 6) -> Path:
    """Two training sequences and one for validation; every frame has five objects and a hundred points of ground."""
    random = np.random.default_rng(0)
    (folder / "ImageSets").mkdir(parents=True, exist_ok=True)
    for split, names in (
        ("train", ("segment-1_with_camera_labels", "segment-2_with_camera_labels")),
        ("val", ("segment-3_with_camera_labels",)),
    ):
        (folder / f"ImageSets/{split}.txt").write_text("".join(f"{name}.tfrecord\n" for name in names))
        for name in names:
            sequence = folder / PROCESSED / name
            sequence.mkdir(parents=True)
            infos = [write_frame(sequence, i, random) for i in range(frames)]
            (sequence / f"{name}.pkl").write_bytes(pickle.dumps(infos))
    return folder


def write_frame(sequence: Path, number: int, random: np.random.Generator) -> dict[str, Any]:
    """One scan; returns what the sequence's pickle says of it."""
    centres = np.array([[9.0, -3, 0.8], [5, 4, 0.9], [-12, 6, 0.9], [8, 9, 2.5], [-20, -20, 0.8]])
    centres[:, 0] += 1.2 * number
    xyz = [random.uniform((-30, -30, -0.5), (30, 30, -0.3), (100 + number, 3))]
    xyz += [c + random.uniform(-0.04, 0.04, (n, 3)) for c, n in zip(centres, COUNTS, strict=True)]
    place = np.concatenate(xyz)
    intensity, elongation = random.exponential(1.0, len(place)), random.uniform(0, 1.5, len(place))
    flag = np.where(np.arange(len(place)) % 10, -1.0, 2.0)
    np.save(sequence / f"{number:04d}.npy", np.column_stack([place, intensity, elongation, flag]).astype(np.float32))
    headings = np.array([0.3, 0.0, -2.0, 1.0, 0.0])
    labels = {
        "name": np.array(TYPES),
        "difficulty": np.array([0, 0, 2, 1, 0]),
        "dimensions": np.array(SIZES),
        "location": centres,
        "heading_angles": headings,
        "obj_ids": np.array(["a", "b", "c", "d", "e"]),
        "tracking_difficulty": np.zeros(5, dtype=np.int64),
        "num_points_in_gt": np.array(COUNTS),
        "gt_boxes_lidar": np.concatenate([centres, SIZES, headings[:, None]], 1),
    }
    return {
        "point_cloud": {"num_features": 5, "lidar_sequence": sequence.name, "sample_idx": number},
        "frame_id": f"{sequence.name}_{number:03d}",
        "image": {"image_shape_0": (1280, 1920)},
        "pose": np.eye(4, dtype=np.float32),
        "annos": labels,
        "num_points_of_each_lidar": [len(place), 0, 0, 0, 0],
    }
