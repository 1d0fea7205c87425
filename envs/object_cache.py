"""Views of objects on disk: one array of pictures, one table of how each was made, and a note of where they are from.

::

    pixels.npy            uint8 [O, V, 3, S, S]     object o, view v
    transformation.npy    float32 [O, V, 7]         as in 3DIEBench: Euler angles x, y, z [rad], floor hue, spot theta,
    provenance.json       settings, versions                         spot phi [rad], spot hue; hues from 0 to 1

They are made in parallel, some objects at a time. Finished parts stay in a hidden folder until the end, so the same
command goes on after a Ctrl-C. Object o must depend on the settings and its name only: more objects add to those there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.parallel import disk_errors, exclusive, num_workers, progress, run_jobs
from worldmodels.files import atomic_write_json, replacing

PIXELS_FILE, TABLE_FILE, PROVENANCE = "pixels.npy", "transformation.npy", "provenance.json"
_PART = 10  # objects: a second of work


class ObjectViews(NamedTuple):
    """Views of objects, memory-mapped."""

    pixels: np.ndarray  # uint8 [O, V, 3, S, S]
    transformation: np.ndarray  # float32 [O, V, 7]


Maker = Callable[[dict[str, Any], Sequence[str]], ObjectViews]
"""Views of the named objects; a function of a module, as it runs in other processes."""


def default_folder(kind: str, settings: dict[str, Any]) -> Path:
    """Where views of such ``settings`` are kept if nobody says otherwise."""
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    return Path(f"~/.worldmodels/{kind}/{settings['size']}px-{mark}").expanduser()


def fill(
    folder: Path,
    settings: dict[str, Any],
    names: Sequence[str],
    make: Maker,
    *,
    packages: Sequence[str],
    workers: int | None = None,
    is_shown: bool = True,
    ready: Callable[[], Any] = lambda: None,
) -> ObjectViews:
    """Make the views that ``folder`` does not have yet, and return those of all ``names``.

    Args:
        folder: of the three files.
        settings: all that views depend on but the names, for JSON; with "views" and "size".
        names: of objects, in order; those there already are taken to be the first of them.
        make: makes some of them.
        packages: whose versions are noted.
        workers: processes; None takes one a core.
        is_shown: whether to show progress on stderr.
        ready: called here before work begins: raises what workers would.

    Raises:
        ValueError: the folder holds views of other settings, of nobody knows what, or damaged ones.
        DiskFullError: no room; finished parts are kept.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / ".lock"):
            found = _found(folder, settings)
            done = len(found.pixels) if found is not None else 0
            if done < len(names):
                ready()
                _add(folder, settings, names, done, make, packages, num_workers(workers), is_shown)
    views = _found(folder, settings)
    assert views is not None
    return ObjectViews(views.pixels[: len(names)], views.transformation[: len(names)])


def _found(folder: Path, settings: dict[str, Any]) -> ObjectViews | None:
    """What the folder holds, checked; None if it is empty."""
    note, paths = folder / PROVENANCE, (folder / PIXELS_FILE, folder / TABLE_FILE)
    if not note.exists():
        if any(path.exists() for path in paths):
            raise ValueError(f"{folder} holds pictures that were not made here; choose another env.data_dir")
        return None
    noted = json.loads(note.read_text())["settings"]
    different = [f"{key}={noted.get(key)}" for key in {**settings, **noted} if noted.get(key) != settings.get(key)]
    if different:
        raise ValueError(f"{folder} holds pictures with {', '.join(different)}; choose another env.data_dir")
    if not all(path.exists() for path in paths):
        return None
    try:
        # "c": what is written to a batch made without a copy would stay in memory, and no warning is given
        pixels, table = (np.load(path, mmap_mode="c", allow_pickle=False) for path in paths)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{folder} is damaged ({error}); delete it, then it is made again") from error
    views, size = settings["views"], settings["size"]
    for name, array, row, kind in (
        (PIXELS_FILE, pixels, (views, 3, size, size), np.uint8),
        (TABLE_FILE, table, (views, 7), np.float32),
    ):
        if array.shape[1:] != row or array.dtype != kind:
            need = f"{np.dtype(kind)} [O, {', '.join(map(str, row))}]"
            raise ValueError(
                f"{folder / name} is {array.dtype} {list(array.shape)}, but {need} is needed; delete the folder"
            )
    both = min(len(pixels), len(table))  # stopped between the two, one is longer
    return ObjectViews(pixels[:both], table[:both])


def _add(
    folder: Path,
    settings: dict[str, Any],
    names: Sequence[str],
    done: int,
    make: Maker,
    packages: Sequence[str],
    workers: int,
    is_shown: bool,
) -> None:
    versions = _versions(packages)
    _note(folder, settings, versions)  # whose folder this is, from the first part on
    for stale in folder.glob(".*.tmp"):  # of a process that was killed while joining
        stale.unlink()
    mark = hashlib.sha256(json.dumps([settings, versions, done], sort_keys=True).encode()).hexdigest()[:10]
    hidden = folder / f".parts-{mark}"  # parts of different versions never mix
    hidden.mkdir(exist_ok=True)
    cuts = [*range(done, len(names), _PART), len(names)]
    parts = [(hidden / f"{a:06d}-{b:06d}.npz", names[a:b]) for a, b in itertools.pairwise(cuts)]
    missing = [part for part in parts if not part[0].exists()]
    started = time.time()
    total, left = len(names), sum(len(some) for _, some in missing)
    with progress(folder.name, total=total, done=total - left, unit="objects", is_shown=is_shown) as advance:
        run_jobs(
            _make_part,
            [(make, settings, some, str(path)) for path, some in missing],
            workers=workers,
            advance=lambda job: advance(len(missing[job][1])),
            name=f"pictures in {folder}",
        )
    for file in (PIXELS_FILE, TABLE_FILE):
        _join(folder / file, done, [path for path, _ in parts])
    seconds = round(time.time() - started, 1)
    _note(folder, settings, versions, objects=total, made=left, workers=workers, seconds=seconds)
    for old in folder.glob(".parts-*"):
        shutil.rmtree(old)


def _make_part(make: Maker, settings: dict[str, Any], names: Sequence[str], path: str) -> None:
    views = make(settings, names)
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        np.savez(file, **views._asdict())


def _join(path: Path, done: int, parts: Sequence[Path]) -> None:
    """Write the first ``done`` objects of ``path``, then those of all parts, holding one part in memory at a time.

    Written as a stream: a memory map on a full disk would kill the process.
    """
    key = path.stem
    kept = np.load(path, mmap_mode="r")[:done] if done else None

    def blocks() -> Iterator[np.ndarray]:
        if kept is not None:
            yield from (kept[i : i + _PART] for i in range(0, len(kept), _PART))
        for part in parts:
            with np.load(part, allow_pickle=False) as content:
                yield content[key]

    with np.load(parts[0], allow_pickle=False) as content:
        row, kind = content[key].shape[1:], content[key].dtype
    total = done + sum(int(part.stem[7:]) - int(part.stem[:6]) for part in parts)
    entry = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (total, *row)}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, entry)
        for block in blocks():
            file.write(np.ascontiguousarray(block).data)


def _note(folder: Path, settings: dict[str, Any], versions: dict[str, str], **last: Any) -> None:
    content = {
        "made_by": "envs.object_cache",
        "settings": settings,
        "versions": versions,
        "last": {"command": " ".join(sys.orig_argv), **last},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    atomic_write_json(folder / PROVENANCE, content)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("worldmodels", "numpy", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
