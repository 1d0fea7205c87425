"""Confidence intervals of a mean over tasks and episodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def bootstrap_interval(
    groups: Sequence[Tensor], generator: Generator, *, num_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over groups of the mean in each group.

    Episodes are resampled within their task, so the interval says how sure the mean over exactly these tasks is. When
    all values of a group agree, resampling cannot differ: 10 successes in 10 episodes give [1, 1], though the true
    rate may be lower.

    Args:
        groups: one [n] tensor a task, any n; empty ones are left out.
        generator: on the CPU; the interval is a function of it and the values.
        num_resamples: draws of the bootstrap.
        level: coverage.

    Returns:
        (low, high); NaN if all groups are empty.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    means = []
    for group in groups:
        if group.numel() == 0:
            continue
        means.append(resample(group.double().cpu(), generator, num_resamples).mean(1))  # [num_resamples]
    if not means:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = torch.stack(means).mean(0).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def resample(values: Tensor, generator: Generator, num_resamples: int) -> Tensor:
    """Draw from ``values`` [n] with replacement, as often as there are values: [num_resamples, n]."""
    return values[torch.randint(values.numel(), (num_resamples, values.numel()), generator=generator)]
