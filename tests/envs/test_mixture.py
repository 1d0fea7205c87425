"""Mixtures: one sub-batch a name, from one generator."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from envs.mixture import Mixture
from envs.toy import Toy


class Remembers(Toy):
    """Collects with the policy it is given."""

    def attach(self, policy):
        self.policy = policy


def test_each_name_gets_its_share_of_its_own_source():
    near, far = Toy(trajectories=2, steps=5, seed=0), Toy(trajectories=2, steps=5, seed=1)
    mixture = Mixture({"a": near, "b": far, "c": near}, shares={"a": 1.0, "b": 0.25, "c": 0.001})
    batch = mixture.sample(16, 2, Generator().manual_seed(0))
    assert {name: batch[name].batch_size[0] for name in batch.keys()} == {"a": 16, "b": 4, "c": 1}
    assert set(mixture.spec.keys()) == {"a", "b", "c"}
    states = {tuple(row) for row in far.store.rows(torch.arange(far.store.num_rows))["observation", "state"].tolist()}
    drawn = batch["b", "observation", "state"].flatten(0, 1).tolist()
    assert all(tuple(row) in states for row in drawn)
    assert not any(tuple(row) in states for row in batch["a", "observation", "state"].flatten(0, 1).tolist())


def test_one_source_under_two_names_gives_two_batches_and_the_generator_decides():
    mixture = Mixture(dict.fromkeys(("agent", "objective"), Toy(trajectories=5, steps=20)))
    one, two = (mixture.sample(16, 2, Generator().manual_seed(0)) for _ in range(2))
    assert (one == two).all()
    assert one["agent"].batch_size == one["objective"].batch_size == (16,)
    assert not torch.equal(one["agent", "action"], one["objective", "action"])


def test_policies_are_passed_on_and_bad_shares_refused():
    source = Remembers(trajectories=1, steps=5)
    Mixture({"a": source}).attach(None)
    assert source.policy is None
    with pytest.raises(ValueError, match="at least one"):
        Mixture({})
    with pytest.raises(ValueError, match=r"\['a'\] needs a share for each of them; got \['b'\]"):
        Mixture({"a": source}, shares={"b": 1.0})
