"""Examining videos, and decoding them once into one file of bytes; both in parallel, and going on after a Ctrl-C.

::

    index.json           of each video: rows, first time stamp, whether it has time stamps; or what is wrong with it
    rows_112x112.bin     uint8 [R, 3, H, W], rows of all videos end to end
    rows_112x112.json    which videos could not be decoded to their end after all

A folder is for these very files (names, sizes, times of change) at one frame rate. A file appears when it is whole;
what is finished of it lies in a hidden folder until then.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.parallel import exclusive, num_workers, progress, run_jobs
from envs.video_files import Facts, Place, Unreadable, all_rows, examine
from envs.video_lists import Listing
from worldmodels.files import atomic_write_json, disk_errors

FOLDER = "~/.worldmodels/videos"
_FORMAT = 1  # of the cache; raise it when decoding changes
_EXAMINED, _DECODED = 32, 4  # videos a job
_NAMED = 3  # broken files that a message names


class Index(NamedTuple):
    """What is known of the videos before any is decoded."""

    home: Path
    """The folder of the cache."""
    facts: tuple[Facts | None, ...]
    """None of what cannot be used, [N]."""
    bad: tuple[tuple[str, str], ...]
    """Name of each of those, and what is wrong with it."""


class Rows(NamedTuple):
    """Decoded videos."""

    pixels: np.ndarray
    """uint8 [R, 3, H, W], a map of a file."""
    begins: np.ndarray
    """int64 [N], first row of each video; -1 where there is none."""
    bad: tuple[tuple[str, str], ...]


def examined(listing: Listing, *, frame_rate: int | float, folder: Path, workers: int | None) -> Index:
    """The index of ``listing``, from the cache in ``folder`` if it is there.

    Raises:
        ValueError: if not one of the files is a video.
        DiskFullError: if there is no room.
    """
    key = hashlib.sha256(f"{_FORMAT}/{listing.marks}/{frame_rate}".encode()).hexdigest()[:10]
    home = folder / f"{Path(listing.places[0].path).parent.name or 'videos'}-{key}"
    path = home / "index.json"
    with disk_errors(folder, then="or give env.cache_dir="):
        home.mkdir(parents=True, exist_ok=True)
        with exclusive(home / ".lock"):
            if not path.is_file():
                cuts = _cut(listing.places, _EXAMINED)
                jobs = [(_examine, places, frame_rate) for places in cuts]
                found = _finished(home / ".index", jobs, len(listing.places), "videos examined", workers)
                atomic_write_json(path, {"from": sorted({_home(place) for place in listing.places}), "found": found})
                shutil.rmtree(home / ".index", ignore_errors=True)
    found = json.loads(path.read_text())["found"]
    facts = tuple(None if isinstance(entry, str) else Facts(*entry) for entry in found)
    bad = [(name, entry) for name, entry in zip(listing.names, found, strict=True) if isinstance(entry, str)]
    if len(bad) == len(listing.names):
        raise ValueError(f"not one of {len(bad)} videos can be used: {named(bad)}")
    return Index(home, facts, tuple(bad))


def decoded(
    listing: Listing, index: Index, *, frame_rate: int | float, size: Sequence[int], workers: int | None
) -> Rows:
    """All rows of the videos of ``index``, from the cache if they are there.

    Raises:
        DiskFullError: if there is no room; what is finished is kept.
    """
    lengths = [facts.rows if facts else 0 for facts in index.facts]
    begins, stem = np.cumsum([0, *lengths]), f"rows_{size[0]}x{size[1]}"
    path, note = index.home / f"{stem}.bin", index.home / f"{stem}.json"
    with (
        disk_errors(index.home, then="or give env.cache_dir=; finished parts are kept"),
        exclusive(index.home / ".lock"),
    ):
        if not (path.is_file() and note.is_file()):
            hidden, unfinished = index.home / f".{stem}", index.home / f".{stem}.bin"
            shape = (int(begins[-1]), 3, *size)
            if not unfinished.is_file():  # parts of another one are worth nothing
                shutil.rmtree(hidden, ignore_errors=True)
            with open(unfinished, "ab") as file:
                file.truncate(int(np.prod(shape, dtype=np.int64)))
            good = [i for i, facts in enumerate(index.facts) if facts]
            tasks = [(i, listing.places[i], index.facts[i], int(begins[i])) for i in good]
            jobs = [(_decode, some, (str(unfinished), frame_rate, tuple(size))) for some in _cut(tasks, _DECODED)]
            print(f"decoding {len(good):,} videos, {shape[0]:,} frames, to {path}", file=sys.stderr)
            failed = [entry for entry in _finished(hidden, jobs, len(good), "videos decoded", workers) if entry]
            os.replace(unfinished, path)
            atomic_write_json(note, {"shape": list(shape), "failed": failed})
            shutil.rmtree(hidden, ignore_errors=True)
    failed = {int(number): reason for number, reason in json.loads(note.read_text())["failed"]}
    begin = np.where([facts is not None for facts in index.facts], begins[:-1], -1)
    begin[list(failed)] = -1
    # "c": what is written to a batch made without a copy would stay in memory, and no warning is given
    pixels = np.memmap(path, np.uint8, "c", shape=(int(begins[-1]), 3, *size))
    return Rows(pixels, begin, tuple((listing.names[number], reason) for number, reason in failed.items()))


def num_bytes(index: Index, size: Sequence[int]) -> int:
    """What ``decoded`` needs on disk."""
    return sum(facts.rows for facts in index.facts if facts) * 3 * size[0] * size[1]


def named(bad: Sequence[Sequence[str]]) -> str:
    """The first of some broken files and what is wrong with them."""
    first = "; ".join(" ".join(entry) for entry in bad[:_NAMED])
    return f"{first}{'; ...' if len(bad) > _NAMED else ''}"


def _home(place: Place) -> str:
    return place.path if place.size >= 0 else os.path.dirname(place.path)


def _cut(entries: Sequence[Any], num: int) -> list[list[Any]]:
    return [list(entries[first : first + num]) for first in range(0, len(entries), num)]


def _finished(
    folder: Path, jobs: Sequence[tuple[Callable[..., list[Any]], list[Any], Any]], total: int, name: str,
    workers: int | None,
) -> list[Any]:  # fmt: skip
    """What all ``jobs`` return, end to end; what ``folder`` holds already is not done again."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:06d}.json" for number in range(len(jobs))]
    missing = [(str(path), *job) for path, job in zip(paths, jobs, strict=True) if not path.is_file()]
    left = sum(len(entries) for _, _, entries, _ in missing)
    with progress(name, total=total, done=total - left, unit="videos", is_shown=total > _EXAMINED) as advance:
        if workers == 0:
            for job in missing:
                _save(*job)
                advance(len(job[2]))
        else:
            run_jobs(
                _save, missing, workers=num_workers(workers), advance=lambda i: advance(len(missing[i][2])), name=name
            )
    return [entry for path in paths for entry in json.loads(path.read_text())]


def _save(path: str, function: Callable[..., list[Any]], entries: list[Any], options: Any) -> None:
    atomic_write_json(path, function(entries, options))


def _examine(places: list[Place], frame_rate: int | float) -> list[Any]:
    """Facts of each, or what is wrong with it."""
    found: list[Any] = []
    for place in places:
        try:
            found.append(list(examine(place, frame_rate)))
        except Unreadable as error:
            found.append(str(error))
    return found


def _decode(tasks: list[tuple[int, Place, Facts, int]], options: tuple[str, float, tuple[int, int]]) -> list[Any]:
    """Write each video's rows from its own on; number and reason of what fails, None of what does not."""
    path, frame_rate, size = options
    failed: list[Any] = []
    with open(path, "r+b") as file:  # written, not mapped: a map on a full disk would kill the process
        for number, place, facts, row in tasks:
            file.seek(row * 3 * size[0] * size[1])
            reason = None
            try:
                for rows in all_rows(place, facts, frame_rate=frame_rate, size=size):
                    file.write(rows.data)
            except Unreadable as error:
                reason = [number, str(error)]
            failed.append(reason)
        file.flush()
        with contextlib.suppress(OSError):  # some network disks cannot
            os.fsync(file.fileno())
    return failed
