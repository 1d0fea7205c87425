"""A spinning LiDAR with 64 beams and a camera beside it, looking at a ``World``: points, labels, KITTI's text.

Rays are cast by Open3D. A pulse comes back with a chance that grows with reflectance and incidence and falls with the
square of the range; windows let most through. What a label says of occlusion is counted in rays: those that reach the
object, of those that would if nothing else were there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from envs.lidar_world import World, build
from worldmodels.formats.kitti import NEAR, Calibration
from worldmodels.formats.kitti import USUAL_SIZE as IMAGE_SIZE
from worldmodels.formats.kitti_text import DONT_CARE, Objects

COLUMNS_PER_TURN = 2083  # 0.1728 degrees, as the sensor at 10 turns a second
MAX_RANGE, MIN_RANGE = 120.0, 0.9  # metres
RANGE_NOISE = 0.02  # metres, standard deviation
DROPOUT = 0.02  # of pulses, whatever they hit
SENSITIVITY = 80.0  # of a hit at 50 m: chance to see it is 1 - exp(-SENSITIVITY * reflectance * cos(incidence))


class Scan(NamedTuple):
    """One frame."""

    points: np.ndarray  # float32 [P, 4]: x, y, z, intensity
    objects: Objects
    rays: int  # cast


def beams() -> np.ndarray:
    """Elevations [64], radians, from the top: 32 beams 1/3 degree apart, then 32 half a degree apart (HDL-64E)."""
    return np.radians(np.concatenate([2.0 - np.arange(32) / 3, -8.83 - np.arange(32) / 2]))


def calibration() -> Calibration:
    """A camera 0.27 m behind and 0.08 m below the sensor, looking forward; 720 pixels of focal length."""
    projection = np.array([[720.0, 0, 610, 0], [0, 720, 173, 0], [0, 0, 1, 0]])
    turn = np.array([[0.0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27]])
    return Calibration(projection, np.eye(3), turn)


def open3d() -> Any:
    """The package that casts rays.

    Raises:
        ImportError: naming what to install.
    """
    try:
        import open3d as package
    except (ImportError, OSError) as error:  # OSError: a shared library of the system is missing
        reason = str(error).splitlines()[0]
        raise ImportError(f"simulated LiDAR needs open3d: pip install 'worldmodels[lidar]' ({reason})") from error
    return package


def simulate(seed: int, index: int, *, sweep: int | float, min_points: int) -> Scan:
    """Frame ``index`` of ``seed``: a pure function of its arguments.

    Args:
        sweep: degrees of the turn that are scanned, centred on forward. 360 is the whole scan; the camera sees 82.
        min_points: an object with fewer points in the image has no label, but a DontCare region.
    """
    random = np.random.default_rng([seed, index])
    return scan(build(random), random, sweep=sweep, min_points=min_points)


def scan(world: World, random: np.random.Generator, *, sweep: int | float, min_points: int) -> Scan:
    """Look at a world; see ``simulate``."""
    o3d = open3d()
    columns = max(1, round(COLUMNS_PER_TURN * sweep / 360))
    azimuth = (np.arange(columns) - (columns - 1) / 2 + random.uniform(-0.5, 0.5)) * (2 * np.pi / COLUMNS_PER_TURN)
    elevation, azimuth = np.meshgrid(beams() + random.normal(0, 2e-4, 64), -azimuth, indexing="ij")  # clockwise
    azimuth = azimuth + random.normal(0, 2e-4, azimuth.shape)
    flat = np.cos(elevation)
    direction = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], -1)
    direction = direction.reshape(-1, 3).astype(np.float32)  # [R, 3]
    rays = np.concatenate([np.zeros_like(direction), direction], 1)

    hits = _scene(o3d, world.vertices, world.triangles).cast_rays(o3d.core.Tensor(rays), nthreads=1)
    distance, face = hits["t_hit"].numpy(), hits["primitive_ids"].numpy()
    is_hit = (distance < MAX_RANGE) & (distance > MIN_RANGE)
    face = np.where(is_hit, face, 0).astype(np.int64)
    cosine = np.abs((hits["primitive_normals"].numpy() * direction).sum(1))
    echo = world.reflectance[face] * cosine
    with np.errstate(divide="ignore"):
        chance = 1 - np.exp(-SENSITIVITY * echo * (50 / np.where(is_hit, distance, np.inf)) ** 2)
    chance *= (1 - DROPOUT) * (1 - world.see_through[face])
    is_back = is_hit & (random.random(len(rays), dtype=np.float32) < chance)

    found = np.flatnonzero(is_back)
    noise = np.hypot(RANGE_NOISE, world.roughness[face[found]])
    measured = distance[found] + noise * random.standard_normal(len(found))
    brightness = world.reflectance[face[found]] * (0.6 + 0.4 * cosine[found]) + random.normal(0, 0.03, len(found))
    intensity = np.clip(brightness, 0, 0.99)
    points = np.concatenate([measured[:, None] * direction[found], intensity[:, None]], 1)
    points = np.round(points, 3).astype(np.float32)
    points[:, 3] = np.round(points[:, 3], 2)
    objects = _labels(
        o3d, world, points, world.owner[face[found]], rays, np.where(is_hit, world.owner[face], -1), min_points
    )
    return Scan(points, objects, len(rays))


def _scene(o3d: Any, vertices: np.ndarray, triangles: np.ndarray) -> Any:
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(o3d.core.Tensor(vertices), o3d.core.Tensor(triangles))
    return scene


def _labels(
    o3d: Any, world: World, points: np.ndarray, owner: np.ndarray, rays: np.ndarray, seen: np.ndarray, min_points: int
) -> Objects:
    """Labels of what the camera sees, nearest first, then DontCare regions.

    Args:
        points: [P, 4] measured; owner: [P] the thing each is on, or -1.
        rays: [R, 6]; seen: [R] the thing each meets first, or -1.
    """
    camera, num = calibration(), len(world.types)
    whole, clipped = _rectangles(world, camera)
    extent, inside = (np.prod((r[:, 2:] - r[:, :2]).clip(0), axis=1) for r in (whole, clipped))
    truncated = 1 - inside / np.maximum(extent, 1e-9)
    in_image = camera.in_view(points, IMAGE_SIZE) & (owner >= 0)
    counts = np.bincount(owner[in_image], minlength=num)
    visible = np.bincount(seen[seen >= 0], minlength=num) / np.maximum(_alone(o3d, world, rays), 1)

    objects = camera.objects_of(world.boxes, world.types, IMAGE_SIZE)
    occluded = np.select([visible >= 0.8, visible >= 0.5, visible >= 0.2], [0, 1, 2], default=3)
    is_seen = (inside >= 16) & (objects.location[:, 2] > NEAR) & (counts > 0)
    is_labelled = is_seen & (counts >= min_points) & (truncated < 0.95)
    order = np.argsort(objects.location[:, 2])
    labelled, ignored = (order[mask[order]] for mask in (is_labelled, is_seen & ~is_labelled))
    rows = np.concatenate([labelled, ignored])
    is_box = np.arange(len(rows)) < len(labelled)

    def fill(values: np.ndarray, filler: int | float) -> np.ndarray:
        return np.where(is_box if values.ndim == 1 else is_box[:, None], values, filler)

    return Objects(
        type=[world.types[i] if good else DONT_CARE for i, good in zip(rows, is_box, strict=True)],
        truncated=fill(truncated[rows], -1),
        occluded=fill(occluded[rows], -1).astype(np.int64),
        alpha=fill(objects.alpha[rows], -10),
        bbox=clipped[rows],
        size=fill(objects.size[rows], -1),
        location=fill(objects.location[rows], -1000),
        rotation_y=fill(objects.rotation_y[rows], -10),
    )


def _rectangles(world: World, camera: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Tight rectangles [K, 4] around the things' shapes in the image plane, whole and clipped to the image."""
    num = len(world.types)
    mine = world.thing_of_vertex < num
    thing, vertices = world.thing_of_vertex[mine], camera.to_camera(world.vertices[mine].astype(np.float64))
    pixels, depth = camera.project(vertices)
    in_front = depth > NEAR
    low, high = np.full((num, 2), np.inf), np.full((num, 2), -np.inf)
    np.minimum.at(low, thing[in_front], pixels[in_front])
    np.maximum.at(high, thing[in_front], pixels[in_front])
    is_empty = ~np.isfinite(low)
    low[is_empty], high[is_empty] = 0, 0
    limit = np.array([IMAGE_SIZE[1] - 1.0, IMAGE_SIZE[0] - 1.0])
    return np.concatenate([low, high], 1), np.concatenate([low.clip(0, limit), high.clip(0, limit)], 1)


def _alone(o3d: Any, world: World, rays: np.ndarray) -> np.ndarray:
    """Rays [K] that would meet each thing if it stood alone: all crossings of the labelled things, each ray once."""
    num = len(world.types)
    mine = world.owner >= 0
    if not mine.any():
        return np.zeros(num, dtype=np.int64)
    owner = world.owner[mine]
    hits = _scene(o3d, world.vertices, world.triangles[mine]).list_intersections(o3d.core.Tensor(rays), nthreads=1)
    met = owner[hits["primitive_ids"].numpy().astype(np.int64)]
    pairs = np.unique(hits["ray_ids"].numpy().astype(np.int64) * num + met)
    return np.bincount(pairs % num, minlength=num)
