"""Pictures from MuJoCo: the choice of a renderer and its messages, what a painter draws, and lost contexts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs import rendering
from envs.rendering import RenderError, StatePainter, check_picture, free

needs_renderer = pytest.mark.skipif(os.environ.get("MUJOCO_GL") not in ("egl", "osmesa"), reason="needs a renderer")

SLIDER = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="front" pos="0 -2 0.5" xyaxes="1 0 0 0 0.2 1"/>
    <geom type="plane" size="3 3 0.1" rgba="0.2 0.3 0.4 1"/>
    <body pos="0 0 0.2"><joint type="slide" axis="1 0 0"/><geom type="sphere" size="0.2" rgba="1 0.5 0 1"/></body>
  </worldbody>
</mujoco>
"""


def painter(**changes: object) -> StatePainter:
    return StatePainter(mujoco.MjModel.from_xml_string(SLIDER), camera=0, **changes)  # type: ignore[arg-type]


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What this machine has installed, as far as the code under test can see; empty at first."""
    have: set[str] = set()
    monkeypatch.setattr(rendering, "_has", have.__contains__)
    return have


def test_egl_is_chosen_before_osmesa_and_a_choice_is_kept(libraries: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for have, backend in (({"EGL", "OSMesa"}, "egl"), ({"OSMesa"}, "osmesa"), (set(), "disabled")):
        libraries.clear()
        libraries.update(have)
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        rendering.choose()
        assert os.environ["MUJOCO_GL"] == backend
    libraries.update({"EGL", "OSMesa"})
    rendering.choose()
    assert os.environ["MUJOCO_GL"] == "disabled"


@pytest.mark.parametrize("backend", ["disabled", "egl", "osmesa", "glfw", ""])
def test_without_a_renderer_the_message_says_what_to_install(
    libraries: set[str], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(RenderError, match="apt-get install libegl1 libgl1-mesa-dri, or libosmesa6") as error:
        rendering.ready()
    assert "\n" not in str(error.value)


def test_a_missing_library_names_the_one_that_is_there(libraries: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    libraries.add("EGL")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    for check in (rendering.choose, rendering.ready):
        with pytest.raises(RenderError, match="libOSMesa is not installed; set MUJOCO_GL=egl, whose library is there"):
            check()


def test_the_command_ends_in_one_line_where_the_library_is_missing(root: Path) -> None:
    code = """
from envs import rendering
rendering._has = set().__contains__
from worldmodels.cli import choose_renderer
choose_renderer()
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "MUJOCO_GL": "osmesa"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: MUJOCO_GL=osmesa: libOSMesa is not installed; drawing needs libEGL")
    assert result.stderr.count("\n") == 1


def test_a_picture_of_one_colour_is_no_picture() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(RenderError, match=r"picture of walker has one value everywhere, 0: .*close it before"):
        check_picture(black, "walker")
    black[3, 4, 1] = 1
    assert check_picture(black, "walker") is black


@needs_renderer
@pytest.mark.parametrize("is_fast", [True, False])
def test_a_painter_draws_states(is_fast: bool) -> None:
    """Equal states look equal, other states look otherwise, and a moved ball is where it should be."""
    paint = painter(size=48, is_fast=is_fast)
    left, right = paint(np.array([-0.5])), paint(np.array([0.5]))
    assert left.shape == (3, 48, 48)
    assert left.dtype == np.uint8
    assert left.std() > 10
    assert np.array_equal(paint(np.array([-0.5, 3.0])), left), "velocities do not show"
    columns = [np.average(np.arange(48), weights=(picture[0] > 150).sum(0) + 1e-9) for picture in (left, right)]
    assert columns[0] < 20 < 28 < columns[1]
    paint.close()
    paint.close()


@needs_renderer
def test_painters_and_renderers_come_and_go_without_harm() -> None:
    """Whichever is closed first: the others still draw, and the next one does."""
    model = mujoco.MjModel.from_xml_string(SLIDER)
    first, second = painter(), painter()
    seen = second(np.array([0.1]))
    other = mujoco.Renderer(model, 32, 32)
    first.close()
    assert np.array_equal(second(np.array([0.1])), seen)
    free(other)
    assert np.array_equal(second(np.array([0.1])), seen)
    second.close()
    third = painter()
    assert np.array_equal(third(np.array([0.1])), seen)
    third.close()


@needs_renderer
def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(RenderError, match="a model has 1 cameras; there is no camera 2"):
        StatePainter(mujoco.MjModel.from_xml_string(SLIDER), camera=2)
