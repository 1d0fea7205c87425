"""Vectorised environments: equal to single ones, whatever the spread, and without a trace in training's randomness."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from envs.ogbench import OGBench
from envs.ogbench_envs import OGBenchMaker
from envs.ogbench_names import find_dataset
from envs.ogbench_tasks import OGBenchTasks
from envs.rendering import RenderError
from envs.stepping import EnvGroup
from envs.vector import VectorEnv

MakeFile = Callable[..., Path]


@pytest.fixture
def suite(make_file: MakeFile, request: pytest.FixtureRequest) -> Iterator[OGBenchTasks]:
    name = request.param
    source = OGBench(dataset=name, data_dir=make_file(name).parent, download=False, collect=False)
    yield source.tasks
    source.tasks.close()


def _actions(num: int, dim: int, steps: int) -> list[TensorDict]:
    """Random actions, some of them too large."""
    generator = Generator().manual_seed(0)
    return [TensorDict({"action": torch.rand(num, dim, generator=generator) * 2.4 - 1.2}, [num]) for _ in range(steps)]


maze_only = pytest.mark.parametrize("suite", ["pointmaze-teleport-navigate-v0"], indirect=True)


@maze_only
def test_episodes_do_not_depend_on_workers(suite: OGBenchTasks) -> None:
    """Nor on how many there are: episode i is the same among 3 and among 5."""
    runs = []
    for num, workers in ((5, 0), (5, 2), (3, 0)):
        with suite.make("task3", num_envs=num, seed=7, workers=workers) as env:
            state = torch.stack([row["observation", "state"] for row in _play_constant(env, 60)])
            runs.append(state)
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0][:, :3], runs[2])
    assert not torch.equal(runs[0][0, 0], runs[0][0, 1]), "start states differ"


def test_observations_have_the_entries_they_are_told() -> None:
    group = EnvGroup(OGBenchMaker(find_dataset("pointmaze-medium-stitch-v0")), 1, [5, 6])

    def halves(flat: Tensor) -> dict[str, Tensor]:
        assert flat.dtype == torch.float32
        return {"state": flat[:, :1], "environment_state": flat[:, 1:]}

    with VectorEnv([group], entries=halves) as named, VectorEnv([group]) as plain:
        rows = [env.reset()["observation"] for env in (named, plain)]
    assert set(rows[0].keys()) == {"state", "environment_state"}
    assert torch.equal(torch.cat([rows[0]["state"], rows[0]["environment_state"]], -1), rows[1]["state"])


def _play_constant(env, steps: int) -> list[TensorDict]:
    action = TensorDict({"action": torch.tensor([[0.3, 1.0]]).expand(env.num_envs, 2)}, [env.num_envs])
    return [env.reset(), *(env.step(action) for _ in range(steps))]


@pytest.mark.parametrize("suite", ["pointmaze-medium-stitch-v0", "cube-double-play-v0", "scene-play-v0"], indirect=True)
@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_rows_equal_single_environments(suite: OGBenchTasks) -> None:
    """Twins share one model; each must behave as an environment built by gymnasium that is alone in the world."""
    maker = suite._maker
    steps = 12
    with suite.make("task2", num_envs=2, seed=11) as env:
        rows = [env.reset(), *(env.step(action) for action in _actions(2, suite._facts.action_dim, steps))]
        seeds = env._groups[0]._seeds
    actions = _actions(2, suite._facts.action_dim, steps)
    for index, seed in enumerate(seeds):
        single = gymnasium.make(suite._facts.task_id(2), disable_env_checker=True)
        if not suite._facts.is_maze:
            from envs.ogbench_envs import _own_action_space

            _own_action_space(single.unwrapped)
        first, second, third = (int(state) for state in np.random.SeedSequence(seed).generate_state(3))
        np.random.seed(first)
        single.unwrapped.action_space.seed(second)
        observation, _ = single.reset(seed=third)
        for step in range(steps + 1):
            row = rows[step][index]
            np.testing.assert_array_equal(row["observation", "state"].numpy(), observation.astype(np.float32))
            np.testing.assert_array_equal(row["physics", "qpos"].numpy(), single.unwrapped.data.qpos)
            if step < steps:
                action = actions[step]["action"][index].numpy().clip(-1, 1)
                observation, reward, terminated, truncated, info = single.step(action)
                after = rows[step + 1][index]
                assert after["reward"].item() == pytest.approx(reward)
                assert bool(after["terminated"]) == terminated
                assert bool(after["truncated"]) == truncated
                assert after["success"].item() == float(info["success"])
        single.close()
    assert maker.max_steps == gymnasium.spec(suite._facts.task_id(2)).max_episode_steps


def test_twins_keep_their_locks_apart() -> None:
    """The scene locks its drawer through the model's damping, which all twins share."""
    maker = OGBenchMaker(find_dataset("scene-play-v0"))
    group = EnvGroup(maker, 1, seeds=[1, 2])
    group.reset()
    dof = group.envs[0]._model.joint("drawer_slide").dofadr[0]
    for env, states in zip(group.envs, ([0, 1], [1, 1]), strict=True):
        maker.enter(env)
        env._cur_button_states[:] = states
        env._apply_button_states()
        maker.leave(env)
    group.step(np.zeros((2, 5), np.float32))
    assert [env.own_model["dof_damping"][dof] for env in group.envs] == [1e6, 2.0]
    for env, damping in zip(group.envs, (1e6, 2.0), strict=True):
        maker.enter(env)
        assert env._model.dof_damping[dof] == damping
    maker.finish()


@pytest.mark.parametrize("suite", ["pointmaze-medium-stitch-v0"], indirect=True)
def test_finished_environments_wait(suite: OGBenchTasks) -> None:
    """Task 3 lies two cells from its start. A success ends the episode one step after the goal is reached."""
    with suite.make("task3", num_envs=4, seed=0, max_steps=300) as env:
        td = env.reset()
        goal = suite.goal_of("task3")["state"]
        assert bool(env.alive.all())
        assert not td["success"].any()
        successes, last = torch.zeros(4), td
        for _ in range(300):
            qpos = td["physics", "qpos"]
            td = env.step(TensorDict({"action": _towards(suite, qpos)}, [4]))
            was_running = last["alive"]
            frozen = ~was_running
            assert torch.equal(td["observation", "state"][frozen], last["observation", "state"][frozen])
            assert not td["reward"][frozen].any()
            assert not td["success"][frozen].any()
            near = (last["observation", "state"] - goal).norm(dim=-1) <= suite.tolerance
            assert torch.equal(td["success"].bool(), near & was_running), "judged before the action"
            assert torch.equal(td["reward"][was_running], td["success"][was_running] - 1)
            successes += td["success"]
            last = td
            if not env.alive.any():
                break
        assert successes.tolist() == [1.0] * 4
        assert bool(td["terminated"].all())
        assert torch.equal(env.reset()["observation", "state"], env.reset()["observation", "state"])
        assert bool(env.alive.all())


@pytest.mark.parametrize("suite", ["pointmaze-medium-stitch-v0"], indirect=True)
def test_episodes_may_go_on_after_success(suite: OGBenchTasks) -> None:
    with suite.make("task3", num_envs=2, seed=0, max_steps=120, ends_on_success=False) as env:
        td, successes = env.reset(), torch.zeros(2)
        for _ in range(120):
            td = env.step(TensorDict({"action": _towards(suite, td["physics", "qpos"])}, [2]))
            successes += td["success"]
        assert (successes > 1).all()
        assert bool(td["truncated"].all())
        assert not td["terminated"].any()


def _towards(suite: OGBenchTasks, qpos: torch.Tensor) -> torch.Tensor:
    """The expert of the data: along the shortest path."""
    from envs.behavior import make_behavior

    walker = suite.__dict__.setdefault("_walker", make_behavior(suite._facts))
    goal = tuple(suite.goal_of("task3")["state"].tolist())
    way = np.stack([walker._waypoint(xy, goal) - xy for xy in qpos.numpy()])
    return torch.from_numpy(way / (np.linalg.norm(way, axis=-1, keepdims=True) + 1e-6)).float()


@maze_only
def test_time_runs_out(suite: OGBenchTasks) -> None:
    with suite.make("task1", num_envs=2, seed=0, max_steps=3) as env:
        rows = _play_constant(env, 4)
    assert [bool(row["truncated"].all()) for row in rows] == [False, False, False, True, True]
    assert not rows[-1]["alive"].any()


@maze_only
def test_training_randomness_is_not_disturbed(suite: OGBenchTasks) -> None:
    np.random.seed(5)
    np.random.standard_normal()  # leaves half a pair of normal numbers in the generator
    torch.manual_seed(5)
    before, torch_before = np.random.get_state(), torch.get_rng_state()
    with suite.make("task1", num_envs=2, seed=0) as env:
        _play_constant(env, 30)
    suite.goal_of("task4")
    after = np.random.get_state()
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]
    assert torch.equal(torch_before, torch.get_rng_state())


@maze_only
def test_failures_in_workers_are_told(suite: OGBenchTasks) -> None:
    env = suite.make("task1", num_envs=3, seed=0, workers=2)
    env.reset()
    with pytest.raises(ValueError, match="action has 2 rows for 3"):
        env.step(TensorDict({"action": torch.zeros(2, 2)}, [2]))
    env._groups[0].start("step", "nonsense")
    with pytest.raises(RuntimeError, match="in a worker that steps environments"):
        env._groups[0].finish()
    suite._pools[2]._processes[0].kill()
    suite._pools[2]._processes[0].join()
    with pytest.raises(RuntimeError, match="a worker that steps environments"):
        env.reset()


@pytest.mark.skipif(os.environ.get("MUJOCO_GL") != "egl", reason="needs a renderer (libEGL)")
@pytest.mark.parametrize("suite", ["pointmaze-medium-stitch-v0"], indirect=True)
def test_pictures(suite: OGBenchTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing one renderer must leave the others alive: a lost context gives black frames without an error."""
    one = suite.make("task1", num_envs=2, seed=0)
    two = suite.make("task1", num_envs=2, seed=1)
    one.reset(), two.reset()
    first, second = one.render(0), two.render(1)
    assert first.shape == (200, 200, 3)
    assert first.std() > 10
    assert not np.array_equal(first, second)
    one.close()
    assert np.array_equal(two.render(1), second)
    with pytest.raises(ValueError, match="there are 2 environments"):
        two.render(2)
    monkeypatch.delenv("DISPLAY", raising=False)
    for backend in ("disabled", "glfw"):
        monkeypatch.setenv("MUJOCO_GL", backend)
        with pytest.raises(RenderError, match="set MUJOCO_GL=egl"):
            two.render(0)
    two.close()


@pytest.mark.skipif(os.environ.get("MUJOCO_GL") != "egl", reason="needs a renderer (libEGL)")
def test_a_renderer_is_found_without_being_told(root: Path) -> None:
    """MuJoCo alone would take GLFW, which ends the process where there is no display; and it complains at the end, of
    environments that were closed and of those that were not."""
    code = """
import mujoco  # as torchrl does, before anyone could choose
from envs.ogbench_envs import OGBenchMaker
from envs.ogbench_names import find_dataset
from envs.stepping import EnvGroup
from envs.vector import VectorEnv
groups = []
for name in ("pointmaze-medium-stitch-v0", "cube-single-play-v0"):
    groups.append(EnvGroup(OGBenchMaker(find_dataset(name)), 1, seeds=[0]))
    groups[-1].reset()
    assert groups[-1].render(0).std() > 10
groups[0].close()
"""
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY")}
    result = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Exception ignored" not in result.stderr


@pytest.mark.skipif(os.environ.get("MUJOCO_GL") != "egl", reason="needs a renderer (libEGL)")
def test_pixel_environments(make_file: MakeFile) -> None:
    name = "visual-antmaze-medium-navigate-v0"
    path = make_file(name)
    source = OGBench(dataset=name, data_dir=path.parent, download=False, collect=False, frame_stack=3)
    suite = source.tasks
    with suite.make("task1", num_envs=2, seed=0) as env:
        td = env.reset()
        pixels = td["observation", "pixels"]
        assert source.spec["observation", "pixels"].expand(2, 9, 64, 64).is_in(pixels)
        assert torch.equal(pixels[:, :3], pixels[:, 6:])
        later = env.step(TensorDict({"action": torch.ones(2, 8)}, [2]))["observation", "pixels"]
        assert torch.equal(later[:, :6], pixels[:, 3:]), "older pictures move to the front"
        assert pixels[:, 6:].float().std() > 10
    assert suite.goal_of("task1")["pixels"].shape == (9, 64, 64)
