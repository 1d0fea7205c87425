"""Learning-rate factors and momentum schedules: functions of the step alone, so resume is exact."""

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
