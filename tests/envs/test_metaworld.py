"""Meta-World: what experts demonstrate is what policies will see, nothing depends on chance, bad input is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor

from envs import oracle_attempts, rendering
from envs.metaworld import MetaWorld
from envs.metaworld_collect import EXPERT, attempt
from envs.metaworld_envs import MetaWorldEnv, MetaWorldMaker, expert, task_names
from envs.oracle_attempts import default_data_dir, seed_of, success_rate
from envs.oracle_demonstrations import entries
from envs.rendering import RenderError
from worldmodels.evals.tasks import play, score

TASKS = ("window-close", "drawer-open")
collect = partial(oracle_attempts.collect, EXPERT)

try:
    task_names()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations for training and two for tests of each task, made by two workers. Do not write into it."""
    path = tmp_path_factory.mktemp("metaworld")
    collect(TASKS, {"train": 3, "test": 2}, data_dir=path, workers=2, is_shown=False)
    return path


@pytest.fixture
def source(folder: Path) -> Iterator[MetaWorld]:
    made = _source(folder)
    yield made
    made.tasks.close()


def _source(folder: Path, **options: Any) -> MetaWorld:
    return MetaWorld(**({"tasks": TASKS, "demonstrations": 3, "test_demonstrations": 2, "data_dir": folder} | options))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npz"))}


def test_demonstrations_end_at_their_first_success(source: MetaWorld) -> None:
    store = source.store
    assert source.num_demonstrations == store.num_trajectories == 2 * 3
    rows = store.rows(torch.arange(store.num_rows))
    assert rows["terminated"].nonzero().flatten().tolist() == store.ends.tolist()
    assert rows["has_action"].all()
    assert ((store.lengths > 20) & (store.lengths < 200)).all()
    task = rows["observation", "task_index"][store.ends]
    assert task.tolist() == [0, 0, 0, 1, 1, 1]
    hand = rows["observation", "state"]
    moved = hand[1:, :3] - hand[:-1, :3]
    assert moved[rows["observation", "task_index"][1:] == 0].norm(dim=-1).median() < 0.02, "about 1 cm a step"
    goal = rows["observation", "environment_state"][:, 14:]
    assert (goal.norm(dim=-1) > 0.1).all(), "goals are seen"
    assert json.loads(json.dumps(source.describe()))["expert_success"].keys() == set(TASKS)


def test_tests_are_of_other_starts(source: MetaWorld) -> None:
    other = source.split("test")
    assert other.store.num_trajectories == 2 * 2
    starts = [
        part.store.rows(torch.cat([torch.zeros(1).long(), part.store.ends[:-1] + 1]))[
            "observation", "environment_state"
        ]
        for part in (source, other)
    ]
    assert torch.cdist(starts[0], starts[1]).min() > 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_recorded_actions_give_the_recorded_observations(task: str) -> None:
    """Also in an environment that has played before: nothing of an episode is left for the next."""
    made = attempt(task, 5, 200)
    assert made.is_success
    env = MetaWorldEnv(task, 3)
    env.reset(seed=9)
    env.step(np.ones(4, np.float32))
    seen = [env.reset(seed=5)[0]]
    assert not env.is_solved
    for action in made.action:
        observation, _, is_solved, _, info = env.step(action)
        assert is_solved == info["success"] == env.is_solved
        seen.append(observation)
    assert env.is_solved
    flat = torch.from_numpy(np.stack(seen[:-1]).astype(np.float32))
    assert torch.equal(flat[:, :-1], torch.from_numpy(made.observation))
    assert (entries(flat, 4)["task_index"] == 3).all()


@pytest.mark.parametrize("task", ["window-close", "window-open", "drawer-open", "dial-turn", "coffee-pull"])
def test_a_reset_shows_the_scene_as_it_is(task: str) -> None:
    """Meta-World itself returns positions from before the reset, and calls window-close solved."""
    env = MetaWorldEnv(task)
    first, _ = env.reset(seed=1)
    assert not env.is_solved
    import mujoco

    mujoco.mj_forward(env.inner.model, env.inner.data)
    now = env.inner._get_curr_obs_combined_no_goal()
    np.testing.assert_allclose(first[:18], now, atol=1e-9)
    second, *_ = env.step(np.zeros(4))
    assert np.abs(second[4:18] - first[4:18]).max() < 0.02, "objects stay when nothing touches them"
    assert np.array_equal(first[18:21], second[18:21]), "the goal is neither hidden nor clipped"


def test_episodes_are_functions_of_their_seed() -> None:
    env, state = MetaWorldEnv("drawer-open"), np.random.get_state()[1].copy()
    first, again, other = (env.reset(seed=seed)[0] for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.array_equal(np.random.get_state()[1], state), "numpy's global generator is not touched"


class _Experts:
    """The scripted policies, fed from what a policy of ours would see."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._experts = [expert(name) for name in names]

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        seen = td["observation"]
        actions = [self._one(seen[i]) for i in range(len(seen))]
        return TensorDict({"action": torch.stack(actions)}, td.batch_size)

    def _one(self, seen: TensorDict) -> Tensor:
        scene = seen["environment_state"].double().numpy()
        whole = np.concatenate([seen["state"].double().numpy(), scene[:14], np.zeros(18), scene[14:]])
        return torch.from_numpy(self._experts[int(seen["task_index"])](whole))


@pytest.mark.parametrize("workers", [0, 2])
def test_experts_solve_the_tasks_of_a_rollout(source: MetaWorld, workers: int) -> None:
    played, notes = play(
        _Experts(source.tasks.names),
        source,
        source.tasks.names,
        episodes=3,
        seed=0,
        device=torch.device("cpu"),
        workers=workers,
    )
    metrics, more = score(played, seed=0)
    assert notes == more == []
    assert metrics["success"] == 1.0, metrics
    assert all(((episodes.lengths > 20) & (episodes.lengths < 200)).all() for episodes in played.values())


def test_rollouts_show_what_the_data_show(source: MetaWorld) -> None:
    with source.tasks.make("drawer-open", num_envs=2, seed=3, max_steps=2) as env:
        rows = [env.reset(), *(env.step(TensorDict({"action": torch.zeros(2, 4)}, [2])) for _ in range(2))]
    for row in rows:
        assert set(row["observation"].keys()) == set(source.spec["observation"].keys())
        for key, entry in source.spec["observation"].items():
            assert row["observation", key].dtype == entry.dtype
            assert row["observation", key].shape == (2, *entry.shape)
        assert row["observation", "task_index"].tolist() == [1, 1]
        assert not row["success"].any()
    assert rows[-1]["truncated"].all()
    assert not rows[-1]["terminated"].any()


def test_files_do_not_depend_on_workers_and_lost_ones_are_made_again(
    folder: Path, tmp_path: Path, in_process: list[tuple[Any, ...]]
) -> None:
    options = {"data_dir": tmp_path, "is_shown": False}
    collect(TASKS, {"train": 3, "test": 2}, **options)
    made = _files(tmp_path)
    assert made == _files(folder), "two processes or this one"
    lost = sorted(tmp_path.rglob("train-*.npz"))[0]
    lost.unlink()
    in_process.clear()
    collect(TASKS, {"train": 3, "test": 2}, **options)
    assert len(in_process) == 1
    assert _files(tmp_path) == made
    collect(TASKS, {"train": 3, "test": 2}, **options)
    assert len(in_process) == 1, "nothing is made twice"


def test_more_demonstrations_begin_with_the_fewer(folder: Path, tmp_path: Path, in_process: list[Any]) -> None:
    few, many = (
        collect(["drawer-open"], {"train": num}, data_dir=tmp_path, is_shown=False)["drawer-open", "train"]
        for num in (2, 7)
    )
    assert sum(one.is_success for one in few) == 2
    assert sum(one.is_success for one in many) == 7
    assert [job[2] for job in in_process] == [0, 1], "one more file"
    assert all(np.array_equal(a.observation, b.observation) for a, b in zip(few, many, strict=False))


def test_failures_are_left_out_or_kept_without_their_actions(tmp_path: Path, in_process: list[Any]) -> None:
    """Short attempts of an arm that needs about ninety steps: some succeed."""
    lengths = [len(attempt("drawer-open", seed_of("drawer-open", "train", i, 0), 200).action) for i in range(5)]
    limit = sorted(lengths)[2]
    options = {"tasks": ["drawer-open"], "demonstrations": 3, "test_demonstrations": 1, "max_steps": limit}
    without = MetaWorld(**options, data_dir=tmp_path)
    kept = MetaWorld(**options, data_dir=tmp_path, uses_failures=True)
    assert without.num_demonstrations == kept.num_demonstrations == without.store.num_trajectories == 3
    failed = kept.store.num_trajectories - 3
    assert failed >= 1
    ends = kept.store.rows(kept.store.ends)
    assert int((~ends["has_action"]).sum()) == failed
    assert torch.equal(ends["terminated"], ends["has_action"])
    assert (kept.store.lengths[~ends["terminated"]] == limit).all()
    assert 0 < kept.describe()["expert_success"]["drawer-open"] < 1


def test_experts_that_fail_too_often_are_named(tmp_path: Path, in_process: list[Any]) -> None:
    with pytest.raises(ValueError, match="expert of drawer-open solved 0 of 25 attempts, too few for 1 demonstr"):
        collect(["drawer-open"], {"train": 1}, data_dir=tmp_path, max_steps=5, is_shown=False)


def test_success_rates_are_shares() -> None:
    made = attempt("drawer-open", 0, 1)
    assert success_rate([made, made._replace(is_success=True)]) == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["draw-open"]}, "Meta-World has no task 'draw-open'; did you mean drawer-open"),
        ({"tasks": ["drawer-open", "drawer-open-v3"]}, "names a task twice"),
        ({"tasks": []}, "env.tasks=0: at least one"),
        ({"demonstrations": 0}, "env.demonstrations=0: at least one"),
        ({"test_demonstrations": 0}, "env.test_demonstrations=0"),
        ({"max_steps": 501}, "env.max_steps=501: Meta-World's episodes have 1 to 500 steps"),
        ({"labelled_share": 0.0}, "env.labelled_share=0.0"),
        ({"seed": -1}, "env.seed=-1"),
    ],
)
def test_wrong_settings_are_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _source(folder, **changes)


def test_the_configuration_names_what_the_source_takes(folder: Path, root: Path) -> None:
    cfg = OmegaConf.create({"env": OmegaConf.load(root / "conf" / "env" / "metaworld.yaml")})
    assert set(cfg.env.tasks) <= set(task_names())
    cfg.env.update({"tasks": list(TASKS), "demonstrations": 2, "test_demonstrations": 1, "data_dir": str(folder)})
    made = instantiate(cfg.env.source, device="cpu")
    assert made.num_demonstrations == 4
    assert made.tasks.max_steps == made.tasks._maker.max_steps == cfg.env.max_steps == 200


def test_names_may_carry_their_version(folder: Path) -> None:
    assert _source(folder, tasks=["drawer-open-v3"]).tasks.names == ("drawer-open",)


def test_damaged_files_are_named(tmp_path: Path, in_process: list[Any]) -> None:
    def again() -> None:
        collect(["drawer-open"], {"train": 1}, data_dir=tmp_path, is_shown=False)

    again()
    (path,) = tmp_path.rglob("*.npz")
    with np.load(path) as file:
        columns = dict(file)
    columns["action"][3] = np.nan
    np.savez(path, **columns)
    with pytest.raises(ValueError, match=r"train-0000.npz: action must be \[\d+, 4\] finite numbers.*Delete the file"):
        again()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"train-0000.npz cannot be read.*Delete it: it will be made again"):
        again()


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(ImportError, match=r"pip install 'worldmodels\[imitation\]'"):
        _source(folder)


def test_a_simulator_that_is_too_new_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mujoco.mjNEQDATA", 12)
    with pytest.raises(ImportError, match=r"welds have 12 numbers and not 11: .*mujoco<3.17"):
        _source(folder)


@pytest.mark.skipif(rendering.find_backend() is None, reason="no library that draws")
def test_pictures_show_the_arm_move() -> None:
    maker = MetaWorldMaker(TASKS, 200)
    env = maker.make(2)
    env.reset(seed=0)
    before = maker.render(env)
    for _ in range(20):
        env.step(np.array([0, 1, 1, 0], np.float32))
    after = maker.render(env)
    maker.close(env)
    assert before.shape == (240, 240, 3)
    assert before.dtype == np.uint8
    changed = np.abs(before.astype(int) - after).max(-1) > 30
    assert 0.005 < changed.mean() < 0.5


def test_pictures_that_cannot_be_drawn_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    maker = MetaWorldMaker(TASKS, 200)
    env = maker.make(1)
    env.reset(seed=0)
    with pytest.raises(RenderError, match="pictures are off"):
        maker.render(env)
    maker.close(env)


def test_data_live_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METAWORLD_DATA_DIR", str(tmp_path))
    assert default_data_dir("metaworld") == tmp_path
