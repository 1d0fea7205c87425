"""Write simulated frames to a folder in KITTI's layout: in parallel, to be stopped and taken up again.

Frame i of a seed is the same whatever was asked for before: training frames are numbers 0, 1, ..., validation frames
900000, 900001, ... So asking for more frames later adds to the folder. Importing this loads neither torchrl nor open3d.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from envs.parallel import disk_errors, exclusive, num_workers, progress, run_jobs
from worldmodels.files import atomic_write, atomic_write_json

FIRST_VAL = 900_000
VERSION = 1  # raise it when the same seed gives other frames: their folder gets another name
PROVENANCE = "provenance.json"
MADE_BY = "envs.lidar_collect: simulated, no real data"


def default_folder(settings: dict[str, Any]) -> Path:
    """Where frames of such ``settings`` are kept if nobody says otherwise."""
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    return Path(f"~/.worldmodels/lidar_scenes/seed{settings['seed']}-{mark}").expanduser()


def settings_of(*, seed: int, sweep: int | float, min_points: int) -> dict[str, Any]:
    """What a frame depends on, besides its number.

    Raises:
        ValueError: if one of them is impossible.
    """
    if seed < 0:
        raise ValueError(f"env.seed={seed}: must not be negative")
    if not 90 <= sweep <= 360:
        raise ValueError(
            f"env.sweep={sweep:g}: degrees that are scanned, from 90 (what the camera sees) to 360 (a turn)"
        )
    if min_points < 1:
        raise ValueError(f"env.min_points={min_points}: a labelled object has at least one point")
    return {"version": VERSION, "seed": seed, "sweep": float(sweep), "min_points": min_points}


def collect_scenes(
    folder: Path, settings: dict[str, Any], *, frames: int, val_frames: int, workers: int | None, is_shown: bool = True
) -> None:
    """Make the frames that ``folder`` does not have yet.

    Args:
        folder: training/{velodyne,label_2,calib}, ImageSets and image_sizes.json come to lie there.
        settings: of ``settings_of``. frames, val_frames: wanted. workers: processes; None takes one a core.

    Raises:
        ValueError: an impossible number; or the folder holds frames of other settings, or of nobody knows what.
        ImportError: if frames are missing and open3d is, too.
        DiskFullError: no room; finished frames are kept.
    """
    for name, count in (("frames", frames), ("val_frames", val_frames)):
        if not 1 <= count <= 99_999:
            raise ValueError(f"env.{name}={count}: from 1 to 99,999")
    workers = num_workers(workers)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / ".lock"):
            _check_origin(folder, settings)
            _collect(folder, settings, frames=frames, val_frames=val_frames, workers=workers, is_shown=is_shown)


def _check_origin(folder: Path, settings: dict[str, Any]) -> None:
    note = folder / PROVENANCE
    if not note.exists():
        if (folder / "training").exists():
            raise ValueError(f"{folder} holds frames that were not simulated here; choose another env.data_dir")
        atomic_write_json(note, {"made_by": MADE_BY, "settings": settings})
        return
    found = json.loads(note.read_text())["settings"]
    different = [f"{key}={found.get(key)}" for key in settings if found.get(key) != settings[key]]
    if different:
        raise ValueError(f"{folder} holds frames with {', '.join(different)}; choose another env.data_dir")


def _collect(
    folder: Path, settings: dict[str, Any], *, frames: int, val_frames: int, workers: int, is_shown: bool
) -> None:
    wanted = [*range(frames), *range(FIRST_VAL, FIRST_VAL + val_frames)]
    missing = [i for i in wanted if not (folder / f"training/velodyne/{i:06d}.bin").exists()]
    if missing:
        from envs.lidar_scan import open3d

        open3d()  # missing, it is said here and not by a worker
        for name in ("velodyne", "label_2", "calib"):
            (folder / "training" / name).mkdir(parents=True, exist_ok=True)
        done = len(wanted) - len(missing)
        started = time.time()
        with progress("lidar_scenes", total=len(wanted), done=done, unit="frames", is_shown=is_shown) as advance:
            run_jobs(
                make_frame,
                [(str(folder), settings, i) for i in missing],
                workers=workers,
                advance=lambda _: advance(1),
                name=f"frames in {folder}",
                prepare=_use_one_thread,
            )
        _note(folder, settings, len(missing), workers, time.time() - started)
    _list(folder, {"train": wanted[:frames], "val": wanted[frames:]})


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def make_frame(folder: str, settings: dict[str, Any], index: int) -> None:
    """Simulate frame ``index`` and write its files, the scan last: where that is, the frame is whole."""
    from envs.lidar_scan import calibration, simulate
    from worldmodels.formats.kitti_text import format_objects

    scan = simulate(settings["seed"], index, sweep=settings["sweep"], min_points=settings["min_points"])
    training = Path(folder) / "training"
    atomic_write(training / f"calib/{index:06d}.txt", calibration().text())
    atomic_write(training / f"label_2/{index:06d}.txt", format_objects(scan.objects))
    atomic_write(training / f"velodyne/{index:06d}.bin", scan.points.astype("<f4").tobytes())


def _list(folder: Path, wanted: dict[str, list[int]]) -> None:
    """Write ImageSets and image_sizes.json of all frames that are there, unless they already list the wanted ones."""
    from worldmodels.formats.kitti import USUAL_SIZE

    paths = {split: folder / f"ImageSets/{split}.txt" for split in wanted}
    listed = {split: set(path.read_text().split()) if path.exists() else set() for split, path in paths.items()}
    if all({f"{i:06d}" for i in indices} <= listed[split] for split, indices in wanted.items()):
        return
    names = sorted(path.stem for path in (folder / "training/velodyne").glob("[0-9]*.bin"))
    atomic_write_json(folder / "image_sizes.json", {"training (height,width)": dict.fromkeys(names, USUAL_SIZE)})
    for split, path in paths.items():
        mine = [name for name in names if (int(name) < FIRST_VAL) == (split == "train")]
        atomic_write(path, "".join(f"{name}\n" for name in mine))


def _note(folder: Path, settings: dict[str, Any], made: int, workers: int, seconds: float) -> None:
    note = {
        "made_by": MADE_BY,
        "settings": settings,
        "versions": _versions(),
        "last": {"command": " ".join(sys.orig_argv), "frames": made, "workers": workers, "seconds": round(seconds, 1)},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    atomic_write_json(folder / PROVENANCE, note)


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("worldmodels", "numpy", "open3d-cpu", "open3d"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
