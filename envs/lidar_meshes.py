"""Shapes of a simulated street: few triangles each, made once, placed by transforms.

Labelled things fill the unit cube [-0.5, 0.5]^3, front towards +x, so that a label's box is tight by construction; what
stands about them (trees, lamps) is in metres with its foot at the origin.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Number = int | float
Vector = Sequence[Number] | np.ndarray  # [3]

# --- materials: index into REFLECTANCE and SEE_THROUGH ------------------------------------------------------------
PAINT, GLASS, TYRE, CLOTH, SKIN, METAL, FOLIAGE, BARK, SIGN, ASPHALT, MARKING, KERB, LAWN, WALL = range(14)
OWN_COLOUR = (PAINT, CLOTH, WALL)  # their reflectance differs from thing to thing
REFLECTANCE = np.array(
    [0.45, 0.10, 0.06, 0.35, 0.40, 0.35, 0.40, 0.25, 0.99, 0.28, 0.60, 0.35, 0.40, 0.35], dtype=np.float32
)
SEE_THROUGH = np.array([0, 0.7, 0, 0, 0, 0.05, 0.1, 0, 0, 0, 0, 0, 0.05, 0.03], dtype=np.float32)
"""Share of pulses that give no return: most pass a window."""
ROUGHNESS = np.array([0, 0, 0, 0.01, 0, 0, 0.06, 0.02, 0, 0, 0, 0.01, 0.08, 0.02], dtype=np.float32)
"""Standard deviation of the range on top of the sensor's, metres: leaves, grass, walls that are not plane."""


class Mesh(NamedTuple):
    """Triangles and what they are made of."""

    vertices: np.ndarray  # float32 [V, 3]
    triangles: np.ndarray  # int32 [T, 3], into vertices
    materials: np.ndarray  # int8 [T]


class Template(NamedTuple):
    """A labelled shape in the unit cube, with the size it was drawn in."""

    mesh: Mesh
    size: np.ndarray  # float64 [3], length, width, height in metres


def join(parts: Sequence[Mesh]) -> Mesh:
    """One mesh of several."""
    starts = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    return Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.triangles + start for part, start in zip(parts, starts, strict=True)]).astype(np.int32),
        np.concatenate([part.materials for part in parts]),
    )


def mesh(vertices: Sequence[Sequence[Number]] | np.ndarray, triangles: Sequence[Sequence[int]], material: int) -> Mesh:
    """A mesh of one material."""
    corners = np.asarray(vertices, dtype=np.float32).reshape(-1, 3)
    faces = np.asarray(triangles, dtype=np.int32).reshape(-1, 3)
    return Mesh(corners, faces, np.full(len(faces), material, dtype=np.int8))


def box(low: Vector, high: Vector, material: int) -> Mesh:
    """An upright box between two corners: 12 triangles."""
    corners = [[(low, high)[bit >> axis & 1][axis] for axis in range(3)] for bit in range(8)]
    quads = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
    return mesh(corners, [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))], material)


def limb(start: Vector, end: Vector, radius: Sequence[Number], material: int, *, sides: int = 6) -> Mesh:
    """A closed tube from ``start`` to ``end`` with a radius at each: arms, poles, tyres."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    along = (b - a) / np.linalg.norm(b - a)
    across = np.cross(along, (0, 0, 1) if abs(along[2]) < 0.9 else (1, 0, 0))
    across /= np.linalg.norm(across)
    up = np.cross(along, across)
    angle = np.arange(sides) * (2 * np.pi / sides)
    ring = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * up  # [S, 3]
    vertices = np.concatenate([a + radius[0] * ring, b + radius[1] * ring, a[None], b[None]])
    i, j = np.arange(sides), (np.arange(sides) + 1) % sides
    first, last = np.full(sides, 2 * sides), np.full(sides, 2 * sides + 1)
    faces = [(i, j, sides + j), (i, sides + j, sides + i), (first, i, j), (last, sides + i, sides + j)]
    return mesh(vertices, np.concatenate([np.stack(face, 1) for face in faces]).tolist(), material)


def blob(centre: Vector, radii: Vector, material: int, *, sides: int = 6) -> Mesh:
    """A coarse ellipsoid: heads and trunks of people."""
    angle = np.arange(sides) * (2 * np.pi / sides)
    rings = [
        np.stack([np.cos(lat) * np.cos(angle), np.cos(lat) * np.sin(angle), np.full(sides, np.sin(lat))], 1)
        for lat in (-0.7, 0.0, 0.7)
    ]
    unit = np.concatenate([*rings, [[0, 0, -1], [0, 0, 1]]])
    i, j = np.arange(sides), (np.arange(sides) + 1) % sides
    low, high = np.full(sides, 3 * sides), np.full(sides, 3 * sides + 1)
    faces = [(low, i, j), (high, 2 * sides + i, 2 * sides + j)]
    for ring in (0, sides):
        faces += [(ring + i, ring + j, ring + sides + j), (ring + i, ring + sides + j, ring + sides + i)]
    stacked = np.concatenate([np.stack(face, 1) for face in faces])
    return mesh(unit * np.asarray(radii) + np.asarray(centre), stacked.tolist(), material)


def hull(profile: Sequence[tuple[Number, Number, Number]], sides: int, top: int) -> Mesh:
    """A car's shell: a polygon of (x, z, half width) drawn out to both sides.

    Args:
        profile: corners of the polygon in order, seen from the side; it must be star-shaped around its mean.
        sides: material of the two flat sides; top: of the band around them.
    """
    outline = np.asarray(profile, float)
    num = len(outline)
    left, right = (np.stack([outline[:, 0], sign * outline[:, 2], outline[:, 1]], 1) for sign in (1, -1))
    middle = outline.mean(0)
    ends = np.array([[middle[0], sign * middle[2], middle[1]] for sign in (1, -1)])
    vertices = np.concatenate([left, right, ends])
    i, j = np.arange(num), (np.arange(num) + 1) % num
    caps = [(i, j, np.full(num, 2 * num)), (num + i, num + j, np.full(num, 2 * num + 1))]
    band = [(i, j, num + j), (i, num + j, num + i)]
    as_lists = [np.concatenate([np.stack(face, 1) for face in faces]).tolist() for faces in (caps, band)]
    return join([mesh(vertices, as_lists[0], sides), mesh(vertices, as_lists[1], top)])


def fitted(parts: Sequence[Mesh]) -> Template:
    """Centre parts drawn in metres in the unit cube."""
    whole = join(parts)
    low, high = whole.vertices.min(0), whole.vertices.max(0)
    unit = (whole.vertices - (low + high) / 2) / (high - low)
    return Template(whole._replace(vertices=unit.astype(np.float32)), (high - low).astype(float))


# --- vehicles -----------------------------------------------------------------------------------------------------
def _vehicle(length: Number, width: Number, height: Number, *, hood: Number, trunk: Number, belt: Number) -> Template:
    """A vehicle whose windscreen starts ``hood`` behind its nose, its rear window ends ``trunk`` before its tail."""
    nose, tail, half, low = length / 2, -length / 2, width / 2, 0.2
    body = [
        (tail, low + 0.1, half - 0.05),
        (tail + 0.02, belt - 0.08, half - 0.05),
        (tail + 0.15, belt, half - 0.03),
        (nose - hood, belt + 0.02, half - 0.02),
        (nose - 0.25, belt - 0.14, half - 0.08),
        (nose, belt - 0.3, half - 0.12),
        (nose, low + 0.05, half - 0.1),
        (nose - 0.15, low, half - 0.02),
        (tail + 0.2, low, half - 0.02),
    ]
    rake = 0.55 * (height - belt)  # how far windows lean
    cabin = [
        (tail + trunk, belt - 0.02, half - 0.06),
        (tail + trunk + 0.5 * rake, height - 0.05, half - 0.2),
        (tail + trunk + rake, height, half - 0.22),
        (nose - hood - 1.3 * rake, height, half - 0.22),
        (nose - hood, belt - 0.02, half - 0.06),
    ]
    roof = box(
        (tail + trunk + rake, -half + 0.24, height - 0.06), (nose - hood - 1.3 * rake, half - 0.24, height), PAINT
    )
    parts = [hull(body, PAINT, PAINT), hull(cabin, GLASS, GLASS), roof]
    radius = 0.31
    for x in (nose - 0.8, tail + 0.75):
        for side in (1, -1):
            ends = ((x, side * (half - 0.2), radius), (x, side * half, radius))
            parts.append(limb(*ends, (radius, radius), TYRE, sides=10))
    return fitted(parts)


# --- people -------------------------------------------------------------------------------------------------------
def _pedestrian(stride: Number, swing: Number) -> Template:
    """Someone 1.75 m tall; ``stride`` metres between the feet, ``swing`` of the hands."""
    parts = [blob((0.02, 0, 1.62), (0.1, 0.09, 0.13), SKIN), limb((0, 0, 1.42), (0, 0, 1.55), (0.06, 0.06), SKIN)]
    parts.append(limb((0, 0, 0.85), (0, 0, 1.45), (0.17, 0.2), CLOTH, sides=8))
    for side in (1, -1):
        foot, hand = side * stride / 2, -side * swing / 2
        parts += [
            limb((foot, side * 0.1, 0.0), (0.3 * foot + 0.02, side * 0.1, 0.48), (0.06, 0.07), CLOTH),
            limb((0.3 * foot + 0.02, side * 0.1, 0.48), (0, side * 0.09, 0.9), (0.07, 0.1), CLOTH),
            box((foot - 0.06, side * 0.1 - 0.05, 0), (foot + 0.18, side * 0.1 + 0.05, 0.09), TYRE),
            limb((0, side * 0.22, 1.4), (0.5 * hand, side * 0.27, 1.12), (0.06, 0.05), CLOTH),
            limb((0.5 * hand, side * 0.27, 1.12), (hand, side * 0.26, 0.88), (0.05, 0.045), SKIN),
        ]
    return fitted(parts)


def _cyclist(pedal: Number, lean: Number) -> Template:
    """A rider on a bicycle; ``pedal`` is the crank's angle, ``lean`` metres of the shoulders in front of the saddle."""
    radius, hub = 0.34, 0.52  # of a wheel, its distance from the middle
    parts: list[Mesh] = []
    angle = np.linspace(0, 2 * np.pi, 11)
    for x in (hub, -hub):  # a tyre, not a disc: pulses pass between spokes
        rim = np.stack([x + radius * np.cos(angle), 0 * angle, radius + radius * np.sin(angle)], 1)
        parts += [limb(a, b, (0.03, 0.03), TYRE, sides=3) for a, b in itertools.pairwise(rim)]
    saddle, bar, crank = (-0.18, 0, 0.95), (0.38, 0, 1.0), (-0.05, 0, 0.3)
    for a, b in ((crank, saddle), (crank, (0.36, 0, 0.85)), (saddle, (0.36, 0, 0.85)), ((-hub, 0, radius), crank)):
        parts.append(limb(a, b, (0.025, 0.025), METAL, sides=4))
    parts += [
        limb((hub, 0, radius), bar, (0.025, 0.025), METAL, sides=4),
        limb((0.38, -0.27, 1.0), (0.38, 0.27, 1.0), (0.02, 0.02), METAL, sides=4),
    ]
    shoulder = (saddle[0] + lean, 0, 1.46)
    parts += [
        limb((saddle[0], 0, 0.95), shoulder, (0.16, 0.19), CLOTH, sides=8),
        blob((shoulder[0] + 0.1, 0, 1.64), (0.11, 0.09, 0.13), SKIN),
    ]
    for side, phase in ((1, pedal), (-1, pedal + np.pi)):
        foot = (crank[0] + 0.17 * np.cos(phase), side * 0.12, crank[2] + 0.17 * np.sin(phase))
        knee = (foot[0] + 0.16, side * 0.12, foot[2] + 0.42)
        parts += [
            limb(foot, knee, (0.05, 0.06), CLOTH),
            limb(knee, (saddle[0], side * 0.09, 0.97), (0.07, 0.1), CLOTH),
            limb((shoulder[0], side * 0.21, 1.4), (0.38, side * 0.25, 1.02), (0.055, 0.045), CLOTH),
        ]
    return fitted(parts)


def _leaves(num: int, size: Number, shape: Vector, *, seed: int) -> Mesh:
    """Triangles strewn through an ellipsoid around the origin, which lets some pulses through."""
    random = np.random.default_rng(seed)
    direction = random.normal(size=(num, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    centre = direction * random.uniform(0.35, 1, (num, 1)) * np.asarray(shape)
    corners = centre[:, None] + random.normal(scale=size, size=(num, 3, 3))
    return mesh(corners, np.arange(3 * num).reshape(-1, 3).tolist(), FOLIAGE)


def _raised(part: Mesh, height: Number) -> Mesh:
    return part._replace(vertices=part.vertices + np.float32((0, 0, height)))


@functools.cache
def labelled_templates() -> dict[str, list[Template]]:
    """Shapes of each KITTI type in their unit cubes."""
    return {
        "Car": [
            _vehicle(4.4, 1.78, 1.46, hood=1.25, trunk=0.75, belt=0.92),  # saloon
            _vehicle(3.9, 1.70, 1.50, hood=0.95, trunk=0.12, belt=0.94),  # hatchback
            _vehicle(4.5, 1.80, 1.52, hood=1.15, trunk=0.10, belt=0.95),  # estate
            _vehicle(4.3, 1.82, 1.66, hood=1.05, trunk=0.10, belt=1.05),  # off-roader
        ],
        "Van": [
            _vehicle(5.0, 1.92, 2.05, hood=0.75, trunk=0.06, belt=1.15),
            _vehicle(5.6, 2.00, 2.45, hood=0.70, trunk=0.05, belt=1.45),
        ],
        "Pedestrian": [
            _pedestrian(stride, swing)
            for stride, swing in ((0.05, 0.05), (0.3, 0.2), (0.5, 0.35), (0.7, 0.5), (-0.45, -0.3), (-0.65, -0.45))
        ],
        "Cyclist": [_cyclist(pedal, lean) for pedal, lean in ((0.2, 0.25), (1.4, 0.4), (2.6, 0.15), (4.2, 0.32))],
    }


@functools.cache
def scenery_templates() -> dict[str, list[Mesh]]:
    """Shapes that have no label, in metres, standing on the origin."""
    tree: Callable[..., Mesh] = lambda height, crown, seed: join(  # noqa: E731
        [
            limb((0, 0, 0), (0, 0, height), (0.16, 0.09), BARK),
            _raised(_leaves(220, 0.22, (crown, crown, 0.9 * crown), seed=seed), height + 0.35 * crown),
        ]
    )
    lamp = join(
        [
            limb((0, 0, 0), (0, 0, 6.5), (0.1, 0.06), METAL),
            limb((0, 0, 6.4), (1.2, 0, 6.6), (0.05, 0.05), METAL),
        ]
    )
    sign = [
        join([limb((0, 0, 0), (0, 0, 2.6), (0.04, 0.04), METAL), box((-0.06, -w / 2, 1.9), (-0.04, w / 2, 2.6), SIGN)])
        for w in (0.6, 0.9)
    ]
    return {
        "tree": [tree(2.6, 1.7, 0), tree(3.2, 2.2, 1), tree(2.2, 1.3, 2)],
        "bush": [_raised(_leaves(110, 0.14, (0.8, 0.6, 0.6), seed=seed), 0.5) for seed in (3, 4)],
        "lamp": [lamp],
        "sign": sign,
        "bollard": [limb((0, 0, 0), (0, 0, 1.0), (0.09, 0.08), METAL), limb((0, 0, 0), (0, 0, 1.3), (0.2, 0.2), METAL)],
        "bin": [box((-0.3, -0.28, 0), (0.3, 0.28, 1.05), CLOTH), box((-0.6, -0.5, 0), (0.6, 0.5, 1.25), CLOTH)],
        "hedge": [box((-1.0, -0.3, 0), (1.0, 0.3, 1.2), FOLIAGE), box((-1.0, -0.06, 0), (1.0, 0.06, 1.0), BARK)],
    }
