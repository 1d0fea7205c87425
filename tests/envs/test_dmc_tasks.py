"""Rewards against dm_control's own and against the published procedure, relabelling against playing, speed."""

from __future__ import annotations

import time
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from dm_control import suite
from dm_control.utils import rewards as theirs
from tensordict import TensorDict

from envs.dmc_domains import DOMAINS, find_domain, make, models
from envs.dmc_rewards import REWARDS, tolerance
from envs.dmc_tasks import DMCTasks
from envs.point_mass_maze import REACH, START_X, START_Y, TARGETS, is_in_cross, squares

BUILT_IN = [
    ("walker", "stand"),
    ("walker", "walk"),
    ("walker", "run"),
    ("cheetah", "run"),
    ("quadruped", "walk"),
    ("quadruped", "run"),
]
every_domain = pytest.mark.parametrize("domain", DOMAINS)


def states(domain: str, num: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Physics [N, P] of a real rollout, and the actions [N, A] that led there."""
    env, rng = make(domain, DOMAINS[domain].tasks[0], random=seed), np.random.default_rng(seed)
    env.reset()
    actions = rng.uniform(-1, 1, (num, DOMAINS[domain].action_dim))
    rows = []
    for action in actions:
        env.step(action)
        rows.append(env.physics.get_state())
    return np.array(rows), actions


def labelled(domain: str, physics: np.ndarray, actions: np.ndarray) -> TensorDict:
    parts = {key: torch.from_numpy(value) for key, value in DOMAINS[domain].split(physics).items()}
    num = [len(physics)]
    return TensorDict({"physics": TensorDict(parts, num), "action": torch.from_numpy(actions).float()}, num)


@pytest.mark.parametrize("shape", ["gaussian", "linear", "quadratic"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1.0, np.inf), (-0.5, 0.3)])
@pytest.mark.parametrize("at_margin", [0.0, 0.1, 0.5])
def test_tolerance_is_dm_controls(shape: str, low: float, high: float, at_margin: float) -> None:
    if shape == "gaussian" and at_margin == 0:
        at_margin = 0.02
    x = np.random.default_rng(0).uniform(-4, 4, (50, 3))
    wanted = theirs.tolerance(x, (low, high), margin=0.7, sigmoid=shape, value_at_margin=at_margin)
    np.testing.assert_allclose(
        tolerance(x, low, high, margin=0.7, shape=shape, at_margin=at_margin), wanted, atol=1e-12
    )


@pytest.mark.parametrize(("domain", "task"), BUILT_IN)
def test_rewards_are_dm_controls_on_rollouts(domain: str, task: str) -> None:
    """Same seed, same actions, dm_control's own environment: its reward, ours as played, ours relabelled."""
    env = suite.load(domain, task, task_kwargs={"random": 3})
    ours = make(domain, task, random=3)
    np.testing.assert_array_equal(models().flatten(env.reset().observation), models().flatten(ours.reset().observation))
    rng = np.random.default_rng(0)
    wanted, played, rows, actions = [], [], [], []
    for _ in range(60):
        actions.append(rng.uniform(-1, 1, DOMAINS[domain].action_dim))
        wanted.append(env.step(actions[-1]).reward)
        played.append(ours.step(actions[-1]).reward)
        rows.append(env.physics.get_state())
    np.testing.assert_allclose(played, wanted, atol=1e-12)
    relabelled = DMCTasks(DOMAINS[domain]).reward(task, labelled(domain, np.array(rows), np.array(actions)))
    np.testing.assert_allclose(relabelled, wanted, atol=1e-6)
    assert np.ptp(wanted) > 1e-3


@every_domain
def test_measuring_skips_nothing_that_counts(domain: str) -> None:
    """The published procedure, a sample at a time: set state and control, forward, position, sensors, momenta."""
    physics, actions = states(domain, 40)
    env = make(domain, DOMAINS[domain].tasks[0], random=0)
    model, data = env.physics.model.ptr, env.physics.data.ptr
    found = models().Meter(DOMAINS[domain])(physics)
    wanted: dict[str, list[Any]] = {name: [] for name in found}
    for row, action in zip(physics, actions, strict=True):
        env.physics.set_state(row)
        env.physics.set_control(action)
        for step in (mujoco.mj_forward, mujoco.mj_fwdPosition, mujoco.mj_sensorVel, mujoco.mj_subtreeVel):
            step(model, data)
        for name, values in models().measure(DOMAINS[domain], env.physics).items():
            wanted[name].append(values[0])
    for name, values in found.items():
        np.testing.assert_allclose(values, np.array(wanted[name]), atol=1e-12, err_msg=name)


@every_domain
def test_playing_pays_what_relabelling_says(domain: str) -> None:
    """Every task: the environments' rewards and those of their states and actions afterwards."""
    suite_ = DMCTasks(DOMAINS[domain])
    generator = torch.Generator().manual_seed(0)
    for task in suite_.names:
        with suite_.make(task, num_envs=2, seed=5) as env:
            first = env.reset()
            assert "success" not in first.keys()
            assert first["observation", "state"].shape == (2, DOMAINS[domain].observation_dim)
            for _ in range(8):
                action = torch.rand((2, DOMAINS[domain].action_dim), generator=generator) * 2 - 1
                now = env.step(TensorDict({"action": action}, [2]))
                again = suite_.reward(task, TensorDict({"physics": now["physics"], "action": action}, [2]))
                torch.testing.assert_close(now["reward"], again, atol=1e-6, rtol=0)
            assert bool(env.alive.all())


def test_relabelling_ten_thousand_states_takes_under_a_second() -> None:
    """CPU seconds of one thread, all tasks of a domain together. Measured alone: 0.05 s (docs/dmc.md)."""
    for domain in DOMAINS:
        physics, actions = states(domain, 50)
        many = labelled(
            domain, np.resize(physics, (10_000, physics.shape[1])), np.resize(actions, (10_000, actions.shape[1]))
        )
        tasks = DMCTasks(DOMAINS[domain])
        tasks.reward(tasks.names[0], many[:5])  # loads the model
        before = time.process_time()
        for task in tasks.names:
            assert tasks.reward(task, many).shape == (10_000,)
        assert time.process_time() - before < 1.0, domain


def test_custom_rewards_by_hand() -> None:
    one = np.zeros((1, 6))

    def pays(domain: str, task: str, **measured: float) -> float:
        return float(REWARDS[domain][task]({k: np.array([v]) for k, v in measured.items()}, one)[0])

    assert pays("walker", "spin", angular_momentum=12.0) == 1
    assert pays("walker", "spin", angular_momentum=2.5) == pytest.approx(0.25)
    assert pays("walker", "spin", angular_momentum=-5.0) == 0
    assert pays("cheetah", "walk", speed=1.0) == pytest.approx(0.5)
    assert pays("cheetah", "walk_backward", speed=-3.0) == 1
    assert pays("cheetah", "run_backward", speed=-1.0) == pytest.approx(0.1)
    assert pays("cheetah", "run_backward", speed=1.0) == 0
    assert pays("quadruped", "stand", upright=0.0) == pytest.approx(0.5)
    assert pays("quadruped", "jump", upright=1.0, com_height=0.5) == pytest.approx(0.75)
    assert pays("quadruped", "jump", upright=-1.0, com_height=2.0) == 0


@pytest.mark.parametrize(
    ("task", "xy", "velocity", "action", "wanted"),
    [
        ("reach_top_left", (-0.15, 0.16), (0, 0), (0, 0), 1.0),
        ("reach_top_left", (-0.15, 0.16), (0, 0), (1, -1), 0.8),
        ("reach_top_left", (-0.15, 0.15 + 0.015 + 0.09), (0, 0), (0, 0), 0.1),
        ("loop", (0.12, 0.12), (0.08, -0.07), (0, 0), 1.0),
        ("loop", (-0.12, 0.12), (0.08, 0.055), (0, 0), (1 + 1 + 0.5) / 3),
        ("loop", (-0.12, -0.12), (0.08, 0.08), (0, 0), 2 / 3),
        ("square", (0.0, 0.25), (0.05, 0), (0, 0), 0.5),
        ("square", (0.25, 0.0), (0.0, -0.2), (0, 0), 1.0),
        ("square", (0.0, 0.25), (-0.05, 0), (0, 0), 0.0),
        ("square", (0.25, 0.25), (0.1, -0.1), (0, 0), 0.0),
        ("fast_slow", (0.0, 0.25), (-0.045, 0), (0, 0), 1.0),
        ("fast_slow", (0.25, 0.0), (0, 0.085), (0, 0), 0.5),
        ("fast_slow", (-0.25, 0.0), (0, -0.095), (0, 0), 1.0),
        ("fast_slow", (0.0, -0.25), (0.045, 0), (0, 0), 1.0),
        ("fast_slow", (0.0, 0.285), (-0.045, 0), (0, 0), 0.0),
        ("reach_bottom_left_long", (0.0, 0.2), (0.2, 0), (0, 0), 0.5),
        ("reach_bottom_left_long", (-0.25, 0.1), (0, -0.05), (0, 0), -5.0),
        ("reach_bottom_left_long", (-0.15, -0.14), (0, 0), (0, 0), 1.0),
    ],
)
def test_maze_rewards_by_hand(task: str, xy: Any, velocity: Any, action: Any, wanted: float) -> None:
    measured = {"xy": np.array([xy], float), "velocity": np.array([velocity], float)}
    found = REWARDS["point_mass_maze"][task](measured, np.array([action], float))
    assert float(found[0]) == pytest.approx(wanted, abs=1e-9)


def test_maze_has_four_rooms_and_solid_walls() -> None:
    """The ball starts top left, never enters the cross or leaves the box, and walking the long way takes it around."""
    env = make("point_mass_maze", "loop", random=0)
    path = []
    for _ in range(20):
        env.reset()
        path.append(env.physics.get_state()[:2])
    starts = np.array(path)
    assert (starts.min(0) >= (START_X[0], START_Y[0])).all()
    assert (starts.max(0) <= (START_X[1], START_Y[1])).all()
    visited = []
    for action, steps in (((1, 0.3), 400), ((0.3, -1), 400), ((-1, -0.3), 400), ((-0.3, 1), 300)):
        visited += [env.step(np.array(action)).observation["position"] for _ in range(steps)]
    xy = np.array(visited)
    assert abs(xy).max() <= REACH + 3e-3  # limits and walls give way by 2 mm
    assert not is_in_cross(xy[:, 0], xy[:, 1], 0.008).any()
    assert {(x > 0, y > 0) for x, y in xy} == {(a, b) for a in (True, False) for b in (True, False)}
    env.physics.set_state(np.array([-0.1, 0.1, 0, 0]))
    for _ in range(300):
        x, _ = env.step(np.array([1.0, 0.0])).observation["position"]
    assert x == pytest.approx(-0.03, abs=2e-3), "a wall of the cross stops it"
    walls, unit, origin = squares()
    assert walls.shape == (32, 32)
    assert walls[16, 16]
    assert not walls[(round((0.25 - origin[1]) / unit))][16]


def test_quadrupeds_observation_is_whole() -> None:
    env = make("quadruped", "stand", random=0)
    seen = models().flatten(env.reset().observation)
    assert seen.shape == (78,)
    assert np.isfinite(seen).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_episodes_are_a_function_of_the_seed(workers: int) -> None:
    suite_ = DMCTasks(DOMAINS["point_mass_maze"])
    found = []
    for spread in (0, workers):
        with suite_.make("loop", num_envs=3, seed=4, workers=spread, max_steps=5) as env:
            rows = [env.reset()["observation", "state"]]
            push = TensorDict({"action": torch.ones(3, 2)}, [3])
            rows += [env.step(push)["observation", "state"] for _ in range(6)]
            assert not bool(env.alive.any())
            found.append(torch.stack(rows))
    suite_.close()
    assert torch.equal(found[0], found[1])
    assert len({tuple(row) for row in found[0][0].tolist()}) == 3


def test_goals_and_fields() -> None:
    maze, walker = DMCTasks(DOMAINS["point_mass_maze"]), DMCTasks(DOMAINS["walker"])
    assert maze.goal_names == tuple(TARGETS)
    assert maze.goal_of("reach_top_right")["state"].tolist() == pytest.approx([0.15, 0.15, 0, 0])
    assert maze.goal_observation([0.1, 0.2])["state"].tolist() == pytest.approx([0.1, 0.2, 0, 0])
    assert maze.maze() is not None
    assert walker.maze() is None
    for suite_, call, message in (
        (maze, lambda s: s.goal_of("loop"), "loop has no goal state .*infer it from its reward"),
        (walker, lambda s: s.goal_of("walk"), "walker walk has no goal state"),
        (walker, lambda s: s.goal_observation([1.0]), "no goals by position"),
        (maze, lambda s: s.goal_observation([1.0]), "needs 2 numbers"),
        (maze, lambda s: s.goal_observation([0.0, 0.1]), "lies in a wall"),
        (maze, lambda s: s.goal_observation([0.5, 0.1]), "outside"),
        (maze, lambda s: s.make("loop", num_envs=0, seed=0), "num_envs=0"),
    ):
        with pytest.raises(ValueError, match=message):
            call(suite_)
    td = labelled("walker", *states("walker", 3))
    td["observation"] = TensorDict({"state": torch.zeros(3, 24)}, [3])
    fields = walker.fields(td)
    assert {"state", "action", "qpos", "qvel", "torso_height", "upright", "speed", "angular_momentum"} == set(fields)
    assert all(len(value) == 3 for value in fields.values())


def test_unknown_names_say_who_has_them() -> None:
    with pytest.raises(ValueError, match=r"cheetah has no task 'stand'; it belongs to walker and quadruped"):
        DMCTasks(DOMAINS["cheetah"]).reward("stand", TensorDict({}, [1]))
    with pytest.raises(ValueError, match=r"walker has no task 'wlak'; did you mean walk"):
        make("walker", "wlak")
    with pytest.raises(ValueError, match="did you mean point_mass_maze"):
        find_domain("pointmass")
    td = labelled("point_mass_maze", *states("point_mass_maze", 2)).exclude("action")
    with pytest.raises(ValueError, match="without the action"):
        DMCTasks(DOMAINS["point_mass_maze"]).reward("reach_top_left", td)
