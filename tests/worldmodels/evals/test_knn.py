"""Nearest neighbours, and linear probes of pictures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.worldmodels.evals.toy_pictures import Flat, Pictures, Reader
from worldmodels.evals import knn
from worldmodels.evals.knn import NearestNeighbours, votes
from worldmodels.evals.probes import LinearProbe
from worldmodels.evals.results import one_round, unpack


def test_votes_are_scikit_learns(monkeypatch):
    from sklearn.neighbors import KNeighborsClassifier

    features, queries, target = torch.randn(200, 5) + 0.5, torch.randn(50, 5), torch.randint(0, 3, (200,))
    theirs = KNeighborsClassifier(7, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1)).fit(features, target)
    mine = votes(features, target, queries, k=7, temperature=0.1, num_classes=3)
    np.testing.assert_allclose(mine / mine.sum(1, keepdim=True), theirs.predict_proba(queries), atol=1e-5)
    monkeypatch.setattr(knn, "MOST_PRODUCTS", 1000)  # five queries at a time
    chunked = votes(features, target, queries, k=7, temperature=0.1, num_classes=3)
    torch.testing.assert_close(mine, chunked)
    every = votes(features, target, queries, k=1000, temperature=1e6, num_classes=3)  # all vote alike
    torch.testing.assert_close(every, target.bincount().float().expand(50, 3), rtol=1e-4, atol=1e-2)


def test_neighbours_by_what_tells_classes_apart_and_by_what_does_not():
    evaluator = NearestNeighbours(source=Pictures(), every=0, raw=Flat)
    hint = unpack(evaluator(Reader(1), 0)).metrics
    noise = unpack(evaluator(Reader(2), 0)).metrics
    assert hint["view/accuracy"] == pytest.approx(0.75, abs=0.06)
    assert hint["view/val_accuracy"] == pytest.approx(0.75, abs=0.06)
    assert noise["view/accuracy"] == pytest.approx(0.5, abs=0.1)
    assert hint["raw/accuracy"] == noise["raw/accuracy"]


@pytest.mark.parametrize("kind", [NearestNeighbours, LinearProbe])
def test_rows_beyond_the_cap_are_left_out_at_random_but_always_the_same(kind):
    sizes: list[int] = []

    class Counting(Reader):
        def embed(self, obs):
            sizes.append(len(obs))
            return super().embed(obs)

    evaluator, objective = kind(source=Pictures(), every=0, raw=Flat, num=40, chunk=30), Counting()
    first = unpack(evaluator(objective, 0)).metrics
    assert sizes == [30, 10] * 3
    seen = list(objective.seen)
    assert unpack(evaluator(objective, 5)).metrics == first
    assert objective.seen == seen * 2
    assert first["view/accuracy"] == pytest.approx(0.5, abs=0.25)


def test_within_a_round_pictures_are_encoded_once_for_all_who_ask_for_the_same():
    calls: list[int] = []

    class Counting(Reader):
        def embed(self, obs):
            calls.append(len(obs))
            return super().embed(obs)

    source, objective, options = Pictures(), Counting(1), {"every": 0, "raw": Flat, "chunk": 256}
    probe, knn = LinearProbe(source=source, **options), NearestNeighbours(source=source, **options)
    other = NearestNeighbours(source=source, num=40, **options)
    alone = [unpack(evaluator(objective, 0)).metrics for evaluator in (probe, knn, other)]
    assert calls == [256, 44] * 6 + [40] * 3
    for _ in range(2):  # nothing is kept from round to round
        calls.clear()
        with one_round():
            assert [unpack(evaluator(objective, 0)).metrics for evaluator in (probe, knn, other)] == alone
        assert calls == [256, 44] * 3 + [40] * 3


def test_a_linear_probe_of_pictures():
    found = unpack(LinearProbe(source=Pictures(), every=0, raw=Flat)(Reader(1), 0)).metrics
    assert found["view/accuracy"] == pytest.approx(0.75, abs=0.06)
    assert found["raw/accuracy"] == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize("kind", [NearestNeighbours, LinearProbe])
def test_evaluation_leaves_no_trace(kind):
    objective, before = Reader().train(), torch.get_rng_state()
    mean = objective.norm.running_mean.clone()
    kind(source=Pictures(), every=0, raw=Flat)(objective, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert objective.training
    assert torch.equal(mean, objective.norm.running_mean)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="env=images"):
        NearestNeighbours(source=object(), every=0, raw=Flat)
    with pytest.raises(ValueError, match=r"SimpleNamespace has none here.*eval.knn=null eval.probe=null"):
        NearestNeighbours(source=SimpleNamespace(part=None, num_classes=0, spec=None), every=0, raw=Flat)
    with pytest.raises(ValueError, match="k=0"):
        NearestNeighbours(source=Pictures(), every=0, raw=Flat, k=0)
