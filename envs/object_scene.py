"""One object over a floor, seen by a camera and lit by a spot: pybullet's procedural objects, drawn on the CPU.

The scene and its seven numbers a view are those of 3DIEBench (Garrido et al., ICML 2023), the renderer is not:

- pybullet's software renderer draws the object and its shading: no anti-aliasing, no reflections. The spot reaches it
  as parallel light. Instead of a soft sun, every face has the same ambient light: sides in shade are of one grey.
- The floor is computed, pixel by pixel, with the spot's cone, distance and incidence. The object casts no shadow on it.
- The camera sees 30 degrees instead of 40, as pictures are small: an object fills up to three quarters of the width.
- Objects have one constant grey, so that colour does not tell them apart.

World: z up, metres, the object's centre at 0. Angles turn an object about the world's x, then y, then z axis (extrinsic
"xyz"; 3DIEBench calls them yaw, pitch, roll): world = R object, R = Rz(roll) Ry(pitch) Rx(yaw), as
``scipy.spatial.transform.Rotation.from_euler("xyz", angles)``.
"""

from __future__ import annotations

import colorsys
import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

TRANSFORMATIONS = ("yaw", "pitch", "roll", "floor_hue", "spot_theta", "spot_phi", "spot_hue")
NUM_OBJECTS = 1000  # that pybullet_data has

_CAMERA = 2.5 * np.array([0.0, np.sin(np.pi / 4), np.cos(np.pi / 4)])  # 2.5 m away, 45 degrees up; looks at 0
_FIELD_OF_VIEW = 30.0  # degrees
_FLOOR = -1.0  # metres, height
_SPOT_DISTANCE = 4.0  # metres
_SPOT_CONE = np.pi / 16  # radians from the axis to the edge
_SPOT_EDGE = 0.15  # share of the cone over which its light fades
_AMBIENT, _DIFFUSE, _GREY = 0.45, 0.8, 0.7  # the sun, the spot, the object's colour
_STILL_SPOT = (np.pi / 8, np.pi / 2)  # theta, phi of a spot that does not move: beside the camera


_MISSING = (
    "env=rendered_objects draws with pybullet, which is not here ({}): pip install 'worldmodels[images]' brings it on "
    "Linux x86_64 with Python 3.10 or 3.11. There is no wheel for Python 3.12, macOS or Windows: there compile it (pip "
    "install pybullet), or copy finished pictures from another machine and give their folder as env.data_dir"
)


def require_pybullet() -> None:
    """Say at once that the renderer is missing, without importing it.

    Raises:
        ImportError: naming what to install, and what to do where it cannot be.
    """
    for name in ("pybullet", "pybullet_data"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(_MISSING.format(f"no module {name}"))


def pybullet() -> tuple[Any, Path]:
    """The package that draws, and the folder of its objects.

    Raises:
        ImportError: naming what to install, and what to do where it cannot be.
    """
    try:
        with _silent():
            import pybullet as package
            import pybullet_data
    except ImportError as error:
        raise ImportError(_MISSING.format(error)) from error
    return package, Path(pybullet_data.getDataPath()) / "random_urdfs"


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what C code writes to the error stream, such as pybullet's greeting, off the terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def draw_transformations(
    num: int,
    rng: np.random.Generator,
    *,
    axes: str = "xyz",
    min_angle: int | float = 0,
    max_angle: int | float = 90,
    has_colour: bool = True,
    has_moving_spot: bool = True,
) -> np.ndarray:
    """Draw how views are made, float32 [num, 7]: see ``TRANSFORMATIONS``.

    What is switched off is constant, and leaves all else as it is with the same ``rng``.

    Args:
        num: views.
        rng: draws them independently: no view is near the one before.
        axes: the world's axes that objects are turned about; the other angles are 0.
        min_angle, max_angle: degrees; the size of each angle is uniform between them, its sign random.
        has_colour: hues uniform in (0, 1); otherwise 0, and the renderer is to be told that there is no colour.
        has_moving_spot: theta uniform in (0, pi / 4) from the zenith, phi in (0, 2 pi); otherwise beside the camera.
    """
    drawn = rng.random((num, 7))
    signed = 2 * drawn[:, :3] - 1
    low, high = np.radians(min_angle), np.radians(max_angle)
    angles = np.where(signed < 0, -1, 1) * (low + np.abs(signed) * (high - low))
    drawn[:, :3] = np.where([axis in axes for axis in "xyz"], angles, 0)
    drawn[:, 4:6] = drawn[:, 4:6] * (np.pi / 4, 2 * np.pi) if has_moving_spot else _STILL_SPOT
    if not has_colour:
        drawn[:, [3, 6]] = 0
    return drawn.astype(np.float32)


class ObjectRenderer:
    """Draws views of one object after the other.

    Args:
        size: height and width of pictures in pixels.
        has_colour: whether floor and spot have their hues; otherwise both are without colour.

    Raises:
        ImportError: without pybullet.
    """

    def __init__(self, size: int, *, has_colour: bool = True) -> None:
        self.size, self.has_colour = size, has_colour
        self._package, self.folder = pybullet()
        self._client = self._package.connect(self._package.DIRECT)
        self._view = self._package.computeViewMatrix(_CAMERA.tolist(), [0, 0, 0], [0, 0, 1])
        self._lens = self._package.computeProjectionMatrixFOV(_FIELD_OF_VIEW, 1.0, 0.1, 10.0)
        self._floor = _floor_points(size)
        self._object: int | None = None

    def load(self, path: Path) -> None:
        """Show the mesh of an OBJ file, its bounding box centred and scaled to a diagonal of 1 m.

        It is read from the file: shapes that pybullet is given as lists of vertices are never freed.
        """
        low, high = bounding_box(path)
        scale = 1 / float(np.linalg.norm(high - low))
        client = {"physicsClientId": self._client}
        self._package.resetSimulation(**client)
        shape = self._package.createVisualShape(
            self._package.GEOM_MESH,
            fileName=str(path),
            meshScale=[scale] * 3,
            visualFramePosition=(-(low + high) / 2 * scale).tolist(),
            rgbaColor=[_GREY, _GREY, _GREY, 1],
            **client,
        )
        self._object = self._package.createMultiBody(baseVisualShapeIndex=shape, **client)

    def load_number(self, number: int) -> None:
        """Show object ``number`` of pybullet's, 0 to 999."""
        self.load(self.folder / f"{number:03d}" / f"{number:03d}.obj")

    def render(self, transformation: np.ndarray) -> np.ndarray:
        """Draw the object once for each row of ``transformation`` [V, 7]; RGB uint8 [V, 3, size, size]."""
        assert self._object is not None, "load an object first"
        theta, phi = transformation[:, 4:6].astype(np.float64).T
        towards = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)  # [V, 3]
        spot = self._rgb(transformation[:, 6], 1.0, 0.8)
        floor = _lit_floor(self._floor, self._rgb(transformation[:, 3], 0.6, 0.6), towards, spot)
        pictures = floor.reshape(-1, 3, self.size, self.size)
        for picture, angles, light, colour in zip(pictures, transformation[:, :3], towards, spot, strict=True):
            drawn, is_object = self._draw(angles, light, colour)
            np.copyto(picture, drawn.transpose(2, 0, 1), where=is_object)
        return pictures

    def close(self) -> None:
        """Free the scene."""
        self._package.disconnect(self._client)

    def _rgb(self, hue: np.ndarray, saturation: float, value: float) -> np.ndarray:
        """Colours [V, 3], 0 to 1."""
        of_all = [colorsys.hsv_to_rgb(one, saturation * self.has_colour, value) for one in hue.tolist()]
        return np.array(of_all, np.float32).reshape(-1, 3)

    def _draw(self, angles: np.ndarray, light: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The object alone: RGB uint8 [S, S, 3], and bool [S, S] where it is."""
        package, client = self._package, {"physicsClientId": self._client}
        turn = package.getQuaternionFromEuler(angles.tolist())
        package.resetBasePositionAndOrientation(self._object, [0, 0, 0], turn, **client)
        _, _, colours, _, which = package.getCameraImage(
            self.size,
            self.size,
            self._view,
            self._lens,
            lightDirection=light.tolist(),
            lightColor=colour.tolist(),
            shadow=0,
            lightAmbientCoeff=_AMBIENT,
            lightDiffuseCoeff=_DIFFUSE,
            lightSpecularCoeff=0.0,
            renderer=package.ER_TINY_RENDERER,
            **client,
        )
        shape = (self.size, self.size)
        return np.asarray(colours, np.uint8).reshape(*shape, 4)[..., :3], np.asarray(which).reshape(shape) >= 0


def bounding_box(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest x, y, z [3] of an OBJ file's vertices.

    Raises:
        ValueError: if it has none, or they are all one point.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    vertices = np.array([line.split()[1:4] for line in lines if line.startswith("v ")], np.float64)
    if not len(vertices) or not np.ptp(vertices, axis=0).any():
        raise ValueError(f"{path}: a mesh of {len(vertices)} vertices has no size")
    return vertices.min(0), vertices.max(0)


@functools.cache
def _floor_points(size: int) -> np.ndarray:
    """Where the ray through the centre of each pixel, row by row, meets the floor, [size * size, 3]."""
    forward = -_CAMERA / np.linalg.norm(_CAMERA)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    step = np.tan(np.radians(_FIELD_OF_VIEW / 2)) * ((np.arange(size) + 0.5) / size * 2 - 1)
    rays = (forward + step[None, :, None] * right - step[:, None, None] * up).reshape(-1, 3)  # rows go down
    return _CAMERA + rays * ((_FLOOR - _CAMERA[2]) / rays[:, 2:])


def _lit_floor(points: np.ndarray, colour: np.ndarray, towards: np.ndarray, spot: np.ndarray) -> np.ndarray:
    """Colours uint8 [V, 3, P] of the floor under a spot that looks at 0.

    Args:
        points: [P, 3] of the floor. colour, spot: [V, 3] of floor and light. towards: [V, 3] unit vectors to the spot.
    """
    along = (towards @ points.T).astype(np.float32)  # [V, P], in the direction of the spot
    squares = np.square(points).sum(-1).astype(np.float32)
    distance = np.sqrt(squares + _SPOT_DISTANCE**2 - 2 * _SPOT_DISTANCE * along)
    height = (_SPOT_DISTANCE * towards[:, 2:] - _FLOOR).astype(np.float32)
    outer, inner = np.cos(_SPOT_CONE), np.cos(_SPOT_CONE * (1 - _SPOT_EDGE))
    inside = np.clip(((_SPOT_DISTANCE - along) / distance - outer) / (inner - outer), 0, 1)
    # 1 where light from 4 m falls straight down, as that on the object does
    strength = (inside * height * _SPOT_DISTANCE**2 / distance**3)[:, None]  # [V, 1, P]
    lit = (255 * colour * _DIFFUSE * spot)[..., None] * strength
    lit += (255 * colour * _AMBIENT + 0.5)[..., None]
    return np.minimum(lit, 255, out=lit).astype(np.uint8)
