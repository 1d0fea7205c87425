"""Drawing moving scenes: what the rules allow, places, velocities and events, and the labels that follow from them.

Objects, from the farthest to the nearest:

* the first two are *solid*, which their white rims tell: they lie at one depth and bounce off each other;
* others float, each at a depth of its own, and have black rims: they pass in front of what is farther, behind what is
  nearer;
* the last one is the *main* object: the largest, in front of all others, with a black rim. It meets nothing.

Whether the two solid ones meet is drawn first; then a meeting or a near miss that makes it so, with places and
velocities from the same distributions. The labels are read off the simulation. Where the plane wraps around, the main
object's place is uniform in every frame whatever its velocity, so no single frame tells direction or speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from envs.scene_physics import between, coast, collide, fold
from envs.scene_pictures import ScenePictures
from envs.scene_rendering import Scene

# Clockwise from the right, as y points down.
DIRECTIONS = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")
ORDERS = ("main_first", "other_first")
MISSING = -1  # of int64 labels that a clip has not; of float ones it is NaN
SHORTEST = 6  # frames of a clip with events: two flashes one after the other, a collision
_JITTER = math.pi / 16  # of directions: half of what would leave their class
_TILT = math.pi / 12  # most that digits are turned in the first frame
_TRIES = 8  # meetings or misses drawn for one that comes true
_NEAR = (1.1, 1.7)  # least and greatest distance of a miss, in radii of both


@dataclass(kw_only=True)
class Rules:
    """The physics of scenes. Lengths are in sides of the frame, ranges the least and the greatest.

    Args:
        frame_rate: frames a second.
        num_objects: the least and the most, from 1 to 8; all numbers are equally frequent.
        radius: of all but the main object.
        main_radius: of the main object, greater than all others.
        speed: of every object, sides a second.
        max_spin: how fast objects turn at most, degrees a second.
        has_walls: objects bounce off the edges of the room, which is one frame wide. Else the plane wraps around, and
            place and direction of an object are independent in every frame; with walls in the first one only.
        has_equal_mass: or mass goes with the area of a disc.
        collision_chance: of clips in which the two solid objects meet.
        camera_speed: the greatest speed of the camera, sides a second. With walls a fast one leaves the room.
        light: greatest change of brightness and, less, of colour; 0 leaves all as it is.
        occluder_chance: of an opaque bar in front of everything.

    Raises:
        ValueError: for rules that cannot be, by key.
    """

    frame_rate: int | float = 8
    num_objects: Sequence[int] = (3, 5)
    radius: Sequence[int | float] = (0.09, 0.12)
    main_radius: int | float = 0.17
    speed: Sequence[int | float] = (0.25, 0.6)
    max_spin: int | float = 60
    has_walls: bool = False
    has_equal_mass: bool = True
    collision_chance: int | float = 0.5
    camera_speed: int | float = 0.1
    light: int | float = 0.25
    occluder_chance: int | float = 0.2

    def __post_init__(self) -> None:
        for key in ("num_objects", "radius", "speed"):
            if len(given := tuple(getattr(self, key))) != 2:
                raise ValueError(f"env.{key}={list(given)}: two numbers, the least and the greatest")
            setattr(self, key, given)  # YAML gives lists
        low, high = self.num_objects
        if not 1 <= low <= high <= 8:
            raise ValueError(f"env.num_objects={[low, high]}: the least and the most, from 1 to 8")
        low, high = self.radius
        if not 0 < low <= high < self.main_radius <= 0.25:
            raise ValueError(
                f"env.radius={[low, high]}, env.main_radius={self.main_radius}: the least and the greatest, above 0; "
                "the main object is the largest, at most 0.25"
            )
        low, high = self.speed
        if not 0 < low <= high:
            raise ValueError(f"env.speed={[low, high]}: the least and the greatest, above 0, in sides a second")
        if self.frame_rate <= 0 or high / self.frame_rate >= 0.5:
            raise ValueError(
                f"env.frame_rate={self.frame_rate}, env.speed={[low, high]}: {high} sides a second must be less than "
                "half a side from a frame to the next, or directions cannot be seen. Use a higher frame rate"
            )
        for key in ("collision_chance", "occluder_chance"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"env.{key}={getattr(self, key)}: a chance within 0 and 1")
        if not 0 <= self.light < 1:
            raise ValueError(f"env.light={self.light}: the greatest change of brightness, from 0 to below 1")
        for key in ("camera_speed", "max_spin"):
            if getattr(self, key) < 0:
                raise ValueError(f"env.{key}={getattr(self, key)}: at least 0")

    @property
    def extents(self) -> list[float]:
        """The greatest radius of each object, from the farthest to the nearest."""
        return [float(self.radius[1])] * (self.num_objects[1] - 1) + [float(self.main_radius)]

    @property
    def label_classes(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes of each int64 label."""
        low, high = self.num_objects
        return {
            "direction": DIRECTIONS,
            "identity": tuple("0123456789"),
            "event_order": ORDERS,
            "collision": ("no", "yes"),
            "num_objects": tuple(str(number) for number in range(low, high + 1)),
        }


class Drawn(NamedTuple):
    """Clips before they are painted."""

    scene: Scene
    labels: dict[str, Tensor]  # int64 or float32 [B]
    position: Tensor  # float32 [B, K, 2], in the first frame
    velocity: Tensor  # float32 [B, K, 2], in the first frame


class Chance:
    """Random numbers of one generator, on another device perhaps.

    Args:
        generator: draws them. device: where they are wanted.
    """

    def __init__(self, generator: Generator, device: torch.device) -> None:
        self._like = {"generator": generator, "device": generator.device}
        self.device = device

    def uniform(self, *shape: int, low: int | float = 0, high: int | float = 1) -> Tensor:
        """float32 ``shape`` from ``low`` to ``high``."""
        return torch.rand(shape, **self._like).to(self.device, non_blocking=True) * (high - low) + low

    def integers(self, high: int, *shape: int, low: int = 0) -> Tensor:
        """int64 ``shape`` from ``low`` to below ``high``."""
        return torch.randint(low, high, shape, **self._like).to(self.device, non_blocking=True)

    def tints(self, *shape: int) -> Tensor:
        """Bright colours, float32 ``shape`` + [3], uniform in hue."""
        third = torch.arange(3, device=self.device) / 3
        return 0.7 + 0.3 * torch.cos(2 * math.pi * (self.uniform(*shape)[..., None] - third))


def draw(
    rules: Rules,
    pictures: ScenePictures,
    num: int,
    num_frames: int,
    chance: Chance,
    *,
    has_pair: bool = False,
    does_meet: bool = False,
) -> Drawn:
    """Draw ``num`` clips.

    Args:
        rules: of the scenes.
        pictures: of one part, on the device.
        num: B.
        num_frames: T.
        chance: the only source of randomness.
        has_pair: draw only clips with both solid objects, and so three objects or more.
        does_meet: and only clips in which they meet.
    """
    low, high = rules.num_objects
    count = chance.integers(high + 1, num, low=max(low, 3) if has_pair else low)  # [B]
    meets = chance.uniform(num) < (1.0 if does_meet else rules.collision_chance)
    meets = meets & (count > 2) & (num_frames >= SHORTEST)
    radius = chance.uniform(num, high, low=rules.radius[0], high=rules.radius[1])
    radius[:, -1] = rules.main_radius
    slot = torch.arange(high, device=chance.device)
    is_there = (slot < count[:, None] - 1) | (slot == high - 1)  # [B, K]
    solid = min(2, high - 1)
    is_solid = (slot < solid) & is_there
    direction = chance.integers(8, num)
    position, velocity = _starts(rules, radius, direction, chance)
    times = torch.arange(num_frames, device=chance.device) / rules.frame_rate
    if solid:
        pair, way = _encounters(rules, radius[:, :2], meets, times, chance)
        position[:, :solid], velocity[:, :solid] = pair[:, :solid], way[:, :solid]
    moves, has_collided = _motion(rules, position, velocity, radius, is_solid, times, solid)
    glow, is_main_first = _flashes(num, num_frames, high, count, chance)
    ink = chance.integers(len(pictures.ink), num, high)
    scene = Scene(
        position=moves,
        angle=_angles(rules, num, high, times, chance),
        opacity=is_there[:, None].expand(-1, num_frames, -1).float(),
        glow=glow,
        radius=radius,
        tint=chance.tints(num, high),
        is_solid=is_solid,
        ink=ink,
        texture=chance.integers(len(pictures.texture), num, high),
        background=chance.integers(len(pictures.background), num),
        **_surroundings(rules, num, times, chance),
    )
    facts = {"direction": direction, "speed": velocity[:, -1].norm(dim=-1), "identity": pictures.digit[ink[:, -1]]}
    events = {"event_order": 1 - is_main_first.long(), "collision": has_collided.long()}
    return Drawn(scene, _labels(facts, events, count, low, num_frames), position, velocity)


def _labels(
    facts: dict[str, Tensor], events: dict[str, Tensor], count: Tensor, least: int, num_frames: int
) -> dict[str, Tensor]:
    """The labels [B], with those missing that a clip of ``num_frames`` and ``count`` [B] objects has not."""
    labels = {**facts, **events, "num_objects": count - least}
    has_events = num_frames >= SHORTEST
    for name, objects in (("event_order", 2), ("collision", 3)):
        labels[name] = torch.where((count >= objects) & has_events, labels[name], MISSING)
    if num_frames < 2:
        labels["direction"] = torch.full_like(labels["direction"], MISSING)
        labels["speed"] = torch.full_like(labels["speed"], math.nan)
    return labels


def unit(angle: Tensor) -> Tensor:
    """Directions [..., 2] of angles [...]."""
    return torch.stack((angle.cos(), angle.sin()), -1)


def _starts(rules: Rules, radius: Tensor, direction: Tensor, chance: Chance) -> tuple[Tensor, Tensor]:
    """Place and velocity [B, K, 2] of objects that nothing binds; the last one goes in one of eight directions."""
    num, objects = radius.shape
    margin = radius[..., None] if rules.has_walls else torch.zeros_like(radius[..., None])
    position = margin + chance.uniform(num, objects, 2) * (1 - 2 * margin)
    angle = chance.uniform(num, objects, high=2 * math.pi)
    angle[:, -1] = direction * (math.pi / 4) + chance.uniform(num, low=-_JITTER, high=_JITTER)
    speed = chance.uniform(num, objects, low=rules.speed[0], high=rules.speed[1])
    return position, speed[..., None] * unit(angle)


def _encounters(rules: Rules, radius: Tensor, meets: Tensor, times: Tensor, chance: Chance) -> tuple[Tensor, Tensor]:
    """Places and velocities [B, 2, 2] of two discs in the first frame, so that they meet where ``meets`` [B] says so.

    Drawn are both velocities, when the two would be nearest if they passed through each other, the middle between them
    then, and how far they are apart: less than they reach, or a little more. Of some such draws the first is taken that
    comes true in spite of walls and of ways around the torus.
    """
    walls = {"has_walls": rules.has_walls}
    shape, end = (len(radius), _TRIES), times[-1]
    angle = chance.uniform(*shape, 2, high=2 * math.pi)
    velocity = chance.uniform(*shape, 2, low=rules.speed[0], high=rules.speed[1])[..., None] * unit(angle)
    drift = velocity[:, :, 1] - velocity[:, :, 0]
    across = torch.stack((-drift[..., 1], drift[..., 0]), -1) / drift.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    reach = radius.sum(-1)[:, None]  # [B, 1]
    near = torch.where(
        meets[:, None], chance.uniform(*shape, high=0.9), chance.uniform(*shape, low=_NEAR[0], high=_NEAR[1])
    )
    side = 1 - 2 * chance.integers(2, *shape)
    half = (near * side * reach)[..., None] * across / 2  # [B, J, 2]
    middle = 0.2 + 0.6 * chance.uniform(*shape, 2) if rules.has_walls else chance.uniform(*shape, 2)
    nearest = torch.stack((middle - half, middle + half), -2)  # [B, J, 2, 2]
    moment = (0.3 + 0.4 * chance.uniform(*shape)) * end
    wide = radius[:, None].expand(*shape, 2)
    start, sign = fold(nearest - velocity * moment[..., None, None], wide, **walls)
    velocity = velocity * sign
    fine = torch.linspace(0, 1, 4 * len(times) - 3, device=radius.device) * end
    way = coast(start, velocity, wide, fine, **walls)  # [B, J, t, 2, 2]
    distance = between(way[..., 0, :], way[..., 1, :], **walls).norm(dim=-1)  # [B, J, t]
    is_apart = distance[..., 0] > 1.1 * reach
    comes_true = torch.where(meets[:, None], is_apart, distance.amin(-1) > reach)
    chosen = comes_true.to(torch.uint8).argmax(1)[:, None, None, None].expand(-1, 1, 2, 2)
    return start.gather(1, chosen)[:, 0], velocity.gather(1, chosen)[:, 0]


def _motion(
    rules: Rules, position: Tensor, velocity: Tensor, radius: Tensor, is_solid: Tensor, times: Tensor, solid: int
) -> tuple[Tensor, Tensor]:
    """Places [B, T, K, 2], the first ``solid`` objects colliding, and whether a collision happened [B]."""
    free = coast(position[:, solid:], velocity[:, solid:], radius[:, solid:], times, has_walls=rules.has_walls)
    if not solid:
        return free, torch.zeros(len(position), dtype=torch.bool, device=position.device)
    few = radius[:, :solid]
    bound = collide(
        position[:, :solid],
        velocity[:, :solid],
        radius=few,
        mass=torch.ones_like(few) if rules.has_equal_mass else few**2,
        is_solid=is_solid[:, :solid],
        num_frames=len(times),
        frame_time=1 / rules.frame_rate,
        has_walls=rules.has_walls,
    )
    return torch.cat((bound.position, free), 2), bound.has_collided[:, -1]


def _flashes(num: int, num_frames: int, objects: int, count: Tensor, chance: Chance) -> tuple[Tensor, Tensor]:
    """How far each object flashes [B, T, K], and whether the main one is the first of the two that do [B].

    The main object and the first solid one flash once each, one in the first half of the clip and one in the second,
    none in the first or the last frame: single frames tell who flashes, not who did so first.
    """
    glow = torch.zeros(num, num_frames, objects, device=chance.device)
    is_main_first = chance.uniform(num) < 0.5
    if num_frames < SHORTEST or objects < 2:
        return glow, is_main_first
    half = max(1, num_frames // 8)  # frames from the peak to darkness
    early = chance.integers(num_frames // 2 - half, num, low=half)
    late = num_frames - 1 - chance.integers(num_frames // 2 - half, num, low=half)
    frame = torch.arange(num_frames, device=chance.device)
    main, other = torch.where(is_main_first, early, late), torch.where(is_main_first, late, early)
    for slot, peak in ((objects - 1, main), (0, other)):
        away = ((frame - peak[:, None]).abs() / half).clamp_max(1)
        glow[:, :, slot] = torch.cos(math.pi / 2 * away) ** 2
    return glow * (count > 1)[:, None, None], is_main_first


def _angles(rules: Rules, num: int, objects: int, times: Tensor, chance: Chance) -> Tensor:
    """Angles [B, T, K] of objects that turn evenly."""
    most = math.radians(rules.max_spin)
    first = chance.uniform(num, 1, objects, low=-_TILT, high=_TILT)
    return first + chance.uniform(num, 1, objects, low=-most, high=most) * times[:, None]


def _surroundings(rules: Rules, num: int, times: Tensor, chance: Chance) -> dict[str, Tensor]:
    """The camera, which pans evenly, the light, which changes slowly, and the bar, if there is one."""
    heading = unit(chance.uniform(num, high=2 * math.pi))
    pan = chance.uniform(num, 1, high=rules.camera_speed) * heading  # [B, 2]
    corner = chance.uniform(num, 2)
    if rules.has_walls:  # the middle of the clip sees all of the room
        corner = -pan * times[-1] / 2
    swing = chance.uniform(num, 1, 1, low=0.1, high=0.5) * times[:, None] + chance.uniform(num, 1, 1)  # [B, T, 1]
    amplitude = rules.light * (0.6 * chance.uniform(num, 1, 1) + 0.4 * chance.uniform(num, 1, 3))
    half = chance.uniform(num, low=0.08, high=0.2) * (chance.uniform(num) < rules.occluder_chance)
    return {
        "camera": corner[:, None] + pan[:, None] * times[:, None],
        "light": 1 + amplitude * torch.sin(2 * math.pi * swing),
        "bar": torch.stack((chance.uniform(num), half), -1),
        "bar_tint": chance.tints(num),
        "is_upright": chance.uniform(num) < 0.5,
    }
