"""The loop: sample, transform, update; log, evaluate and save when their clocks fire. Every system runs through it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator

from worldmodels import checkpoint, distributed
from worldmodels.clocks import Clock, Stopwatch
from worldmodels.core import Evaluator, Objective, ReadsAhead, Source, Transform
from worldmodels.evals.results import one_round
from worldmodels.keys import MEDIA
from worldmodels.learner import Learner

MASK = 2**64 - 1


def batch_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the batch of ``step`` on process ``rank``: a hash of all three (splitmix64), so streams never overlap."""
    value = seed
    for part in (step, rank):
        value = (value * 0x9E3779B97F4A7C15 + part + 1) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        value ^= value >> 31
    return value >> 1


@dataclass(kw_only=True)
class Trainer:
    """Runs an objective on a source for a number of steps.

    Batch t is a function of (seed, t) alone, so a run that stopped anywhere continues bit for bit.
    """

    source: Source
    objective: Objective
    learner: Learner
    transforms: Sequence[Transform]
    evaluators: Sequence[Evaluator]
    run_dir: Path
    steps: int
    batch_size: int
    seed: int
    device: torch.device
    log_every: int
    checkpoint_every: int
    log: Callable[[int, dict[str, float]], None]
    """Writes metrics and shows progress; does nothing on other processes than the main one."""
    on_evaluation: Callable[[str, int, TensorDict], None]
    state: dict[str, Any]
    """What a checkpoint's JSON holds beside the step."""
    keep_best: str | None = None
    """"evaluator/metric" whose largest value marks the best checkpoint."""
    start_step: int = 0
    judged: Sequence[str] | None = None
    """Evaluators that were heard at ``start_step``, as its checkpoint says; None: all that were due."""
    best: tuple[float, int] | None = None
    stopwatch: Stopwatch = field(init=False)
    _signal: int | None = field(default=None, init=False)

    def fit(self) -> int:
        """Run to the last step; returns the exit code: 0, or 128 + the signal that stopped it early."""
        self.stopwatch = Stopwatch(self.start_step)
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._loop()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _loop(self) -> int:
        generator = Generator(self.device)
        should_log, should_save = Clock(self.log_every), Clock(self.checkpoint_every)
        clocks = (should_log, should_save, *(Clock(e.every) for e in self.evaluators))
        if self.start_step == 0:
            self._evaluate(0)
        elif self.judged is not None and self._evaluate(self.start_step, but=self.judged):
            self._save(self.start_step)
        self.stopwatch.resume()
        for step in range(self.start_step, self.steps):
            self.learner.update(self._batch(step, generator), step)
            done, is_last = step + 1, step + 1 == self.steps
            if not (is_last or self._is_interrupted() or any(clock(done) for clock in clocks)):
                continue
            values = self._read(done)
            self.stopwatch.lap(done)
            self.log(done, {**values, "time/updates_per_second": self.stopwatch.per_second})
            try:
                self._evaluate(done)
            except Exception:  # a fault in an evaluator must not cost the training
                self._save(done)
                raise
            stop = distributed.any_process(self._signal is not None, self.device)
            if should_save(done) or is_last or stop or (self.best and self.best[1] == done):
                self._save(done)
            if stop and not is_last:
                return 128 + (self._signal or signal.SIGTERM)
            self.stopwatch.resume()
        return 0

    def _batch(self, step: int, generator: Generator) -> TensorDict:
        num, window, rank = self.batch_size // distributed.world_size(), self.objective.window, distributed.rank()
        if isinstance(self.source, ReadsAhead):
            coming = range(step, min(step + 1 + self.source.ahead, self.steps))
            self.source.announce(num, window, [batch_seed(self.seed, later, rank) for later in coming])
        generator.manual_seed(batch_seed(self.seed, step, rank))
        batch = self.source.sample(num, window, generator)
        for transform in self.transforms:
            batch = transform(batch, generator)
        return batch

    def _read(self, done: int) -> dict[str, float]:
        try:
            return self.learner.metrics()
        except FloatingPointError as error:
            good = checkpoint.steps(self.checkpoints)
            kept = f"the last good checkpoint is step {good[-1]} in" if good else "no checkpoint was written yet to"
            raise FloatingPointError(f"stopped at step {done}: {error}; {kept} {self.checkpoints}") from None

    def _evaluate(self, done: int, but: Sequence[str] = ()) -> bool:
        """Hear the evaluators that are due, ``but`` those already heard; returns whether there were any."""
        self.judged = [*but]
        with one_round():
            for evaluator in self.evaluators:
                if evaluator.name in but or not (Clock(evaluator.every)(done) or done == self.steps):
                    continue
                if distributed.is_main():
                    result = evaluator(self.objective, done)
                    scalars = result.exclude(MEDIA).flatten_keys("/").items()
                    values = {f"{evaluator.name}/{k}": float(v) for k, v in scalars}
                    self.log(done, values)
                    self.on_evaluation(evaluator.name, done, result)
                    value, least = values.get(self.keep_best or "", float("nan")), self.best or (float("-inf"), 0)
                    if done and value >= least[0]:  # never so for NaN: an evaluation without a countable episode
                        self.best = (value, done)
                self.judged.append(evaluator.name)
                distributed.barrier()
        return len(self.judged) > len(but)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.run_dir / "checkpoints"

    def _save(self, done: int) -> None:
        if distributed.is_main():
            state = {**self.state, "best": self.best, "judged": self.judged}
            optimizer = self.learner.optimizer_tensors()
            gathered = self.source.gathered() if hasattr(self.source, "gathered") else None
            checkpoint.save(
                self.checkpoints, done, model=self.objective, optimizer=optimizer, state=state, source=gathered
            )
            checkpoint.prune(self.checkpoints, keep={done, self.best[1] if self.best else done})

    def _is_interrupted(self) -> bool:
        # Several processes must stop at the same step, so they look only when a clock fires.
        return self._signal is not None and distributed.world_size() == 1

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal is not None:  # asked twice: do not wait for the step to end
            sys.exit(128 + number)
        self._signal = number
