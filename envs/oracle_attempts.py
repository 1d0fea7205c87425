"""Attempts of scripted experts, made in parallel and kept for later runs: what every source of them shares.

An attempt depends on (task, seed, part, its index, max_steps) and on what its folder names only, and ends at its first
success. Files hold a few consecutive attempts, successful or not; each is written atomically, so that a run which was
stopped goes on, and one that wants more demonstrations adds to what is there::

    FOLDER/metaworld3.0.0-mujoco3.16.0/door-open/seed0-steps200/train-0000.npz

with "observation" float32 [N, O], "action" float32 [N, A], and of every attempt "length" int64 [M] and "success" bool
[M]. Numpy only, so that workers never load torch.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.parallel import disk_errors, exclusive, num_workers, progress, run_jobs
from worldmodels.files import replacing

PARTS = ("train", "test")
_PER_FILE = 5  # attempts: seconds of work at most


class Attempt(NamedTuple):
    """One episode of an expert: rows hold what it saw and what it then did."""

    observation: np.ndarray  # float32 [T, O]
    action: np.ndarray  # float32 [T, A]
    is_success: bool


class Expert(NamedTuple):
    """Who attempts the tasks of a benchmark, and what attempts depend on."""

    name: str
    """Of the benchmark, as ``default_data_dir`` takes it."""
    attempt: Callable[[str, int, int], Attempt]
    """(task, seed, max_steps) -> a function of these, in an environment of its own. Must pickle."""
    widths: tuple[int, int]
    """Numbers in a row of observation and action: O, A."""
    packages: tuple[str, ...]
    """Whose versions attempts depend on."""
    setting: str = ""
    """What else they depend on: the name of a folder."""


def default_data_dir(name: str) -> Path:
    """Where demonstrations live if nobody says otherwise: $NAME_DATA_DIR, else ~/.worldmodels/NAME."""
    return Path(os.environ.get(f"{name.upper()}_DATA_DIR") or f"~/.worldmodels/{name}").expanduser()


def collect(
    expert: Expert,
    tasks: Sequence[str],
    demonstrations: Mapping[str, int],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    max_steps: int = 200,
    seed: int = 0,
    workers: int | None = None,
    is_shown: bool = True,
) -> dict[tuple[str, str], list[Attempt]]:
    """Attempts up to the last successful one that is wanted; those that are not on disk yet are made.

    Args:
        expert: who makes them.
        tasks: by name, known ones.
        demonstrations: successful attempts of each task, by part: {"train": 40, "test": 10}.
        data_dir: None takes ``default_data_dir``.
        max_steps: after so many an attempt has failed.
        seed: of the start states.
        workers: processes; None: one a core.
        is_shown: whether to show progress on stderr.

    Returns:
        {(task, part): attempts}.

    Raises:
        ValueError: if an expert fails too often, or a file is damaged.
        DiskFullError: no room; finished files are kept.
    """
    root = default_data_dir(expert.name) if data_dir is None else Path(data_dir).expanduser()
    root = root / "-".join(f"{package}{version(package)}" for package in expert.packages) / expert.setting
    folders = {task: root / task / f"seed{seed}-steps{max_steps}" for task in tasks}
    wanted = {(task, part): num for task in tasks for part, num in demonstrations.items()}
    with disk_errors(root):
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        with exclusive(root / ".lock"):
            while True:
                found = {(task, part): _read(folders[task], part, expert.widths) for task, part in wanted}
                jobs: list[tuple[Any, ...]] = [
                    (task, part, index, seed, max_steps, str(folders[task]), expert.attempt)
                    for (task, part), num in wanted.items()
                    for index in _next_files(found[task, part], num, task)
                ]
                if not jobs:
                    break
                with progress(expert.name, total=len(jobs), done=0, unit="files", is_shown=is_shown) as advance:
                    options = {"workers": num_workers(workers), "prepare": _start_worker}
                    run_jobs(make_file, jobs, advance=lambda job: advance(1), name=expert.name, **options)
    return {key: _up_to(found[key], num) for key, num in wanted.items()}


def success_rate(attempts: Sequence[Attempt]) -> float:
    """Share of attempts that solved their task."""
    return float(np.mean([attempt.is_success for attempt in attempts]))


def make_file(
    task: str,
    part: str,
    index: int,
    seed: int,
    max_steps: int,
    folder: str,
    attempt: Callable[[str, int, int], Attempt],
) -> None:
    """Make the attempts of one file, in this process."""
    first = index * _PER_FILE
    made = [attempt(task, seed_of(task, part, i, seed), max_steps) for i in range(first, first + _PER_FILE)]
    with replacing(Path(folder) / f"{part}-{index:04d}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            observation=np.concatenate([one.observation for one in made]),
            action=np.concatenate([one.action for one in made]),
            length=np.array([len(one.action) for one in made]),
            success=np.array([one.is_success for one in made]),
        )


def seed_of(task: str, part: str, index: int, seed: int) -> int:
    """Seed of one attempt."""
    key = [seed, zlib.crc32(task.encode()), PARTS.index(part), index]
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _start_worker() -> None:
    os.environ["MUJOCO_GL"] = "disabled"  # states only: no renderer needed


def _next_files(found: Sequence[Attempt], wanted: int, task: str) -> range:
    """Files to make next: as many as should suffice at the rate so far. None where there are enough successes.

    Raises:
        ValueError: if the expert fails too often.
    """
    num, solved, most = len(found), sum(one.is_success for one in found), 4 * wanted + 20
    if solved >= wanted:
        return range(0)
    if num >= most:
        raise ValueError(
            f"the expert of {task} solved {solved} of {num} attempts, too few for {wanted} demonstrations: leave it "
            "out of env.tasks, ask for fewer (env.demonstrations, env.test_demonstrations), or raise env.max_steps"
        )
    rate = max(solved / num, 0.25) if num else 1.0
    more = min((wanted - solved) / rate, most - num)
    return range(num // _PER_FILE, num // _PER_FILE + int(np.ceil(more / _PER_FILE)))


def _up_to(attempts: list[Attempt], wanted: int) -> list[Attempt]:
    """Attempts until ``wanted`` have succeeded."""
    solved = np.cumsum([one.is_success for one in attempts])
    return attempts[: int(np.searchsorted(solved, wanted)) + 1]


def _read(folder: Path, part: str, widths: tuple[int, int]) -> list[Attempt]:
    """Attempts of the files that are there, up to the first gap."""
    attempts: list[Attempt] = []
    for index in range(len(list(folder.glob(f"{part}-*.npz")))):
        path = folder / f"{part}-{index:04d}.npz"
        if not path.exists():
            break
        attempts += _read_file(path, {"observation": widths[0], "action": widths[1]})
    return attempts


def _read_file(path: Path, widths: Mapping[str, int]) -> list[Attempt]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as columns:
            rows = {key: columns[key] for key in widths}
            lengths, success = columns["length"], columns["success"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}). Delete it: it will be made again") from error
    ends = np.cumsum(lengths)
    for key, width in widths.items():
        if rows[key].shape != (ends[-1], width) or not np.isfinite(rows[key]).all():
            raise ValueError(
                f"{path}: {key} must be {[int(ends[-1]), width]} finite numbers, but is {list(rows[key].shape)}. "
                "Delete the file: it will be made again"
            )
    pieces = zip(*(np.split(rows[key], ends[:-1]) for key in widths), success, strict=True)
    return [Attempt(observation, action, bool(solved)) for observation, action, solved in pieces]
