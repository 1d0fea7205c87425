"""Decoding a data set of pictures once, in threads, into one file of bytes that later runs map or copy.

Threads, not processes: Pillow decodes and resizes outside Python's lock, and archives are read from front to back by
one reader. A cache is a folder of its own that appears only when it is whole:

    pixels.bin    uint8 [N, 3, H, W]
    index.npz     labels, parts, groups of the N pictures, and their rank in the order of file names
    facts.json    where they came from, how they were made, what was left out
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from envs.image_files import Tree, Unreadable, decode, fit
from envs.image_layouts import UNKNOWN, Pictures, find_layout
from envs.parallel import exclusive, num_workers
from worldmodels.environment import versions
from worldmodels.files import atomic_write_json, disk_errors

FOLDER = "~/.worldmodels/images"
_FORMAT = 1  # of the cache; raise it when decoding changes
_BATCH = 32  # files a thread decodes at a time
PARTS = ("train", "unlabeled", "val", "test", "")

T = TypeVar("T")
Row = tuple[int, np.ndarray | Unreadable]
"""Number of a picture in its layout, and its pixels or what is wrong with it."""


class Decoded(NamedTuple):
    """Pictures as bytes, in the order of their file names."""

    pixels: np.ndarray
    """uint8 [N, 3, H, W], perhaps a map of a file; in the order they were read."""
    order: np.ndarray
    """int64 [N]: which row of ``pixels`` comes first, second, ...; what follows is in this order."""
    labels: np.ndarray
    parts: np.ndarray
    """int64 [N] into PARTS."""
    groups: np.ndarray
    """int64 [N], UNKNOWN for pictures on their own."""
    classes: tuple[str, ...]
    layout: str
    notes: tuple[str, ...]


def decoded(
    tree: Tree,
    *,
    size: int | None,
    is_enlarged: bool,
    max_bad_share: float,
    cache_dir: str | os.PathLike[str] | None,
    workers: int | None,
) -> Decoded:
    """The pictures of a tree, from the cache if they are in it.

    Raises:
        ValueError: if there are none, more than ``max_bad_share`` of the files are broken, or, without a ``size``, they
            are not all alike.
        DiskFullError: if the cache has no room.
    """
    key = f"{_FORMAT}/{tree.marks}/{size}/{is_enlarged}"
    folder = Path(cache_dir or FOLDER).expanduser()
    home = folder / f"{tree.path.name.split('.')[0]}-{size or 'whole'}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
    if not (home / "facts.json").is_file():
        with disk_errors(folder, then="or give env.cache_dir="):
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive(folder / ".lock"):
                if not (home / "facts.json").is_file():
                    _fill(home, tree, size=size, is_enlarged=is_enlarged, share=max_bad_share, workers=workers)
    facts = json.loads((home / "facts.json").read_text())
    _check_bad(facts["bad"], facts["files"], max_bad_share, tree)
    with np.load(home / "index.npz", allow_pickle=False) as index:
        columns = {name: index[name] for name in ("rank", "labels", "parts", "groups")}
    order = np.argsort(columns.pop("rank"), kind="stable")
    pixels = np.memmap(home / "pixels.bin", np.uint8, "c", shape=(len(order), *facts["shape"]))
    ordered = {name: column[order] for name, column in columns.items()}
    return Decoded(
        pixels, order, **ordered, classes=tuple(facts["classes"]), layout=facts["layout"], notes=tuple(facts["notes"])
    )


def from_arrays(pictures: Pictures, size: int | None) -> Decoded:
    """The pictures of a named set, which need no cache."""
    rows = [pixels for _, pixels in _array_rows(pictures, size)]
    parts = np.asarray([PARTS.index(part) for part in pictures.parts])
    return Decoded(
        np.stack(rows), np.arange(len(rows)), pictures.labels, parts, _groups(pictures), pictures.classes,
        pictures.layout, pictures.notes,
    )  # fmt: skip


def _fill(home: Path, tree: Tree, *, size: int | None, is_enlarged: bool, share: float, workers: int | None) -> None:
    pictures = find_layout(tree).read(tree)
    print(f"decoding {len(pictures.parts):,} pictures of {tree.path} to {home}", file=sys.stderr)

    def one(data: bytes) -> np.ndarray:
        return decode(data, size, is_enlarged=is_enlarged)

    if pictures.arrays:
        rows = _array_rows(pictures, size, is_enlarged=is_enlarged)
    else:
        number = {name: index for index, name in enumerate(pictures.files)}
        rows = ((number[name], found) for name, found in decode_files(tree, pictures.files, one, workers=workers))
    unfinished = home.with_name(f".{home.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
        rank, shape, bad = _write(unfinished / "pixels.bin", rows, pictures, tree)
        _check_bad(bad, len(pictures.parts), share, tree)
        chosen = np.asarray(rank)
        parts = np.asarray([PARTS.index(part) for part in pictures.parts])
        index = {"rank": chosen, "labels": pictures.labels[chosen], "parts": parts[chosen]}
        np.savez(unfinished / "index.npz", **index, groups=_groups(pictures)[chosen])
        facts = {
            "from": str(tree.path.resolve()),
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "with": versions() | {"pillow": Image.__version__},
            "size": size,
            "files": len(pictures.parts),
            "shape": list(shape),
            "layout": pictures.layout,
            "classes": list(pictures.classes),
            "bad": bad,
            "notes": [*pictures.notes, *_named(bad, len(pictures.parts))],
        }
        for note in facts["notes"]:
            print(note, file=sys.stderr)
        atomic_write_json(unfinished / "facts.json", facts)
        shutil.rmtree(home, ignore_errors=True)
        os.replace(unfinished, home)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(
    path: Path, rows: Iterator[Row], pictures: Pictures, tree: Tree
) -> tuple[list[int], tuple[int, ...], list[list[str]]]:
    """Write pixels as they come: the numbers of the pictures written, the shape of each, and what was left out."""
    rank: list[int] = []
    bad: list[list[str]] = []
    shape: tuple[int, ...] | None = None
    with open(path, "wb") as file:
        for number, found in rows:
            if isinstance(found, Unreadable):
                bad.append([pictures.files[number], str(found)])
                continue
            if shape is not None and found.shape != shape:
                sizes = " and ".join(f"{s[2]} x {s[1]}" for s in (shape, found.shape))
                raise ValueError(f"{tree.path}: pictures of {sizes} pixels cannot be kept as they are; give env.size=")
            shape = found.shape
            rank.append(number)
            file.write(found.tobytes())
    if shape is None:
        raise ValueError(f"{tree.path}: not one of {len(bad)} files is a readable picture: {' '.join(bad[0])}")
    return rank, shape, bad


def decode_files(
    tree: Tree, names: Sequence[str], one: Callable[[bytes], T], *, workers: int | None
) -> Iterator[tuple[str, T | Unreadable]]:
    """``one`` of the content of each file, in threads; at most a few batches of files are in memory."""

    def attempt(files: list[tuple[str, bytes]]) -> list[tuple[str, T | Unreadable]]:
        results: list[tuple[str, T | Unreadable]] = []
        for name, data in files:
            try:
                results.append((name, one(data)))
            except Unreadable as error:
                results.append((name, error))
        return results

    num, contents = num_workers(workers), tree.contents(names)
    waiting: deque[Future[list[tuple[str, T | Unreadable]]]] = deque()
    with ThreadPoolExecutor(num) as pool:
        while batch := list(islice(contents, _BATCH)):
            waiting.append(pool.submit(attempt, batch))
            if len(waiting) > 2 * num:
                yield from waiting.popleft().result()
        for job in waiting:
            yield from job.result()


def _array_rows(pictures: Pictures, size: int | None, *, is_enlarged: bool = True) -> Iterator[tuple[int, np.ndarray]]:
    number = 0
    for array in pictures.arrays:
        if size is not None and min(array.shape[2:]) < size and not is_enlarged:
            raise ValueError(f"pictures of {pictures.layout} are smaller than env.size={size}: env.is_enlarged=true")
        is_kept = size is None or array.shape[2:] == (size, size)
        for picture in array:
            kept = np.ascontiguousarray(picture)
            yield number, kept if is_kept else fit(Image.fromarray(kept.transpose(1, 2, 0)), size)
            number += 1


def _groups(pictures: Pictures) -> np.ndarray:
    return np.full(len(pictures.parts), UNKNOWN) if pictures.groups is None else pictures.groups


def _named(bad: Sequence[Sequence[str]], num: int) -> list[str]:
    if not bad:
        return []
    first = "; ".join(" ".join(entry) for entry in bad[:3])
    return [f"{len(bad)} of {num} files are left out: {first}{'; ...' if len(bad) > 3 else ''}"]


def _check_bad(bad: Sequence[Any], num: int, share: float, tree: Tree) -> None:
    if len(bad) > share * num:
        raise ValueError(
            f"{tree.path}: {_named(bad, num)[0]}. That is more than env.max_bad_share={share:g} of them: mend or "
            "remove them, or raise it"
        )
