"""Schedules at their ends, in the middle and beyond."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from worldmodels.schedules import Constant, Cosine, Linear, OneCycle, WarmupCosine


def test_constant():
    assert [Constant(0.3)(step) for step in (0, 10**9)] == [0.3, 0.3]
    assert Constant()(5) == 1.0


def test_linear_goes_from_start_to_end_and_stays():
    schedule = Linear(0.996, 1.0, 1000)
    assert [schedule(step) for step in (0, 250, 500, 1000, 5000)] == pytest.approx([0.996, 0.997, 0.998, 1.0, 1.0])
    assert Linear(1.0, 0.0, 0)(1) == 0.0


def test_cosine_is_the_momentum_of_seq_jepa_targets():
    schedule = Cosine(0.004, 0.0, 100)  # 1 - tau_e = 0.004 (cos(pi e / E) + 1) / 2
    assert [schedule(step) for step in (0, 25, 50, 100, 500)] == pytest.approx(
        [0.004, 0.002 * (1 + math.cos(math.pi / 4)), 0.002, 0.0, 0.0]
    )


def test_warmup_is_linear_and_the_cosine_ends_where_it_should():
    schedule = WarmupCosine(110, warmup=10, start=0.2, end=0.1)
    assert schedule(0) == pytest.approx(0.2)
    assert schedule(5) == pytest.approx(0.6)
    assert schedule(10) == pytest.approx(1.0)
    assert schedule(60) == pytest.approx(0.55)  # half way down
    assert schedule(35) == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)))  # a quarter: cos 45 degrees
    assert schedule(110) == schedule(10**6) == pytest.approx(0.1)
    values = [schedule(step) for step in range(10, 111)]
    assert all(later < earlier for earlier, later in pairwise(values))


def test_cosine_without_warmup_starts_at_one():
    schedule = WarmupCosine(10)
    assert schedule(0) == 1.0
    assert schedule(10) == pytest.approx(0.0)
    assert WarmupCosine(5, warmup=5)(4) == pytest.approx(0.8)


def test_warmup_as_a_share_and_another_first_value():
    schedule = WarmupCosine(300, warmup=1 / 30, first=2.7)
    assert [schedule(step) for step in (0, 5, 10)] == pytest.approx([2.7, 0.5, 1.0])


@pytest.mark.parametrize("warmup", [-1, 11])
def test_warmup_lies_within_the_run(warmup):
    with pytest.raises(ValueError, match=f"0 <= {warmup} <= 10 fails"):
        WarmupCosine(10, warmup=warmup)


def test_one_cycle_of_the_rate_and_of_the_momentum():
    rate, momentum = OneCycle(1000), OneCycle(1000, start=0.95, peak=0.85, end=0.95)
    steps = (0, 200, 400, 700, 1000, 10**6)  # start, half way up, peak, half way down, end, beyond
    assert [rate(step) for step in steps] == pytest.approx([0.1, 0.55, 1.0, 0.500005, 1e-5, 1e-5])
    assert [momentum(step) for step in steps] == pytest.approx([0.95, 0.9, 0.85, 0.9, 0.95, 0.95])
    assert rate(100) == pytest.approx(0.1 + 0.45 * (1 - math.sqrt(0.5)))  # a quarter of the way: cos 45 degrees
    assert all(a < b for a, b in pairwise(rate(step) for step in range(401)))
    assert all(a > b for a, b in pairwise(rate(step) for step in range(400, 1001)))
    assert OneCycle(1)(0) == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [0, 1, 40])
def test_one_cycle_goes_up_for_a_share_of_the_run(warmup):
    with pytest.raises(ValueError, match=f"warmup={warmup}: the way up takes a share"):
        OneCycle(10, warmup=warmup)
