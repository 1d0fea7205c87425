"""Data collected or drawn once for all tests of this folder, and small files of any published layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import object_cache, oracle_attempts, render_objects
from envs.collect import collect
from envs.ogbench_names import find_dataset

MAZE = "pointmaze-medium-stitch-v0"


@pytest.fixture(scope="session")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,050 transitions collected with one worker; the last trajectory is cut. Do not write into its folder."""
    return collect(MAZE, data_dir=tmp_path_factory.mktemp("maze"), transitions=10_050, workers=1, progress=False)


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes NAME.npz with random numbers in the published layout; keyword arguments replace or remove columns."""

    def make(name: str, *, lengths: tuple[int, ...] = (5, 4), folder: Path = tmp_path, **changes: object) -> Path:
        facts, rng, num = find_dataset(name), np.random.default_rng(0), sum(lengths)
        seen = (num, *facts.observation_shape)
        ends = np.zeros(num, bool)
        ends[np.cumsum(lengths) - 1] = True
        columns: dict[str, object] = {
            "observations": rng.integers(0, 256, seen, np.uint8)
            if facts.is_visual
            else rng.standard_normal(seen, np.float32),
            "actions": rng.uniform(-1, 1, (num, facts.action_dim)).astype(np.float32),
            "terminals": ends,
            "qpos": rng.standard_normal((num, 30), np.float32),
            "qvel": rng.standard_normal((num, 29), np.float32),
        }
        if facts.num_buttons:
            columns["button_states"] = rng.integers(0, 2, (num, facts.num_buttons))
        columns = {key: value for key, value in (columns | changes).items() if value is not None}
        path = folder / f"{name}.npz"
        np.savez_compressed(path, **columns)  # type: ignore[arg-type]
        return path

    return make


@pytest.fixture(scope="session")
def objects_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten views of four of pybullet's objects at 32 pixels, drawn by a worker. Do not write into it."""
    path, chosen = tmp_path_factory.mktemp("objects") / "drawn", render_objects.settings_of(views=10, size=32)
    render_objects.render_objects(chosen, 4, data_dir=path, workers=1, is_shown=False)
    return path


@pytest.fixture
def jobs_done(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Makers of pictures work in this process instead of several; gives their jobs."""
    done: list[tuple] = []

    def run(function, jobs, *, advance, **_) -> None:
        for position, job in enumerate(jobs):
            done.append(job)
            function(*job)
            advance(position)

    for module in (object_cache, render_objects):
        monkeypatch.setattr(module, "run_jobs", run)
    return done


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Attempts of experts are made in this process; gives the jobs."""
    done: list[tuple[Any, ...]] = []

    def run(function: Callable[..., None], jobs: list[tuple[Any, ...]], **_: Any) -> None:
        for job in jobs:
            done.append(job)
            function(*job)

    monkeypatch.setattr(oracle_attempts, "run_jobs", run)
    return done
