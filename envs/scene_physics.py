"""Discs that move, wrap around or bounce off walls, and collide: a batch of scenes at once.

Lengths are in sides of the frame, times in seconds; x grows to the right, y downwards. Without walls the plane wraps
around with period 1 (a torus), so that uniform places stay uniform for ever, whatever the velocities. With walls a disc
of radius r stays within [r, 1 - r] in both directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Motion(NamedTuple):
    """Where K discs of B scenes are in T frames."""

    position: Tensor  # float32 [B, T, K, 2]
    velocity: Tensor  # float32 [B, T, K, 2], sides a second
    has_collided: Tensor  # bool [B, T], whether a collision happened up to this frame


def fold(position: Tensor, radius: Tensor, *, has_walls: bool) -> tuple[Tensor, Tensor]:
    """Places reached on a way that ignored the edges, as they are on the torus or between the walls.

    A way is folded back at a wall like light at a mirror, which is what an elastic bounce does.

    Args:
        position: [..., 2], anywhere.
        radius: [...], below 1/2.
        has_walls: or the plane wraps around.

    Returns:
        places [..., 2], and the factor 1 or -1 [..., 2] of each velocity component.
    """
    if not has_walls:
        return position.remainder(1), torch.ones_like(position)
    radius = radius[..., None]
    room = 1 - 2 * radius
    along = (position - radius).remainder(2 * room)
    is_back = along > room
    return radius + torch.where(is_back, 2 * room - along, along), 1 - 2 * is_back.to(position.dtype)


def coast(position: Tensor, velocity: Tensor, radius: Tensor, times: Tensor, *, has_walls: bool) -> Tensor:
    """Where discs [..., K] are at ``times`` [T] if nothing but the walls is in their way: [..., T, K, 2]."""
    way = position[..., None, :, :] + velocity[..., None, :, :] * times[:, None, None]  # [..., T, K, 2]
    return fold(way, radius[..., None, :], has_walls=has_walls)[0]


def between(a: Tensor, b: Tensor, *, has_walls: bool) -> Tensor:
    """The way [..., 2] from ``a`` to ``b``, on the torus the shortest one."""
    way = b - a
    return way if has_walls else way - way.round()


def collide(
    position: Tensor,
    velocity: Tensor,
    *,
    radius: Tensor,
    mass: Tensor,
    is_solid: Tensor,
    num_frames: int,
    frame_time: float,
    has_walls: bool,
    steps: int = 1,
) -> Motion:
    """Move discs, of which the solid ones collide elastically.

    There is no friction: momentum changes along the line between two centres only, and nothing begins to turn. Within
    a step the first contact of each scene is found as the root of a quadratic and happens exactly then; a second one of
    the same step happens at the beginning of the next. Contacts are looked for on straight lines: one that follows a
    bounce off a wall within the same step is found a step late. Discs that overlap at first are pushed apart only if
    they approach.

    Args:
        position, velocity: in the first frame, [B, K, 2].
        radius, mass: [B, K].
        is_solid: bool [B, K]; what is not solid moves on, whatever it meets.
        num_frames: T.
        frame_time: seconds from a frame to the next.
        has_walls: see the module.
        steps: of each frame.
    """
    position, sign = fold(position, radius, has_walls=has_walls)
    velocity = velocity * sign
    num, step = radius.shape[1], frame_time / steps
    reach = radius[:, :, None] + radius[:, None]  # [B, K, K]
    is_pair = is_solid[:, :, None] & is_solid[:, None] & ~torch.eye(num, dtype=torch.bool, device=radius.device)
    share = 2 * mass[:, None] / (mass[:, :, None] + mass[:, None])  # [B, K, K] of the impulse's effect on the first
    has_collided = torch.zeros(len(radius), dtype=torch.bool, device=radius.device)
    frames = [(position, velocity, has_collided)]
    for number in range((num_frames - 1) * steps):
        time, is_hit = _first_contact(position, velocity, reach, is_pair, step, has_walls=has_walls)
        position, sign = fold(position + time[:, None, None] * velocity, radius, has_walls=has_walls)
        velocity = velocity * sign
        normal = F.normalize(_ways(position, has_walls=has_walls), dim=-1)  # [B, K, K, 2] from the first to the second
        speed = (_ways(velocity, has_walls=True) * normal).sum(-1)  # [B, K, K], below 0 where they approach
        push = (is_hit * share * speed)[..., None] * normal
        velocity = velocity + push.sum(2)
        rest = (step - time)[:, None, None]
        position, sign = fold(position + rest * velocity, radius, has_walls=has_walls)
        velocity = velocity * sign
        has_collided = has_collided | is_hit.flatten(1).any(1)
        if number % steps == steps - 1:
            frames.append((position, velocity, has_collided))
    return Motion(*(torch.stack(entries, 1) for entries in zip(*frames, strict=True)))


def _ways(points: Tensor, *, has_walls: bool) -> Tensor:
    """From each point [B, K, 2] to each other, [B, K, K, 2]."""
    return between(points[:, :, None], points[:, None], has_walls=has_walls)


def _first_contact(
    position: Tensor, velocity: Tensor, reach: Tensor, is_pair: Tensor, step: float, *, has_walls: bool
) -> tuple[Tensor, Tensor]:
    """When the first pair of each scene meets, at most ``step`` [B], and which pair that is, bool [B, K, K]."""
    way, drift = _ways(position, has_walls=has_walls), _ways(velocity, has_walls=True)
    # |way + drift t| = reach; b < 0 where they approach
    a, b, c = (drift * drift).sum(-1), (way * drift).sum(-1), (way * way).sum(-1) - reach**2
    root = b * b - a * c
    does_meet = is_pair & (b < 0) & (root > 0)
    late = torch.full_like(a, 2 * step)
    time = torch.where(does_meet, (-b - root.clamp_min(0).sqrt()) / torch.where(does_meet, a, 1.0), late)
    time = time.clamp_min(0)  # of discs that overlap already
    first = time.flatten(1).amin(1)  # [B]
    is_first = (time == first[:, None, None]) & (time <= step)
    # Of two pairs at the very same time only one, so that no disc takes part in two collisions at once.
    index = is_first.triu().flatten(1).to(torch.uint8).argmax(1, keepdim=True)
    chosen = torch.zeros_like(is_first.flatten(1)).scatter_(1, index, True).view_as(is_first)
    is_hit = is_first & (chosen | chosen.mT)
    return first.clamp_max(step), is_hit
