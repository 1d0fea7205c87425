"""Tasks: rewards equal to ogbench's own relabelling, fields under readable names, goals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch import Generator

from envs.ogbench import OGBench
from envs.ogbench_tasks import OGBenchTasks

MakeFile = Callable[..., Path]
NAMES = {
    "maze": "pointmaze-medium-stitch-v0",
    "soccer": "antsoccer-arena-navigate-v0",
    "cube": "cube-double-play-v0",
    "scene": "scene-play-v0",
    "puzzle": "puzzle-3x3-play-v0",
}


def _source(path: Path, name: str) -> OGBench:
    return OGBench(dataset=name, data_dir=path.parent, download=False, collect=False)


@pytest.fixture(scope="module")
def sources(maze: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, OGBench]:
    """One source a family; all but the maze's hold random numbers, many of them near the goals."""
    return {"maze": _source(maze, NAMES["maze"])}


@pytest.fixture
def source(sources: dict[str, OGBench], make_file: MakeFile, request: pytest.FixtureRequest) -> OGBench:
    family = request.param
    if family not in sources:
        sources[family] = _source(make_file(NAMES[family], lengths=(40, 30)), NAMES[family])
    return sources[family]


every_family = pytest.mark.parametrize("source", list(NAMES), indirect=True)


def _near_goals(suite: OGBenchTasks, task: str, num: int) -> dict[str, np.ndarray]:
    """Simulator states of which a good part has each thing in place: float32 as in files."""
    rng = np.random.default_rng(0)
    goal = suite._goal(suite._number(task))
    qpos = rng.standard_normal((num, 60)).astype(np.float32)
    if goal.xy is not None:
        for at in (0, 15):
            qpos[:, at : at + 2] = goal.xy + rng.uniform(-1.5, 1.5, (num, 2))
    for i, cube in enumerate([] if goal.cubes is None else goal.cubes):
        qpos[:, 14 + 7 * i : 17 + 7 * i] = cube + rng.uniform(-0.04, 0.04, (num, 3))
    if goal.handles is not None:
        qpos[:, 23:25] = goal.handles + rng.uniform(-0.08, 0.08, (num, 2))
    found = {"qpos": qpos}
    if goal.buttons is not None:
        flipped = rng.uniform(size=(num, len(goal.buttons))) < 0.1
        found["button_states"] = np.where(flipped, 1 - goal.buttons, goal.buttons)
    return found


@every_family
def test_rewards_are_those_of_the_benchmark(source: OGBench) -> None:
    from ogbench.relabel_utils import relabel_dataset

    labelled = source.labelled(300, Generator().manual_seed(0))
    for number, task in enumerate(source.tasks.names, start=1):
        env = gymnasium.make(source.facts.task_id(number), disable_env_checker=True)
        if not source.facts.is_maze:
            env.unwrapped.__class__.action_space = source.tasks._maker.make(number).own_action_space  # no warning
        data = _near_goals(source.tasks, task, 300)
        labelled["physics"] = {key: torch.from_numpy(value) for key, value in data.items()}
        labelled["physics", "qpos"] = labelled["physics", "qpos"].double()
        relabel_dataset(source.facts.env_name, env, data)
        reward = source.tasks.reward(task, labelled)
        assert reward.dtype == torch.float32
        np.testing.assert_array_equal(reward.numpy(), data["rewards"])
        assert len(np.unique(data["rewards"])) >= 2, "a test that sees one reward sees nothing"
        assert (data["rewards"] == 0).any()
        env.close()
        if source.facts.env_name.startswith(("cube", "scene", "puzzle")):
            break  # building each arm takes a second


@every_family
def test_goals_solve_their_tasks(source: OGBench) -> None:
    suite = source.tasks
    goal = suite.goal_of("task2")
    assert goal.batch_size == ()
    assert goal["state"].shape == source.facts.observation_shape
    assert suite.goal_of("task2")["state"].equal(goal["state"])
    if not source.facts.is_maze:
        cube = suite._goal(2).cubes
        if cube is not None:
            seen = goal["state"][19:22].double().numpy() / 10 + [0.425, 0, 0]
            assert np.linalg.norm(seen - cube[0]) < suite.tolerance


@every_family
def test_fields_have_readable_names(source: OGBench) -> None:
    fields = source.tasks.fields(source.labelled(7, Generator().manual_seed(0)))
    wanted = {
        "maze": {"xy"},
        "soccer": {"xy", "ball_xy"},
        "cube": {"effector_pos", "cube0_pos", "cube1_pos", "cube1_quat", "gripper_opening"},
        "scene": {"effector_yaw", "cube0_pos", "drawer", "window", "button_states"},
        "puzzle": {"effector_pos", "button_states"},
    }
    family = next(key for key, name in NAMES.items() if name == source.facts.name)
    assert {"state", "action", "qpos", "qvel"} | wanted[family] <= set(fields)
    assert all(len(value) == 7 for value in fields.values())


def test_fields_agree_with_the_simulator(make_file: MakeFile) -> None:
    """The gripper's place as read from an observation is where the simulator has it."""
    source = _source(make_file("cube-single-play-v0"), "cube-single-play-v0")
    with source.tasks.make("task1", num_envs=2, seed=0) as env:
        fields = source.tasks.fields(env.reset())
        for i in range(2):
            body = env._groups[0].envs[i]
            np.testing.assert_allclose(fields["effector_pos"][i], body._data.site_xpos[body._pinch_site_id], atol=1e-6)
            np.testing.assert_allclose(fields["cube0_pos"][i], body._data.joint("object_joint_0").qpos[:3], atol=1e-6)


def test_goals_by_numbers(sources: dict[str, OGBench], make_file: MakeFile, capsys: pytest.CaptureFixture[str]) -> None:
    maze = sources["maze"].tasks
    assert maze.goal_observation([20.0, 16.0])["state"].tolist() == [20.0, 16.0]
    for values, message in (
        ([1.0], "needs 2 numbers, x, y"),
        ([float("nan"), 0.0], "needs 2 numbers"),
        ([8.0, 0.0], "lies in a wall"),
        ([99.0, 0.0], "lies outside the maze"),
    ):
        with pytest.raises(ValueError, match=message):
            maze.goal_observation(values)
    ant = _source(make_file("antmaze-medium-navigate-v0"), "antmaze-medium-navigate-v0")
    row = ant.physics["qpos"][3, :2].tolist()
    free = pytest.MonkeyPatch()
    free.setattr(OGBenchTasks, "_check_free", lambda self, xy: None)  # the rows of this file are random places
    goal = ant.tasks.goal_observation(row)
    free.undo()
    assert goal["state"].equal(ant.store.rows(torch.tensor([3]))["observation", "state"][0])
    assert "taking row 3" in capsys.readouterr().err
    cube = _source(make_file("cube-double-play-v0"), "cube-double-play-v0").tasks
    with pytest.raises(ValueError, match="needs 6 numbers, x of cube 0"):
        cube.goal_observation([0.4, 0.1, 0.02])


def test_maze_map(sources: dict[str, OGBench]) -> None:
    suite = sources["maze"].tasks
    maze = suite.maze()
    assert maze is not None
    xy = sources["maze"].physics["qpos"]
    column, row = (((xy[:, k] - maze.origin[k]) / maze.unit + 0.5).floor().long() for k in (0, 1))
    assert not maze.walls[row, column].any(), "nobody was ever in a wall"
    assert (suite.tolerance, suite.max_steps) == (1.0, 1000)


def test_unknown_tasks_are_named(sources: dict[str, OGBench]) -> None:
    suite = sources["maze"].tasks
    for call in (suite.goal_of, lambda task: suite.make(task, num_envs=1, seed=0)):
        with pytest.raises(ValueError, match="no task 'tsk3'; did you mean task3"):
            call("tsk3")
    with pytest.raises(ValueError, match="num_envs=0"):
        suite.make("task1", num_envs=0, seed=0)


def test_rewards_need_physics(make_file: MakeFile) -> None:
    source = _source(make_file("pointmaze-large-stitch-v0", qpos=None, qvel=None), "pointmaze-large-stitch-v0")
    with pytest.raises(ValueError, match="has no qpos"):
        source.tasks.reward("task1", source.labelled(3, Generator().manual_seed(0)))
