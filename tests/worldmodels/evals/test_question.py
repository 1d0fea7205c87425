import json

import pytest
import torch

from worldmodels.evals.question import Question, reached
from worldmodels.evals.results import judging, unpack
from worldmodels.expressions import compile_reward


def ask(question, agent, **options):
    with judging(agent):
        return unpack(question.answer(agent, episodes=4, **options))


def test_one_task_is_that_of_the_benchmark(room, walker):
    result = ask(Question(room, task="west"), walker)
    assert result.metrics["west/success"] == 1.0
    assert "east/success" not in result.metrics
    assert "maze_west.png" in result.files


def test_a_goal_of_ones_own_is_reached_and_ends_the_episode(room, walker):
    result = ask(Question(room, goal=[-3.0, -3.0]), walker)
    assert result.metrics["success"] == 1.0
    assert result.metrics["return"] == pytest.approx(1 - result.metrics["length"])
    assert result.metrics["length"] < 20
    assert result.notes == ["rows are the start states of east, west"]


def test_a_goal_on_the_way_does_not_end_at_the_benchmarks(room, walker):
    """The corner of task east lies on the way to the corner behind it."""
    result = ask(Question(room, goal=[3.9, 3.9]), walker)
    assert result.metrics["success"] == 1.0
    assert not any(env.ends_on_success for env in room.tasks.made)


def test_a_reward_of_ones_own_is_summed_until_the_time_limit(room, walker):
    question = Question(room, reward=compile_reward("norm(qpos - [3, -3]) < 0.5"))
    result = ask(question, walker)
    assert "success" not in result.metrics
    assert result.metrics["length"] == 30.0
    episodes = json.loads(result.files["episodes.json"])
    assert all(10 < row["return"] <= 30 for row in episodes)  # it goes there and stays
    assert result.metrics["return_low"] <= result.metrics["return"] <= result.metrics["return_high"]


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"task": "wset"}, "did you mean west"),
        ({"goal": [1.0]}, "2 numbers"),
        ({"reward": compile_reward("qops[0]")}, "did you mean 'qpos'"),
        ({"reward": compile_reward("qpos")}, "one number a state"),
        ({"reward": compile_reward("norm(action)")}, "unknown name 'action'"),  # a state has none
    ],
)
def test_questions_that_do_not_fit_the_data(room, options, piece):
    with pytest.raises(ValueError, match=piece):
        Question(room, **options)


def test_reached_by_kind_of_data():
    cubes = {
        "cube0_pos": torch.tensor([[0.0, 0, 0], [0, 0, 0]]),
        "cube1_pos": torch.tensor([[1.0, 0, 0], [1.0, 0.1, 0]]),
    }
    assert reached(cubes, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0], 0.04).tolist() == [True, False]
    ball = {"xy": torch.zeros(2, 2), "ball_xy": torch.tensor([[3.0, 3.0], [0.0, 0.0]])}
    assert reached(ball, [3.0, 3.0], 0.5).tolist() == [True, False]
    assert reached({"button_states": torch.tensor([[0, 1], [1, 1]])}, [0.0, 1.0], 0.0).tolist() == [True, False]
