"""Factors on learning rate and weight decay, and momentum schedules: functions of the step, so resume is exact."""

from __future__ import annotations

import math


class Constant:
    """Always ``value``."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def __call__(self, step: int) -> float:
        """Value at ``step``."""
        return self.value


class WarmupCosine:
    """Linear from ``start`` to 1 over ``warmup`` steps, then half a cosine down to ``end`` at ``total`` steps.

    A ``warmup`` below 1 is a share of ``total``. ``first`` is the value at step 0 where it does not fit the rest: some
    published code makes its first update before it sets the rate.
    """

    def __init__(
        self, total: int, *, warmup: int | float = 0, start: float = 0.0, end: float = 0.0, first: float | None = None
    ) -> None:
        warmup = round(warmup * total) if 0 < warmup < 1 else int(warmup)
        if not 0 <= warmup <= total:
            raise ValueError(f"warm-up must lie within the run: 0 <= {warmup} <= {total} fails")
        self.total, self.warmup, self.start, self.end, self.first = total, warmup, start, end, first

    def __call__(self, step: int) -> float:
        """Factor at ``step``."""
        if step == 0 and self.first is not None:
            return self.first
        if step < self.warmup:
            return self.start + (1 - self.start) * step / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


class Linear:
    """From ``start`` to ``end`` over ``total`` steps (the momentum of I-JEPA and V-JEPA targets)."""

    def __init__(self, start: float, end: float, total: int) -> None:
        self.start, self.end, self.total = start, end, total

    def __call__(self, step: int) -> float:
        """Value at ``step``."""
        return self.start + (self.end - self.start) * min(1.0, step / max(1, self.total))


class Power:
    """(1 + step)^-power, at least ``least``: the step of an average that at first follows and later hardly moves.

    With 0.75 and 1e-4 the average of weights of diffusion policy (sheet act_jepa, section 3.2).
    """

    def __init__(self, power: int | float, *, least: float = 0.0) -> None:
        self.power, self.least = power, least

    def __call__(self, step: int) -> float:
        """Value at ``step``."""
        return max(self.least, (1 + step) ** -self.power)


class Cosine:
    """From ``start`` to ``end`` over ``total`` steps along half a cosine.

    The momentum of BYOL's targets; with ``start=1, end=10`` the factor on weight decay of I-JEPA, DMT-JEPA and V-JEPA.
    """

    def __init__(self, start: float, end: float, total: int) -> None:
        self.start, self.end, self.total = start, end, total

    def __call__(self, step: int) -> float:
        """Value at ``step``."""
        progress = min(1.0, step / max(1, self.total))
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


class OneCycle:
    """Half a cosine from ``start`` to ``peak`` over the first ``warmup`` share of ``total`` steps, another to ``end``.

    As a factor on the learning rate with the defaults: from a tenth of the rate to the rate, then to a 100,000th.
    As a momentum: ``start=0.95, peak=0.85, end=0.95``.

    Source: Smith and Topin 2018 (super-convergence), with cosines for straight lines; sheet ad_l_jepa, section 1.7.
    """

    def __init__(
        self,
        total: int,
        *,
        warmup: int | float = 0.4,
        start: int | float = 0.1,
        peak: int | float = 1.0,
        end: int | float = 1e-5,
    ) -> None:
        if not 0 < warmup < 1:
            raise ValueError(f"warmup={warmup}: the way up takes a share of the run between 0 and 1")
        self.total, self.turn = total, warmup * total
        self.start, self.peak, self.end = start, peak, end

    def __call__(self, step: int) -> float:
        """Value at ``step``."""
        if step < self.turn:
            first, last, progress = self.start, self.peak, step / self.turn
        else:
            first, last, progress = self.peak, self.end, min(1.0, (step - self.turn) / max(1, self.total - self.turn))
        return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))
