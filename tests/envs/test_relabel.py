"""Futures stay in their trajectory, lie ahead, and are geometric."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Generator

from envs.relabel import Futures
from envs.replay import TrajectoryStore
from envs.toy import Toy


class Numbered:
    """Fixed data whose state is (trajectory, row within it)."""

    def __init__(self, lengths: list[int], **options: int) -> None:
        pairs = [(m, t) for m, length in enumerate(lengths) for t in range(length)]
        ends = torch.tensor([t == lengths[m] - 1 for m, t in pairs])
        state = torch.tensor(pairs, dtype=torch.float32)
        rows = TensorDict({"observation": {"state": state}, "action": torch.zeros(len(pairs), 1)}, [len(pairs)])
        self.store, self.spec, self.lengths = TrajectoryStore(rows, ends, **options), None, lengths


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(3, 30), min_size=1, max_size=5),
    discount=st.floats(0.01, 0.999),
    window=st.integers(2, 3),
    seed=st.integers(0, 2**31),
)
def test_future_is_later_in_the_same_trajectory(lengths, discount, window, seed):
    source = Futures(Numbered(lengths), discount=discount)
    batch = source.sample(64, window, Generator().manual_seed(seed))
    now, future = batch["observation", "state"][:, 0], batch["future", "observation", "state"]
    assert future.shape == (64, 2)
    assert set(batch["future"].keys()) == {"observation"}
    assert torch.equal(future[:, 0], now[:, 0])
    assert (future[:, 1] - now[:, 1]).min() >= 1
    assert (future[:, 1] <= torch.tensor(lengths)[now[:, 0].long()] - 1).all()
    steps = batch["observation", "state"][:, :, 1] - now[:, 1:]
    assert torch.equal(steps, torch.arange(window).float().expand(64, -1))  # the window itself is as the store's


@settings(max_examples=8)
@given(discount=st.floats(0.3, 0.97), seed=st.integers(0, 2**31))
def test_horizon_is_geometric_with_mean_one_over_one_minus_the_discount(discount, seed):
    source = Futures(Numbered([200_000]), discount=discount)
    num = 20_000
    batch = source.sample(num, 2, Generator().manual_seed(seed))
    ahead = batch["future", "observation", "state"][:, 1] - batch["observation", "state"][:, 0, 1]
    mean, spread = 1 / (1 - discount), discount**0.5 / (1 - discount)
    assert abs(float(ahead.double().mean()) - mean) < 6 * spread / num**0.5 + 0.01 * mean
    share = float((ahead == 1).double().mean())  # P(k = 1) = 1 - discount
    assert abs(share - (1 - discount)) < 6 * (discount * (1 - discount) / num) ** 0.5 + 1e-3


def test_a_very_long_horizon_ends_at_the_last_row():
    batch = Futures(Numbered([6, 4]), discount=1 - 1e-12).sample(64, 2, Generator().manual_seed(0))
    trajectory, row = batch["future", "observation", "state"].unbind(-1)
    assert torch.equal(row, torch.where(trajectory == 0, 5.0, 3.0))


def test_batch_is_a_function_of_the_generator_and_the_rest_is_the_source_s():
    toy = Toy(trajectories=3, steps=10)
    source = Futures(toy, discount=0.9)
    one, two = (source.sample(8, 2, Generator().manual_seed(0)) for _ in range(2))
    assert (one == two).all()
    assert source.tasks is toy.tasks
    assert source.spec is toy.spec
    assert pickle.loads(pickle.dumps(source)).discount == 0.9
    with pytest.raises(AttributeError, match="nothing"):
        _ = source.nothing


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_a_horizon_needs_a_discount_between_zero_and_one(discount):
    with pytest.raises(ValueError, match="within"):
        Futures(Toy(trajectories=1, steps=5), discount=discount)
    with pytest.raises(ValueError, match="dict has none"):
        Futures({}, discount=0.9)


def test_futures_lie_whole_chunks_ahead():
    source = Futures(Numbered([50_000], action_chunk=5), discount=0.8)
    batch = source.sample(5_000, 2, Generator().manual_seed(0))
    state, future = batch["observation", "state"][..., 1], batch["future", "observation", "state"][:, 1]
    assert (state[:, 1] - state[:, 0] == 5).all()
    ahead = future - state[:, 0]
    inside = ahead[future < 49_999]
    assert (inside % 5 == 0).all()
    assert float(inside.mean()) == pytest.approx(25, rel=0.1)  # 1 / (1 - discount) chunks
