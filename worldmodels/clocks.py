"""When to log, evaluate and save."""

from __future__ import annotations

import time


class Clock:
    """Fires on every ``every``-th step; 0 never fires."""

    def __init__(self, every: int) -> None:
        if every < 0:
            raise ValueError(f"a clock's period is a number of steps, at least 0; got {every}")
        self.every = every

    def __call__(self, step: int) -> bool:
        """Whether something is due after ``step`` finished steps."""
        return self.every > 0 and step % self.every == 0


class Stopwatch:
    """Updates per second, without the pauses for evaluation and saving and without the first lap (compilation)."""

    def __init__(self, step: int) -> None:
        self.seconds, self.steps, self.laps = 0.0, 0, 0
        self._step, self._since = step, time.perf_counter()

    def lap(self, step: int) -> None:
        """Stop the clock after ``step`` steps."""
        seconds, steps = time.perf_counter() - self._since, step - self._step
        if self.laps == 1:  # there is a second lap: forget the first
            self.seconds, self.steps = 0.0, 0
        self.seconds, self.steps, self.laps = self.seconds + seconds, self.steps + steps, self.laps + 1
        self._step = step

    def resume(self) -> None:
        """Start the clock again."""
        self._since = time.perf_counter()

    @property
    def per_second(self) -> float:
        """Updates per second so far."""
        return self.steps / self.seconds if self.seconds else 0.0
