"""Procedural streets: what stands where, and its triangles. A street is a pure function of the generator it is given.

The street runs along +s, the car with the sensor at s = t = 0 in the right lane; t grows to the left. At the end all is
turned by the street's angle and lowered to the sensor's height, so that the result is in the LiDAR frame.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from envs.lidar_meshes import (
    ASPHALT,
    FOLIAGE,
    GLASS,
    KERB,
    LAWN,
    MARKING,
    OWN_COLOUR,
    REFLECTANCE,
    ROUGHNESS,
    SEE_THROUGH,
    WALL,
    Mesh,
    Number,
    box,
    join,
    labelled_templates,
    mesh,
    scenery_templates,
)
from worldmodels.geometry.overlap import bev_intersection

SENSOR_HEIGHT = 1.73  # metres above the road
FAR = 80.0  # metres: nothing is built beyond
TYPES = ("Car", "Van", "Pedestrian", "Cyclist")
# Length, width, height: mean and standard deviation in metres (KITTI's objects; vans: shapes' own sizes).
_SIZES = {
    "Car": ((3.88, 0.40), (1.63, 0.09), (1.53, 0.11)),
    "Van": ((5.10, 0.45), (1.91, 0.09), (2.20, 0.22)),
    "Pedestrian": ((0.80, 0.12), (0.64, 0.07), (1.74, 0.09)),
    "Cyclist": ((1.76, 0.10), (0.60, 0.06), (1.73, 0.07)),
}


class World(NamedTuple):
    """A street in the LiDAR frame. The K labelled things come first, in order."""

    types: list[str]  # K
    boxes: np.ndarray  # float64 [K, 7], standing on the ground
    vertices: np.ndarray  # float32 [V, 3]
    triangles: np.ndarray  # uint32 [T, 3]
    owner: np.ndarray  # int32 [T], the labelled thing, -1 for scenery
    reflectance: np.ndarray  # float32 [T], 0..1
    see_through: np.ndarray  # float32 [T], share of pulses that give no return
    roughness: np.ndarray  # float32 [T], standard deviation of the range, metres
    thing_of_vertex: np.ndarray  # int32 [V]


class Street(NamedTuple):
    """The plan, all in metres and the street's own frame."""

    angle: Number  # radians, of the street against the car
    slope: tuple[Number, Number]  # rise a metre along s and t
    right: Number  # t of the right kerb
    left: float
    parking: tuple[bool, bool]  # whether cars park along the right, the left kerb
    pavement: tuple[Number, Number]  # width right, left
    kerb: Number  # height
    crossing: tuple[Number, Number] | None  # from, to: s of the kerbs of a crossing road


class Placed(NamedTuple):
    """Things of all kinds, as candidates or as they stand: N of them."""

    kind: list[tuple[str, int]]  # what, and which of its shapes
    place: np.ndarray  # float64 [N, 3]: s, t, heading
    size: np.ndarray  # float64 [N, 3], of the box; of scenery: what it needs on the ground


def draw_street(random: np.random.Generator) -> Street:
    """Lanes, kerbs, pavements, sometimes a crossing road."""
    lane = random.uniform(3.1, 3.7)
    parking = (bool(random.random() < 0.6), bool(random.random() < 0.6))
    has_crossing = random.random() < 0.5
    start = random.uniform(12, 45)
    return Street(
        angle=float(np.clip(random.normal(0, 0.06), -0.2, 0.2)),
        slope=(float(random.normal(0, 0.006)), float(random.normal(0, 0.008))),
        right=-lane / 2 - (2.2 if parking[0] else 0.4),
        left=1.5 * lane + (2.2 if parking[1] else 0.4),
        parking=parking,
        pavement=(random.uniform(1.8, 4.5), random.uniform(1.8, 4.5)),
        kerb=random.uniform(0.06, 0.15),
        crossing=(start, start + random.uniform(6, 11)) if has_crossing else None,
    )


def height(street: Street, place: np.ndarray) -> np.ndarray:
    """Height of the ground [N] at (s, t) [N, 2 or more], metres above the road under the sensor."""
    s, t = place[:, 0], place[:, 1]
    is_road = (t > street.right) & (t < street.left)
    if street.crossing is not None:
        is_road |= (s > street.crossing[0]) & (s < street.crossing[1])
    return street.slope[0] * s + street.slope[1] * t + np.where(is_road, 0.0, street.kerb)


class _Sketch:
    """Candidates in the order in which they get their place."""

    def __init__(self, random: np.random.Generator, street: Street) -> None:
        self.random, self.street = random, street
        self.kind: list[tuple[str, int]] = []
        self.rows: list[tuple[float, ...]] = []

    def add(
        self, name: str, s: Number, t: Number, heading: Number, *, need: tuple[Number, Number] = (0.8, 0.8)
    ) -> None:
        """Put down a labelled type with a size drawn for it, or scenery that needs so much of the ground."""
        random = self.random
        if name in _SIZES:
            shapes = len(labelled_templates()[name])
            size = [random.normal(mean, std) for mean, std in _SIZES[name]]
            size = [float(np.clip(v, m - 2.2 * d, m + 2.2 * d)) for v, (m, d) in zip(size, _SIZES[name], strict=True)]
        else:
            shapes, size = len(scenery_templates()[name]), [*need, 1.0]
        self.kind.append((name, int(random.integers(shapes))))
        self.rows.append((s, t, heading, *size))

    def vehicle(self) -> str:
        return "Van" if self.random.random() < 0.1 else "Car"

    def along(self, start: Number, end: Number, gap: tuple[Number, Number]) -> list[float]:
        """Places from ``start`` to ``end`` with gaps drawn from a range."""
        steps = self.random.uniform(*gap, size=int((end - start) / gap[0]) + 1)
        places = start + np.cumsum(steps)
        return places[places < end].tolist()


def draw_things(random: np.random.Generator, street: Street) -> Placed:
    """Traffic, people and scenery, without two that overlap on the ground: who comes first stays."""
    sketch = _Sketch(random, street)
    _draw_traffic(sketch)
    _draw_people(sketch)
    _draw_scenery(sketch)
    rows = np.array(sketch.rows)
    boxes = np.zeros((len(rows), 7))
    boxes[:, :2], boxes[:, 6], boxes[:, 3:6] = rows[:, :2], rows[:, 2], rows[:, 3:6] + (0.5, 0.3, 0.0)
    has_own_place = (np.abs(rows[:, 0]) > 4) | (np.abs(rows[:, 1]) > 2)  # not in the car with the sensor
    flat = torch.from_numpy(boxes)
    clash = (bev_intersection(flat, flat) > 1e-6).numpy()  # m^2; rounding leaves traces
    stays = np.zeros(len(rows), dtype=bool)
    for i in range(len(rows)):
        stays[i] = has_own_place[i] and not (clash[i] & stays).any()
    found = np.flatnonzero(stays)
    return Placed([sketch.kind[i] for i in found], rows[found, :3], rows[found, 3:6])


def _draw_traffic(sketch: _Sketch) -> None:
    random, street = sketch.random, sketch.street
    oncoming = street.left - (2.2 if street.parking[1] else 0.4) - 1.65
    for s in sketch.along(random.uniform(5, 25), 70, (14, 70)):
        sketch.add(sketch.vehicle(), s, random.normal(0, 0.2), random.normal(0, 0.03))
    for s in sketch.along(random.uniform(-30, 0), 70, (20, 80)):
        sketch.add(sketch.vehicle(), s, oncoming + random.normal(0, 0.2), np.pi + random.normal(0, 0.03))
    if street.crossing is not None:
        middle, width = sum(street.crossing) / 2, street.crossing[1] - street.crossing[0]
        for side, heading in ((0.25, np.pi / 2), (-0.25, -np.pi / 2)):
            for t in sketch.along(-30, 30, (12, 70)):
                sketch.add(sketch.vehicle(), middle + side * width, t, heading + random.normal(0, 0.06))
    for is_used, t, heading in zip(street.parking, (street.right + 1.1, street.left - 1.1), (0.0, np.pi), strict=True):
        for s in sketch.along(-30, 60, (6, 32)) if is_used else ():
            turned = np.pi * (random.random() < 0.15)  # some park against their side
            sketch.add(sketch.vehicle(), s, t + random.normal(0, 0.1), heading + turned + random.normal(0, 0.03))


def _draw_people(sketch: _Sketch) -> None:
    random, street = sketch.random, sketch.street
    for _ in range(int(random.integers(2, 6))):
        s, chance = random.uniform(4, 40), random.random()
        if chance < 0.15:  # across the road
            t, heading = random.uniform(street.right, street.left), np.pi / 2 * random.choice((-1, 1))
        else:
            is_left = random.random() < 0.5
            off = random.uniform(0.4, street.pavement[int(is_left)] - 0.4)
            t = street.left + off if is_left else street.right - off
            heading = random.choice((0.0, np.pi))
        sketch.add("Pedestrian", s, t, heading + random.normal(0, 0.35))
    for _ in range(int(random.choice((0, 1, 2, 3), p=(0.2, 0.3, 0.3, 0.2)))):
        s, is_left = random.uniform(6, 45), random.random() < 0.5
        lane = (2.5 if street.parking[int(is_left)] else 0.7) + random.uniform(0, 0.5)
        t = street.left - lane if is_left else street.right + lane
        sketch.add("Cyclist", s, t, (np.pi if is_left else 0.0) + random.normal(0, 0.12))


def _draw_scenery(sketch: _Sketch) -> None:
    random, street = sketch.random, sketch.street
    for side, edge, width in ((-1, street.right, street.pavement[0]), (1, street.left, street.pavement[1])):
        inner, outer = edge + side * 0.5, edge + side * (width + 0.6)
        for s in sketch.along(-30, FAR, (12, 35)):
            name = str(random.choice(("lamp", "sign", "tree"), p=(0.35, 0.35, 0.3)))
            sketch.add(name, s, inner, -side * np.pi / 2 if name == "lamp" else np.pi, need=(0.5, 0.5))
        for s in sketch.along(-20, 50, (7, 40)):
            name = str(random.choice(("bollard", "bin")))
            sketch.add(name, s, inner + side * random.uniform(0, 1), random.uniform(-0.2, 0.2), need=(1.2, 1.0))
        for s in sketch.along(-30, FAR, (2.5, 14)):
            name = str(random.choice(("bush", "hedge", "tree"), p=(0.45, 0.35, 0.2)))
            sketch.add(name, s, outer + side * random.uniform(0, 1.5), random.normal(0, 0.05), need=(2.0, 1.0))
    if street.crossing is not None:  # nothing stands on the crossing road but traffic and people
        first, last = street.crossing
        on_it = [
            not (name in _SIZES or row[0] < first or row[0] > last)
            for (name, _), row in zip(sketch.kind, sketch.rows, strict=True)
        ]
        sketch.kind = [kind for kind, is_on in zip(sketch.kind, on_it, strict=True) if not is_on]
        sketch.rows = [row for row, is_on in zip(sketch.rows, on_it, strict=True) if not is_on]


def ground(random: np.random.Generator, street: Street) -> Mesh:
    """Road, kerbs, pavements and lawns as a grid of quads, with dashed markings just above the road."""
    eps = 0.02  # a kerb leans so far onto the road
    right, left = street.right, street.left
    t = np.array(
        [
            -FAR,
            -40,
            -20,
            right - street.pavement[0],
            right,
            right + eps,
            0.0,
            left - eps,
            left,
            left + street.pavement[1],
            25,
            45,
            FAR,
        ]
    )
    s = np.linspace(-FAR, FAR + 20, 26)
    if street.crossing is not None:
        first, last = street.crossing
        s = np.concatenate([s[(s < first - eps) | (s > last + eps)], [first, first + eps, last - eps, last]])
    s, t = np.sort(s), np.sort(t)
    place = np.stack(np.meshgrid(s, t, indexing="ij"), -1)  # [S, T, 2]
    z = height(street, place.reshape(-1, 2))
    rough = random.normal(0, 0.03, len(z)) * ((place[..., 1] < -20) | (place[..., 1] > 25)).ravel()
    vertices = np.concatenate([place.reshape(-1, 2), (z + rough)[:, None]], 1)
    row, column = np.meshgrid(np.arange(len(s) - 1), np.arange(len(t) - 1), indexing="ij")
    corner = (row * len(t) + column).ravel()
    faces = np.stack([corner, corner + 1, corner + len(t) + 1, corner, corner + len(t) + 1, corner + len(t)], 1)
    middle = np.stack(
        [(s[:-1, None] + s[1:, None]) / 2 + 0 * t[:-1], (t[:-1] + t[1:]) / 2 + 0 * s[:-1, None]], -1
    ).reshape(-1, 2)
    is_road = height(street._replace(slope=(0, 0)), middle) == 0
    is_paved = (middle[:, 1] > right - street.pavement[0]) & (middle[:, 1] < left + street.pavement[1])
    material = np.where(is_road, ASPHALT, np.where(is_paved, KERB, LAWN)).astype(np.int8)
    plane = Mesh(vertices.astype(np.float32), faces.reshape(-1, 3).astype(np.int32), np.repeat(material, 2))
    middle_line = (street.left + street.right) / 2 if street.parking[0] == street.parking[1] else 1.7
    dashes = np.arange(-20, 60, 6.0)
    flat = np.array([[0, -0.07], [3, -0.07], [3, 0.07], [0, 0.07]])
    corners = flat[None] + np.stack([dashes, np.full_like(dashes, middle_line)], 1)[:, None]  # [D, 4, 2]
    z = height(street, corners.reshape(-1, 2)) + 0.005
    quads = (np.arange(len(dashes))[:, None, None] * 4 + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
    return join([plane, mesh(np.concatenate([corners.reshape(-1, 2), z[:, None]], 1), quads.tolist(), MARKING)])


def buildings(random: np.random.Generator, street: Street) -> list[Mesh]:
    """Houses along both sides with bays in front, none on the crossing road."""
    found = []
    for side, edge in ((-1, street.right - street.pavement[0]), (1, street.left + street.pavement[1])):
        s = -FAR
        while s < FAR:
            width, depth, tall = random.uniform(8, 22), random.uniform(8, 14), random.uniform(5, 14)
            front = edge + side * (random.uniform(0.5, 7.0))
            is_there = random.random() < 0.9
            if street.crossing is not None:
                is_there &= s + width < street.crossing[0] - 2 or s > street.crossing[1] + 2
            if is_there:
                t = sorted((front, front + side * depth))
                found.append(box((s, t[0], -1), (s + width, t[1], tall), WALL))
                for bay in np.arange(s + 1.0, s + width - 2, random.uniform(3, 6)):
                    t = sorted((front, front - side * random.uniform(0.15, 0.6)))
                    low = random.choice((-1.0, 2.6))
                    material = int(random.choice((WALL, GLASS, FOLIAGE), p=(0.6, 0.3, 0.1)))
                    found.append(box((bay, t[0], low), (bay + 1.6, t[1], low + random.uniform(1.8, 3.4)), material))
            s += width + random.uniform(0, 8)
    return found


def build(random: np.random.Generator) -> World:
    """A street with everything on it."""
    street = draw_street(random)
    things = draw_things(random, street)
    order = sorted(range(len(things.kind)), key=lambda i: things.kind[i][0] not in _SIZES)
    placed, meshes = _stand(random, street, things, order)
    scenery = join([ground(random, street), *buildings(random, street)])
    num_labelled = sum(kind[0] in _SIZES for kind in things.kind)
    parts = [*meshes, scenery]
    whole = join(parts)
    thing = np.repeat(np.arange(len(parts)), [len(part.triangles) for part in parts])
    owner = np.where(thing < num_labelled, thing, -1).astype(np.int32)
    colour = np.clip(random.lognormal(0, 0.5, len(parts)), 0.2, 2.2)[thing]  # a thing's own, darker or brighter
    has_own = np.isin(whole.materials, OWN_COLOUR)
    reflectance = np.clip(REFLECTANCE[whole.materials] * np.where(has_own, colour, 1), 0.02, 0.99)
    cos, sin = np.cos(street.angle), np.sin(street.angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    vertices = whole.vertices @ turn.T - (0, 0, SENSOR_HEIGHT)
    boxes = placed[:num_labelled]
    boxes[:, :3] = boxes[:, :3] @ turn.T - (0, 0, SENSOR_HEIGHT)
    boxes[:, 6] += street.angle
    return World(
        types=[things.kind[i][0] for i in order[:num_labelled]],
        boxes=boxes,
        vertices=vertices.astype(np.float32),
        triangles=whole.triangles.astype(np.uint32),
        owner=owner,
        reflectance=reflectance.astype(np.float32),
        see_through=SEE_THROUGH[whole.materials],
        roughness=ROUGHNESS[whole.materials],
        thing_of_vertex=np.repeat(np.arange(len(parts)), [len(part.vertices) for part in parts]).astype(np.int32),
    )


def _stand(
    random: np.random.Generator, street: Street, things: Placed, order: list[int]
) -> tuple[np.ndarray, list[Mesh]]:
    """Boxes [N, 7] of all things in ``order``, and their meshes in the street's frame."""
    base = height(street, things.place)
    labelled, scenery = labelled_templates(), scenery_templates()
    boxes, meshes = np.zeros((len(order), 7)), []
    for row, i in enumerate(order):
        (name, shape), (s, t, heading), size = things.kind[i], things.place[i], things.size[i]
        if name in labelled:
            template = labelled[name][shape]
            stretch = size
            if name in ("Pedestrian", "Cyclist"):  # a body keeps its proportions; a label leaves room around it
                stretch = template.size * (size[2] / template.size[2])
                size = np.maximum(size, stretch)
            local = template.mesh.vertices * stretch + (0, 0, size[2] / 2)
            part = template.mesh
        else:
            part = scenery[name][shape]
            local = part.vertices * random.uniform(0.85, 1.2)
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        meshes.append(part._replace(vertices=(local @ turn + (s, t, base[i])).astype(np.float32)))
        boxes[row] = (s, t, base[i] + size[2] / 2, *size, heading)
    return boxes, meshes
