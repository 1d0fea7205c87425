"""Experience gathered while training: real transitions of the attached policy, reproducible, and resumed exactly."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from envs.mixture import Blend
from envs.ogbench import OGBench
from envs.online import Online
from envs.rewards import Rewards
from envs.toy import Toy, move

SMALL = {"task": "task1", "shift": 1, "capacity": 300, "first_transitions": 60}


class East:
    """Goes east as far as ``speed`` says, with a little of the noise."""

    def __init__(self, speed: float) -> None:
        self.speed = speed

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        assert explore
        noise = td["noise", "action"]
        east = torch.zeros_like(noise).view(len(noise), -1, 2)
        east[:, :, 0] = self.speed
        return TensorDict({"action": (east.flatten(1) + 0.01 * noise).clamp(-1, 1)}, td.batch_size)


def run(source: Any, first: int, last: int, size: int = 16) -> list[TensorDict]:
    return [source.sample(size, 2, Generator().manual_seed(step)) for step in range(first, last)]


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_rows_are_real_transitions_with_the_reward_of_where_they_led(chunk, num_envs):
    source = Online(Toy(action_chunk=chunk), num_envs=num_envs, **SMALL)
    source.attach(None)
    batch = source.sample(400, 2, Generator().manual_seed(0))
    state, action = batch["observation", "state"], batch["action"][:, 0].unflatten(-1, (chunk, 2))
    reached = state[:, 0]
    for k in range(chunk):  # a decision plays all its steps
        reached = move(reached, action[:, k])
    assert torch.equal(reached, state[:, 1])
    near = (state[:, 1] - torch.tensor([0.6, 0.6])).norm(dim=-1) <= 0.25
    assert torch.equal(batch["reward"][:, 0], near.float())
    assert not batch["terminated"].any()
    assert source.collected == 60
    assert action.min() < -0.8  # uniform
    assert action.max() > 0.8
    assert str(source.spec) == str(Rewards(Toy(action_chunk=chunk), task="task1", shift=1).spec)


def test_it_collects_as_many_transitions_as_an_update_asks_for():
    source = Online(Toy(), num_envs=2, transitions_per_update=0.5, **SMALL)
    run(source, 0, 1)
    assert source.collected == 60
    run(source, 1, 9)
    assert source.collected == 64
    none = Online(Toy(), transitions_per_update=0, **SMALL)
    run(none, 0, 5)
    assert none.collected == 60


def test_the_attached_policy_collects_with_its_present_weights():
    source, policy = Online(Toy(), random_transitions=10, **SMALL), East(1.0)
    source.attach(policy)
    run(source, 0, 1)
    rows = source.ring._rows["action"]
    assert (rows[:10, 0] - 1).abs().max() > 0.2  # uniform first
    assert (rows[10:40, 0] - 1).abs().max() < 0.1
    policy.speed = -1.0
    run(source, 1, 20)
    assert (rows[int(source.ring.written) - 5 : int(source.ring.written), 0] + 1).abs().max() < 0.1


def test_everything_is_a_function_of_the_seeds():
    one, two, other = (run(Online(Toy(), seed=seed, **SMALL), 0, 5) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert not (one[0] == other[0]).all()


@pytest.mark.parametrize("name", ["toy", "mujoco"])
def test_a_resumed_source_goes_on_exactly(name, maze):
    """Also in the middle of an episode: the simulators get there again by the same decisions."""
    data = {"dataset": "pointmaze-medium-stitch-v0", "data_dir": maze.parent, "download": False}
    make = partial(Toy, action_chunk=2) if name == "toy" else partial(OGBench, action_chunk=5, **data)
    options = {**SMALL, "num_envs": 2, "transitions_per_update": 1.5, "max_steps": 70}
    whole, first, second = (Online(make(), **options) for _ in range(3))
    for source in (whole, first, second):
        source.attach(East(0.5))
    expected = run(whole, 0, 14)
    run(first, 0, 7)
    saved = {key: value.clone() for key, value in first.gathered().items()}
    second.restore(saved)
    assert any(len(actions) > 0 for actions in second.ring.actions_since_reset())
    found = run(second, 7, 14)
    assert all((a == b).all() for a, b in zip(expected[7:], found, strict=True))
    assert second.collected == whole.collected


def test_a_simulator_that_does_not_come_back_is_told():
    source, again = (Online(Toy(), seed=seed, **SMALL) for seed in (0, 1))
    run(source, 0, 2)
    with pytest.raises(ValueError, match=r"environment 0 of task1 is elsewhere after its \d+ decisions"):
        again.restore(source.gathered())
    fresh = Online(Toy(), **SMALL)
    assert fresh.gathered() == {}
    fresh.restore({})  # a run that stopped before it collected anything
    run(fresh, 0, 1)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="no task 'task11'; did you mean task1"):
        Online(Toy(), **SMALL | {"task": "task11"})
    with pytest.raises(
        ValueError, match="capacity=40: each of 1 environments needs room for an episode of 40 decisions"
    ):
        Online(Toy(), **SMALL | {"capacity": 40})
    with pytest.raises(ValueError, match=r"first_transitions=0.*at least one environment and first transition"):
        Online(Toy(), **SMALL | {"first_transitions": 0})
    with pytest.raises(ValueError, match="episode of 0 decisions of 50 steps"):
        Online(Toy(action_chunk=50), **SMALL)


# --- beside fixed data ----------------------------------------------------------------------------------------------
def halves(toy: Toy, **shares: float) -> Blend:
    offline, online = partial(Rewards, task="task1", shift=1), partial(Online, **SMALL)
    return Blend(toy, parts={"offline": offline, "online": online}, shares=shares or {"offline": 0.5, "online": 0.5})


def test_a_blend_is_one_batch_of_both():
    toy = Toy(trajectories=10, steps=20)
    blend = halves(toy)
    blend.attach(East(1.0))
    (batch,) = run(blend, 0, 1, size=9)
    assert batch.batch_size == (9,)
    known = {tuple(row) for row in toy.store.rows(torch.arange(toy.store.num_rows))["observation", "state"].tolist()}
    is_offline = [tuple(row) in known for row in batch["observation", "state"][:, 0].tolist()]
    assert is_offline == [True] * 4 + [False] * 5
    assert set(batch.keys()) == {"observation", "action", "terminated", "reward"}
    assert blend.tasks is toy.tasks
    assert blend.max_reward == 1.0


def test_a_blend_keeps_what_its_parts_gathered():
    whole, first, second = (halves(Toy(trajectories=10, steps=20)) for _ in range(3))
    expected = run(whole, 0, 6)
    run(first, 0, 3)
    saved = {key: value.clone() for key, value in first.gathered().items()}
    assert all(key.startswith("online/") for key in saved)
    second.restore(saved)
    assert all((a == b).all() for a, b in zip(expected[3:], run(second, 3, 6), strict=True))


def test_bad_blends_are_refused():
    toy = Toy(trajectories=2)
    with pytest.raises(
        ValueError, match=r"blend of \['offline', 'online'\] needs a share for each of them; got \['x'\]"
    ):
        halves(toy, x=1.0)
    with pytest.raises(ValueError, match="must be positive and add up to 1"):
        halves(toy, offline=0.5, online=0.4)
    parts = {"paid": partial(Rewards, task="task1", shift=0), "plain": lambda source: source}
    with pytest.raises(ValueError, match=r"different entries: plain has \['action', 'observation', 'terminated'\]"):
        Blend(toy, parts=parts, shares={"paid": 0.5, "plain": 0.5})
