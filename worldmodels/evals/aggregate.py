"""Comparing methods over tasks and seeds: mean, interquartile mean, probability of improvement, and their intervals.

Scores of a method are one [n] tensor a task, one entry a run. Everything is computed on the CPU in float64 and is a
function of the scores and the generator. Runs are resampled within each task.

Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021 (rliable),
sections 4.1-4.3. rliable 1.2 gives the same numbers (tests/worldmodels/evals/test_aggregate.py compares where it loads)
but is not used: it wants arch < 8, which does not load beside pandas 3, brings 76 MB of packages, takes 38 times as
long, and needs equally many runs of every task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from worldmodels.evals.bootstrap import bootstrap_interval, resample

Groups = Sequence[Tensor]


class Estimate(NamedTuple):
    """A number and its bootstrap interval."""

    value: float
    low: float
    high: float


def interquartile_mean(values: Tensor) -> Tensor:
    """Mean of the middle half: of n sorted values, floor(n / 4) at either end are left out.

    Args:
        values: [..., n], n at least 1.

    Returns:
        [...]
    """
    num = values.shape[-1]
    cut = num // 4
    return values.sort(-1).values[..., cut : num - cut].mean(-1)


def mean_score(groups: Groups, generator: Generator, *, num_resamples: int = 2000, level: float = 0.95) -> Estimate:
    """Mean over tasks of the mean over runs, with its percentile bootstrap interval.

    With few runs the interval is too narrow: two runs of a task give three different means, and one gives none.

    Args:
        groups: one [n] tensor a task; n may differ.
        generator: on the CPU.
        num_resamples: draws of the bootstrap. level: coverage.
    """
    groups = _checked(groups)
    value = float(torch.stack([group.mean() for group in groups]).mean())
    return Estimate(value, *bootstrap_interval(groups, generator, num_resamples=num_resamples, level=level))


def interquartile_score(
    groups: Groups, generator: Generator, *, num_resamples: int = 2000, level: float = 0.95
) -> Estimate:
    """Interquartile mean of the scores of all tasks together, with its interval.

    Args:
        groups: one [n] tensor a task, n the same for all: else tasks with more runs would count for more.
        generator: on the CPU.
        num_resamples: draws of the bootstrap. level: coverage.

    Raises:
        ValueError: if tasks have different numbers of runs.
    """
    groups = _checked(groups)
    if len(sizes := {group.numel() for group in groups}) > 1:
        raise ValueError(f"an interquartile mean needs equally many runs of every task, not {sorted(sizes)}")
    drawn = torch.cat([resample(group, generator, num_resamples) for group in groups], -1)  # [R, tasks n]
    return Estimate(float(interquartile_mean(torch.cat(groups))), *_interval(interquartile_mean(drawn), level))


def probability_of_improvement(
    ours: Groups, theirs: Groups, generator: Generator, *, num_resamples: int = 2000, level: float = 0.95
) -> Estimate:
    """How likely a run of ours beats a run of theirs, on a task drawn at random; an equal score counts as half.

    On each task this is the Mann-Whitney statistic divided by the number of pairs. Runs of both are resampled.

    Args:
        ours, theirs: one [n] tensor a task, for the same tasks in the same order; n may differ.
        generator: on the CPU.
        num_resamples: draws of the bootstrap. level: coverage.

    Raises:
        ValueError: if the numbers of tasks differ.
    """
    ours, theirs = _checked(ours), _checked(theirs)
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} tasks of one method cannot be compared with {len(theirs)} of another")
    pairs = list(zip(ours, theirs, strict=True))
    value = float(torch.stack([_wins(x, y) for x, y in pairs]).mean())
    drawn = [_wins(resample(x, generator, num_resamples), resample(y, generator, num_resamples)) for x, y in pairs]
    return Estimate(value, *_interval(torch.stack(drawn).mean(0), level))


def _wins(x: Tensor, y: Tensor) -> Tensor:
    """Share of pairs in which x [..., n] is greater than y [..., m], ties as half."""
    difference = x[..., :, None] - y[..., None, :]  # [..., n, m]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean((-2, -1))


def _interval(values: Tensor, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def _checked(groups: Groups) -> list[Tensor]:
    if not groups or any(group.ndim != 1 or not group.numel() or not bool(group.isfinite().all()) for group in groups):
        raise ValueError("scores must be one tensor [n] a task with at least one finite value each")
    return [group.double().cpu() for group in groups]
