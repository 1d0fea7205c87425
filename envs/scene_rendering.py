"""Painting scenes of discs: a batch of clips at once, one object after the other, from the farthest to the nearest.

Notable: objects are sampled at the places of the frame's pixels and their rims are covered by the exact share of a
pixel to first order, so motion by a fraction of a pixel shows; only the square around an object is touched; where the
plane wraps around, so does the picture. Lengths are in sides of the frame; x grows to the right, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.scene_pictures import ScenePictures

FLAT = 72.0  # grey level that backgrounds fade to as their contrast gets less
_INK, _FLASH = 12.0, 0.85  # grey level of digits; how white a flashing object gets
_RIM = 0.16  # width of the rim in radii
_SOLID, _FLOATING = 250.0, 25.0  # grey level of rims
_PART = 1 << 20  # numbers of the frames worked on at a time on a CPU: what stays in its cache
_MANY = 1 << 28  # the same on a GPU, so that long lists of clips fit its memory


class Scene(NamedTuple):
    """What is to be seen in T frames of B clips; K objects from the farthest to the nearest."""

    position: Tensor  # float32 [B, T, K, 2], in the world
    angle: Tensor  # float32 [B, T, K], radians, clockwise
    opacity: Tensor  # float32 [B, T, K], 0 is not there
    glow: Tensor  # float32 [B, T, K], 0..1: how much of a flash there is
    radius: Tensor  # float32 [B, K]
    tint: Tensor  # float32 [B, K, 3], 0..1
    is_solid: Tensor  # bool [B, K], has a white rim instead of a black one
    ink: Tensor  # int64 [B, K], which picture of a digit
    texture: Tensor  # int64 [B, K]
    background: Tensor  # int64 [B]
    camera: Tensor  # float32 [B, T, 2], the place of the world at the frame's upper left corner
    light: Tensor  # float32 [B, T, 3], factor of each colour
    bar: Tensor  # float32 [B, 2], middle and half width of an opaque bar in front of everything; half width 0: none
    bar_tint: Tensor  # float32 [B, 3]
    is_upright: Tensor  # bool [B], whether the bar's middle is an x


def paint(
    scene: Scene, pictures: ScenePictures, *, extents: Sequence[float], has_walls: bool, contrast: float, has_bars: bool
) -> Tensor:
    """Frames uint8 [B, T, 3, S, S].

    Args:
        scene: on the device of the pictures.
        pictures: of one part.
        extents: the greatest radius that each of the K objects has in any clip.
        has_walls: whether what is beyond an edge is unseen, or shows at the opposite edge.
        contrast: of the background, 0..1; 0 makes it flat grey.
        has_bars: whether there may be bars at all.
    """
    num, frames = scene.camera.shape[:2]
    size = pictures.background.shape[-1]
    clip = frames * 3 * size * size
    part = max(1, (_PART if scene.camera.device.type == "cpu" else _MANY) // clip)
    out = torch.empty((num, frames, 3, size, size), dtype=torch.uint8, device=scene.camera.device)
    for first in range(0, num, part):
        some = Scene(*(entry[first : first + part] for entry in scene))
        canvas = _background(pictures.background[some.background], some.camera, contrast)
        for number, extent in enumerate(extents):
            _add_object(canvas, some, number, pictures, extent=extent, has_walls=has_walls)
        if has_bars:
            canvas = _with_bar(canvas, some, has_walls=has_walls)
        out[first : first + part] = canvas.mul_(some.light[..., None, None]).round_().clamp_(0, 255)
    return out


def _background(tiles: Tensor, camera: Tensor, contrast: float) -> Tensor:
    """Float [B, T, 3, S, S]: tiles uint8 [B, 3, S, S], which wrap around, seen from ``camera`` [B, T, 2]."""
    size = tiles.shape[-1]
    offset = camera.remainder(1) * size
    whole = offset.floor()
    part = (offset - whole)[..., None, None, None]  # [B, T, 2, 1, 1, 1]
    column, row = (whole.long() % size).unbind(-1)  # [B, T]
    doubled = torch.cat((tiles, tiles), -1)
    doubled = torch.cat((doubled, doubled), -2)
    windows = doubled.unfold(2, size + 1, 1).unfold(3, size + 1, 1)  # a view, [B, 3, S, S, S + 1, S + 1]
    clip = torch.arange(len(tiles), device=tiles.device)[:, None]
    seen = windows[clip, :, row, column].float()  # [B, T, 3, S + 1, S + 1]
    seen = torch.lerp(seen[..., :-1, :], seen[..., 1:, :], part[:, :, 1])
    seen = torch.lerp(seen[..., :-1], seen[..., 1:], part[:, :, 0])
    return seen.mul_(contrast).add_((1 - contrast) * FLAT)


def _add_object(
    canvas: Tensor, scene: Scene, number: int, pictures: ScenePictures, *, extent: float, has_walls: bool
) -> None:
    """Paint one object of each clip over ``canvas`` [B, T, 3, S, S], in place."""
    size = canvas.shape[-1]
    wide = min(size, 2 * math.ceil(extent * size + 0.5) + 1)  # W: pixels of the square that is touched
    centre = (scene.position[:, :, number] - scene.camera) * size  # [B, T, 2] x, y in pixels
    if not has_walls:
        centre = centre.remainder(size)
    first = (centre - (wide - 1) / 2).floor()
    pixel = first[..., None] + torch.arange(wide, device=canvas.device)  # [B, T, 2, W]
    away = pixel + 0.5 - centre[..., None]
    radius = (scene.radius[:, number] * size)[:, None, None, None]
    x, y = away[:, :, 0, None, :], away[:, :, 1, :, None]  # [B, T, 1, W], [B, T, W, 1]
    distance = (x * x + y * y).sqrt()  # [B, T, W, W]
    shown = scene.opacity[:, :, number, None, None]
    cover = (radius + 0.5 - distance).clamp(0, 1) * shown
    if has_walls:
        is_inside = (pixel >= 0) & (pixel < size)
        cover = cover * (is_inside[:, :, 0, None, :] & is_inside[:, :, 1, :, None])
    colour = _colours(scene, number, pictures, x / radius, y / radius)  # [B, 3, T, W, W]
    rim = (distance - (1 - _RIM) * radius + 0.5).clamp(0, 1)[:, None]
    edge = torch.where(scene.is_solid[:, number], _SOLID, _FLOATING)[:, None, None, None, None]
    colour = torch.lerp(colour, edge, rim)
    colour = colour + (255 - colour) * (_FLASH * scene.glow[:, None, :, number, None, None])
    place = pixel.remainder(size).long()
    index = place[:, :, 1, :, None] * size + place[:, :, 0, None, :]  # [B, T, W, W]
    index = index.flatten(2)[:, :, None].expand(-1, -1, 3, -1)  # [B, T, 3, W W]
    flat = canvas.flatten(-2)
    mixed = torch.lerp(flat.gather(-1, index), colour.transpose(1, 2).flatten(-2), cover.flatten(2)[:, :, None])
    flat.scatter_(-1, index, mixed)


def _colours(scene: Scene, number: int, pictures: ScenePictures, x: Tensor, y: Tensor) -> Tensor:
    """The inside of an object, float [B, 3, T, W, W], at places in radii from its centre."""
    angle = scene.angle[:, :, number, None, None]
    cos, sin = angle.cos(), angle.sin()
    places = torch.stack((cos * x + sin * y, cos * y - sin * x), -1)  # [B, T, W, W, 2], turned back
    tint = scene.tint[:, number, :, None, None]
    sprite = (pictures.texture[scene.texture[:, number]] * 0.7 + 60) * tint  # [B, 3, A, A]
    ink = ((pictures.ink[scene.ink[:, number], None].float() - 50) / 130).clamp(0, 1)  # thin strokes get dark, too
    sprite = sprite + (_INK - sprite) * ink
    seen = F.grid_sample(
        sprite, places.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=False
    )  # [B, 3, T W, W]
    return seen.unflatten(2, places.shape[1:3])


def _with_bar(canvas: Tensor, scene: Scene, *, has_walls: bool) -> Tensor:
    """The canvas behind a bar with dark edges."""
    size = canvas.shape[-1]
    axis = torch.where(scene.is_upright, 0, 1)[:, None, None]  # of the middle
    camera = scene.camera.gather(-1, axis.expand(-1, scene.camera.shape[1], -1))[..., 0]  # [B, T]
    middle, half = ((entry * size)[..., None] for entry in (scene.bar[:, :1] - camera, scene.bar[:, 1:]))
    away = torch.arange(size, device=canvas.device) + 0.5 - middle  # [B, T, S]
    if not has_walls:
        away = away - size * (away / size).round()
    cover = (half + 0.5 - away.abs()).clamp(0, 1) * (half > 0)
    rim = (away.abs() - half + 0.05 * size).clamp(0, 1)
    shade = (1 - 0.7 * rim)[..., None, :] * 220 * scene.bar_tint[:, None, :, None]  # [B, T, 3, S]
    upright = scene.is_upright[:, None, None, None, None]
    cover = cover[:, :, None]
    cover, shade = (torch.where(upright, entry[..., None, :], entry[..., None]) for entry in (cover, shade))
    return torch.lerp(canvas, shade, cover)
