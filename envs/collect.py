"""Collect an OGBench data set on this machine: ``python -m envs.collect dataset=cube-single-play-v0 workers=2``.

For families whose behaviour policy ships with the ogbench package (pointmaze, cube, scene, puzzle). Settings, their
defaults and meaning are in ``conf/collect.yaml``. It writes NAME.npz and NAME-val.npz in the published layout, and
NAME.provenance.json, which says how they were made.

The result depends on (dataset, transitions, val_transitions, seed) only, not on the number of workers. Finished parts
stay on disk in a hidden folder until the end, so the same command goes on after a Ctrl-C or a crash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.behavior import make_behavior, seed_episode
from envs.command import run_command
from envs.ogbench_names import DATASETS, Dataset, find_dataset
from envs.parallel import disk_errors, exclusive, num_workers, run_jobs
from envs.parallel import progress as progress_bar
from worldmodels.files import atomic_write_json, replacing

_PART_ROWS = {True: 5_000, False: 2_000}  # of a maze, of an arm: a few seconds of work at most


def default_data_dir() -> Path:
    """Where data lives if nobody says otherwise: $OGBENCH_DATA_DIR, else the folder of the ogbench package."""
    return Path(os.environ.get("OGBENCH_DATA_DIR") or "~/.ogbench/data").expanduser()


def collect(
    dataset: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    transitions: int | None = None,
    val_transitions: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Collect ``dataset`` unless it is there already, and return the path of its training file.

    Args:
        dataset: an OGBench name, such as "pointmaze-medium-navigate-v0".
        data_dir: folder of the three files; None means ``default_data_dir()``.
        transitions: of the training file, exactly; the last trajectory is cut to fit. None: as published.
        val_transitions: likewise for validation; None: a tenth of ``transitions``.
        workers: processes; None takes one a core.
        seed: of everything random.
        progress: whether to show a bar on stderr.

    Raises:
        ValueError: unknown name; a family that needs an expert; files of another origin or other settings in the way.
        DiskFullError: no room; finished parts are kept.
    """
    facts = find_dataset(dataset)
    if not facts.is_collectable:
        raise ValueError(needs_expert(facts, default_data_dir() if data_dir is None else Path(data_dir)))
    plan = _plan(facts, transitions=transitions, val_transitions=val_transitions, seed=seed)
    workers = num_workers(workers)
    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / f".{dataset}.lock"):
            return _collect(facts, plan, folder, workers=workers, progress=progress)


class _Part(NamedTuple):
    """Some consecutive trajectories, made by one worker and kept in one file."""

    split: str
    first: int
    steps: tuple[int, ...]
    """Transitions of each trajectory."""

    @property
    def file_name(self) -> str:
        return f"{self.split}-{self.first:06d}.npz"


class _Plan(NamedTuple):
    """What is collected. Equal settings give equal files."""

    settings: dict[str, Any]
    parts: tuple[_Part, ...]


def _plan(facts: Dataset, *, transitions: int | None, val_transitions: int | None, seed: int) -> _Plan:
    transitions = facts.transitions if transitions is None else transitions
    val_transitions = max(1, transitions // 10) if val_transitions is None else val_transitions
    counts = {"transitions": transitions, "val_transitions": val_transitions}
    for key, count in counts.items():
        if count < 1:
            raise ValueError(f"{key}={count}: at least one transition is needed")
    if seed < 0:
        raise ValueError(f"seed={seed}: must not be negative")
    parts = (*_parts(facts, "train", transitions), *_parts(facts, "val", val_transitions))
    return _Plan({"dataset": facts.name, **counts, "seed": seed}, parts)


def _parts(facts: Dataset, split: str, transitions: int) -> list[_Part]:
    lengths = [min(facts.steps, transitions - done) for done in range(0, transitions, facts.steps)]
    size = max(1, _PART_ROWS[facts.is_maze] // facts.steps)
    return [_Part(split, first, tuple(lengths[first : first + size])) for first in range(0, len(lengths), size)]


def _collect(facts: Dataset, plan: _Plan, folder: Path, *, workers: int, progress: bool) -> Path:
    final = folder / f"{facts.name}.npz"
    if _is_finished(final, plan):
        return final
    # Another simulator may give other numbers, so parts of different versions never mix.
    identity = json.dumps([plan.settings, plan.parts, _versions()], sort_keys=True)
    parts_folder = folder / f".{facts.name}.parts-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
    parts_folder.mkdir(exist_ok=True)
    for stale in folder.glob(f".{facts.name}*.npz.*.tmp"):  # of a collector that was killed while joining
        stale.unlink()
    missing = [part for part in plan.parts if not (parts_folder / part.file_name).exists()]
    started = time.time()
    total, todo = (sum(sum(part.steps) for part in parts) for parts in (plan.parts, missing))
    with progress_bar(facts.name, total=total, done=total - todo, unit="transitions", is_shown=progress) as advance:
        _run(facts, plan, missing, parts_folder, workers=workers, advance=advance)
    for split, path in (("val", folder / f"{facts.name}-val.npz"), ("train", final)):
        parts = [parts_folder / part.file_name for part in plan.parts if part.split == split]
        if split == "train":  # the training file comes last: where it is, everything is
            atomic_write_json(
                _provenance_path(final), _provenance(plan, workers=workers, seconds=time.time() - started)
            )
        _join(parts, path)
    shutil.rmtree(parts_folder)
    return final


def _run(facts: Dataset, plan: _Plan, missing: list[_Part], folder: Path, *, workers: int, advance: Any) -> None:
    """Make the missing parts in ``workers`` processes. Ctrl-C ends them within one part."""
    run_jobs(
        _make_part,
        [(part, plan.settings["seed"], str(folder)) for part in missing],
        workers=workers,
        advance=lambda job: advance(sum(missing[job].steps)),
        name=facts.name,
        prepare=_start_worker,
        prepare_arguments=(facts.name,),
    )


_behavior: Any = None  # of this worker process: building an environment takes a second


def _start_worker(dataset: str) -> None:
    import warnings

    warnings.filterwarnings("ignore", message=".*precision lowered.*")  # gymnasium, on every action space of ogbench
    os.environ["MUJOCO_GL"] = "disabled"  # states only: no renderer needed
    global _behavior
    _behavior = make_behavior(find_dataset(dataset))


def _make_part(part: _Part, seed: int, folder: str) -> None:
    """Run the trajectories of ``part`` in this process and write them to its file, atomically."""
    trajectories = []
    for index, steps in enumerate(part.steps, start=part.first):
        first = seed_episode(_behavior.env, _behavior.name, seed=seed, split=part.split, index=index)
        trajectories.append(_behavior.episode(steps, seed=first))
    columns = {key: np.concatenate([trajectory[key] for trajectory in trajectories]) for key in trajectories[0]}
    with replacing(Path(folder) / part.file_name) as temporary, open(temporary, "wb") as file:
        np.savez(file, **columns)


def _join(parts: list[Path], path: Path) -> None:
    """Write the rows of all parts, in order, to one npz file, holding one part in memory at a time.

    Uncompressed: reading is then a copy. States hardly compress.
    """
    lengths = [_header(part, "terminals")[0][0] for part in parts]
    with np.load(parts[0], allow_pickle=False) as first:
        keys = list(first.files)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for key in keys:
            shape, dtype = _header(parts[0], key)
            entry = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, {**entry, "shape": (sum(lengths), *shape[1:])})
                for part in parts:
                    with np.load(part, allow_pickle=False) as columns:
                        file.write(np.ascontiguousarray(columns[key]).data)


def _header(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of one array of an npz file, without reading it."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _is_finished(path: Path, plan: _Plan) -> bool:
    """Whether these very files exist; raises where others are in the way."""
    if not path.exists():
        return False
    note = _provenance_path(path)
    if not note.exists():
        raise ValueError(f"{path} exists and was not collected here; move it, or choose another data_dir")
    found = json.loads(note.read_text())["settings"]
    different = [f"{key}={found.get(key)}" for key in plan.settings if found.get(key) != plan.settings[key]]
    if different:
        raise ValueError(f"{path} exists with {', '.join(different)}; move it, or choose another data_dir")
    return path.with_name(f"{path.stem}-val.npz").exists()


def _provenance_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.provenance.json")


def _provenance(plan: _Plan, *, workers: int, seconds: float) -> dict[str, Any]:
    counts = {
        split: {
            "trajectories": sum(len(part.steps) for part in plan.parts if part.split == split),
            "rows": sum(sum(part.steps) + len(part.steps) for part in plan.parts if part.split == split),
        }
        for split in ("train", "val")
    }
    return {
        "made_by": "envs.collect: scripted policies of the ogbench package, not the published file",
        "settings": plan.settings,
        "counts": counts,
        "versions": {**_versions(), "numpy": np.__version__, "python": sys.version.split()[0]},
        "command": " ".join(sys.orig_argv),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "workers": workers,
        "seconds": round(seconds, 1),  # of the last run, if the collection was interrupted
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in ("ogbench", "mujoco", "gymnasium", "worldmodels"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def needs_expert(facts: Dataset, folder: Path) -> str:
    """Why a data set cannot be collected here, and which files to put where."""
    policy = "a renderer and days of work" if facts.is_visual and not facts.is_maze else "a trained expert policy"
    names = f"{facts.name}.npz and {facts.name}-val.npz"
    return (
        f"{facts.name} cannot be collected here: its trajectories need {policy}, which ogbench does not ship. Download "
        f"{names} from https://rail.eecs.berkeley.edu/datasets/ogbench/ and put both into {folder} "
        f"(or set data_dir or $OGBENCH_DATA_DIR)"
    )


def _main(arguments: list[str]) -> int:
    names = ", ".join(name for name, facts in DATASETS.items() if facts.is_collectable)
    return run_command(arguments, config="collect", function=collect, help=f"{__doc__}\nData sets: {names}")


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
