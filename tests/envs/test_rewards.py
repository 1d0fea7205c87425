"""Relabelled data pays what the environment pays, for the state that each action led to."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from envs.ogbench import OGBench
from envs.rewards import Rewards
from envs.toy import Toy, ToyEnv

GOAL = (0.6, 0.6)  # of task1


def all_rows(source: Rewards) -> torch.Tensor:
    return torch.arange(source.store.num_rows)


def test_reward_is_the_environments_own_one_step_on():
    source = Rewards(Toy(trajectories=20, steps=30), task="task1", shift=1)
    rows, paid = source.store.rows(all_rows(source)), 0.0
    for begin, end in zip(source.store.ends - source.store.lengths + 1, source.store.ends, strict=True):
        options = {"num_envs": 1, "seed": 0, "max_steps": None, "device": torch.device("cpu")}
        env = ToyEnv(GOAL, ends_on_success=False, **options)
        env.reset()
        env._state = rows["observation", "state"][begin][None]
        own = []  # the environment judges the state before the action, so its reward at t is that of state t
        for t in range(int(begin), int(end)):
            row = env.step(TensorDict({"action": rows["action"][t][None]}, [1]))
            own.append(row["reward"].item())
            assert torch.equal(row["observation", "state"][0], rows["observation", "state"][t + 1])
        assert source.rewards[begin:end].tolist() == [reward + 1 for reward in own]
        paid += sum(own) + len(own)
    assert paid > 20  # the goal was visited, or the test says nothing
    assert source.max_reward == 1.0
    assert source.spec["reward"].shape == ()
    assert "reward" not in source.source.spec.keys()


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_window_holds_the_reward_of_the_state_reached(chunk):
    toy = Toy(trajectories=40, steps=20, action_chunk=chunk)
    source = Rewards(toy, task="task5", shift=0)
    batch = source.sample(500, 3, Generator().manual_seed(0))
    same = toy.sample(500, 3, Generator().manual_seed(0))
    assert (batch.exclude("reward") == same).all()
    assert batch["reward"].shape == (500, 3)
    distance = batch["observation", "state"].norm(dim=-1)  # the goal is the origin, its radius 0.25
    expected = -(distance > 0.25).float()
    assert torch.equal(batch["reward"][:, :2], expected[:, 1:])  # row t: the state of row t + 1
    assert 0 < expected.abs().mean() < 1


def test_the_last_action_is_paid_as_the_last_state():
    source = Rewards(Toy(trajectories=3, steps=4), task="task5", shift=0)
    batch = source.sample(200, 5, Generator().manual_seed(0))  # whole trajectories
    last = source.rewards[source.store.ends]
    assert set(batch["reward"][:, 4].tolist()) <= set(last.tolist())
    assert torch.equal(batch["reward"][:, 4], batch["reward"][:, 3])


def test_ogbench_is_paid_by_where_the_physics_is(maze):
    source = OGBench(dataset="pointmaze-medium-stitch-v0", data_dir=maze.parent, download=False)
    paid = Rewards(source, task="task2", shift=1)
    goal = source.tasks.goal_of("task2")["state"]
    near = (source.physics["qpos"] - goal).norm(dim=-1) <= source.tasks.tolerance
    assert torch.equal(paid.rewards, near.float())
    assert 0 < near.sum() < len(near)
    batch = paid.sample(64, 2, Generator().manual_seed(0))
    assert batch["reward"].dtype == torch.float32
    labelled = source.labelled(50, Generator().manual_seed(1))  # as before: seen, led to by, and simulated together
    assert torch.equal(labelled["observation", "state"], labelled["physics", "qpos"].float())


def test_bad_tasks_and_sources_are_refused():
    with pytest.raises(ValueError, match=r"no task 'task9'; did you mean task5 or task4\? It has task1"):
        Rewards(Toy(trajectories=1), task="task9", shift=0)
    with pytest.raises(ValueError, match="rewards of task1 need fixed data with physics and tasks; object is none"):
        Rewards(object(), task="task1", shift=0)
    toy = Toy(trajectories=2, steps=3)
    toy.tasks.reward = lambda task, labelled: torch.full((len(labelled),), torch.nan)
    with pytest.raises(ValueError, match="reward of task1 is nan in row 0"):
        Rewards(toy, task="task1", shift=0)
