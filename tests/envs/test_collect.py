"""Collecting data: the published layout, the same file from any number of workers, and nothing half done on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import collect as module
from envs.behavior import make_behavior, seed_episode
from envs.collect import collect
from envs.ogbench_names import DATASETS, find_dataset
from worldmodels.files import DiskFullError

MAZE = "pointmaze-medium-stitch-v0"  # as the fixture ``maze``


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def test_layout_is_the_published_one(maze: Path) -> None:
    from ogbench.utils import load_dataset

    raw = _load(maze)
    assert {key: value.dtype.name for key, value in raw.items()} == {
        "observations": "float32",
        "actions": "float32",
        "terminals": "bool",
        "qpos": "float32",
        "qvel": "float32",
    }
    regular = load_dataset(str(maze), add_info=True)
    assert len(regular["observations"]) == 10_050
    assert len(load_dataset(str(maze.with_name(f"{MAZE}-val.npz")))["actions"]) == 1_005
    ends = np.flatnonzero(raw["terminals"])
    assert ends[0] == 200  # 200 transitions are 201 rows
    assert ends[-1] == len(raw["terminals"]) - 1
    np.testing.assert_array_equal(raw["observations"], raw["qpos"])
    steps = np.linalg.norm(regular["next_observations"] - regular["observations"], axis=-1)
    assert steps.max() < 0.5, "a point walks at most 0.2 m a step, so no pair may come from two trajectories"


def test_walks_are_as_published(maze: Path) -> None:
    """Four cells of 4 m to the goal, at 0.2 m a step: most trajectories end near their goal, far from the start."""
    raw = _load(maze)
    ends = np.flatnonzero(raw["terminals"])[:50]
    starts = np.concatenate([[0], ends[:-1] + 1])
    travelled = np.abs(raw["qpos"][ends] - raw["qpos"][starts]).sum(-1)
    assert 8 < np.median(travelled) < 20
    assert np.abs(raw["actions"]).max() == 1
    assert 0.3 < raw["actions"].std() < 0.9


def test_any_number_of_workers_gives_the_same_file(maze: Path, tmp_path: Path) -> None:
    again = collect(MAZE, data_dir=tmp_path, transitions=10_050, workers=2, progress=False)
    for name in (again.name, f"{MAZE}-val.npz"):
        assert again.with_name(name).read_bytes()[:-2000] == maze.with_name(name).read_bytes()[:-2000]
    ours, theirs = _load(again), _load(maze)
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


def test_provenance_tells_how_it_was_made(maze: Path) -> None:
    note = json.loads(maze.with_name(f"{MAZE}.provenance.json").read_text())
    assert note["settings"] == {"dataset": MAZE, "transitions": 10_050, "val_transitions": 1_005, "seed": 0}
    assert note["counts"] == {
        "train": {"trajectories": 51, "rows": 10_101},
        "val": {"trajectories": 6, "rows": 1_011},
    }
    assert note["versions"]["ogbench"]
    assert not list(maze.parent.glob(".*.parts-*")), "parts are removed at the end"


def test_finished_data_is_kept_and_other_settings_are_refused(maze: Path) -> None:
    before = maze.stat().st_mtime_ns
    assert collect(MAZE, data_dir=maze.parent, transitions=10_050, workers=1, progress=False) == maze
    assert maze.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="exists with transitions=10050"):
        collect(MAZE, data_dir=maze.parent, transitions=400, workers=1, progress=False)


def test_foreign_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / f"{MAZE}.npz").write_bytes(b"mine")
    with pytest.raises(ValueError, match="was not collected here"):
        collect(MAZE, data_dir=tmp_path, transitions=400, workers=1, progress=False)
    assert (tmp_path / f"{MAZE}.npz").read_bytes() == b"mine"


def _start(root: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "envs.collect", f"dataset={MAZE}", "transitions=10_050", "workers=1"]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": root, "text": True}
    # A shell makes what it starts with "&" deaf to Ctrl-C, and so would be these tests and their children.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([*command, f"data_dir={folder}"], **options)


def _wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.005)


def test_goes_on_after_a_kill(maze: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = _start(root, tmp_path)
    _wait_for(tmp_path, ".*.parts-*/train-*.npz")
    process.kill()
    process.communicate(timeout=60)
    assert not list(tmp_path.glob("*.npz")), "no file under its final name before the end"
    kept = {path.name for path in tmp_path.glob(".*.parts-*/*.npz")}
    (tmp_path / f".{MAZE}.npz.1.tmp").touch()  # what a kill while joining leaves
    made: list[str] = []
    run = module._run

    def recorded(facts: object, plan: object, missing: list, *rest: object, **options: object) -> None:
        made.extend(part.file_name for part in missing)
        run(facts, plan, missing, *rest, **options)

    monkeypatch.setattr(module, "_run", recorded)
    again = collect(MAZE, data_dir=tmp_path, transitions=10_050, workers=1, progress=False)
    assert kept
    assert not kept & set(made), "finished parts are not made twice"
    ours, theirs = _load(again), _load(maze)
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    assert not list(tmp_path.glob(".*.tmp"))


def test_ctrl_c_ends_it_cleanly(tmp_path: Path, root: Path) -> None:
    process = _start(root, tmp_path)
    _wait_for(tmp_path, ".*.parts-*")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().endswith("stopped; the same command goes on from here")
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("pointmaze-teleport-navigate-v0", (2, 2, 2, None)),
        ("scene-noisy-v0", (40, 5, 25, 2)),
        ("puzzle-3x3-noisy-v0", (55, 5, 23, 9)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_an_episode_depends_on_its_seed_only(name: str, dims: tuple) -> None:
    """Whatever the worker did before: a fresh environment gives the same trajectory as a used one."""
    behavior = make_behavior(find_dataset(name))
    trajectories = []
    for index in (1, 0, 1):
        first = seed_episode(behavior.env, name, seed=3, split="train", index=index)
        trajectories.append(behavior.episode(25, seed=first))
    last = trajectories[2]
    assert all(np.array_equal(trajectories[0][key], last[key]) for key in last)
    assert not np.array_equal(trajectories[1]["qpos"], last["qpos"])
    keys = ("observations", "actions", "qpos", "button_states")
    shapes = tuple(last[key].shape[1] if key in last else None for key in keys)
    assert shapes == dims
    assert np.ptp(last["actions"]) > 0.1


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_stored_physics_gives_the_stored_observations() -> None:
    """Row t's qpos belongs to row t's observation; off by one would train quietly."""
    behavior = make_behavior(find_dataset("cube-double-play-v0"))
    arrays = behavior.episode(20, seed=seed_episode(behavior.env, "x", seed=0, split="train", index=0))
    assert arrays["observations"].shape == (21, 37)
    second = (arrays["qpos"][:, 21:24] - [0.425, 0, 0]) * 10  # how the environment scales positions
    np.testing.assert_allclose(arrays["observations"][:, 28:31], second, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "cube-singel-play-v0"}, "did you mean cube-single-play-v0"),
        (
            {"dataset": "antmaze-large-navigate-v0"},
            "antmaze-large-navigate-v0.npz and antmaze-large-navigate-v0-val.npz",
        ),
        ({"dataset": "powderworld-easy-play-v0"}, "discrete actions"),
        ({"dataset": MAZE, "transitions": 0}, "transitions=0"),
        ({"dataset": MAZE, "workers": 0}, "workers=0"),
        ({"dataset": MAZE, "seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        collect(**{"data_dir": tmp_path / "new", "workers": 1, "progress": False, **arguments})
    assert not (tmp_path / "new" / f"{arguments['dataset']}.npz").exists()


def test_command_line_errors_are_one_line(root: Path, tmp_path: Path) -> None:
    for argument, message in (
        ("datset=x", "datset"),
        ("seed=1", "dataset"),
        ("dataset=antmaze-tiny-v0", "unknown data set"),
    ):
        command = [sys.executable, "-m", "envs.collect", argument, f"data_dir={tmp_path}"]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
        assert result.returncode == 1
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_join", full)
    with pytest.raises(DiskFullError, match="finished parts are kept"):
        collect(MAZE, data_dir=tmp_path, transitions=200, val_transitions=50, workers=1, progress=False)
    assert not list(tmp_path.glob("*.npz"))
    assert list(tmp_path.glob(".*.parts-*/*.npz"))


def test_published_sizes() -> None:
    assert DATASETS["pointmaze-giant-navigate-v0"].transitions == 1_000_000
    assert DATASETS["antmaze-medium-explore-v0"].transitions == 5_000_000
    assert DATASETS["pointmaze-medium-navigate-v0"].env_id == "pointmaze-medium-v0"
    assert DATASETS["visual-cube-single-play-v0"].task_id(2) == "visual-cube-single-singletask-task2-v0"
