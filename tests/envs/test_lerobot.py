"""LeRobot's folders: what is missing or unknown is named, videos and pictures are read where they are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.recorded import RecordedDemonstrations
from tests.demonstration_folders import LENGTHS, given, number_of, pq, write_lerobot
from tests.picture_files import encoded, random_picture
from tests.video_files import level, write_video


def _changed_info(path: Path, **changes: Any) -> None:
    info = json.loads((path / "meta/info.json").read_text())
    (path / "meta/info.json").write_text(json.dumps(info | changes))


def test_versions_of_lerobot_that_are_not_known_are_refused(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "data", given())
    _changed_info(path, codebase_version="v4.0")
    with pytest.raises(ValueError, match=r"meta/info.json: codebase_version v4.0 is not known; v2.0, v2.1, v3.0 are"):
        RecordedDemonstrations(path=path)
    (path / "meta/info.json").write_text("{")
    with pytest.raises(ValueError, match=r"meta/info.json is damaged"):
        RecordedDemonstrations(path=path)


@pytest.mark.parametrize(("version", "file"), [("v2.1", "chunk-001/episode_000006"), ("v3.0", "chunk-000/file-001")])
def test_missing_and_cut_files_of_lerobot_are_named(version: str, file: str, tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "data", given(), version=version)
    data = path / f"data/{file}.parquet"
    table = pq.read_table(data)
    pq.write_table(table.slice(1), data)
    with pytest.raises(ValueError, match=rf"{file}.parquet: episode \d+ has \d rows, frames 0 to \d are needed"):
        RecordedDemonstrations(path=path)
    pq.write_table(table.drop_columns("action"), data)
    with pytest.raises(ValueError, match=rf"{file}.parquet: there is no action; it has observation.state"):
        RecordedDemonstrations(path=path)
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{file}.parquet is no readable Parquet file"):
        RecordedDemonstrations(path=path)
    data.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file}.parquet is missing"):
        RecordedDemonstrations(path=path)


def test_templates_and_tasks_of_lerobot_must_fit(tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "data", given(), tasks=["a", "b"])
    (path / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "a"}')
    with pytest.raises(ValueError, match=r"episode 1: task 1 is not among those of"):
        RecordedDemonstrations(path=path)
    _changed_info(path, data_path="data/{nobody}.parquet")
    with pytest.raises(ValueError, match=r"info.json: data_path cannot be filled in: KeyError\('nobody'\)"):
        RecordedDemonstrations(path=path)
    (path / "meta/tasks.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"tasks.jsonl is missing"):
        RecordedDemonstrations(path=path)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_videos_of_lerobot_are_read_if_asked_for(version: str, tmp_path: Path) -> None:
    path = write_lerobot(tmp_path / "data", given(), version=version, cameras={"top": "video"})
    with pytest.raises(ValueError, match=r"videos/.*top.*\.mp4 is not there"):
        RecordedDemonstrations(path=path, cameras=["top"])
    assert RecordedDemonstrations(path=path).num_demonstrations == 10, "they are not needed"
    if version == "v3.0":  # one video for five episodes, one for six
        for index, num in enumerate((sum(LENGTHS[:5]), sum(LENGTHS[5:]))):
            write_video(path / f"videos/top/chunk-000/file-{index:03d}.mp4", num=num)
        starts = [sum(LENGTHS[:i]) if i < 5 else sum(LENGTHS[5:i]) for i in range(11)]
    else:
        for i, num in enumerate(LENGTHS):
            write_video(path / f"videos/chunk-{i // 4:03d}/top/episode_{i:06d}.mp4", num=num)
        starts = [0] * 11
    source = RecordedDemonstrations(path=path, cameras=["top"], size=16)
    assert source.spec["observation", "pixels"].shape == (3, 16, 16)
    for one in source.read("train"):
        start = starts[number_of(one.name)]
        wanted = [level(start + i) for i in range(len(one.action))]
        np.testing.assert_allclose(one.observation["pixels"].mean((1, 2, 3)), wanted, atol=2)
    file = next((path / "videos").rglob("*.mp4"))
    write_video(file, num=1)
    with pytest.raises(ValueError, match=rf"{file.name} ends after 1 frames; \d from number 0 on are needed"):
        RecordedDemonstrations(path=path.rename(tmp_path / "moved"), cameras=["top"], size=16)


def test_pictures_in_tables_are_decoded(tmp_path: Path) -> None:
    seeds = {(i, t): random_picture(100 * i + t) for i, num in enumerate(LENGTHS) for t in range(num)}
    path = write_lerobot(
        tmp_path / "data", given(), cameras={"eye": "image"}, pictures=lambda i, t: encoded(seeds[i, t], "PNG")
    )
    for one in RecordedDemonstrations(path=path, cameras=["eye"], size=8).read("train"):
        number = number_of(one.name)
        wanted = np.stack([seeds[number, t].transpose(2, 0, 1) for t in range(len(one.action))])
        np.testing.assert_array_equal(one.observation["pixels"], wanted)
