"""Draw pybullet's objects: ``python -m envs.render_objects objects=1000 num_views=50 size=64``.

They lie in ``data_dir`` as one array and one table (``envs.object_cache``), where env=rendered_objects finds them. With
``out=FOLDER`` they are also written there in 3DIEBench's layout, for env.path and for other programs. Settings and
defaults are in ``conf/render_objects.yaml``.

A view depends on (seed, object, its number, the settings) only: the same command goes on after a Ctrl-C, and a greater
``objects`` adds to what is there. What is drawn is described in ``envs.object_scene``.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.command import run_command
from envs.object_cache import ObjectViews, default_folder, fill
from envs.object_scene import NUM_OBJECTS, ObjectRenderer, draw_transformations, require_pybullet
from envs.object_trees import claim_tree, pillow, write_object
from envs.parallel import disk_errors, num_workers, progress, run_jobs

VERSION = 1  # raise it when the same settings give other pictures
_CLASS = "pybullet"  # folder of all objects in a tree: procedural objects have no class
_DRAWN = ("axes", "min_angle", "max_angle", "has_colour", "has_moving_spot")


def settings_of(
    *,
    views: int = 50,
    size: int = 64,
    seed: int = 0,
    axes: str = "xyz",
    min_angle: int | float = 0,
    max_angle: int | float = 90,
    has_colour: bool = True,
    has_moving_spot: bool = True,
) -> dict[str, Any]:
    """What a view depends on, besides its object and number; see ``draw_transformations``.

    Raises:
        ValueError: if one of them is impossible.
    """
    if not 2 <= views <= 100_000:
        raise ValueError(f"env.views={views}: from 2, as one leads to another, to 100,000")
    if not 8 <= size <= 1024:
        raise ValueError(f"env.size={size}: pixels a side, from 8, where objects can still be told apart, to 1024")
    if seed < 0:
        raise ValueError(f"env.seed={seed}: must not be negative")
    if not axes or any(axis not in "xyz" for axis in axes) or len(set(axes)) != len(axes):
        raise ValueError(f"env.axes={axes!r}: some of xyz, each once, such as xyz or z")
    if not 0 <= min_angle < max_angle <= 180:
        raise ValueError(f"env.min_angle={min_angle}, env.max_angle={max_angle}: degrees, 0 <= min < max <= 180")
    return {
        "version": VERSION,
        "views": views,
        "size": size,
        "seed": seed,
        "axes": "".join(sorted(axes)),
        "min_angle": float(min_angle),
        "max_angle": float(max_angle),
        "has_colour": has_colour,
        "has_moving_spot": has_moving_spot,
    }


def render_objects(
    settings: dict[str, Any],
    objects: int,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    is_shown: bool = True,
) -> tuple[Path, ObjectViews]:
    """Draw the views that are not there yet; returns their folder and the views of all ``objects``.

    Args:
        settings: of ``settings_of``.
        objects: the first so many of pybullet's 1000.
        data_dir: where they are kept; None: a folder below ~/.worldmodels/rendered_objects for these settings.
        workers: processes that draw; None takes one a core.
        is_shown: whether to show progress on stderr.

    Raises:
        ValueError: impossible number, or a folder with other pictures.
        ImportError: views are missing and pybullet is, too.
    """
    if not 1 <= objects <= NUM_OBJECTS:
        raise ValueError(f"env.objects={objects}: from 1 to {NUM_OBJECTS}, as pybullet has no more")
    folder = default_folder("rendered_objects", settings) if data_dir is None else Path(data_dir).expanduser()
    views = fill(
        folder,
        settings,
        object_names(objects),
        render,
        packages=("pybullet",),
        workers=workers,
        is_shown=is_shown,
        ready=require_pybullet,
    )
    return folder, views


def object_names(objects: int) -> list[str]:
    """Names of the first objects: their folders in pybullet_data/random_urdfs."""
    return [f"{i:03d}" for i in range(objects)]


def render(settings: dict[str, Any], names: Sequence[str]) -> ObjectViews:
    """Draw all views of some objects."""
    renderer = _renderer(settings["size"], settings["has_colour"])
    drawn = {key: settings[key] for key in _DRAWN}
    pixels, table = [], []
    for name in names:
        rng = np.random.default_rng(np.random.SeedSequence([settings["seed"], int(name)]))
        table.append(draw_transformations(settings["views"], rng, **drawn))
        renderer.load_number(int(name))
        pixels.append(renderer.render(table[-1]))
    return ObjectViews(np.stack(pixels), np.stack(table))


@functools.cache
def _renderer(size: int, has_colour: bool) -> ObjectRenderer:
    """One scene a process."""
    return ObjectRenderer(size, has_colour=has_colour)


def command(
    objects: int,
    *,
    num_views: int,
    out: str | None = None,
    data_dir: str | None = None,
    workers: int | None = None,
    is_shown: bool = True,
    **chosen: Any,
) -> Path:
    """Draw, and write a tree in 3DIEBench's layout if there is an ``out``. Returns the folder last written to."""
    settings = settings_of(views=num_views, **chosen)
    folder, _ = render_objects(settings, objects, data_dir=data_dir, workers=workers, is_shown=is_shown)
    if out is None:
        return folder
    pillow()
    root = Path(out).expanduser()
    with disk_errors(root):
        claim_tree(root, settings)
        jobs = [(str(root), f"{_CLASS}/{name}", str(folder), i) for i, name in enumerate(object_names(objects))]
        with progress(str(root), total=objects, done=0, unit="objects", is_shown=is_shown) as advance:
            run_jobs(
                write_object,
                jobs,
                workers=num_workers(workers),
                advance=lambda _: advance(1),
                name=f"files in {root}",
            )
    return root


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:], config="render_objects", function=command, help=str(__doc__)))
