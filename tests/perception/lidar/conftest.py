"""A real scan, cropped to the camera's view with a few lines of numpy (sheet ad_l_jepa, section 3.2)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def kitti_scan(shared_data: Path) -> Tensor:
    """Points [P, 4] of frame 000008 that the camera sees."""
    folder, name = shared_data / "kitti_mini", "000008"
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder}")
    points = np.fromfile(folder / f"training/velodyne/{name}.bin", np.float32).reshape(-1, 4)
    lines = (folder / f"training/calib/{name}.txt").read_text().splitlines()
    table = {key: np.array(values.split(), float) for key, _, values in (line.partition(":") for line in lines)}
    rectify, to_camera = np.eye(4), np.eye(4)
    rectify[:3, :3] = table["R0_rect"].reshape(3, 3)
    to_camera[:3] = table["Tr_velo_to_cam"].reshape(3, 4)
    projection = table["P2"].reshape(3, 4)
    homogeneous = np.concatenate([points[:, :3], np.ones((len(points), 1))], 1)
    u, v, depth = (homogeneous @ (projection @ rectify @ to_camera).T).T
    (sizes,) = json.loads((folder / "image_sizes.json").read_text()).values()
    height, width = sizes[name]
    is_ahead = depth - projection[2, 3] >= 0
    is_seen = is_ahead & (u >= 0) & (u < width * depth) & (v >= 0) & (v < height * depth)
    return torch.from_numpy(points[is_seen])
