"""Demonstrations are read with care, told to the agent, and judged by likeness; rules are asked at every decision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from worldmodels.evals.demonstrations import Likeness, load
from worldmodels.evals.question import Question
from worldmodels.evals.results import judging, unpack
from worldmodels.evals.zero_shot import ZeroShotEvaluator
from worldmodels.expressions import compile_reward

SPEC = Composite(observation=Composite(state=Unbounded((2,))))


def test_a_file_becomes_observations(tmp_path):
    pixels = Bounded(0, 255, (3, 4, 4), dtype=torch.uint8)
    spec = Composite(observation=Composite(state=Unbounded((2,)), pixels=pixels))
    state, frames = np.arange(10.0).reshape(5, 2), np.full((5, 3, 4, 4), 7)
    np.savez(tmp_path / "a.npz", state=state, pixels=frames, action=np.zeros(3))
    shown = load(tmp_path / "a.npz", spec)
    assert shown.batch_size == (5,)
    assert set(shown.keys()) == {"state", "pixels"}
    assert shown["state"].dtype == torch.float32
    assert shown["pixels"].dtype == torch.uint8
    np.testing.assert_array_equal(shown["state"].numpy(), state)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"action": np.zeros((5, 2))}, r"needs an array state \[T, ...\]; it has action"),
        ({}, "it has nothing"),
        ({"state": np.zeros((5, 3))}, r"state is \[5, 3\], not \['T', 2\]"),
        ({"state": np.zeros(2)}, r"state is \[2\]"),
        ({"state": np.zeros((0, 2))}, r"state is \[0, 2\]"),
        ({"state": np.array(1.0)}, r"state is \[\]"),
        ({"state": np.array([[0.0, np.nan]])}, "no finite number"),
        ({"state": np.array([["a", "b"]])}, "no finite number"),
        ({"state": np.array([[None, 1]], dtype=object)}, "cannot be read"),  # would need pickle
    ],
)
def test_files_that_hold_no_demonstration(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load(path, SPEC)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.npz does not exist"):
        load(tmp_path / "nowhere.npz", SPEC)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text.npz cannot be read"):
        load(tmp_path / "text.npz", SPEC)
    whole = tmp_path / "whole.npz"
    np.savez(whole, state=np.zeros((5, 2)))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cut.npz cannot be read"):
        load(tmp_path / "cut.npz", SPEC)
    np.save(tmp_path / "one.npy", np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"one.npy cannot be read: it is a single array"):
        load(tmp_path / "one.npy", SPEC)
    np.savez(tmp_path / "uneven.npz", state=np.zeros((5, 2)), pixels=np.zeros((4, 1)))
    both = Composite(observation=Composite(state=Unbounded((2,)), pixels=Unbounded((1,))))
    with pytest.raises(ValueError, match=r"different lengths: \{'state': 5, 'pixels': 4\}"):
        load(tmp_path / "uneven.npz", both)


def test_likeness_is_the_distance_to_the_nearest_state_shown():
    generator = torch.Generator().manual_seed(0)
    data, shown, obs = (torch.randn(n, 2, generator=generator) * torch.tensor([1.0, 50.0]) for n in (400, 6, 9))
    likeness = Likeness(TensorDict({"state": shown}, [6]), TensorDict({"state": data}, [400]))
    found = likeness(TensorDict({"state": obs}, [9])).numpy()
    scale, shown, obs = data.double().std(0).numpy(), shown.double(), obs.double()
    away = [min(np.sqrt(np.mean(((o - s) / scale) ** 2)) for s in shown.numpy()) for o in obs.numpy()]
    np.testing.assert_allclose(found, -np.array(away), rtol=1e-9)
    assert likeness(TensorDict({"state": shown[:2]}, [2])).abs().max() < 1e-6


def test_a_demonstration_is_followed_and_judged_by_likeness(room, walker):
    shown = TensorDict({"state": torch.tensor([[3.0, -3.0], [3.2, -3.0]])}, [2])
    far = TensorDict({"state": torch.tensor([[-3.0, 3.0], [-3.2, 3.0]])}, [2])
    returns = {}
    for name, told in {"follows": shown, "elsewhere": far}.items():
        question = Question(room, demonstration=told)
        question.likeness = Likeness(shown, question.labelled["observation"])
        with judging(walker):
            result = unpack(question.answer(walker, episodes=4))
        assert "success" not in result.metrics
        assert result.metrics["length"] == 30.0
        returns[name] = result.metrics["return"]
    assert returns["elsewhere"] < 2 * returns["follows"] < 0


def test_sharpness_lets_the_best_states_decide(room, walker):
    reward = compile_reward("exp(-norm(qpos - [3, -3]))")
    places = {}
    for sharpness in (0, 10):
        question = Question(room, reward=reward, sharpness=sharpness)
        places[sharpness] = question.task_vectors(walker, torch.device("cpu"), 1.0)["east"]
    best = torch.tensor([3.0, -3.0])
    assert (places[10] - best).norm() < 0.5 * (places[0] - best).norm()
    evaluator = ZeroShotEvaluator(source=room, every=0, sharpness=10)
    labelled = room.labelled(10_000, torch.Generator().manual_seed(0))
    labels = room.tasks.reward("east", labelled) + 1
    expected = walker.infer_task(labelled["observation"], reward=labels, weight=torch.softmax(10 * labels, 0))
    torch.testing.assert_close(evaluator.infer_tasks(walker)["east"], expected)
    with pytest.raises(ValueError, match="sharpness=-1"):
        ZeroShotEvaluator(source=room, every=0, sharpness=-1)


def test_a_rule_is_asked_at_every_decision(room, walker):
    asked = []

    def detour(goal: TensorDict, obs: TensorDict) -> torch.Tensor:
        asked.append(obs["state"].clone())
        return goal["state"].expand(len(obs), -1)

    plain = walker.infer_task
    walker.infer_task = lambda obs, goal=None, **other: lambda seen: detour(goal, seen)
    evaluator = ZeroShotEvaluator(source=room, every=0, episodes=3, infer="goal")
    steered = unpack(evaluator(walker, 0)).metrics
    walker.infer_task = plain
    fixed = unpack(evaluator(walker, 0)).metrics
    assert steered == fixed
    assert all(len(states) == 3 for states in asked)  # the episodes of its task only
    assert len(asked) >= 2 * 5
    assert not torch.equal(asked[0], asked[-1])
