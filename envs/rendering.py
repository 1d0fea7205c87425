"""Pictures from MuJoCo without a screen: choosing the library that draws, drawing states, and never a black frame.

MuJoCo reads MUJOCO_GL when it is imported, so ``choose`` must run before; ``ready`` repairs what can be repaired later.

The trap: MuJoCo frees a renderer's objects in whichever graphics context is current. One that dies at the wrong moment
empties another, which then draws black at high speed and says nothing. So renderers are closed by ``free``, and every
picture that becomes data passes ``check_picture``.
"""

from __future__ import annotations

import copy
import ctypes
import ctypes.util
import functools
import importlib
import os
import sys
from typing import Any

import numpy as np

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}  # in the order of choice
_OFF = ("disabled", "disable", "off", "false", "0")
_INSTALL = "needs libEGL or libOSMesa (Debian: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6)"
HINT = f"set MUJOCO_GL=egl (or osmesa) before Python starts; it {_INSTALL}"


class RenderError(ValueError):
    """There is no way to draw pictures here; the message says what to install or set."""


def find_backend() -> str | None:
    """What MUJOCO_GL should be on this machine: "egl" or "osmesa", by the libraries it has; None if it has neither."""
    return next((name for name, library in _LIBRARIES.items() if _has(library)), None)


def choose() -> None:
    """Set MUJOCO_GL before anything imports MuJoCo, unless the user did: EGL, else OSMesa, else no pictures at all.

    Left alone MuJoCo takes GLFW, which complains on a machine without a display and may end the process.

    Raises:
        RenderError: if the user asked for a library that is not there; importing MuJoCo would fail less clearly.
    """
    backend = os.environ.get("MUJOCO_GL")
    if backend is None:
        os.environ["MUJOCO_GL"] = find_backend() or "disabled"
    else:
        _check_library(backend.lower().strip())


def ready() -> None:
    """Make sure that drawing either works or raises.

    Where nobody chose before MuJoCo was imported (torchrl imports it early) and a library is there, let it choose once
    more.

    Raises:
        RenderError: if there is no way to draw.
    """
    backend, found = os.environ.get("MUJOCO_GL", "").lower().strip(), find_backend()
    if backend in _OFF:
        raise RenderError(f"MUJOCO_GL={backend}: pictures are off; {HINT}")
    _check_library(backend)
    is_hopeless = sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if not is_hopeless or backend in _LIBRARIES:
        return
    if backend == "glfw" or found is None:
        raise RenderError(f"MuJoCo would draw with GLFW, which needs a display; {HINT}")
    import mujoco

    os.environ["MUJOCO_GL"] = found
    importlib.reload(sys.modules[mujoco.Renderer.__module__].gl_context)


def check_picture(picture: np.ndarray, of: str) -> np.ndarray:
    """Return ``picture``, uint8, if it shows anything.

    Raises:
        RenderError: if all of it has one colour, as when the graphics context was lost.
    """
    if picture.min() == picture.max():
        raise RenderError(
            f"the picture of {of} has one value everywhere, {picture.flat[0]}: the graphics context was lost. Use one "
            f"renderer at a time, and close it before the next is made"
        )
    return picture


def free(renderer: Any) -> None:
    """Close a ``mujoco.Renderer`` without harm to others: drawing makes its own context current."""
    renderer.render()
    renderer.close()


class StatePainter:
    """Draws states of one MuJoCo model, whatever simulator they come from; data and evaluations share the pictures.

    It owns a copy of the model, so the marks that a task may leave in a running environment are never in a picture.

    Args:
        model: ``mujoco.MjModel``.
        camera: number of the camera.
        size: height and width in pixels.
        is_fast: no shadows and no reflections: 2-8 ms a frame without a GPU instead of 15-40. Edges stay smooth: they
            tell where a small thing is to less than a pixel. Data and evaluations must agree.
        of: what is drawn, for errors.

    Raises:
        RenderError: if MuJoCo cannot draw here, or the model has no such camera.
    """

    def __init__(self, model: Any, *, camera: int, size: int = 64, is_fast: bool = True, of: str = "a model") -> None:
        ready()
        import mujoco

        if not 0 <= camera < model.ncam:
            raise RenderError(f"{of} has {model.ncam} cameras; there is no camera {camera}")
        self._of, self._camera = of, camera
        self._model: Any = copy.copy(model)
        self._data: Any = mujoco.MjData(self._model)
        if is_fast:
            self._model.vis.quality.shadowsize = 0
        try:
            self._renderer: Any = mujoco.Renderer(self._model, size, size)
        except Exception as error:  # what a missing library or driver raises depends on the backend
            raise RenderError(f"cannot draw {of}: {' '.join(str(error).split())}; {HINT}") from error
        if is_fast:
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def __call__(self, physics: np.ndarray) -> np.ndarray:
        """Draw one state.

        Args:
            physics: [nq] positions, what follows them (velocities, activations) does not show.

        Returns:
            uint8 [3, size, size].

        Raises:
            RenderError: if the picture is of one colour.
        """
        import mujoco

        self._data.qpos[:] = physics[: self._model.nq]
        mujoco.mj_fwdPosition(self._model, self._data)
        self._renderer.update_scene(self._data, self._camera)
        return np.ascontiguousarray(np.moveaxis(check_picture(self._renderer.render(), self._of), -1, 0))

    def close(self) -> None:
        """Free the renderer; may be called twice."""
        renderer, self._renderer = self._renderer, None
        if renderer is not None:
            free(renderer)


@functools.cache
def _has(library: str) -> bool:
    name = ctypes.util.find_library(library)
    if name is None:
        return False
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _check_library(backend: str) -> None:
    """A named backend whose library is missing makes the import of MuJoCo fail; say so in one line."""
    library = _LIBRARIES.get(backend)
    if library is not None and not _has(library):
        found = find_backend()
        advice = f"set MUJOCO_GL={found}, whose library is there" if found else f"drawing {_INSTALL}"
        raise RenderError(f"MUJOCO_GL={backend}: lib{library} is not installed; {advice}")
