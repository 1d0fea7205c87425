"""Rotations in space as unit quaternions [..., 4] = x, y, z, w, scalar last, and as Euler angles about fixed axes.

q and -q are the same rotation: ``canonical`` keeps the one with w >= 0, so that equal rotations are equal numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def from_euler_xyz(angles: Tensor) -> Tensor:
    """The rotation about the fixed x axis, then the fixed y axis, then the fixed z axis.

    Args:
        angles: [..., 3], radians about x, y, z.

    Returns:
        unit quaternions [..., 4], of either sign. The same as scipy's ``Rotation.from_euler("xyz", angles)``.

    Raises:
        ValueError: if the last dimension is not 3.
    """
    if angles.shape[-1] != 3:
        raise ValueError(f"Euler angles are [..., 3], about x, y and z; these are {list(angles.shape)}")
    (sx, sy, sz), (cx, cy, cz) = ((f(angles / 2)).unbind(-1) for f in (torch.sin, torch.cos))
    return torch.stack(  # q_z q_y q_x, multiplied out
        (
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
            cx * cy * cz + sx * sy * sz,
        ),
        -1,
    )


def compose(second: Tensor, first: Tensor) -> Tensor:
    """``first``, then ``second``: the product second * first of quaternions [..., 4]."""
    _check(second)
    _check(first)
    u, v, a, b = second[..., :3], first[..., :3], second[..., 3:], first[..., 3:]
    vector = a * v + b * u + torch.linalg.cross(u, v)
    return torch.cat((vector, a * b - (u * v).sum(-1, keepdim=True)), -1)


def inverse(rotation: Tensor) -> Tensor:
    """What undoes unit quaternions [..., 4]."""
    _check(rotation)
    return rotation * rotation.new_tensor((-1.0, -1.0, -1.0, 1.0))


def canonical(rotation: Tensor) -> Tensor:
    """The same rotations [..., 4] with w >= 0; half turns, w = 0, with the first entry that is not 0 positive."""
    _check(rotation)
    x, y, z, w = rotation.unbind(-1)
    leading = torch.where(w != 0, w, torch.where(x != 0, x, torch.where(y != 0, y, z)))
    return torch.where(leading[..., None] < 0, -rotation, rotation)


def between(start: Tensor, end: Tensor) -> Tensor:
    """What leads from orientation ``start`` to ``end``, seen from ``start``: start^-1 end, [..., 4], w >= 0."""
    return canonical(compose(inverse(start), end))


def apply(rotation: Tensor, points: Tensor) -> Tensor:
    """Turn points [..., 3] by unit quaternions [..., 4]."""
    _check(rotation)
    vector, scalar = rotation[..., :3].expand(*points.shape), rotation[..., 3:]
    twice = 2 * torch.linalg.cross(vector, points)
    return points + scalar * twice + torch.linalg.cross(vector, twice)


def _check(rotation: Tensor) -> None:
    if rotation.shape[-1] != 4 or not rotation.is_floating_point():
        kind = str(rotation.dtype).removeprefix("torch.")
        raise ValueError(f"quaternions are float [..., 4], x, y, z, w; these are {kind} {list(rotation.shape)}")
