"""Points to voxels: one sort for the whole batch, static shapes, no loop over points or samples.

Source: sheet ad_l_jepa, section 1.1; mean VFE of SECOND (Yan et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

NOWHERE = 2**62  # above every key


class Voxels(NamedTuple):
    """The voxels of a batch, in the order in which their first points arrive; padded."""

    features: Tensor  # [B, V, C], mean of a voxel's points; 0 for padding
    coords: Tensor  # int64 [B, V, 3], z, y, x; -1 for padding
    num_voxels: Tensor  # int64 [B]
    num_dropped: Tensor  # int64 [B], voxels beyond the cap
    num_broken: Tensor  # int64 [B], points with an entry that is no finite number


def grid_size(low: Sequence[int | float], high: Sequence[int | float], voxel_size: Sequence[int | float]) -> list[int]:
    """Voxels along x, y, z.

    Raises:
        ValueError: if these are not three ranges with a voxel each.
    """
    if not len(low) == len(high) == len(voxel_size) == 3:
        raise ValueError(f"low={low}, high={high}, voxel_size={voxel_size}: three numbers each, for x, y, z")
    if min(voxel_size) <= 0:
        raise ValueError(f"voxel_size={list(voxel_size)} metres: every side must be positive")
    grid = [round((b - a) / side) for a, b, side in zip(low, high, voxel_size, strict=True)]
    if min(grid) < 1:
        raise ValueError(f"low={list(low)}, high={list(high)} hold no voxel of {list(voxel_size)} metres")
    return grid


def voxelize(
    points: Tensor,
    num_points: Tensor,
    *,
    low: Sequence[int | float],
    high: Sequence[int | float],
    voxel_size: Sequence[int | float],
    max_voxels: int,
    max_points: int,
    generator: Generator | None = None,
) -> Voxels:
    """Mean of the first ``max_points`` points of each of the first ``max_voxels`` voxels of every sample.

    A point counts if low <= x, y <= high and its voxel floor((p - low) / voxel_size) lies on the grid; so a point on
    the upper limit does not. Points with an entry that is no finite number are dropped and counted.

    Args:
        points: float [B, P, C], C >= 3: x, y, z in metres, then further channels, averaged too.
        num_points: int64 [B], how many of the P are points; the rest is padding.
        low, high: metres, x, y, z.
        voxel_size: metres, x, y, z.
        max_voxels: V, of a sample.
        max_points: of a voxel.
        generator: on the device of ``points``; the points of each sample are shuffled first, so that the caps drop
            random voxels and points. None: those that arrive last are dropped.

    Raises:
        ValueError: if the shapes, the range or a cap make no sense.
    """
    if points.ndim != 3 or points.shape[-1] < 3 or num_points.shape != points.shape[:1]:
        raise ValueError(
            f"points are [B, P, 3 or more] with num_points [B]; got {list(points.shape)} and {list(num_points.shape)}"
        )
    if max_voxels < 1 or max_points < 1:
        raise ValueError(f"max_voxels={max_voxels}, max_points={max_points}: at least one each")
    size_x, size_y, size_z = grid_size(low, high, voxel_size)
    if not points.shape[1]:
        points, num_points = F.pad(points, (0, 0, 0, 1)), torch.zeros_like(num_points)
    batch, num, _ = points.shape
    device = points.device
    is_point = torch.arange(num, device=device) < num_points[:, None]  # [B, P]
    if generator is not None:
        order = torch.rand(batch, num, generator=generator, device=device) + ~is_point  # padding stays last
        points = points.take_along_dim(order.argsort(1)[..., None], 1)
    is_finite = points.isfinite().all(-1)

    grid = (size_x, size_y, size_z)
    start, end, side, most = (constant(values, points) for values in (low, high, voxel_size, grid))
    place = ((points[..., :3] - start) / side).floor()  # [B, P, 3]; NaN fails every comparison below
    is_inside = ((place >= 0) & (place < most)).all(-1)
    is_inside &= ((points[..., :2] >= start[:2]) & (points[..., :2] <= end[:2])).all(-1) & is_finite & is_point
    x, y, z = torch.where(is_inside[..., None], place, 0).long().unbind(-1)
    sample = torch.arange(batch, device=device)[:, None]
    key = ((sample * size_z + z) * size_y + y) * size_x + x  # [B, P]

    # Equal keys become neighbours, in order of arrival; what lies outside goes to the end.
    key, point = torch.where(is_inside, key, NOWHERE).flatten().sort(stable=True)  # [B P], and which point it was
    is_first = (key < NOWHERE) & (key != F.pad(key[:-1], (1, 0), value=NOWHERE))
    arrives = torch.zeros_like(is_first).index_put((point,), is_first).view(batch, num)  # a voxel's first point
    slot = (arrives.cumsum(1) - 1).flatten()[point]  # [B P] of a first point: which voxel of its sample
    found = arrives.sum(1)

    # Where each voxel starts among the sorted points; writes that are not wanted go to a last, surplus entry.
    row = torch.where(is_first & (slot < max_voxels), point // num * max_voxels + slot, batch * max_voxels)
    first = torch.zeros(batch * max_voxels + 1, dtype=torch.long, device=device)
    first = first.index_put((row,), torch.arange(batch * num, device=device))[:-1]  # [B V]
    is_voxel = (torch.arange(max_voxels, device=device) < found[:, None]).flatten()

    members = first[:, None] + torch.arange(max_points, device=device)  # [B V, max_points]
    is_member = members < batch * num
    members = members.clamp_max(batch * num - 1)
    is_member &= (key[members] == key[first][:, None]) & is_voxel[:, None]
    values = torch.where(is_member[..., None], points.flatten(0, 1)[point[members]], 0)
    features = values.sum(1) / is_member.sum(1, keepdim=True).clamp_min(1)  # [B V, C]

    cell = key[first]
    coords = torch.stack([cell // (size_y * size_x) % size_z, cell // size_x % size_y, cell % size_x], -1)
    coords = torch.where(is_voxel[:, None], coords, -1)
    return Voxels(
        features=features.view(batch, max_voxels, -1),
        coords=coords.view(batch, max_voxels, 3),
        num_voxels=found.clamp_max(max_voxels),
        num_dropped=(found - max_voxels).clamp_min(0),
        num_broken=(is_point & ~is_finite).sum(1),
    )


def constant(values: Sequence[int | float], like: Tensor) -> Tensor:
    """``values`` as a vector [n] of the type and device of ``like``: filled there, as a copy makes the host wait."""
    return torch.stack([like.new_full((), value) for value in values])


def bev_cells(coords: Tensor, grid: Sequence[int], stride: int = 8) -> Tensor:
    """Bird's-eye-view cell of each voxel: y // stride * W + x // stride; -1 for padding.

    Args:
        coords: int64 [..., 3], z, y, x; -1 for padding.
        grid: (H, W) in cells.
        stride: voxels a cell.

    Raises:
        ValueError: if ``grid`` has not two entries.
    """
    if len(grid) != 2:
        raise ValueError(f"a bird's-eye view has a grid of (rows, columns); got {list(grid)}")
    _, y, x = coords.unbind(-1)
    return torch.where(
        x >= 0, y.div(stride, rounding_mode="floor") * grid[1] + x.div(stride, rounding_mode="floor"), -1
    )
