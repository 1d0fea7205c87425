"""Oracles of OGBench's arms: they solve the benchmark's tasks, and what they demonstrate is what policies will see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tensordict import TensorDict

from envs.ogbench_oracle_attempts import GoalMaker, arm, attempt, make_expert
from envs.ogbench_oracles import OGBenchOracles
from envs.ogbench_targets import next_cube, presses
from envs.oracle_attempts import collect, seed_of
from envs.oracle_demonstrations import entries
from envs.stepping import EnvGroup
from envs.vector import VectorEnv

TASKS = ("task3", "task1")
WANTED = {"train": 2, "test": 2}
CENTER, SCALE = np.array([0.425, 0.0, 0.0]), 10.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations for training and two for tests of each task, made by a worker. Do not write into it."""
    path = tmp_path_factory.mktemp("oracles")
    collect(make_expert("cube-single", 0.0), TASKS, WANTED, data_dir=path, workers=1, is_shown=False)
    return path


@pytest.fixture
def source(folder: Path) -> Iterator[OGBenchOracles]:
    made = _source(folder)
    yield made
    made.tasks.close()


def _source(folder: Path, **options: Any) -> OGBenchOracles:
    return OGBenchOracles(
        **({"tasks": TASKS, "demonstrations": 2, "test_demonstrations": 2, "data_dir": folder} | options)
    )


def _first_rows(source: Any) -> torch.Tensor:
    return source.store.rows(torch.cat([torch.zeros(1).long(), source.store.ends[:-1] + 1]))["observation"]


def test_demonstrations_solve_the_tasks_they_show(source: OGBenchOracles) -> None:
    store = source.store
    assert source.num_demonstrations == store.num_trajectories == 2 * 2
    assert ((store.lengths > 20) & (store.lengths < 80)).all()
    first, last = _first_rows(source), store.rows(store.ends)
    assert last["terminated"].all()
    assert last["observation", "task_index"].tolist() == [0, 0, 1, 1]
    scene = torch.stack([first["environment_state"], last["observation", "environment_state"]])
    cube, goal = (scene[..., at : at + 3] / SCALE + torch.from_numpy(CENTER) for at in (0, 9))
    wanted = torch.tensor([[0.35, 0.0, 0.02]] * 2 + [[0.425, -0.1, 0.02]] * 2).double()
    torch.testing.assert_close(goal, wanted.expand(2, 4, 3))
    started = torch.tensor([[0.5, 0.0, 0.02]] * 2 + [[0.425, 0.1, 0.02]] * 2).double()
    assert ((cube[0] - started).abs() < 0.0101).all(), "the benchmark's own starts"
    assert ((cube[1] - goal[1]).norm(dim=-1) <= 0.04).all()
    assert json.loads(json.dumps(source.describe()))["expert_success"] == {"task3": 1.0, "task1": 1.0}


def test_starts_differ(source: OGBenchOracles) -> None:
    with source.tasks.make("task3", num_envs=2, seed=0, max_steps=1) as env:
        rollouts = env.reset()["observation", "state"]
    starts = torch.cat([_first_rows(part)["state"][:2] for part in (source, source.split("test"))] + [rollouts])
    apart = torch.pdist(starts)
    assert len(apart) == 15
    assert apart.min() > 0.1


def test_recorded_actions_give_the_recorded_observations() -> None:
    """Also beside another environment, which shares the model, and with the goal and the task as policies see them."""
    made = attempt("cube-single", 0.1, "task3", 5, 200)
    assert made.is_success
    maker = GoalMaker(arm("cube-single"), ("task1", "task2", "task4", "task3"), 200)
    group = EnvGroup(maker, 4, [9, 5])
    with VectorEnv([group], entries=partial(entries, state_dim=19)) as env:
        rows = [env.reset()]
        for action in made.action:
            assert env.alive[1]
            rows.append(env.step(TensorDict({"action": torch.from_numpy(np.stack([-action, action]))}, [2])))
    assert rows[-1]["terminated"][1]
    assert rows[-1]["success"][1] == 1.0
    assert not any(row["success"][1] for row in rows[:-1])
    seen = torch.stack([row["observation"][1] for row in rows[:-1]])
    assert torch.equal(torch.cat([seen["state"], seen["environment_state"]], -1), torch.from_numpy(made.observation))
    assert (seen["task_index"] == 3).all()


def test_attempts_are_functions_of_their_arguments() -> None:
    state = np.random.get_state()[1].copy()
    first, again, noisy, other = (
        attempt("cube-single", noise, "task3", seed, 20) for noise, seed in ((0.0, 1), (0.0, 1), (0.1, 1), (0.0, 2))
    )
    assert np.array_equal(np.random.get_state()[1], state), "numpy's global generator is left as it was"
    assert np.array_equal(first.observation, again.observation)
    assert np.array_equal(first.action, again.action)
    assert np.array_equal(first.observation[0], noisy.observation[0]), "noise is of actions, not of starts"
    assert np.abs(first.action - noisy.action).max() > 0.01
    assert np.abs(first.observation[0] - other.observation[0]).max() > 0.01
    assert not first.is_success
    assert len(first.action) == 20


@pytest.mark.parametrize(
    ("name", "task"), [("cube-double", "task1"), ("cube-double", "task5"), ("scene", "task1"), ("puzzle-3x3", "task1")]
)
def test_the_other_arms_have_oracles_too(name: str, task: str) -> None:
    made = attempt(name, 0.0, task, 0, 300)
    assert made.is_success
    assert made.observation.shape == (len(made.action), make_expert(name, 0.0).widths[0])


def test_rollouts_show_what_the_data_show(source: OGBenchOracles) -> None:
    with source.tasks.make("task1", num_envs=2, seed=3, max_steps=2) as env:
        rows = [env.reset(), *(env.step(TensorDict({"action": torch.zeros(2, 5)}, [2])) for _ in range(2))]
    for row in rows:
        assert set(row["observation"].keys()) == set(source.spec["observation"].keys())
        for key, entry in source.spec["observation"].items():
            assert row["observation", key].dtype == entry.dtype
            assert row["observation", key].shape == (2, *entry.shape)
        assert row["observation", "task_index"].tolist() == [1, 1]
    assert rows[-1]["truncated"].all()
    with source.tasks.make("task1", num_envs=2, seed=3, workers=1) as env:
        elsewhere = env.reset()
    assert torch.equal(elsewhere["observation", "environment_state"], rows[0]["observation", "environment_state"])
    assert source.tasks.max_steps == 200, "the benchmark's"


def test_lost_files_are_made_again(folder: Path, tmp_path: Path, in_process: list[tuple[Any, ...]]) -> None:
    """And are the same in this process as in a worker."""
    collect(make_expert("cube-single", 0.0), ["task3"], {"train": 1}, data_dir=tmp_path, is_shown=False)
    collect(make_expert("cube-single", 0.0), ["task3"], {"train": 1}, data_dir=tmp_path, is_shown=False)
    assert [job[0] for job in in_process] == ["task3"], "nothing is made twice"
    (made,) = tmp_path.rglob("*.npz")
    there = folder / made.relative_to(tmp_path)
    assert there.parent.parent.parent.name == "cube-single-noise0"
    assert made.read_bytes() == there.read_bytes()


def test_short_attempts_are_failures_kept_without_their_actions(tmp_path: Path, in_process: list[Any]) -> None:
    expert = make_expert("cube-single", 0.0)
    lengths = sorted(len(expert.attempt("task3", seed_of("task3", "train", i, 0), 200).action) for i in range(5))
    options = {"tasks": ["task3"], "demonstrations": 1, "test_demonstrations": 1, "data_dir": tmp_path}
    kept = _source(tmp_path, **options, max_steps=lengths[-1] - 1, uses_failures=True)
    ends = kept.store.rows(kept.store.ends)
    assert torch.equal(ends["terminated"], ends["has_action"])
    assert (kept.store.lengths[~ends["terminated"]] == lengths[-1] - 1).all()
    with pytest.raises(ValueError, match="expert of task3 solved 0 of 25 attempts, too few for 1 demonstrations"):
        _source(tmp_path, **options, max_steps=3)


@given(st.integers(0, 2**9 - 1))
def test_presses_change_what_is_missed(number: int) -> None:
    missed = np.array([number >> i & 1 for i in range(9)], bool).reshape(3, 3)
    padded = np.pad(presses(missed), 1).astype(int)
    changed = padded[1:-1, 1:-1] + padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    assert np.array_equal(changed % 2 == 1, missed)


def test_goals_that_no_presses_reach_are_named() -> None:
    missed = np.zeros((4, 4), bool)
    missed[0, 0] = True
    with pytest.raises(ValueError, match="no presses of buttons lead to this goal"):
        presses(missed)


def test_cubes_are_moved_in_an_order_that_works() -> None:
    low, high, aside = (0.4, 0.0, 0.02), (0.4, 0.0, 0.06), (0.4, 0.2, 0.02)
    stacking = next_cube(np.array([(0.3, 0.1, 0.02), (0.5, 0.1, 0.02)]), np.array([high, low]))
    assert stacking[0] == 1
    assert stacking[1].tolist() == list(low)
    assert next_cube(np.array([low, high]), np.array([aside, high]))[0] == 1, "what stands on top goes first"
    index, place = next_cube(np.array([low, aside]), np.array([aside, low]))
    assert index == 0
    assert min(np.linalg.norm(place - other) for other in (low, aside)) > 0.1, "a swap needs a third place"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cube-singel"}, "env.name=cube-singel: OGBench has no such arm; did you mean cube-single"),
        ({"name": "pointmaze-medium"}, "no such arm. There are cube-single, cube-double"),
        ({"tasks": ["task6"]}, "cube-single has no task 'task6'"),
        ({"tasks": ["task1", "task1"]}, "names a task twice"),
        ({"tasks": []}, "env.tasks=0: at least one"),
        ({"demonstrations": 0}, "env.demonstrations=0: at least one"),
        ({"noise": -0.1}, "env.noise=-0.1 must be within 0 and 1"),
        ({"noise": float("nan")}, "env.noise=nan must be within 0 and 1"),
        ({"max_steps": 0}, "env.max_steps=0: at least one"),
        ({"seed": -1}, "env.seed=-1"),
    ],
)
def test_wrong_settings_are_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _source(folder, **changes)


def test_the_configuration_names_what_the_source_takes(folder: Path, root: Path) -> None:
    cfg = OmegaConf.create({"env": OmegaConf.load(root / "conf" / "env" / "ogbench_oracles.yaml")})
    assert (cfg.env.name, len(cfg.env.tasks)) == ("cube-single", 5)
    cfg.env.update({"tasks": list(TASKS), "demonstrations": 2, "test_demonstrations": 1, "data_dir": str(folder)})
    assert instantiate(cfg.env.source, device="cpu").num_demonstrations == 4
