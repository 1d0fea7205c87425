"""Windows of a ring lie within one episode, never cross the write head, and are all there are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Generator

from envs.ring import Ring


def write(ring: Ring, lengths: list[list[int]], steps: int) -> list[list[tuple[int, int, int]]]:
    """Play ``steps`` transitions; returns the rows (lane, episode, t) of each lane, the latest state included."""
    lanes = len(lengths)
    now, rows = [(0, 0)] * lanes, [[] for _ in range(lanes)]
    for _ in range(steps):
        reached, ended = [(e, t + 1) for e, t in now], []
        for lane, (episode, t) in enumerate(now):
            ended.append(t + 1 == lengths[lane][episode % len(lengths[lane])])
            rows[lane].append((lane, episode, t))
            if ended[-1]:
                rows[lane].append((lane, episode, t + 1))
        ring.append(as_rows(now), as_rows(reached)["observation"], torch.tensor(ended))
        now = [(e + 1, 0) if over else (e, t) for (e, t), over in zip(reached, ended, strict=True)]
    return [[*r, (lane, *n)] if n[1] else r for lane, (r, n) in enumerate(zip(rows, now, strict=True))]


def as_rows(now: list[tuple[int, int]]) -> TensorDict:
    state = torch.tensor([[lane, *place] for lane, place in enumerate(now)], dtype=torch.float32)
    action, time = state[:, 1:] + 0.5, state[:, 2]
    entries = {"observation": {"state": state}, "action": action, "reward": time, "terminated": time > 1e6}
    return TensorDict(entries, batch_size=[len(now)])


@settings(max_examples=60)
@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=3),
    capacity=st.integers(2, 20),
    steps=st.integers(1, 40),
    window=st.integers(1, 4),
)
def test_windows_are_those_of_the_rows_that_are_left(lengths, capacity, steps, window):
    ring = Ring(len(lengths), capacity)
    kept = [rows[-capacity:] for rows in write(ring, lengths, steps)]
    expected = {
        tuple(rows[i : i + window])
        for rows in kept
        for i in range(len(rows) - window + 1)
        if rows[i][1] == rows[i + window - 1][1]
    }
    starts = ring.starts(window)
    found = ring.windows(starts, window)["observation", "state"].long().tolist()
    # A new episode's first row comes with its first transition; until then an old row stays in its place.
    assert {tuple(map(tuple, rows)) for rows in found} >= expected
    assert len(found) - len(expected) <= len(lengths)
    batch = ring.windows(starts, window)
    state, is_last = batch["observation", "state"], torch.zeros(len(starts), window, dtype=torch.bool)
    assert torch.equal(state[:, :, :2], state[:, :1, :2].expand(-1, window, -1))  # one lane, one episode
    assert torch.equal(state[:, :, 2] - state[:, :1, 2], torch.arange(window).expand(len(starts), -1).float())
    is_last[:, -1] = True
    assert torch.equal(batch["action"][~is_last], (state[:, :, 1:] + 0.5)[~is_last])  # each row's own
    assert torch.equal(batch["reward"][~is_last], state[:, :, 2][~is_last])


def test_sampling_is_uniform_and_the_generators():
    ring = Ring(2, 10)
    write(ring, [[3], [8]], 30)
    one, two = (ring.sample(4000, 2, Generator().manual_seed(3)) for _ in range(2))
    assert (one == two).all()
    assert one.batch_size == (4000,)
    _, counts = torch.unique(one["observation", "state"].flatten(1), dim=0, return_counts=True)
    assert len(counts) == len(ring.starts(2))
    assert counts.min() > 0.7 * 4000 / len(counts)


def test_a_ring_that_cannot_give_a_window_says_so():
    ring = Ring(1, 4)
    with pytest.raises(ValueError, match="window=2: no episode collected so far is that long"):
        ring.sample(3, 2, Generator())
    write(ring, [[2]], 8)
    assert len(ring.starts(3)) == 1
    with pytest.raises(ValueError, match="window=4"):
        ring.sample(3, 4, Generator())
    with pytest.raises(ValueError, match="at least 1 lane and 2 rows"):
        Ring(1, 1)


def test_it_comes_back_from_its_tensors():
    ring, again = Ring(2, 7), Ring(2, 7)
    assert ring.tensors() == {}
    write(ring, [[3], [5]], 20)
    again.load(ring.tensors(), torch.device("cpu"))
    assert (again.sample(50, 2, Generator().manual_seed(0)) == ring.sample(50, 2, Generator().manual_seed(0))).all()
    with pytest.raises(ValueError, match="saved ring has 2 lanes and 14 rows; this one has 2 and 16"):
        Ring(2, 8).load(ring.tensors(), torch.device("cpu"))
    long = Ring(1, 4)
    write(long, [[100]], 9)
    with pytest.raises(ValueError, match="an episode of 9 rows is longer than the 4 rows of its lane"):
        long.actions_since_reset()
