import json

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from worldmodels.evals.floors import FloorEvaluator
from worldmodels.evals.results import unpack
from worldmodels.evals.zero_shot import ZeroShotEvaluator


@pytest.mark.parametrize("infer", ["reward", "goal"])
def test_an_agent_that_knows_the_way_solves_every_task(room, walker, infer):
    result = unpack(ZeroShotEvaluator(source=room, every=1, episodes=5, infer=infer)(walker, 7))
    metrics = result.metrics
    assert metrics["success"] == metrics["success_low"] == metrics["success_high"] == 1.0
    assert metrics["east/success"] == metrics["west/success"] == 1.0
    # Every step before the goal costs 1: the return follows from the length.
    assert metrics["return"] == pytest.approx(1 - metrics["length"])
    assert metrics["return_low"] <= metrics["return"] <= metrics["return_high"]
    assert sorted(result.files) == ["episodes.json", "maze_east.png", "maze_west.png"]
    assert result.files["maze_east.png"].startswith(b"\x89PNG")
    episodes = json.loads(result.files["episodes.json"])
    assert len(episodes) == 10
    assert {row["task"] for row in episodes} == {"east", "west"}
    assert len({tuple(row["start"]) for row in episodes}) == 10


def test_all_tasks_and_episodes_step_together(room, walker):
    ZeroShotEvaluator(source=room, every=1, episodes=6)(walker, 0)
    assert set(walker.calls) == {12}
    assert all(env.is_closed for env in room.tasks.made)


def test_a_chunk_of_actions_is_played_without_looking(make_room, walker):
    result = unpack(ZeroShotEvaluator(source=make_room(action_chunk=2), every=1, episodes=5)(walker, 0))
    assert result.metrics["success"] == 1.0
    assert result.metrics["return"] == pytest.approx(1 - result.metrics["length"])  # steps are the environment's
    longest = max(row["length"] for row in json.loads(result.files["episodes.json"]))
    assert len(walker.calls) == -(-longest // 2)
    walker.calls.clear()
    options = {"reward_shift": 0.0, "max_steps": 10}
    unpack(ZeroShotEvaluator(source=make_room(action_chunk=4), every=1, episodes=5, **options)(walker, 0))
    assert len(walker.calls) == 3


def test_the_reward_shift_carries_the_goal(room, walker):
    """Without it the reward is -1 nearly everywhere, and the walker goes to the middle of the room."""
    metrics = unpack(ZeroShotEvaluator(source=room, every=1, episodes=5, reward_shift=0.0)(walker, 0)).metrics
    assert metrics["success"] == 0.0
    assert metrics["return"] == -30.0  # LIMIT steps


def test_evaluation_is_repeatable_and_leaves_no_trace(room, walker):
    walker.noise_scale = 2.0
    evaluator = ZeroShotEvaluator(source=room, every=1, episodes=5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = unpack(evaluator(walker, 1)), unpack(evaluator(walker, 2))
    assert first.metrics == second.metrics
    assert first.files == second.files
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert walker.training
    other = unpack(ZeroShotEvaluator(source=room, every=1, episodes=5, seed=1)(walker, 1))
    assert other.files["episodes.json"] != first.files["episodes.json"]


def test_a_task_alone_plays_the_episodes_it_plays_among_others(room, walker):
    walker.noise_scale = 2.0
    results = [
        unpack(ZeroShotEvaluator(source=room, every=1, episodes=5, tasks=t)(walker, 0)) for t in (None, ["west"])
    ]
    among, alone = (
        [row for row in json.loads(result.files["episodes.json"]) if row["task"] == "west"] for result in results
    )
    assert alone == among


def test_episodes_solved_at_the_start_do_not_count(make_room, walker):
    source = make_room(("here", "east"))
    result = unpack(ZeroShotEvaluator(source=source, every=1, episodes=20)(walker, 0))
    rows = [row for row in json.loads(result.files["episodes.json"]) if row["task"] == "here"]
    solved = sum(row["is_solved_at_start"] for row in rows)
    assert 0 < solved < 20
    assert result.notes == [f"here: {solved} episodes were solved at the start and do not count"]
    only_solved = unpack(ZeroShotEvaluator(source=source, every=1, episodes=1, tasks=["here"], seed=3)(walker, 0))
    if "solved at the start" in "".join(only_solved.notes):
        assert np.isnan(only_solved.metrics["success"])


def test_where_there_is_no_map_a_film_is_made(make_room, walker):
    result = unpack(ZeroShotEvaluator(source=make_room(has_map=False), every=1, episodes=2)(walker, 0))
    names = [name for name in result.files if name != "episodes.json"]
    assert len(names) == 2
    assert all(name.endswith((".mp4", ".gif")) for name in names)


def test_a_missing_renderer_is_said(make_room, walker, monkeypatch):
    source = make_room(has_map=False)
    monkeypatch.setattr(type(source.tasks.make("east", num_envs=1, seed=0)), "is_dark", True)
    result = unpack(ZeroShotEvaluator(source=source, every=1, episodes=2)(walker, 0))
    assert result.notes == ["no video, rendering failed: no display here"]
    assert result.metrics["success"] == 1.0


def test_max_steps_ends_episodes(room, walker):
    metrics = unpack(ZeroShotEvaluator(source=room, every=1, episodes=2, max_steps=3)(walker, 0)).metrics
    assert metrics["length"] == 3.0


def test_floors(room, walker):
    idle = unpack(FloorEvaluator(source=room, policy="idle", episodes=5)(walker, 0)).metrics
    assert (idle["success"], idle["return"], idle["length"]) == (0.0, -30.0, 30.0)
    floor = FloorEvaluator(source=room, policy="random", episodes=40)
    random = floor(walker, 0)
    assert random["success"] < 0.5
    assert floor(walker, 10) is random  # it does not learn, so it plays once
    assert walker.training


def test_random_actions_are_uniform():
    from worldmodels.evals.floors import RandomPolicy

    noise = torch.randn(20_000, 1)
    action = RandomPolicy().act(TensorDict({"noise": {"action": noise}}, [20_000]), False)["action"]
    assert action.abs().max() <= 1
    torch.testing.assert_close(action.std(), torch.tensor(1 / 3**0.5), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"tasks": ["eats"]}, "there is no task eats; did you mean east"),
        ({"episodes": 0}, "at least 1"),
    ],
)
def test_bad_options(room, options, piece):
    with pytest.raises(ValueError, match=piece):
        ZeroShotEvaluator(source=room, every=1, **options)


def test_an_agent_without_tasks_is_refused(room):
    from worldmodels.core import Objective

    class Blind(Objective):
        window = 1

        def phases(self):
            return ()

    with pytest.raises(ValueError, match="lacks them"):
        ZeroShotEvaluator(source=room, every=1)(Blind(), 0)
