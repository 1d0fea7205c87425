"""Demonstrations that users bring: every format gives the same episodes, and files that are of no use are named."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import Generator

from envs.demonstration_files.formats import FORMATS, find_format
from envs.recorded import RecordedDemonstrations
from tests.demonstration_folders import (
    LENGTHS,
    WRITERS,
    given,
    h5py,
    number_of,
    write_aloha,
    write_lerobot,
    write_minari,
    write_npz,
    write_ogbench,
    write_robomimic,
)
from tests.picture_files import encoded, random_picture
from worldmodels import build

needs_zarr = pytest.mark.skipif(importlib.util.find_spec("zarr") is None, reason="zarr is not installed")
EVERY = [pytest.param(name, marks=needs_zarr if name == "zarr" else ()) for name in WRITERS]


def _rows(source: Any) -> Any:
    return source.store.rows(torch.arange(source.store.num_rows))


@pytest.mark.parametrize("name", EVERY)
def test_every_format_gives_the_same_episodes(name: str, tmp_path: Path) -> None:
    known, write, scene = WRITERS[name]
    path, episodes = write(tmp_path / "data", given()), given()
    assert find_format(path) == known
    source = RecordedDemonstrations(path=path, environment_state=scene, test_share=0.2)
    told = json.loads(json.dumps(source.describe()))
    assert told["format"] == known
    low, high = (np.array(told["action"][key]) for key in ("low", "high"))
    for part, num in (("train", 9), ("test", 2)):
        other = source.split(part)
        numbers = [number_of(text) // (2 if known == "robomimic" else 1) for text in told["episodes"][part]]
        assert numbers == sorted(set(numbers))
        assert len(numbers) == other.store.num_trajectories == num
        for number, rows in zip(numbers, _rows(other).split(other.store.lengths.tolist()), strict=True):
            one = episodes[number]
            np.testing.assert_allclose(rows["observation", "state"], one.state, rtol=1e-6)
            np.testing.assert_allclose(rows["observation", "environment_state"], one.scene, rtol=1e-6)
            action = low + (rows["action"].double().numpy() + 1) / 2 * (high - low)
            np.testing.assert_allclose(action, np.clip(one.action, low, high), rtol=1e-5, atol=1e-3)
            assert (rows["action"][:, 1] == 0).all(), "a number that never changes"
            assert rows["terminated"].tolist() == [False] * (len(rows) - 1) + [True]
        if part == "train":
            assert torch.stack(_rows(other)["action"][:, 0].aminmax()).tolist() == pytest.approx([-1, 1])
    assert sum(told["rows"].values()) == sum(LENGTHS)


@pytest.mark.parametrize("name", ["robomimic", "npz"])
def test_windows_longer_than_episodes_are_padded(name: str, tmp_path: Path) -> None:
    source = RecordedDemonstrations(path=WRITERS[name][1](tmp_path / "data", given()))
    batch = source.sample(200, 30, Generator().manual_seed(0))
    for key, entry in source.spec.items(True, True):
        assert batch[key].shape == (200, 30, *entry.shape)
        assert batch[key].dtype == entry.dtype
    assert batch["is_padded"][:, 9:].all()
    assert not batch["is_padded"][:, 0].any()


def test_parts_are_drawn_by_seed_and_statistics_are_of_training(tmp_path: Path) -> None:
    episodes = given()
    path = write_npz(tmp_path / "data", episodes)
    first, again, other, few = (
        RecordedDemonstrations(path=path, **options)
        for options in ({"seed": 1}, {"seed": 1}, {"seed": 2}, {"seed": 1, "demonstrations": 4})
    )
    told = [source.describe() for source in (first, again, other, few)]
    assert told[0] == told[1]
    assert told[0]["episodes"] != told[2]["episodes"]
    assert told[0]["episodes"]["test"] == told[3]["episodes"]["test"]
    assert set(told[3]["episodes"]["train"]) < set(told[0]["episodes"]["train"])
    assert len(told[3]["episodes"]["train"]) == few.num_demonstrations == 4
    actions = np.concatenate([episodes[number_of(text)].action for text in told[3]["episodes"]["train"]])
    assert told[3]["action"]["low"] == pytest.approx(actions.min(0).tolist())
    assert told[3]["action"]["high"] == pytest.approx(actions.max(0).tolist())
    for source in (first, few):
        assert _rows(source.split("test"))["action"].abs().max() <= 1
    tested = [episodes[number_of(text)] for text in told[3]["episodes"]["test"]]
    beyond = [((one.action < actions.min(0) - 1e-3) | (one.action > actions.max(0) + 1e-3)).any(1) for one in tested]
    assert told[3]["test_actions_cut_off"] == pytest.approx(np.concatenate(beyond).mean())
    states = np.concatenate([one.observation["state"] for one in first.read("train")])
    np.testing.assert_allclose(first.statistics()["mean", "state"], states.mean(0), rtol=1e-4, atol=1e-6)


def test_columns_are_chosen_by_name_or_pattern(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "data", given())
    assert RecordedDemonstrations(path=path).describe()["columns"] == {"state": {"obs/eef": 3}}, "no pictures"
    both = RecordedDemonstrations(path=path, state=["states", "obs/*"])
    assert both.describe()["columns"] == {"state": {"states": 2, "obs/eef": 3}}
    assert both.spec["observation", "state"].shape == (5,)
    with pytest.raises(ValueError, match=r"data.hdf5: demo_0: there is no obs/hand.*obs/eef \[3\].*env.state=\[...\]"):
        RecordedDemonstrations(path=path, state="obs/hand")
    with pytest.raises(ValueError, match=r"there is no obs/object.*Name some: env.environment_state="):
        RecordedDemonstrations(path=path, environment_state="obs/object")
    np.savez(tmp_path / "own.npz", position=np.zeros((9, 2)), action=np.zeros((9, 1)), episode_ends=[4, 9])
    with pytest.raises(ValueError, match=r"there is no state, .* by default; columns are position \[2\]"):
        RecordedDemonstrations(path=tmp_path / "own.npz")


def test_tasks_are_told_bynumber_of(tmp_path: Path) -> None:
    for version in ("v2.0", "v3.0"):
        path = write_lerobot(tmp_path / version, given(), version=version, tasks=["push it", "pull it"])
        source = RecordedDemonstrations(path=path)
        assert source.describe()["tasks"] == ["push it", "pull it"]
        assert source.spec["observation", "task_index"].n == 2
        for one in source.read("train"):
            assert (one.observation["task_index"] == number_of(one.name) % 2).all()
    (tmp_path / "two").mkdir()
    for name in ("open", "close"):
        write_robomimic(tmp_path / "two" / name, given(seed=len(name)))
    two = RecordedDemonstrations(path=tmp_path / "two")
    assert two.describe()["tasks"] == ["close", "open"], "a file a task"
    assert (two.num_demonstrations, two.split("test").num_demonstrations) == (20, 2)


def test_actions_of_real_robots_move_by_a_step(tmp_path: Path) -> None:
    sim, real = (
        RecordedDemonstrations(path=write_aloha(tmp_path / str(is_sim), given(), is_sim=is_sim))
        for is_sim in (True, False)
    )
    for simulated, moved in zip(sim.read("train"), real.read("train"), strict=True):
        np.testing.assert_array_equal(moved.observation["state"], simulated.observation["state"])
        assert np.argsort(moved.action[1:, 0]).tolist() == np.argsort(simulated.action[:-1, 0]).tolist()
    assert sim.describe()["tasks"] == ["True"], "a folder a task"


@pytest.mark.parametrize("name", ["lerobot", "robomimic"])
def test_failures_are_left_out_and_counted_or_teach_without_actions(name: str, tmp_path: Path) -> None:
    _, write, _ = WRITERS["lerobot_2" if name == "lerobot" else name]
    success = {"lerobot": "next.success", "robomimic": "dones"}[name]
    episodes = [one._replace(is_success=i not in (2, 5, 10)) for i, one in enumerate(given())]
    path = write(tmp_path / "data", episodes)
    source, every, both = (
        RecordedDemonstrations(path=path, test_share=0.25, **options)
        for options in ({"success": success}, {}, {"success": success, "uses_failures": True})
    )
    assert (source.num_demonstrations, source.split("test").num_demonstrations) == (6, 2)
    assert len(source.describe()["left_out"]["failed"]) == 3
    assert every.num_demonstrations == 8
    assert (both.store.num_trajectories, both.num_demonstrations) == (9, 6)
    rows = _rows(both)
    assert sorted(both.store.lengths[~rows["has_action"][both.store.ends]].tolist()) == sorted(
        LENGTHS[i] for i in (2, 5, 10)
    )
    with pytest.raises(ValueError, match=r"env.success=solved, but columns are .*"):
        RecordedDemonstrations(path=path, success="solved")
    nothing = write(tmp_path / "failed", [one._replace(is_success=False) for one in given()])
    with pytest.raises(ValueError, match=f"failed.*: no episode is left to imitate; left out: 11 failed.*{success}"):
        RecordedDemonstrations(path=nothing, success=success)
    with pytest.raises(ValueError, match="no episode is left to imitate; left out: none"):
        RecordedDemonstrations(path=nothing, success=success, uses_failures=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_named_or_left_out(value: float, tmp_path: Path) -> None:
    for key in ("action", "state"):
        episodes = given()
        getattr(episodes[4], key)[1, 0] = value
        path = write_robomimic(tmp_path / key, episodes)
        with pytest.raises(ValueError, match=rf"{key}.hdf5: demo_8: {key} is not finite in row 1"):
            RecordedDemonstrations(path=path).split("test")
        source = RecordedDemonstrations(path=path, skips_broken=True)
        assert source.describe()["left_out"]["not finite"] == [f"{path}: demo_8"]
        assert source.num_demonstrations == 9


def test_equal_episodes_are_used_once(tmp_path: Path) -> None:
    episodes = given()
    source = RecordedDemonstrations(path=write_npz(tmp_path / "data", [*episodes, episodes[3]]))
    (pair,) = source.describe()["left_out"]["equal to another"]
    assert pair.split("episode ")[1:] == [f"11 = {tmp_path / 'data.npz'}: ", "3"]


def _other_action(file: Any) -> None:
    del file["action"]
    file["action"] = np.zeros((5, 3))


def _other_key(file: Any) -> None:
    file.move("observations/qpos", "observations/joints")


def _other_length(file: Any) -> None:
    del file["observations/qpos"]
    file["observations/qpos"] = np.zeros((6, 3))


def _whole_numbers(file: Any) -> None:
    del file["action"]
    file["action"] = np.arange(5)


def _no_numbers(file: Any) -> None:
    del file["observations/qpos"]
    file["observations/qpos"] = ["text"] * 5


def _empty(file: Any) -> None:
    for name in ("action", "observations/qpos"):
        width = file[name].shape[1]
        del file[name]
        file[name] = np.zeros((0, width))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_action, r"episode_7.hdf5 has .*action \[3\] of action, but .*episode_0.hdf5 has .*action \[2\]"),
        (_other_key, r"episode_7.hdf5: there is no observations/qpos.*observations/joints \[3\]"),
        (_other_length, r"episode_7.hdf5: observations are state \[6, 3\].*needed are state \[5, 3\]"),
        (_whole_numbers, r"episode_7.hdf5: action is int64 \[5\]; vectors \[T, A\] are needed"),
        (_no_numbers, r"episode_7.hdf5: observations/qpos has values of type object, no numbers"),
        (_empty, r"episode_7.hdf5: action is \[0, 2\], needed is \[T, 2\], T at least 1"),
        (lambda file: file.__delitem__("action"), r"episode_7.hdf5: there is no action; it has observations"),
    ],
)
def test_files_that_differ_are_named(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "data", given())
    with h5py.File(path / "episode_7.hdf5", "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=message):
        RecordedDemonstrations(path=path).split("test")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "data", given())
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"data.hdf5 is no readable HDF5 file"):
        RecordedDemonstrations(path=path)
    ogbench = write_ogbench(tmp_path / "maze", given())
    columns = dict(np.load(ogbench))
    np.savez(ogbench, **(columns | {"terminals": np.roll(columns["terminals"], -1)}))
    with pytest.raises(ValueError, match=r"maze.npz: ends of episodes must rise to 62"):
        RecordedDemonstrations(path=ogbench)
    flat = write_npz(tmp_path / "flat", given())
    columns = dict(np.load(flat))
    for ends in ([5, 5, 62], [], [70]):
        np.savez(flat, **(columns | {"episode_ends": np.array(ends)}))
        with pytest.raises(ValueError, match=r"flat.npz: ends of episodes must rise to 62"):
            RecordedDemonstrations(path=flat)
    np.savez(flat, state=columns["state"], episode_ends=[62])
    with pytest.raises(ValueError, match=r"flat.npz: there is no action; it has state"):
        RecordedDemonstrations(path=flat)


def test_unknown_places_formats_and_shares_are_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "data", given())
    with pytest.raises(ValueError, match=r"env.path=null: give a file or folder of demonstrations \(lerobot, zarr"):
        RecordedDemonstrations(path=None)
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file"):
        RecordedDemonstrations(path=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"env.format=lerobt: no such format; did you mean lerobot\?"):
        RecordedDemonstrations(path=path, format="lerobt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is in none of the known formats \(lerobot: a folder with"):
        RecordedDemonstrations(path=tmp_path / "empty")
    assert set(FORMATS) == {known for known, _, _ in WRITERS.values()}
    for options in ({"test_share": 0}, {"test_share": 1.0}, {"demonstrations": 0}, {"size": 0}):
        with pytest.raises(ValueError, match=r"env.test_share=.* lies between 0 and 1"):
            RecordedDemonstrations(path=path, **options)
    with pytest.raises(ValueError, match=r"of 11 demonstrations 1 are for tests .*10 are left, env.demonstrations=11"):
        RecordedDemonstrations(path=path, demonstrations=11)
    with pytest.raises(ValueError, match=r"of 1 demonstrations 1 are for tests .*0 are left"):
        RecordedDemonstrations(path=write_npz(tmp_path / "one", given((4,))))


@pytest.mark.parametrize(("name", "package"), [("robomimic", "h5py"), ("lerobot_3", "pyarrow"), ("zarr", "zarr")])
def test_packages_to_install_are_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WRITERS[name][1](tmp_path / "data", given())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"data.* needs {package}: pip install 'worldmodels\[imitation\]'"):
        RecordedDemonstrations(path=path)


def test_minari_without_vectors_is_refused(tmp_path: Path) -> None:
    path = write_minari(tmp_path / "data", given())
    with h5py.File(path / "data/main_data.hdf5", "r+") as file:
        file.move("episode_3/actions", "episode_3/kept")
        file.move("episode_3/kept", "episode_3/actions/hand")
    with pytest.raises(ValueError, match="episode_3: actions are a dictionary of hand, not vectors"):
        RecordedDemonstrations(path=path)


@needs_zarr
def test_codecs_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = WRITERS["zarr"][1](tmp_path / "data", given())
    described = json.loads((path / "data/state/.zarray").read_text())
    described["compressor"] = {"id": "nobody_has_this"}
    (path / "data/state/.zarray").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="nobody_has_this"):
        RecordedDemonstrations(path=path)


def test_arrays_of_pictures_are_scaled_and_joined(tmp_path: Path) -> None:
    path, picture = write_aloha(tmp_path / "data", given()), random_picture(0, size=(8, 8))
    for i, num in enumerate(LENGTHS):
        with h5py.File(path / f"episode_{i}.hdf5", "r+") as file:
            row = np.frombuffer(encoded(picture, "PNG"), np.uint8)
            file["observations/images/wrist"] = np.stack([np.pad(row, (0, 7))] * num)  # compressed and padded
    cameras = ["observations/images/top", "observations/images/wrist"]
    source = RecordedDemonstrations(path=path, cameras=cameras, size=8)
    assert source.sample(2, 3, Generator())["observation", "pixels"].shape == (2, 3, 6, 8, 8)
    for one in source.read("train"):
        number = number_of(one.name)
        assert (one.observation["pixels"][:, :3] == number).all()
        assert (one.observation["pixels"][:, 3:] == picture.transpose(2, 0, 1)).all()
    with pytest.raises(ValueError, match=r"env.cameras names no camera; there are observations/images/top, "):
        RecordedDemonstrations(path=path, cameras=["side"])
    with pytest.raises(ValueError, match=r"episode_0.hdf5: observations/qpos, row 0 is "):
        RecordedDemonstrations(path=path, cameras=["observations/qpos"])


@pytest.mark.parametrize("agent", ["act_jepa", "bc"])
def test_policies_learn_from_files_and_are_not_played(agent: str, tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "data", given())
    settings = [f"agent={agent}", "env=demonstrations", f"env.path={path}", "env.environment_state=[states]"]
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", overrides=[*settings, "steps=2", "batch_size=4"])
    source = build.build_source(cfg, torch.device("cpu"))
    assert [one.name for one in build.build_evaluators(cfg, source)] == [
        "collapse", "held_out", "chunk_error", "state_ahead"
    ]  # fmt: skip
    cfg.diagnostics.policy = True
    with pytest.raises(ValueError, match="RecordedDemonstrations has no tasks to evaluate"):
        build.build_evaluators(cfg, source)


@pytest.mark.data
def test_the_push_t_demonstrations_are_read(shared_data: Path) -> None:
    path = shared_data / "pusht" / "pusht_lowdim.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    source = RecordedDemonstrations(path=path, state="state", environment_state="keypoint")
    told = source.describe()
    assert sum(told["rows"].values()) == 25_650
    assert (source.num_demonstrations, source.split("test").num_demonstrations) == (185, 21)
    assert told["columns"]["environment_state"] == {"keypoint": 18}
    assert told["action"]["high"][0] == pytest.approx(511, abs=1)
