"""Views of a LiDAR scan that keep its labels true: flips, rotations, scalings, and what follows them.

Each is a Transform. One draw a sample; all rows of a window move together. They act on ("observation", "points")
[B, T, P, C] and, where the batch has them, on "boxes" [B, T, M, 7] and "box_class" [B, T, M]. Padding stays padding.

Source: sheet ad_l_jepa, sections 1.7 and 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.geometry.boxes import corners, wrap
from worldmodels.keys import BOX_CLASS, BOXES, OBSERVATION, POINTS


class RandomFlip:
    """Mirrors a scan.

    Args:
        along_x: chance that y changes its sign; along_y: chance that x does.
    """

    def __init__(self, *, along_x: int | float = 0.5, along_y: int | float = 0.0) -> None:
        for name, chance in (("along_x", along_x), ("along_y", along_y)):
            if not 0 <= chance <= 1:
                raise ValueError(f"{name}={chance}: a chance lies within [0, 1]")
        self.along_x, self.along_y = along_x, along_y

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Flip each sample or not."""
        draw = uniform(batch, generator, 2)
        is_x, is_y = draw[0] < self.along_x, draw[1] < self.along_y  # [B]
        one = torch.ones_like(draw[0])
        sign_x, sign_y = torch.where(is_y, -one, one), torch.where(is_x, -one, one)
        # Both at once are half a turn: heading -> -heading, then -> -(heading + pi).
        return moved(
            batch,
            torch.stack([sign_x, sign_y, one], -1).diag_embed(),
            heading_factor=sign_x * sign_y,
            heading_offset=math.pi * is_y.to(one),
        )


class RandomRotation:
    """Turns a scan about z, counter-clockwise.

    Args:
        limit: of the angle, which is uniform on [-limit, limit), radians.
    """

    def __init__(self, *, limit: int | float = math.pi / 4) -> None:
        self.limit = limit

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Turn each sample by an angle of its own."""
        angle = (2 * uniform(batch, generator, 1)[0] - 1) * self.limit  # [B]
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        matrix = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], -1).unflatten(-1, (3, 3))
        return moved(batch, matrix, heading_offset=angle)


class RandomScaling:
    """Scales a scan and its boxes about the sensor.

    Args:
        low, high: the factor is uniform on [low, high).
    """

    def __init__(self, *, low: int | float = 0.95, high: int | float = 1.05) -> None:
        if not 0 < low <= high:
            raise ValueError(f"low={low} and high={high}: a scale needs 0 < low <= high")
        self.low, self.high = low, high

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Scale each sample by a factor of its own."""
        factor = self.low + (self.high - self.low) * uniform(batch, generator, 1)[0]  # [B]
        return moved(batch, factor[:, None].expand(-1, 3).diag_embed(), size_factor=factor)


class BoxesInRange:
    """Turns boxes without a corner inside the range into padding. Points are dropped by the voxeliser.

    Args:
        low, high: corners x, y, z of the range, metres.
    """

    def __init__(self, *, low: Sequence[int | float], high: Sequence[int | float]) -> None:
        self.limits = tuple(zip(low, high, strict=True))

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Drop boxes of all samples."""
        if BOXES not in batch.keys():
            return batch
        boxes, box_class = batch[BOXES], batch[BOX_CLASS]
        places = zip(corners(boxes).unbind(-1), self.limits, strict=True)  # [B, T, M, 8] along x, y, z
        is_inside = torch.stack([(place >= low) & (place <= high) for place, (low, high) in places]).all(0).any(-1)
        is_kept = is_inside & (box_class >= 0)
        new = {BOXES: torch.where(is_kept[..., None], boxes, 0.0), BOX_CLASS: torch.where(is_kept, box_class, -1)}
        return batch.copy().update(new)


def uniform(batch: TensorDict, generator: Generator, num: int) -> Tensor:
    """``num`` numbers within [0, 1) for each sample: [num, B]."""
    points = batch[OBSERVATION, POINTS]
    return torch.rand((num, len(points)), generator=generator, device=points.device, dtype=points.dtype)


def moved(
    batch: TensorDict,
    matrix: Tensor,
    *,
    heading_factor: Tensor | None = None,
    heading_offset: Tensor | None = None,
    size_factor: Tensor | None = None,
) -> TensorDict:
    """Apply to each sample a linear map about the sensor.

    Args:
        batch: [B].
        matrix: [B, 3, 3], of columns x, y, z.
        heading_factor, heading_offset: [B]; a heading h becomes factor * h + offset, wrapped to [-pi, pi).
        size_factor: [B], of box sizes.
    """
    points = batch[OBSERVATION, POINTS]  # [B, T, P, C]
    turned = torch.cat([mapped(points[..., :3], matrix), points[..., 3:]], -1)
    new = batch.copy().set(OBSERVATION, batch[OBSERVATION].copy().set(POINTS, turned))
    if BOXES not in batch.keys():
        return new
    boxes = batch[BOXES]  # [B, T, M, 7]
    centre, size, heading = mapped(boxes[..., :3], matrix), boxes[..., 3:6], boxes[..., 6]
    if size_factor is not None:
        size = size * size_factor[:, None, None, None]
    if heading_factor is not None:
        heading = heading * heading_factor[:, None, None]
    if heading_offset is not None:
        heading = heading + heading_offset[:, None, None]
    heading = wrap(heading, 0.5, 2 * math.pi)
    changed = torch.cat([centre, size, heading[..., None]], -1)
    return new.set(BOXES, torch.where((batch[BOX_CLASS] >= 0)[..., None], changed, boxes))


def mapped(places: Tensor, matrix: Tensor) -> Tensor:
    """Places [B, ..., 3] under each sample's ``matrix`` [B, 3, 3]; a sum, as a GPU's TF32 product loses centimetres."""
    matrix = matrix.reshape(len(matrix), *(1,) * (places.ndim - 2), 3, 3)
    return (places[..., None, :] * matrix).sum(-1)
