"""Upright boxes in space: centre x, y, z; length dx along the heading, width dy, height dz in metres; heading about z.

The heading is in radians, counter-clockwise seen from above; 0 looks along +x. Sheet ad_l_jepa, section 1.1.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)

# Signs of (forward, left) at the corners of a footprint, counter-clockwise from the front left.
CORNERS = ((1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0))
# Which of ``corners`` an edge joins: around the bottom, around the top, upwards.
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


def wrap(angle: Array, offset: int | float, period: int | float) -> Array:
    """Bring ``angle`` into [-offset * period, (1 - offset) * period): offset 0.5 centres the range on 0."""
    return angle - (angle / period + offset) // 1 * period


def footprint(boxes: Tensor) -> Tensor:
    """Corners of boxes [..., 7] seen from above, [..., 4, 2], counter-clockwise from the front left."""
    check_boxes(boxes)
    half = boxes.new_tensor(CORNERS) * (boxes[..., None, 3:5] / 2)  # [..., 4, 2], in the box's frame
    cos, sin = boxes[..., 6:7].cos(), boxes[..., 6:7].sin()  # [..., 1]
    forward, left = half.unbind(-1)
    turned = torch.stack((cos * forward - sin * left, sin * forward + cos * left), -1)
    return turned + boxes[..., None, :2]


def corners(boxes: Tensor) -> Tensor:
    """Corners of boxes [..., 7] in space, [..., 8, 3]: the footprint at the bottom, then at the top."""
    plane = footprint(boxes)
    half = boxes[..., 5] / 2
    height = torch.stack((boxes[..., 2] - half, boxes[..., 2] + half), -1)  # [..., 2]
    height = height.repeat_interleave(4, -1)[..., None]  # [..., 8, 1]
    return torch.cat((torch.cat((plane, plane), -2), height), -1)


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points lie in which boxes, faces included: bool [..., P, M].

    Args:
        points: [..., P, C], C >= 3; x, y, z come first.
        boxes: [..., M, 7]. A box with a size of zero or less holds nothing, so padding of zeros is harmless.
    """
    check_boxes(boxes)
    if points.shape[-1] < 3:
        raise ValueError(f"points {tuple(points.shape)}: the last dimension must begin with x, y, z")
    x, y, z = (points[..., :, None, i] - boxes[..., None, :, i] for i in range(3))  # [..., P, M]
    cos, sin = boxes[..., None, :, 6].cos(), boxes[..., None, :, 6].sin()  # [..., 1, M]
    length, width, height = (boxes[..., None, :, i] / 2 for i in (3, 4, 5))
    is_inside = ((cos * x + sin * y).abs() <= length) & ((cos * y - sin * x).abs() <= width) & (z.abs() <= height)
    return is_inside & (boxes[..., None, :, 3:6] > 0).all(-1)


def check_boxes(boxes: Tensor) -> None:
    """Raise a ValueError unless ``boxes`` is float32 or float64 [..., 7]; what its numbers are is not looked at."""
    if not boxes.shape or boxes.shape[-1] != 7 or boxes.dtype not in (torch.float32, torch.float64):
        kind = str(boxes.dtype).removeprefix("torch.")
        raise ValueError(f"boxes are float32 or float64 [..., 7]; these are {kind} {list(boxes.shape)}")
