"""Clocks fire when due; the stopwatch leaves out pauses and the first lap."""

from __future__ import annotations

from itertools import count

import pytest

from worldmodels import clocks
from worldmodels.clocks import Clock, Stopwatch


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (7, [0]), (0, [])])
def test_clock_fires_on_multiples(every, expected):
    clock = Clock(every)
    assert [step for step in range(7) if clock(step)] == expected


def test_clock_refuses_a_negative_period():
    with pytest.raises(ValueError, match="at least 0; got -1"):
        Clock(-1)


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr(clocks, "time", time)
    return time


def test_stopwatch_drops_the_first_lap_once_there_is_a_second(time):
    watch = Stopwatch(50)
    assert watch.per_second == 0.0
    time.now += 20  # compiling
    watch.lap(60)
    assert watch.per_second == 0.5  # the only lap there is
    for lap in range(1, 4):
        watch.resume()
        time.now += 2
        watch.lap(60 + 10 * lap)
        assert watch.per_second == 5.0
    assert (watch.steps, watch.seconds) == (30, 6.0)


def test_stopwatch_leaves_out_pauses(time):
    watch = Stopwatch(0)
    watch.lap(1)
    for step in count(2):
        watch.resume()
        time.now += 0.25
        watch.lap(step)
        time.now += 1000  # evaluation
        if step == 5:
            break
    assert watch.per_second == 4.0
