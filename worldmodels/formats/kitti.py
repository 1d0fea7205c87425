"""KITTI frames: calibration, LiDAR <-> camera, the image, scans. The text of labels and results is in ``kitti_text``.

LiDAR: x forward, y left, z up. Rectified camera: x right, y down, z forward. A LiDAR box is (x, y, z of its CENTRE,
length dx, width dy, height dz, heading about z, counter-clockwise, 0 = +x); a label has height, width, length, the
centre of its BOTTOM and rotation_y about the camera's y axis. Metres, radians, pixels; arithmetic in float64.

Source: KITTI object benchmark; sheet ad_l_jepa, sections 3.1 and 3.2.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from worldmodels.formats.kitti_text import Objects
from worldmodels.geometry.boxes import EDGES, corners, wrap

TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
USUAL_SIZE = (375, 1242)  # height, width of most images, pixels
NEAR = 0.1  # metres in front of the camera; what is nearer has no place in the image
_KEYS = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
_TURN = 2 * np.pi


@dataclass(frozen=True, eq=False)
class Calibration:
    """Where the left colour camera (number 2) is, seen from the LiDAR; float64."""

    projection: np.ndarray  # [3, 4] P2, rectified camera to pixels
    rectification: np.ndarray  # [3, 3] R0_rect
    lidar_to_camera: np.ndarray  # [3, 4] Tr_velo_to_cam, before rectification

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a calib file; see ``parse``."""
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file")
        try:
            return cls.parse(file.read_text(encoding="utf-8"), where=str(file))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no text file") from error

    @classmethod
    def parse(cls, text: str, *, where: str = "text") -> Calibration:
        """Take P2, R0_rect and Tr_velo_to_cam from lines "key: numbers"; other keys are not looked at.

        Raises:
            ValueError: naming ``where`` and the key that is missing, has too few numbers or cannot be inverted.
        """
        lines = {key.strip(): rest for key, _, rest in (line.partition(":") for line in text.splitlines())}
        found = []
        for key, shape in _KEYS.items():
            if key not in lines:
                have = ", ".join(k for k in lines if k) or "nothing"
                raise ValueError(f"{where}: the key {key} is missing; it has {have}")
            words = lines[key].split()
            try:
                values = np.array(words, dtype=np.float64)
            except ValueError as error:
                raise ValueError(f"{where}: {key} holds something that is not a number: {error}") from None
            if len(values) != shape[0] * shape[1] or not np.isfinite(values).all():
                raise ValueError(f"{where}: {key} needs {shape[0] * shape[1]} finite numbers, not {len(values)} values")
            found.append(values.reshape(shape))
        out = cls(*found)
        if abs(np.linalg.det(out._to_rectified)) < 1e-6:
            raise ValueError(f"{where}: R0_rect * Tr_velo_to_cam has no inverse")
        return out

    def text(self) -> str:
        """A calib file that ``parse`` reads back exactly; as one camera is known, P0 to P3 are the same."""
        rows = [(f"P{i}", self.projection) for i in range(4)]
        rows += [("R0_rect", self.rectification), ("Tr_velo_to_cam", self.lidar_to_camera)]
        rows.append(("Tr_imu_to_velo", np.eye(3, 4)))
        return "".join(f"{key}: {' '.join(f'{v:.16e}' for v in value.ravel())}\n" for key, value in rows)

    @cached_property
    def _to_rectified(self) -> np.ndarray:
        """[4, 4] LiDAR to rectified camera."""
        rotation, transform = np.eye(4), np.eye(4)
        rotation[:3, :3], transform[:3] = self.rectification, self.lidar_to_camera
        return rotation @ transform

    @cached_property
    def _to_lidar(self) -> np.ndarray:
        return np.linalg.inv(self._to_rectified)

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """LiDAR points [..., 3] in the rectified camera frame."""
        return points @ self._to_rectified[:3, :3].T + self._to_rectified[:3, 3]

    def to_lidar(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] of the rectified camera frame in the LiDAR frame."""
        return points @ self._to_lidar[:3, :3].T + self._to_lidar[:3, 3]

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [..., 2] and depth [...] (metres from the camera) of points [..., 3] of the rectified camera frame.

        Pixels mean something where the depth is positive only.
        """
        image = points @ self.projection[:, :3].T + self.projection[:, 3]  # [..., 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            return image[..., :2] / points[..., 2:3], image[..., 2] - self.projection[2, 3]

    def in_view(self, points: np.ndarray, image_size: Sequence[int]) -> np.ndarray:
        """Which LiDAR points [..., 3 or more] fall into the image of (height, width) pixels: bool [...]."""
        (height, width) = image_size
        pixels, depth = self.project(self.to_camera(points[..., :3].astype(np.float64)))
        u, v = pixels[..., 0], pixels[..., 1]
        return (u >= 0) & (u < width) & (v >= 0) & (v < height) & (depth >= 0)

    def boxes_of(self, objects: Objects) -> np.ndarray:
        """LiDAR boxes float64 [N, 7] of labels or results, heading within [-pi, pi). DontCare has no meaningful box."""
        centre = self.to_lidar(objects.location)
        height, width, length = objects.size.T
        centre[:, 2] += height / 2
        heading = wrap(-(np.pi / 2 + objects.rotation_y), 0.5, _TURN)
        return np.concatenate([centre, np.stack([length, width, height, heading], 1)], 1)

    def objects_of(
        self, boxes: np.ndarray, types: Sequence[str], image_size: Sequence[int], scores: np.ndarray | None = None
    ) -> Objects:
        """Objects of LiDAR boxes [N, 7], as result files need them: rectangles clipped, truncation and occlusion -1.

        Args:
            boxes: any float type. types: N names.
            image_size: height and width in pixels. scores: [N], or None for labels.
        """
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 7)
        bottom = self.to_camera(boxes[:, :3] - boxes[:, 5:6] * (0.0, 0.0, 0.5))
        rotation_y = wrap(-boxes[:, 6] - np.pi / 2, 0.5, _TURN)
        return Objects(
            type=list(types),
            truncated=np.full(len(boxes), -1.0),
            occluded=np.full(len(boxes), -1, dtype=np.int64),
            alpha=wrap(rotation_y - np.arctan2(bottom[:, 0], bottom[:, 2]), 0.5, _TURN),
            bbox=self.image_boxes(boxes, image_size),
            size=boxes[:, [5, 4, 3]],
            location=bottom,
            rotation_y=rotation_y,
            score=None if scores is None else np.asarray(scores, dtype=np.float64),
        )

    def image_boxes(self, boxes: np.ndarray, image_size: Sequence[int]) -> np.ndarray:
        """Rectangles [N, 4] (left, top, right, bottom) around LiDAR boxes [N, 7], clipped to width - 1 and height - 1.

        The part of a box that is not ``NEAR`` in front of the camera is cut off first: its corners would project to the
        wrong side. A box that cannot be seen has a rectangle of no area.
        """
        places = corners(torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float64))).numpy()
        corner = self.to_camera(places)  # [N, 8, 3]
        start, end = (corner[:, index] for index in np.array(EDGES).T)  # [N, 12, 3] each
        gap = end[..., 2] - start[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(np.abs(gap) > 1e-9, (NEAR - start[..., 2]) / gap, 0.0)
        crossing = start + np.clip(share, 0, 1)[..., None] * (end - start)
        seen = np.concatenate([corner[..., 2] >= NEAR, (share > 0) & (share < 1)], 1)  # [N, 20]
        pixels, _ = self.project(np.concatenate([corner, crossing], 1))
        low = np.where(seen[..., None], pixels, np.inf).min(1, initial=np.inf)
        high = np.where(seen[..., None], pixels, -np.inf).max(1, initial=-np.inf)
        limit = np.array([image_size[1] - 1.0, image_size[0] - 1.0])
        rectangles = np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)], 1)
        return np.where(seen.any(1, keepdims=True), rectangles, 0.0)


def training_difficulty(objects: Objects) -> np.ndarray:
    """0 easy, 1 moderate, 2 hard, -1 harder: int64 [N].

    By height in the image + 1 (at least 40, 25, 25 pixels), truncation (at most 0.15, 0.3, 0.5) and occlusion (at most
    0, 1, 2): the rule by which OpenPCDet chooses objects to paste. The benchmark's own rule is in ``kitti_ap``.
    """
    height = objects.bbox[:, 3] - objects.bbox[:, 1] + 1
    fits = [
        (height >= pixels) & (objects.truncated <= truncated) & (objects.occluded <= occluded)
        for pixels, truncated, occluded in ((40, 0.15, 0), (25, 0.3, 1), (25, 0.5, 2))
    ]
    return np.select(fits, [0, 1, 2], default=-1).astype(np.int64)


def read_scan(path: str | os.PathLike[str], *, num_channels: int = 4) -> tuple[np.ndarray, int]:
    """Read a .bin scan.

    Returns:
        finite points, float32 [P, C]: x, y, z in metres, reflectance 0..1, ...; and how many others were dropped.
        An empty file gives P = 0.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if its size is no multiple of a point's, as that of a truncated file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    size, one = file.stat().st_size, 4 * num_channels
    if size % one:
        raise ValueError(f"{file}: {size} bytes are no whole number of points of {one} bytes; the file is cut off")
    points = np.fromfile(file, dtype="<f4").astype(np.float32, copy=False).reshape(-1, num_channels)
    is_good = np.isfinite(points).all(1)
    return (points if is_good.all() else points[is_good]), int(len(points) - is_good.sum())
