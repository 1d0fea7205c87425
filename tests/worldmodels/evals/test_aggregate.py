"""Interquartile mean, intervals and probability of improvement: by hand, by all draws, and against rliable."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from worldmodels.evals.aggregate import (
    interquartile_mean,
    interquartile_score,
    mean_score,
    probability_of_improvement,
)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def groups(*rows: list[float]) -> list[Tensor]:
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 9.0], 4.0),  # a quarter of three is none: the mean
        ([9.0, 1.0, 2.0, 4.0], 3.0),  # one at either end
        ([0.0, 100.0, 1.0, 2.0, 3.0, 4.0, 5.0], 3.0),  # 7 // 4 = 1 at either end
        ([8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 4.5),  # two at either end
    ],
)
def test_interquartile_mean_by_hand(values, expected):
    assert float(interquartile_mean(torch.tensor(values))) == pytest.approx(expected)


def test_interquartile_mean_of_every_row():
    rows = torch.tensor([[9.0, 1.0, 2.0, 4.0], [0.0, 0.0, 2.0, 50.0]])
    assert interquartile_mean(rows).tolist() == [3.0, 1.0]


def test_probability_of_improvement_by_hand():
    # Task 1: of 2 x 2 pairs ours wins 3, one is a tie: 3.5 / 4. Task 2: one pair, lost.
    ours, theirs = groups([1.0, 3.0], [0.0]), groups([1.0, 0.0], [5.0])
    assert probability_of_improvement(ours, theirs, generator()).value == pytest.approx((3.5 / 4 + 0) / 2)
    assert probability_of_improvement(theirs, ours, generator()).value == pytest.approx(1 - 3.5 / 8)
    assert probability_of_improvement(ours, ours, generator()).value == 0.5


def test_a_method_that_always_wins_has_no_doubt():
    found = probability_of_improvement(groups([3.0, 4.0], [9.0, 8.0]), groups([1.0, 2.0], [1.0, 7.0]), generator())
    assert found == (1.0, 1.0, 1.0)


def test_the_interval_is_that_of_all_draws():
    """Two tasks with two and three runs: all 4 x 27 draws, each equally likely, against random ones."""
    scores = groups([0.0, 1.0], [0.0, 2.0, 7.0])
    draws = [list(itertools.product(group.tolist(), repeat=len(group))) for group in scores]
    means = torch.tensor([(sum(a) / 2 + sum(b) / 3) / 2 for a in draws[0] for b in draws[1]], dtype=torch.float64)
    low, high = means.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    found = mean_score(scores, generator(), num_resamples=40_000, level=0.8)
    assert found.value == pytest.approx(1.75), "tasks count the same whatever their numbers of runs"
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


@pytest.mark.parametrize("score", [mean_score, interquartile_score])
def test_runs_are_resampled_within_their_task_only(score):
    # Each task is certain, so nothing is left to chance though tasks differ.
    assert score(groups([1.0, 1.0], [5.0, 5.0]), generator()) == (3.0, 3.0, 3.0)


def test_a_single_run_has_no_interval():
    assert mean_score(groups([0.4]), generator()) == pytest.approx((0.4, 0.4, 0.4))


def test_scores_that_cannot_be_compared():
    with pytest.raises(ValueError, match="2 tasks of one method cannot be compared with 1"):
        probability_of_improvement(groups([1.0], [1.0]), groups([1.0]), generator())
    with pytest.raises(ValueError, match=r"equally many runs of every task, not \[1, 2\]"):
        interquartile_score(groups([1.0], [1.0, 2.0]), generator())
    for bad in ([], groups([]), groups([float("nan")]), [torch.ones(1, 1)]):
        with pytest.raises(ValueError, match="at least one finite value"):
            mean_score(bad, generator())


SCORES = [torch.randint(0, 8, (6, 5), generator=generator(seed)).double() / 7 for seed in (1, 2)]  # [runs, tasks]


def test_rliable_finds_the_same_values():
    metrics = pytest.importorskip("rliable.metrics")
    x, y = SCORES
    assert float(interquartile_mean(x.flatten())) == pytest.approx(metrics.aggregate_iqm(x.numpy()))
    found = probability_of_improvement(list(x.T), list(y.T), generator())
    assert found.value == pytest.approx(metrics.probability_of_improvement(x.numpy(), y.numpy()))


def test_rliable_finds_the_same_intervals():
    metrics = pytest.importorskip("rliable.metrics")
    try:
        from rliable.library import get_interval_estimates
    except (ImportError, TypeError) as error:  # rliable 1.2 wants arch < 8, which does not load beside pandas 3
        pytest.skip(f"rliable's bootstrap does not load here: {error}")
    x, y = SCORES
    for ours, theirs in ((interquartile_score, metrics.aggregate_iqm), (mean_score, metrics.aggregate_mean)):
        _, interval = get_interval_estimates({"x": x.numpy()}, lambda a, of=theirs: np.array([of(a)]), reps=4000)
        found = ours(list(x.T), generator(), num_resamples=4000)
        assert found[1:] == pytest.approx(interval["x"][:, 0].tolist(), abs=0.015)
    _, interval = get_interval_estimates(
        {"xy": (x.numpy(), y.numpy())}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=1000
    )
    found = probability_of_improvement(list(x.T), list(y.T), generator())
    assert found[1:] == pytest.approx(interval["xy"][:, 0].tolist(), abs=0.03)
