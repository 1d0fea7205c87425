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
    """Linear from ``start`` to 1 over ``warmup`` steps, then half a cosine down to ``end`` at ``total`` steps."""

    def __init__(self, total: int, *, warmup: int = 0, start: float = 0.0, end: float = 0.0) -> None:
        if not 0 <= warmup <= total:
            raise ValueError(f"warm-up must lie within the run: 0 <= {warmup} <= {total} fails")
        self.total, self.warmup, self.start, self.end = total, warmup, start, end

    def __call__(self, step: int) -> float:
        """Factor at ``step``."""
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
