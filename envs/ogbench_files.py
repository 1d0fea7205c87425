"""Finding, fetching and checking OGBench's npz files. Arrays are read in blocks, so no file must fit in memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from envs.collect import collect, default_data_dir, needs_expert
from envs.ogbench_names import Dataset
from envs.parallel import exclusive

PHYSICS_KEYS = ("qpos", "qvel", "button_states")
_PROBE_SECONDS = 5  # how long to wait for the download server before doing without it
_BLOCK_BYTES = 32 * 2**20
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, UnicodeDecodeError)


class DataFile:
    """One npz file in the published layout, checked when it is opened and as it is read.

    Also accepts the compact layout of ``ogbench.utils.load_dataset``, whose "terminals" mark two rows and whose
    "valids" say which rows are not the last of a trajectory.

    Args:
        path: the file.
        facts: what it should hold.
        max_episodes: keep only this many trajectories, from the start.

    Raises:
        ValueError: damaged, a missing key, a wrong shape or type, no final terminal: one line that names them.
    """

    def __init__(self, path: Path, facts: Dataset, *, max_episodes: int | None = None) -> None:
        self.path, self.facts = path, facts
        self._shapes, self._types = self._headers()
        self._check_shapes()
        self.num_rows = self._shapes["terminals"][0]
        ends = self._ends()
        if max_episodes is not None:
            if max_episodes < 1:
                raise ValueError(f"max_episodes={max_episodes}: at least one trajectory is needed")
            last = np.flatnonzero(ends)[:max_episodes][-1]
            self.num_rows, ends = int(last) + 1, ends[: last + 1]
        self.ends: np.ndarray = ends
        """bool [N], true on the last row of each trajectory."""

    @property
    def physics_keys(self) -> tuple[str, ...]:
        """Entries of the simulator's state that this file has."""
        return tuple(key for key in PHYSICS_KEYS if key in self._shapes)

    def blocks(self, key: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Read one array in order, as (rows, values); numbers are checked to be finite."""
        shape, kind = self._shapes[key], self._types[key]
        row_bytes = max(1, int(np.prod(shape[1:])) * kind.itemsize)
        size = max(1, _BLOCK_BYTES // row_bytes)
        with self._reading(key), zipfile.ZipFile(self.path) as archive, archive.open(f"{key}.npy") as file:
            _header(file)
            for start in range(0, self.num_rows, size):
                count = min(size, self.num_rows - start)
                data = file.read(count * row_bytes)
                if len(data) < count * row_bytes:
                    raise EOFError(f"{key} ends after {start + len(data) // row_bytes} of {shape[0]} rows")
                values = np.frombuffer(bytearray(data), kind).reshape(count, *shape[1:])
                self._check_finite(key, values, start)
                yield slice(start, start + count), values

    def column(self, key: str) -> np.ndarray:
        """Read one whole array."""
        out = np.empty((self.num_rows, *self._shapes[key][1:]), self._types[key])
        for rows, values in self.blocks(key):
            out[rows] = values
        return out

    def provenance(self) -> dict[str, Any] | None:
        """How the file was made, if it was collected locally."""
        note = self.path.with_name(f"{self.facts.name}.provenance.json")
        return json.loads(note.read_text()) if note.exists() else None

    def _headers(self) -> tuple[dict[str, tuple[int, ...]], dict[str, np.dtype]]:
        shapes, types = {}, {}
        with self._reading("its table of contents"), zipfile.ZipFile(self.path) as archive:
            for name in archive.namelist():
                key = name.removesuffix(".npy")
                if key not in ("observations", "actions", "terminals", "valids", "next_observations", *PHYSICS_KEYS):
                    continue
                with archive.open(name) as file:
                    shapes[key], is_fortran, types[key] = _header(file)
                if types[key].hasobject or (is_fortran and len(shapes[key]) > 1):
                    raise self._wrong(f"{key} is not a plain array in C order")
        return shapes, types

    def _check_shapes(self) -> None:
        for key in ("observations", "actions", "terminals"):
            if key not in self._shapes:
                raise self._wrong(f"{key} is missing; it has {', '.join(sorted(self._shapes)) or 'nothing of OGBench'}")
        if "next_observations" in self._shapes:
            raise self._wrong("next_observations is a key of the expanded layout; give the file as it was downloaded")
        num = self._shapes["terminals"][0] if self._shapes["terminals"] else 0
        wanted: dict[str, tuple[int, ...]] = {
            "observations": (num, *self.facts.observation_shape),
            "actions": (num, self.facts.action_dim),
            "terminals": (num,),
        }
        for key, shape in self._shapes.items():
            if shape != wanted.get(key, shape) or shape[:1] != (num,):
                need = wanted.get(key, (num, "..."))
                raise self._wrong(f"{key} has shape {_show(shape)}, but {self.facts.name} needs {_show(need)}")
        if self.facts.is_visual and self._types["observations"] != np.uint8:
            raise self._wrong(f"observations are {self._types['observations']}, but pictures are uint8")
        if num < 2:
            raise self._wrong(f"{num} rows are no trajectory")

    def _ends(self) -> np.ndarray:
        key = "valids" if "valids" in self._shapes else "terminals"
        marks = self.column(key) != 0
        ends = ~marks if key == "valids" else marks
        if not ends[-1]:
            raise self._wrong(f"{key} does not end the last trajectory: row {len(ends) - 1} is {int(marks[-1])}")
        return ends

    def _check_finite(self, key: str, values: np.ndarray, start: int) -> None:
        if not np.issubdtype(values.dtype, np.floating):
            return
        good = np.isfinite(values).reshape(len(values), -1).all(-1)
        if not good.all():
            row = start + int(np.flatnonzero(~good)[0])
            raise self._wrong(f"{key} is not finite in row {row}: {values[row - start].tolist()}")

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            raise ValueError(
                f"{self.path}: cannot read {key}, the file is damaged ({error}); delete it, then it is fetched again"
            ) from error

    def _wrong(self, message: str) -> ValueError:
        return ValueError(f"{self.path}: {message}")


def find(
    facts: Dataset,
    data_dir: str | os.PathLike[str] | None,
    *,
    is_downloaded: bool = True,
    is_collected: bool = True,
    transitions: int | None = None,
    workers: int | None = None,
    seed: int | None = None,
) -> Path:
    """Path of the training file: found, else downloaded, else collected on this machine.

    Args:
        facts: the data set.
        data_dir: looked into first, then $OGBENCH_DATA_DIR, then ~/.ogbench/data. New files go to the first of these.
        is_downloaded, is_collected: which of the two may be tried.
        transitions: an exact size; files of another size are passed over and nothing is downloaded.
        workers, seed: for collecting. A seed is also demanded of files that were collected.

    Raises:
        ValueError: if there is no way to get it; says which files to put where.
    """
    folders = [default_data_dir(), Path("~/.ogbench/data").expanduser()]
    if data_dir is not None:
        folders.insert(0, Path(data_dir).expanduser())
    for folder in folders:
        path = folder / f"{facts.name}.npz"
        if path.exists() and _is_wanted(path, facts, transitions=transitions, seed=seed):
            return path
    folder = folders[0]
    is_published = transitions is None and seed is None
    if is_downloaded and is_published and download(facts, folder):
        return folder / f"{facts.name}.npz"
    if is_collected and facts.is_collectable:
        print(f"{facts.name} is not in {folder}: collecting it on this machine", file=sys.stderr)
        return collect(
            facts.name, data_dir=folder, transitions=transitions, workers=workers, seed=0 if seed is None else seed
        )
    if not facts.is_collectable:
        raise ValueError(needs_expert(facts, folder))
    raise ValueError(
        f"{facts.name}.npz is in none of {', '.join(map(str, dict.fromkeys(folders)))}, and collecting is off; "
        f"put it there, or run python -m envs.collect dataset={facts.name}"
    )


def download(facts: Dataset, folder: Path) -> bool:
    """Download both files through ogbench; False, and nothing left on disk, where its server is out of reach."""
    from ogbench import utils

    names = (f"{facts.name}.npz", f"{facts.name}-val.npz")
    try:
        probe = urllib.request.Request(f"{utils.DATASET_URL}/{names[0]}", method="HEAD")
        with urllib.request.urlopen(probe, timeout=_PROBE_SECONDS):
            pass
    except OSError:  # no route, no such host, refused, timed out, or an HTTP error: all are OSErrors
        return False
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{facts.name}.download-{os.getpid()}"
    try:
        with exclusive(folder / f".{facts.name}.download.lock"):
            if not (folder / names[0]).exists():
                with contextlib.redirect_stdout(sys.stderr):
                    utils.download_datasets([facts.name], str(unfinished))
                for name in reversed(names):  # the training file last: where it is, both are
                    os.replace(unfinished / name, folder / name)
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        print(f"downloading {facts.name} failed: {error}", file=sys.stderr)
        return False
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def _is_wanted(path: Path, facts: Dataset, *, transitions: int | None, seed: int | None) -> bool:
    if transitions is None and seed is None:
        return True
    file = DataFile(path, facts)
    note = file.provenance()
    is_seed = seed is None or note is None or note["settings"]["seed"] == seed
    return is_seed and transitions in (None, file.num_rows - int(file.ends.sum()))


def _header(file: io.BufferedIOBase | IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        return read(file)
    except ValueError as error:  # not an array, or cut short
        raise EOFError(str(error)) from error


def _show(shape: tuple[Any, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
