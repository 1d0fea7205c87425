"""Small data in ONCE's layout, made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def write_once(folder: Path) -> Path:
    """Two sequences of three frames; in each, every second frame has a car and a bus around ten points each."""
    random = np.random.default_rng(0)
    (folder / "ImageSets").mkdir(parents=True, exist_ok=True)
    for sequence, split in (("000076", "train"), ("000080", "val")):
        scans = folder / f"data/{sequence}/lidar_roof"
        scans.mkdir(parents=True)
        frames = []
        for i in range(3):
            boxes = [[10.0 + i, -3, -0.8, 4.4, 1.9, 1.6, 0.4], [-20, 5, 0, 11.1, 2.9, 3.4, 3.0]]
            xyz = np.concatenate(
                [random.uniform(-40, 40, (100, 3)) * (1, 1, 0) - (0, 0, 3)]
                + [np.array(box[:3]) + random.uniform(-0.5, 0.5, (10, 3)) for box in boxes]
            )
            np.concatenate([xyz, random.uniform(0, 1, (120, 1))], 1).astype("<f4").tofile(scans / f"16{i}.bin")
            frame = {"frame_id": f"16{i}", "pose": [0] * 7}
            frames.append(frame if i == 1 else {**frame, "annos": {"names": ["Car", "Bus"], "boxes_3d": boxes}})
        (folder / f"data/{sequence}/{sequence}.json").write_text(json.dumps({"calib": {}, "frames": frames}))
        (folder / f"ImageSets/{split}.txt").write_text(f"{sequence}\n")
    (folder / "ImageSets/raw_small.txt").write_text("000076\n")
    return folder
