"""The same few demonstrations in every format that is read."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

h5py = pytest.importorskip("h5py", reason="needs h5py: pip install 'worldmodels[imitation]'")
pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'worldmodels[imitation]'")
pq = pytest.importorskip("pyarrow.parquet")

LENGTHS = (5, 3, 8, 4, 6, 7, 9, 5, 4, 6, 5)  # eleven: demo_10 comes after demo_9


class Given(NamedTuple):
    """One episode, in units of nobody's."""

    state: np.ndarray  # float64 [T, 3]
    scene: np.ndarray  # [T, 2]
    action: np.ndarray  # [T, 2], the second number never changes
    is_success: bool = True


def given(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Given]:
    """Episodes that differ in all numbers."""
    rng = np.random.default_rng(seed)
    return [
        Given(
            rng.normal(size=(num, 3)),
            rng.normal(100, 5, (num, 2)),
            np.stack([rng.uniform(0, 500, num), np.full(num, 7.0)], 1),
        )
        for num in lengths
    ]


def number_of(name: str) -> int:
    """The last number in an episode's name."""
    return int(re.findall(r"\d+", name.removesuffix(".hdf5"))[-1])


def write_robomimic(path: Path, episodes: Sequence[Given]) -> Path:
    """A file whose numbers have gaps: demo_0, demo_2, ..."""
    with h5py.File(path.with_suffix(".hdf5"), "w") as file:
        for i, one in enumerate(episodes):
            demo = file.create_group(f"data/demo_{2 * i}")
            demo["actions"], demo["obs/eef"], demo["next_obs/eef"] = one.action, one.state, one.state
            demo["obs/image"] = np.zeros((len(one.action), 4, 4, 3), np.uint8)
            demo["states"] = one.scene
            demo["dones"] = np.eye(len(one.action), dtype=np.int64)[-1] * one.is_success
    return path.with_suffix(".hdf5")


def write_aloha(path: Path, episodes: Sequence[Given], *, is_sim: bool = True) -> Path:
    """A folder of files."""
    path.mkdir()
    for i, one in enumerate(episodes):
        with h5py.File(path / f"episode_{i}.hdf5", "w") as file:
            file.attrs["sim"] = is_sim
            file["action"], file["observations/qpos"], file["observations/qvel"] = one.action, one.state, one.scene
            file["observations/images/top"] = np.full((len(one.action), 6, 8, 3), i, np.uint8)
    return path


def write_minari(path: Path, episodes: Sequence[Given]) -> Path:
    """Observations are a dictionary, one more than actions."""
    (path / "data").mkdir(parents=True)
    with h5py.File(path / "data/main_data.hdf5", "w") as file:
        for i, one in enumerate(episodes):
            episode = file.create_group(f"episode_{i}")
            episode["actions"], episode["terminations"] = one.action, np.arange(len(one.action)) == len(one.action) - 1
            episode["observations/body"] = np.concatenate([one.state, one.state[-1:]])
            episode["infos/scene"] = np.concatenate([one.scene, one.scene[-1:]])
    return path


def joined(episodes: Sequence[Given]) -> tuple[np.ndarray, ...]:
    """State, scene, action end to end, and the ends."""
    columns = (np.concatenate([getattr(one, key) for one in episodes]) for key in ("state", "scene", "action"))
    return *columns, np.cumsum([len(one.action) for one in episodes])


def write_npz(path: Path, episodes: Sequence[Given]) -> Path:
    """Flat arrays; one that has no row a step is of no use."""
    state, scene, action, ends = joined(episodes)
    np.savez(path.with_suffix(".npz"), state=state, scene=scene, action=action, episode_ends=ends, other=np.zeros(3))
    return path.with_suffix(".npz")


def write_ogbench(path: Path, episodes: Sequence[Given]) -> Path:
    """As OGBench has it."""
    state, scene, action, ends = joined(episodes)
    terminals = np.zeros(len(action))
    terminals[ends - 1] = 1
    np.savez(path.with_suffix(".npz"), observations=state, qpos=scene, actions=action, terminals=terminals)
    return path.with_suffix(".npz")


def write_zarr(path: Path, episodes: Sequence[Given]) -> Path:
    """Version 2, compressed, in chunks that are no episodes; written without the package."""
    state, scene, action, ends = joined(episodes)
    columns = {"data/state": state, "data/scene": scene, "data/action": action, "meta/episode_ends": ends}
    for name, values in columns.items():
        (path / name).mkdir(parents=True)
        for group in (path, (path / name).parent):
            (group / ".zgroup").write_text('{"zarr_format": 2}')
        described = {"zarr_format": 2, "shape": values.shape, "chunks": (4, *values.shape[1:]), "order": "C"}
        described |= {"compressor": {"id": "zlib", "level": 1}, "filters": None, "fill_value": 0}
        (path / name / ".zarray").write_text(json.dumps(described | {"dtype": values.dtype.str}))
        for i in range(0, len(values), 4):
            chunk = np.zeros((4, *values.shape[1:]), values.dtype)
            chunk[: len(values[i : i + 4])] = values[i : i + 4]
            (path / name / ".".join([str(i // 4)] + ["0"] * (values.ndim - 1))).write_bytes(
                zlib.compress(chunk.tobytes())
            )
    return path


def write_lerobot(
    path: Path,
    episodes: Sequence[Given],
    *,
    version: str = "v2.1",
    tasks: Sequence[str] = ("push",),
    cameras: Mapping[str, str] | None = None,
    pictures: Callable[[int, int], bytes] | None = None,
) -> Path:
    """A folder: episode i is of task i modulo their number. Rows are stored backwards, the global index has gaps.

    Args:
        cameras: kind, "video" or "image", of each; videos are up to the caller.
        pictures: content of an image file for an episode's number and a frame.
    """
    kinds = {"observation.state": "float64", "scene": "float32", "action": "float32", "next.success": "bool"}
    kinds |= dict.fromkeys(("episode_index", "frame_index", "task_index", "index"), "int64") | dict(cameras or {})
    is_3, chunk = version >= "v3", "chunk-{chunk_index:03d}" if version >= "v3" else "chunk-{episode_chunk:03d}"
    name = "file-{file_index:03d}" if is_3 else "episode_{episode_index:06d}"
    info: dict[str, Any] = {"codebase_version": version, "fps": 24, "chunks_size": 4}
    info["features"] = {key: {"dtype": kind} for key, kind in kinds.items()}
    info["data_path"] = f"data/{chunk}/{name}.parquet"
    info["video_path"] = (
        f"videos/{{video_key}}/{chunk}/{name}.mp4" if is_3 else f"videos/{chunk}/{{video_key}}/{name}.mp4"
    )
    (path / "meta").mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(info))
    tables = [_rows(i, one, i % len(tasks), info["features"], pictures) for i, one in enumerate(episodes)]
    (_write_3 if is_3 else _write_2)(path, info, tables, tasks)
    return path


def _rows(number: int, one: Given, task: int, features: Mapping[str, Any], pictures: Any) -> Any:
    num = len(one.action)
    columns: dict[str, Any] = {
        "observation.state": pa.array(list(one.state), pa.list_(pa.float64())),
        "scene": pa.FixedSizeListArray.from_arrays(pa.array(one.scene.astype(np.float32).ravel()), 2),
        "action": pa.array(list(one.action.astype(np.float32)), pa.list_(pa.float32())),
        "next.success": pa.array((np.arange(num) == num - 1) & one.is_success),
        "episode_index": pa.array([number] * num),
        "frame_index": pa.array(range(num)),
        "task_index": pa.array([task] * num),
        "index": pa.array(1000 * number + np.arange(num)),
    }
    for name, facts in features.items():
        if facts["dtype"] == "image":
            columns[name] = pa.array([{"bytes": pictures(number, frame), "path": "x.png"} for frame in range(num)])
    return pa.table(columns).take(np.arange(num)[::-1].copy())


def _write_2(path: Path, info: Mapping[str, Any], tables: Sequence[Any], tasks: Sequence[str]) -> None:
    texts = [{"task_index": i, "task": task} for i, task in enumerate(tasks)]
    (path / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, texts)))
    lines = [{"episode_index": i, "length": len(table)} for i, table in enumerate(tables)]
    (path / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for i, table in enumerate(tables):
        file = path / info["data_path"].format(episode_chunk=i // 4, episode_index=i)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)


def _write_3(path: Path, info: Mapping[str, Any], tables: Sequence[Any], tasks: Sequence[str]) -> None:
    """Two files of data. A video has the episodes of its file end to end."""
    pq.write_table(pa.table({"task_index": range(len(tasks)), "__index_level_0__": tasks}), path / "meta/tasks.parquet")
    half, rows = len(tables) // 2, []
    for file_index, part in enumerate((range(half), range(half, len(tables)))):
        file, start = path / info["data_path"].format(chunk_index=0, file_index=file_index), 0
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables([tables[i] for i in part]), file)
        for i in part:
            row = {"episode_index": i, "length": len(tables[i]), "stats/action/min": [0.0]}
            row |= {"data/chunk_index": 0, "data/file_index": file_index}
            for name, facts in info["features"].items():
                if facts["dtype"] == "video":
                    video = {"chunk_index": 0, "file_index": file_index, "from_timestamp": start / info["fps"]}
                    row |= {f"videos/{name}/{key}": value for key, value in video.items()}
            rows.append(row)
            start += len(tables[i])
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def write_lerobot_3(path: Path, episodes: Sequence[Given]) -> Path:
    """Version 3.0."""
    return write_lerobot(path, episodes, version="v3.0")


WRITERS: dict[str, tuple[str, Callable[..., Path], list[str]]] = {  # format, writer, columns of the scene
    "lerobot_2": ("lerobot", write_lerobot, ["scene"]),
    "lerobot_3": ("lerobot", write_lerobot_3, ["scene"]),
    "robomimic": ("robomimic", write_robomimic, ["states"]),
    "act": ("act", write_aloha, ["observations/qvel"]),
    "minari": ("minari", write_minari, ["infos/scene"]),
    "npz": ("npz", write_npz, ["scene"]),
    "ogbench": ("ogbench", write_ogbench, ["qpos"]),
    "zarr": ("zarr", write_zarr, ["scene"]),
}
