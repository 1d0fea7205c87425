"""LeRobot's folders, versions 2.0, 2.1 (a file an episode) and 3.0 (many in a file); the package is not needed.

::

    meta/info.json        codebase_version, fps, features {name: {dtype, shape}}, templates data_path and video_path
    v2: meta/episodes.jsonl, meta/tasks.jsonl                v3: meta/episodes/**/*.parquet, meta/tasks.parquet
    data/**/*.parquet     episode_index, frame_index, task_index, action, observation.state, ...
    videos/**/*.mp4       one a camera and episode, or, in v3, many episodes in one file

Rows belong to an episode by "episode_index" and are ordered by "frame_index": neither the global index nor the place
in a file counts, since filtered data keep the old numbers. Needs pyarrow: pip install 'worldmodels[imitation]'.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.demonstration_files.recording import Camera, Recording

EPISODE, FRAME, TASK = "episode_index", "frame_index", "task_index"
_INFO = "meta/info.json"


class Episode(NamedTuple):
    """Where an episode is kept."""

    number: int
    length: int
    file: Path
    videos: Mapping[str, tuple[Path, float]]
    """Of each camera: the file, and the second in it at which the episode begins."""


class Folder(NamedTuple):
    """A data set, and what its info says."""

    root: Path
    info: Mapping[str, Any]

    def place(self, template: str, **numbers: Any) -> Path:
        """The file that a template of the info names."""
        try:
            return self.root / self.info[template].format(**numbers)
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(f"{self.root / _INFO}: {template} cannot be filled in: {error!r}") from error

    def features(self, *kinds: str) -> list[str]:
        """Names of the features whose types begin so."""
        return [name for name, facts in self.info["features"].items() if facts["dtype"].startswith(kinds)]


Version = tuple[Callable[[Folder], Iterator[Episode]], Callable[[Path], dict[int, str]]]


def detect(path: Path) -> bool:
    """Whether there is an info."""
    return (path / _INFO).is_file()


def read(path: Path) -> Iterator[Recording]:
    """Episodes in order.

    Raises:
        ImportError: if pyarrow is not installed.
        FileNotFoundError: if a file is missing.
        ValueError: for a version that is not known, damaged files, and episodes of which rows are missing.
    """
    folder, (find_episodes, find_tasks) = _opened(path)
    tasks = find_tasks(path)
    numbers = {*folder.features("float", "int", "uint", "bool")}
    for file, episodes in itertools.groupby(find_episodes(folder), key=lambda episode: episode.file):
        table = _table(file, numbers.__contains__)
        if missing := [name for name in (EPISODE, FRAME, "action") if name not in table.column_names]:
            raise ValueError(f"{file}: there is no {missing[0]}; it has {', '.join(table.column_names)}")
        columns = {name: _numbers(table[name], f"{file}: {name}") for name in table.column_names}
        for episode in episodes:
            yield _recording(folder, episode, columns, tasks)


def _opened(path: Path) -> tuple[Folder, Version]:
    try:
        info = json.loads((path / _INFO).read_text())
        version, _ = str(info["codebase_version"]), info["features"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path / _INFO} is damaged: {error!r}") from error
    if version not in _VERSIONS:
        raise ValueError(
            f"{path / _INFO}: codebase_version {version} is not known; {', '.join(_VERSIONS)} are. Convert the data "
            "with LeRobot, or bring another format"
        )
    return Folder(path, info), _VERSIONS[version]


def _recording(
    folder: Folder, episode: Episode, whole: Mapping[str, np.ndarray], tasks: Mapping[int, str]
) -> Recording:
    rows = np.flatnonzero(whole[EPISODE] == episode.number)
    rows = rows[np.argsort(whole[FRAME][rows], kind="stable")]
    where = f"{episode.file}: episode {episode.number}"
    if not np.array_equal(whole[FRAME][rows], np.arange(episode.length)):
        raise ValueError(f"{where} has {len(rows)} rows, frames 0 to {episode.length - 1} are needed, each once")
    columns = {name: column[rows] for name, column in whole.items()}
    action = columns.pop("action")
    numbers = columns.get(TASK, np.zeros(len(rows), np.int64))
    try:
        names = np.array([tasks[int(number)] for number in numbers]) if tasks else folder.root.name
    except KeyError as error:
        raise ValueError(f"{where}: task {error} is not among those of {folder.root / 'meta'}") from error
    cameras: dict[str, Camera] = {
        name: functools.partial(_embedded, episode.file, name, rows, folder.root) for name in folder.features("image")
    }
    for name, (video, start) in episode.videos.items():
        cameras[name] = functools.partial(_filmed, video, start, len(rows), folder.info["fps"])
    return Recording(where, columns, action[:, None] if action.ndim == 1 else action, names, cameras)


# --- versions -----------------------------------------------------------------------------------------------------
def _episodes_2(folder: Folder) -> Iterator[Episode]:
    cameras, chunk = folder.features("video"), folder.info.get("chunks_size", 1000)
    for row in _lines(folder.root / "meta/episodes.jsonl"):
        number = row[EPISODE]
        place = {"episode_chunk": number // chunk, EPISODE: number}
        videos = {name: (folder.place("video_path", video_key=name, **place), 0.0) for name in cameras}
        yield Episode(number, row["length"], folder.place("data_path", **place), videos)


def _episodes_3(folder: Folder) -> Iterator[Episode]:
    cameras = folder.features("video")
    files = sorted((folder.root / "meta/episodes").rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder.root / 'meta/episodes'}: there is no parquet file that lists episodes")
    for row in itertools.chain.from_iterable(_table(file, _is_place).to_pylist() for file in files):
        numbers = {key: row[f"data/{key}"] for key in ("chunk_index", "file_index")}
        videos = {}
        for name in cameras:
            place = {key: row[f"videos/{name}/{key}"] for key in numbers}
            start = row[f"videos/{name}/from_timestamp"]
            videos[name] = (folder.place("video_path", video_key=name, **place), float(start))
        yield Episode(row[EPISODE], row["length"], folder.place("data_path", **numbers), videos)


def _is_place(name: str) -> bool:
    return not name.startswith("stats/")


def _tasks_2(root: Path) -> dict[int, str]:
    return {row[TASK]: row["task"] for row in _lines(root / "meta/tasks.jsonl")}


def _tasks_3(root: Path) -> dict[int, str]:
    """Texts may be the index of the data frame that was written; pandas' name for that column does not matter."""
    table = _table(root / "meta/tasks.parquet")
    text = "task" if "task" in table.column_names else next((n for n in table.column_names if n != TASK), TASK)
    return dict(zip(table[TASK].to_pylist(), map(str, table[text].to_pylist()), strict=True))


_VERSIONS: dict[str, Version] = {
    "v2.0": (_episodes_2, _tasks_2),
    "v2.1": (_episodes_2, _tasks_2),
    "v3.0": (_episodes_3, _tasks_3),
}


# --- files --------------------------------------------------------------------------------------------------------
def _lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no readable JSON: {error}") from error


def _table(path: Path, is_wanted: Callable[[str], bool] = bool) -> Any:
    """The columns of a Parquet file whose names are wanted."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow: pip install 'worldmodels[imitation]'") from error
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        file = pq.ParquetFile(path)
        return file.read([name for name in file.schema_arrow.names if is_wanted(name)])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error


def _numbers(column: Any, where: str) -> np.ndarray:
    """A column of numbers [N], or of lists of equally many, also of lists of lists: [N, D]."""
    import pyarrow.compute as pc

    values, num, is_list = column.combine_chunks(), len(column), False
    while values.type.num_fields == 1:  # lists of either kind
        if values.null_count or len(pc.unique(pc.list_value_length(values))) > 1:
            raise ValueError(f"{where} has rows of several lengths; all need the same")
        values, is_list = values.flatten(), True
    if values.null_count:
        raise ValueError(f"{where} has {values.null_count} empty entries")
    found = values.to_numpy(zero_copy_only=False)
    return found.reshape(num, len(found) // max(num, 1)) if is_list else found


def _embedded(file: Path, name: str, rows: np.ndarray, root: Path, size: int) -> np.ndarray:
    """Pictures that are bytes in the table, or files beside it: uint8 [T, 3, S, S]."""
    from envs.image_files import Unreadable, decode

    found = []
    for row, entry in zip(rows, _entries(file, name).take(rows).to_pylist(), strict=True):
        try:
            found.append(decode(entry["bytes"] or (root / entry["path"]).read_bytes(), size))
        except (Unreadable, OSError) as error:
            raise ValueError(f"{file}: {name}, row {row}: {error}") from error
    return np.stack(found)


@functools.lru_cache(maxsize=1)
def _entries(file: Path, name: str) -> Any:
    return _table(file, name.__eq__)[name]


def _filmed(path: Path, start: float, num: int, fps: int | float, size: int) -> np.ndarray:
    """``num`` frames of a video from second ``start`` on: uint8 [T, 3, S, S]."""
    from envs.image_files import Unreadable
    from envs.video_files import Place, read_rows

    try:
        place, facts = Place(str(path)), _examined(path, fps)
        first = round(start * fps)
        if first + num > facts.rows:
            raise Unreadable(f"ends after {facts.rows} frames; {num} from number {first} on are needed")
        return read_rows(place, facts, first, num, frame_rate=fps, size=(size, size))
    except Unreadable as error:
        raise ValueError(f"{path} {error}") from error


@functools.lru_cache
def _examined(path: Path, fps: int | float) -> Any:
    from envs.video_files import Place, examine

    return examine(Place(str(path)), fps)
