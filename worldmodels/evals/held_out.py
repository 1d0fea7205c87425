"""Losses on data that are not trained on, always the same ones: what a loss says can be read against what probes say.

SALT's claim is that the loss of a student with a frozen teacher predicts its accuracy, where that of a moving target
does not (arXiv 2509.24317; sheet salt_video, section 1.6). Training losses cannot show that: each is of another batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import Objective
from worldmodels.evals.results import device_of, judging, pack
from worldmodels.keys import LOSS, STAT


class HeldOut:
    """Mean losses and stats of every phase on a few fixed batches of a part.

    Batches, crops and masks come from this evaluator's own seed, so that they are equal whenever it looks and in every
    run with the same data and settings. Metrics: "<phase>/<loss>" and "<phase>/<stat>". All phases are asked, also
    those whose turn has not come or is over. Networks are in evaluation mode, without gradients; buffers that an
    objective moves while it looks are put back.

    Args:
        source: with ``split(name)``.
        every: steps between two looks; 0 looks at the end only.
        part: "train", "val" or "test".
        num_batches, batch_size: how many samples.
        seed: of batches, crops and masks.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no parts, or settings make no sense.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        part: str = "val",
        num_batches: int = 4,
        batch_size: int = 64,
        seed: int = 0,
        name: str = "held_out",
    ) -> None:
        if not hasattr(source, "split"):
            raise ValueError(
                f"{name} needs data that are not trained on; {type(source).__name__} has no split(name). "
                "Use env=moving_scenes, env=video or env=images"
            )
        if min(num_batches, batch_size) < 1:
            raise ValueError(f"{name}: num_batches={num_batches} and batch_size={batch_size} must be at least 1")
        self.source, self.every, self.name = source.split(part), every, name
        self.num_batches, self.batch_size, self.seed = num_batches, batch_size, seed

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Measure."""
        generator = Generator(device_of(objective)).manual_seed(self.seed)
        sums: dict[str, Tensor] = {}
        with judging(objective), _buffers_kept(objective):
            for _ in range(self.num_batches):
                for name, value in self.measured(objective, generator).items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value
        return pack({name: float(total) / self.num_batches for name, total in sums.items()})

    def measured(self, objective: Objective, generator: Generator) -> dict[str, Tensor]:
        """Losses and stats of one batch, float64 scalars."""
        batch = self.source.sample(self.batch_size, objective.window, generator)
        for transform in objective.transforms():
            batch = transform(batch, generator)
        batch, found = objective.prepare(batch), {}
        for phase in objective.phases():
            result = phase.loss(batch)
            for kind in (STAT, LOSS):  # a loss goes before a stat of its name
                for name, value in result.get(kind, TensorDict({})).items():
                    found[f"{phase.name}/{name}"] = value.detach().double()
        return found


@contextmanager
def _buffers_kept(objective: Objective) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
