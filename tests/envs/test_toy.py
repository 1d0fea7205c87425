"""The toy offers what OGBench offers."""

from __future__ import annotations

import inspect

import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from envs.ogbench_tasks import OGBenchTasks
from envs.toy import Toy, ToyEnv, ToyTasks, move
from envs.vector import VectorEnv
from worldmodels.core import Source


@pytest.fixture
def toy() -> Toy:
    return Toy(trajectories=20, steps=30)


@pytest.mark.parametrize(("ours", "theirs"), [(ToyTasks, OGBenchTasks), (ToyEnv, VectorEnv)])
def test_same_interface(ours: type, theirs: type) -> None:
    public = [name for name in dir(theirs) if not name.startswith("_") and callable(getattr(theirs, name))]
    for name in public:
        mine, its = (inspect.signature(getattr(kind, name)) for kind in (ours, theirs))
        assert list(mine.parameters) == list(its.parameters), name


def test_data(toy: Toy) -> None:
    assert isinstance(toy, Source)
    batch = toy.sample(32, 2, Generator().manual_seed(0))
    assert toy.spec.expand(32, 2).is_in(batch.auto_batch_size_(2))
    state = batch["observation", "state"]
    assert torch.equal(state[:, 1], move(state[:, 0], batch["action"][:, 0]))
    again = Toy(trajectories=20, steps=30).sample(32, 2, Generator().manual_seed(0))
    assert again["observation", "state"].equal(state)


def test_chunks(toy: Toy) -> None:
    chunked = Toy(trajectories=20, steps=30, action_chunk=3)
    batch = chunked.sample(32, 2, Generator().manual_seed(0))
    assert chunked.spec.expand(32, 2).is_in(batch.auto_batch_size_(2))
    state, now = batch["observation", "state"], batch["observation", "state"][:, 0]
    for action in batch["action"][:, 0].unflatten(-1, (3, 2)).unbind(1):
        now = move(now, action)
    assert torch.equal(state[:, 1], now)


def test_rewards_and_goals(toy: Toy) -> None:
    labelled = toy.labelled(4000, Generator().manual_seed(0))
    for task in toy.tasks.names:
        reward = toy.tasks.reward(task, labelled)
        assert set(reward.tolist()) == {0.0, -1.0}
        near = (toy.tasks.fields(labelled)["xy"] - toy.tasks.goal_of(task)["state"]).norm(dim=-1) <= 0.25
        assert torch.equal(reward == 0, near)
    with pytest.raises(ValueError, match="did you mean task1"):
        toy.tasks.goal_of("tsk1")
    with pytest.raises(ValueError, match="needs 2 numbers"):
        toy.tasks.goal_observation([1.0, 2.0])


def test_walking_to_the_goal_solves_every_task(toy: Toy) -> None:
    for task in toy.tasks.names:
        with toy.tasks.make(task, num_envs=6, seed=3) as env:
            td, goal = env.reset(), toy.tasks.goal_of(task)["state"]
            assert torch.equal(env.reset()["observation", "state"], td["observation", "state"])
            success = torch.zeros(6)
            for _ in range(toy.tasks.max_steps):
                td = env.step(TensorDict({"action": (goal - td["observation", "state"]) * 10}, [6]))
                success += td["success"]
            assert success.tolist() == [1.0] * 6
            assert not env.alive.any()
            assert env.render(0).shape == (64, 64, 3)


def test_episodes_may_go_on_after_success(toy: Toy) -> None:
    with toy.tasks.make("task1", num_envs=8, seed=0, ends_on_success=False) as env:
        row = env.reset()
        for _ in range(toy.tasks.max_steps):
            row = env.step(TensorDict({"action": 10 * (torch.tensor([0.6, 0.6]) - row["observation", "state"])}, [8]))
        assert row["success"].all()
        assert row["truncated"].all()
        assert not row["terminated"].any()


def test_standing_still_fails(toy: Toy) -> None:
    with toy.tasks.make("task1", num_envs=8, seed=0, max_steps=5) as env:
        start = env.reset()
        rows = [env.step(TensorDict({"action": torch.zeros(8, 2)}, [8])) for _ in range(5)]
    returns = sum(row["reward"] for row in rows)
    failed = ~start["success"].bool()
    assert (returns[failed] == -5).all()
    assert torch.equal(rows[-1]["truncated"], failed)
    assert torch.equal(rows[-1]["terminated"], ~failed)
