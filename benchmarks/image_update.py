"""What one update of I-JEPA and of DMT-JEPA costs, and where the time goes.

    python -m benchmarks.image_update                                  # scale=small, one thread
    python -m benchmarks.image_update encoder=vit_tiny batch_size=32 --updates 5

Arguments without dashes are settings of ``worldmodels.run``, for both methods. Each part is measured by itself; whole
updates of the two methods alternate, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from tensordict import TensorDict
from torch import Tensor

from benchmarks.bench import WARMUP, Bench, arguments, conditions, show, span
from benchmarks.runs import command, today
from benchmarks.update_speed import hardware
from worldmodels import build
from worldmodels.keys import CONTEXT, LOSS, OBSERVATION, TARGETS

METHODS = ("i_jepa", "dmt_jepa")


class Masked(Bench):
    """A method that predicts hidden patches of pictures."""

    def parts(self) -> dict[str, float]:
        """Milliseconds of each part of an update."""
        objective, size = self.objective, self.cfg.batch_size
        raw = self.source.sample(size, objective.window, self.generator)
        viewed, batch = objective.make_views(raw, self.generator), self.batch()
        obs, context, asked = batch[OBSERVATION][:, 0], batch[CONTEXT], batch[TARGETS]
        with torch.no_grad():
            latent = objective.context(obs, context)

        def total(batch: TensorDict) -> Tensor:
            return sum(objective.loss(batch)[LOSS].values(), torch.zeros((), device=self.device))

        found = {
            "sample": self.cost(lambda: self.source.sample(size, objective.window, self.generator)),
            "crop": self.cost(lambda: objective.make_views(raw, self.generator)),
            "masks": self.cost(lambda: objective.draw_masks(viewed, self.generator)),
            "target encoder": self.cost(lambda: objective.whole(obs)),
            "targets beyond it": self.cost(lambda: objective.goal(batch)),
            "visible patches, forward and backward": self.cost(
                lambda: self.clear(lambda: objective.context(obs, context))
            ),
            "predictor, forward and backward": self.cost(
                lambda: self.clear(lambda: objective.predictor(latent, context, asked))
            ),
            "loss, forward and backward": self.cost(lambda: self.clear(lambda: total(batch))),
        }
        found["targets beyond it"] -= found["target encoder"]
        return found


def report(benches: list[Masked], whole: list[list[float]], args: argparse.Namespace, settings: list[str]) -> str:
    """Markdown: how it was measured, and the table."""
    cfg, objective = benches[0].cfg, benches[0].objective
    parts = [bench.parts() for bench in benches]
    lines = [
        f"# Update of I-JEPA and DMT-JEPA, {' '.join(settings) or 'scale=small'}, {hardware(args.device)}, {today()}",
        "",
        command("image_update"),
        "",
        f"- {conditions(args)}; CPU time of the process, on a GPU wall time. Median of {args.updates} alternating "
        f"updates after {WARMUP} to warm up [least, greatest].",
        f"- Batch {cfg.batch_size}, grid {tuple(objective.encoder.grid)}, width {objective.encoder.dim}; trained "
        "parameters in millions: " + ", ".join(f"{build.num_parameters(b.objective) / 1e6:.2f}" for b in benches) + ".",
        "",
        "| ms | I-JEPA | DMT-JEPA |",
        "|---|---|---|",
        f"| **update** | {' | '.join(map(span, whole))} |",
    ]
    lines += [f"| {name} | {' | '.join(f'{found[name]:.1f}' for found in parts)} |" for name in parts[0]]
    ratio = statistics.median(b / a for a, b in zip(*whole, strict=True))
    lines += ["", f"An update of DMT-JEPA takes {ratio:.2f} times that of I-JEPA (median of pairs)."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and save."""
    args, settings = arguments(__doc__)
    benches = [Masked([f"objective={method}", *settings], args.device, args.updates) for method in METHODS]
    for bench in benches * WARMUP:
        bench.update()
    pairs = [[bench.once(bench.update) for bench in benches] for _ in range(args.updates)]
    whole = [list(times) for times in zip(*pairs, strict=True)]
    show(report(benches, whole, args, settings), f"image_update_{'_'.join(settings) or 'small'}", args)


if __name__ == "__main__":
    main()
