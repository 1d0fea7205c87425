"""Violation of expectation: clips in which something impossible happens, each with its possible twin.

The twins are the same to the pixel until the impossible happens, and in all else: a model that knows the world should
be more surprised by the one than by the other. In all kinds but ``pass_through`` the main object goes behind a bar, is
hidden completely in the middle of the clip, and comes out at the other side.

Source: the idea of such pairs is that of IntPhys (Riochet et al., arXiv 1803.07616); the scenes are our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from envs.scene_draws import SHORTEST, Chance, Drawn, Rules, draw, unit
from envs.scene_physics import coast, fold
from envs.scene_pictures import ScenePictures
from envs.scene_rendering import Scene


class Pairs(NamedTuple):
    """N clips and their impossible twins."""

    possible: TensorDict  # [N], "pixels" uint8 [N, T, 3, S, S]
    impossible: TensorDict  # [N], the same
    first: Tensor  # int64 [N], the first frame in which the two differ


class Twins(NamedTuple):
    """The scenes of N clips and of their twins, and the greatest radius of each of their objects."""

    possible: Scene
    impossible: Scene
    extents: list[float]


class _Setting(NamedTuple):
    """What a kind of surprise starts from."""

    rules: Rules
    pictures: ScenePictures
    drawn: Drawn
    times: Tensor  # [T], seconds
    middle: int  # the frame in which the main object is hidden
    chance: Chance


def draw_twins(rules: Rules, pictures: ScenePictures, num: int, num_frames: int, kind: str, chance: Chance) -> Twins:
    """Draw pairs of one kind of ``SURPRISES``.

    Raises:
        ValueError: for an unknown kind, too few frames, or too few objects.
    """
    if kind not in SURPRISES:
        raise ValueError(f"surprise {kind}: there are {', '.join(SURPRISES)}")
    if num_frames < SHORTEST:
        raise ValueError(f"clips of {num_frames} frames are too short for a surprise: {SHORTEST} or more")
    does_meet = kind == "pass_through"
    if does_meet and rules.num_objects[1] < 3:
        raise ValueError(
            f"env.num_objects={list(rules.num_objects)}: {kind} needs 3, the main object and two that meet; or leave "
            "it out of eval.surprise.kinds"
        )
    drawn = draw(rules, pictures, num, num_frames, chance, has_pair=does_meet, does_meet=does_meet)
    times = torch.arange(num_frames, device=chance.device) / rules.frame_rate
    setting = _Setting(rules, pictures, drawn, times, num_frames // 2, chance)
    if not does_meet:
        setting = setting._replace(drawn=drawn._replace(scene=_behind_a_bar(setting)))
    return SURPRISES[kind](setting)


def _behind_a_bar(given: _Setting) -> Scene:
    """The scene with a bar that hides the main object completely in the middle frame.

    Its speed is what carries it from one side to the other within the clip.
    """
    rules, scene, chance = given.rules, given.drawn.scene, given.chance
    num, objects = scene.radius.shape
    size = given.pictures.background.shape[-1]
    half = rules.main_radius + 1 / size  # of the bar
    room = 0.5 - rules.main_radius if rules.has_walls else 0.5
    reach = min(half + rules.main_radius + 0.07, 0.98 * room)  # from the bar's middle to the start
    is_upright = scene.is_upright[:, None, None]
    middle = torch.full((num,), 0.5, device=chance.device) if rules.has_walls else chance.uniform(num)
    side = 1 - 2 * chance.integers(2, num)[:, None]
    frame = torch.arange(len(given.times), device=chance.device)
    across = middle[:, None] + side * reach * (frame - given.middle) / given.middle  # [B, T]
    margin = rules.main_radius if rules.has_walls else 0.0
    slope = chance.uniform(num, 1, low=-0.2, high=0.2) * given.times * rules.speed[0]
    along = margin + chance.uniform(num, 1) * (1 - 2 * margin) + slope
    main = torch.where(is_upright, torch.stack((across, along), -1), torch.stack((along, across), -1))
    main = fold(main, scene.radius[:, None, -1], has_walls=rules.has_walls)[0]
    position = torch.cat((scene.position[:, :, : objects - 1], main[:, :, None]), 2)
    bar = torch.stack((middle, torch.full_like(middle, half)), -1)
    return scene._replace(position=position, bar=bar)


def _after(given: _Setting) -> Tensor:
    """1.0 in frames [T] from the hidden one on."""
    return (torch.arange(len(given.times), device=given.chance.device) >= given.middle).float()


def _seen_when(given: _Setting, shown: Tensor) -> Twins:
    """The impossible twin's main object is there in the frames that ``shown`` [T] says."""
    scene = given.drawn.scene
    opacity = torch.cat((scene.opacity[..., :-1], scene.opacity[..., -1:] * shown[:, None]), -1)
    return Twins(scene, scene._replace(opacity=opacity), given.rules.extents)


def _vanish(given: _Setting) -> Twins:
    return _seen_when(given, 1 - _after(given))


def _appear(given: _Setting) -> Twins:
    return _seen_when(given, _after(given))


def _teleport(given: _Setting) -> Twins:
    """The main object comes out half a side further along the bar."""
    scene, rules = given.drawn.scene, given.rules
    axis = unit(torch.where(scene.is_upright, math.pi / 2, 0.0)).round()  # [B, 2], along the bar
    main = scene.position[:, :, -1]
    moved = fold(main + 0.5 * axis[:, None], scene.radius[:, None, -1], has_walls=rules.has_walls)[0]
    main = torch.lerp(main, moved, _after(given)[:, None])
    position = torch.cat((scene.position[:, :, :-1], main[:, :, None]), 2)
    return Twins(scene, scene._replace(position=position), rules.extents)


def _identity(given: _Setting) -> Twins:
    """Another object comes out: another digit, texture and colour."""
    scene, pictures, chance = given.drawn.scene, given.pictures, given.chance
    num = len(scene.radius)
    own = pictures.digit[scene.ink[:, -1]]
    is_other = pictures.digit != own[:, None]  # [B, N]
    other = (chance.uniform(num, len(pictures.digit)) * is_other).argmax(1)
    changed = {
        "ink": other[:, None],
        "texture": chance.integers(len(pictures.texture), num, 1),
        "tint": 1.4 - scene.tint[:, -1:],  # the complement
    }
    # The other one is a further object with the same motion, there from the hidden frame on.
    twice = {key: entry[:, -1:] for key, entry in scene._asdict().items() if key in ("radius", "is_solid")} | changed
    whole = {key: torch.cat((getattr(scene, key), entry), 1) for key, entry in twice.items()}
    for key in ("position", "angle", "opacity", "glow"):
        entry = getattr(scene, key)
        whole[key] = torch.cat((entry, entry[:, :, -1:]), 2)
    whole, after, opacity = scene._replace(**whole), _after(given), whole["opacity"]
    absent = torch.zeros_like(opacity[..., -1:])
    possible = torch.cat((opacity[..., :-1], absent), -1)
    impossible = torch.cat((opacity[..., :-2], (1 - after)[:, None] + absent, after[:, None] + absent), -1)
    extents = [*given.rules.extents, given.rules.main_radius]
    return Twins(whole._replace(opacity=possible), whole._replace(opacity=impossible), extents)


def _pass_through(given: _Setting) -> Twins:
    """The two solid objects meet, and go on as if they had not."""
    drawn, walls = given.drawn, {"has_walls": given.rules.has_walls}
    free = coast(drawn.position[:, :2], drawn.velocity[:, :2], drawn.scene.radius[:, :2], given.times, **walls)
    position = torch.cat((free, drawn.scene.position[:, :, 2:]), 2)
    return Twins(drawn.scene, drawn.scene._replace(position=position), given.rules.extents)


SURPRISES: dict[str, Callable[[_Setting], Twins]] = {
    "vanish": _vanish,
    "appear": _appear,
    "teleport": _teleport,
    "identity": _identity,
    "pass_through": _pass_through,
}
"""Kinds of impossible events. The main object goes behind the bar and does not come out; comes out and did not go
behind it (so that "vanish" and "appear" together favour neither emptier nor fuller clips); comes out elsewhere; comes
out as another; two solid objects pass through each other."""
