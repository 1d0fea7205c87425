"""The first losses of every system on small data, and the script that writes them down.

    python -m tests.golden.regenerate [agent/td_jepa ...]

A stored number is a promise that a refactoring changes nothing. Changing one needs a reason, in ``CHANGELOG.md``, in
the same commit; a new system needs its file. Everything is computed in float64: in float32 Adam turns the rounding of
another processor into half a per cent within a few updates.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Generator

from tests.systems import SYSTEMS, composed
from worldmodels import build
from worldmodels.trainer import batch_seed

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent / "first_losses"
STEPS, BATCH_SIZE, SEED = 3, 16, 0
MORE = {"objective/salt": [f"objective.steps={STEPS}"]}  # settings of a system: both stages within these updates


@contextmanager
def float64() -> Iterator[None]:
    """Weights, noise and data in float64, also where code leaves bfloat16 autocast with ``.float()``."""
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@float64()
def first_losses(system: str) -> dict[str, list[float]]:
    """Every named loss of ``system`` ("agent/td_jepa") at ``scale=small``, one value an update."""
    device = torch.device("cpu")
    overrides = [system.replace("/", "="), "scale=small", f"seed={SEED}", "compile=false", *MORE.get(system, [])]
    cfg = composed(*overrides, batch_size=BATCH_SIZE)
    source = build.build_source(cfg, device)
    objective = build.build_objective(cfg, source, device)
    learner = build.build_learner(cfg, objective, device)
    transforms = build.build_transforms(cfg, objective)
    losses: dict[str, list[float]] = {}
    for step in range(STEPS):
        generator = Generator().manual_seed(batch_seed(SEED, step, 0))
        batch = source.sample(cfg.batch_size, objective.window, generator)
        batch = batch.apply(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
        for transform in transforms:
            batch = transform(batch, generator)
        learner.update(batch, step)
        for name, value in learner.metrics().items():
            if name.startswith("loss/"):
                losses.setdefault(name.removeprefix("loss/"), []).append(float(f"{value:.8g}"))
    return losses


def path_of(system: str) -> Path:
    """Where the numbers of ``system`` are stored."""
    return FOLDER / f"{system.replace('/', '-')}.json"


def main(systems: list[str]) -> None:
    """Write the numbers of ``systems``, or of all."""
    if unknown := sorted(set(systems) - set(SYSTEMS)):
        sys.exit(f"error: no such system: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for system in systems or SYSTEMS:
        lines = [f'"{name}": {json.dumps(values)}' for name, values in sorted(first_losses(system).items())]
        path_of(system).write_text("{\n  " + ",\n  ".join(lines) + "\n}\n")
        print(path_of(system).relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
