"""What one update of seq-JEPA costs, part by part, against the figures of the official code.

    python -m benchmarks.view_update                                   # as the sheet measured: 32 sequences of 4 views
    python -m benchmarks.view_update --device cuda precision=bf16 batch_size=512

Arguments without dashes are settings of ``worldmodels.run`` beside those of ``SETTINGS``. What pictures show does not
matter to the cost, so they are those that come with packages, at 32 pixels.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from benchmarks.bench import WARMUP, Bench, arguments, conditions, show, span
from benchmarks.runs import command, today
from benchmarks.update_speed import hardware
from worldmodels import build
from worldmodels.keys import ACTION, OBSERVATION
from worldmodels.objectives.two_views import rows

SETTINGS = "experiment=seq_jepa/cifar100 env.path=null views.num_views=4 batch_size=32 precision=fp32"

# CPU seconds of the official code for these settings, an EPYC with AVX-512 (sheet seq_jepa, 4.1)
OFFICIAL = {
    "update": 4.15,
    "encoder, forward and backward": 3.50,
    "target encoder": 0.37,
    "aggregator and predictor, forward and backward": 0.16,
    "views": 128 / 876,
}


class Sequences(Bench):
    """seq-JEPA on sequences of views."""

    def parts(self) -> dict[str, float]:
        """Milliseconds of each part of an update."""
        objective, batch = self.objective, self.batch()
        raw = self.source.sample(self.cfg.batch_size, objective.window, self.generator)
        num = batch[ACTION].shape[1] - 1
        seen, last = (rows(batch[OBSERVATION], which) for which in (slice(0, num), slice(num, num + 1)))
        actions = batch[ACTION][:, :num]
        with torch.no_grad():
            latent = objective.encode(seen).unflatten(0, (-1, num))
        return {
            "views": self.cost(lambda: objective.make_views(raw, self.generator)),
            "encoder, forward and backward": self.cost(lambda: self.clear(lambda: objective.encode(seen))),
            "target encoder": self.cost(lambda: objective.anchor(last)),
            "aggregator and predictor, forward and backward": self.cost(
                lambda: self.clear(lambda: objective.predictor(latent, actions))
            ),
        }


def report(bench: Sequences, whole: list[float], args: argparse.Namespace, settings: list[str]) -> str:
    """Markdown: how it was measured, and the table."""
    cfg, num = bench.cfg, bench.cfg.batch_size * bench.objective.make_views.num
    rate = 1e3 * num / statistics.median(whole)
    lines = [
        f"# Update of seq-JEPA, {' '.join(settings) or 'as the sheet measured'}, {hardware(args.device)}, {today()}",
        "",
        command("view_update"),
        "",
        f"- Settings: `{SETTINGS}`; {build.num_parameters(bench.objective) / 1e6:.1f} million trained parameters.",
        f"- {conditions(args)}; CPU time of the process, on a GPU wall time. Median of {args.updates} updates after "
        f"{WARMUP} to warm up [least, greatest].",
        f"- Batches of {cfg.batch_size} sequences of {bench.objective.make_views.num} views, the last a target.",
        "",
        "| ms | here | official code, EPYC with AVX-512 |" if not settings else "| ms | here |",
        "|---|---|---|" if not settings else "|---|---|",
    ]
    rows_of = {"update": f"**{span(whole)}**", **{name: f"{ms:.1f}" for name, ms in bench.parts().items()}}
    for name, here in rows_of.items():
        lines.append(f"| {name} | {here} |" + ("" if settings else f" {1e3 * OFFICIAL[name]:.0f} |"))
    lines += ["", f"{rate:.1f} views/s" + ("" if settings else f"; official {num / OFFICIAL['update']:.1f}.")]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and save."""
    args, settings = arguments(__doc__)
    bench = Sequences([*SETTINGS.split(), *settings], args.device, args.updates)
    for _ in range(WARMUP):
        bench.update()
    whole = [bench.once(bench.update) for _ in range(args.updates)]
    show(report(bench, whole, args, settings), f"view_update_{'_'.join(settings) or 'published'}", args)


if __name__ == "__main__":
    main()
