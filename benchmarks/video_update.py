"""Clips a second of whole updates of V-JEPA, V-Pixel and SALT: masks, target, contexts, backward, optimizer, average.

    python -m benchmarks.video_update --threads 2                      # ViT-Tiny, 512 tokens: what the sheet measured
    python -m benchmarks.video_update --device cuda encoder=video_large views.size=224 env.size=224 encoder.patch=16

Arguments without dashes are settings of ``worldmodels.run``, for all methods. Clips are generated beforehand and stay
on the device: what they cost is in ``moving_scenes_speed``. Methods take turns.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from benchmarks.bench import WARMUP, Bench, arguments, conditions, show, span
from benchmarks.runs import command, today
from benchmarks.update_speed import hardware
from worldmodels.flops import spent
from worldmodels.keys import OBSERVATION, PIXELS

# Clips/s of the official code on two cores: 16 x 64 x 64 in 512 tokens, encoder 192 x 12, predictor 96 x 4 (sheet, 6)
PUBLISHED = {"fp32": 5.7, "bf16": 8.3}
TINY = "encoder=video_tiny encoder.patch=8 encoder.is_init_scaled=true env.size=64 env.num_frames=16 env.frame_rate=8"
TINY += " encoder.depth=12 encoder.dim=192 encoder.num_heads=3 objective.predictor.width=96 objective.predictor.depth=4"
TINY += " objective.predictor.hidden=384 objective.predictor.num_heads=3 batch_size=8 steps=1000"
METHODS = {
    "V-JEPA": ["objective=v_jepa"],
    "V-Pixel": ["objective=v_pixel"],
    "SALT, student": ["objective=salt", "objective.teacher_share=0"],
}
OF_TEACHER = ("encoder.patch", "encoder.depth", "encoder.dim", "encoder.num_heads")


def settings_of(name: str, settings: list[str]) -> list[str]:
    """Those of a method; SALT's teacher is as large as the student."""
    own = [*METHODS[name], *settings]
    if name.startswith("SALT"):
        own += [s.replace("encoder", "objective.teacher", 1) for s in settings if s.partition("=")[0] in OF_TEACHER]
        own += [s.replace("encoder=", "encoder@objective.teacher=") for s in settings if s.startswith("encoder=")]
    return own


class Clips(Bench):
    """A method whose batches lie ready; masks and crops are drawn anew."""

    is_wall_time = True

    def __init__(self, name: str, settings: list[str], device: torch.device, calls: int) -> None:
        super().__init__(settings_of(name, settings), device, calls)
        self.clips = self.source.sample(self.cfg.batch_size, self.objective.window, self.generator)

    def update(self) -> None:
        """Views, masks, and all that the learner does."""
        batch = self.clips
        for transform in self.transforms:
            batch = transform(batch, self.generator)
        self.learner.update(batch, self.step)
        self.step += 1

    def operations(self) -> float:
        """Of one update, by the formula."""
        phases, costs = self.objective.phases(), self.objective.costs(self.cfg.batch_size)
        return spent(phases, costs, batch_size=self.cfg.batch_size, step=1)


def main() -> None:
    """Measure, print and save."""
    args, settings = arguments(__doc__, threads=2, precision=["fp32", "bf16"])
    chosen = [*(settings or TINY.split()), f"precision={args.precision}"]
    benches = {name: Clips(name, chosen, args.device, args.updates) for name in METHODS}
    for _ in range(WARMUP + (3 if args.device.type == "cuda" else 0)):  # a CUDA graph is captured at the fourth
        for bench in benches.values():
            bench.update()
    times: dict[str, list[float]] = {name: [] for name in benches}
    for _ in range(args.updates):
        for name, bench in benches.items():
            times[name].append(bench.once(bench.update) / 1e3)
    text = report(benches, times, args, settings)
    show(text, f"video_update_{'_'.join(settings) or 'tiny'}_{args.precision}", args)


def report(
    benches: dict[str, Clips], times: dict[str, list[float]], args: argparse.Namespace, settings: list[str]
) -> str:
    """Markdown."""
    first, what = next(iter(benches.values())), " ".join(settings) or "ViT-Tiny, 512 tokens"
    shape = list(first.clips[OBSERVATION, PIXELS].shape[1:])
    lines = [
        f"# Updates on clips, {what}, {args.precision}, {hardware(args.device)}, {today()}",
        "",
        command("video_update"),
        "",
        f"- {conditions(args)}.",
        f"- Wall time, median of {args.updates} updates in turns [least, greatest]. Clips {shape} lie on the device.",
        f"- Batch {first.cfg.batch_size}, grid {tuple(first.objective.encoder.grid)}, width "
        f"{first.objective.encoder.dim}. GFLOP by the formula of worldmodels/flops.py.",
        "",
        "| | ms an update | clips/s | GFLOP a clip | GFLOP/s |",
        "|---|---|---|---|---|",
    ]
    for name, bench in benches.items():
        middle, size, cost = statistics.median(times[name]), bench.cfg.batch_size, bench.operations() / 1e9
        whole = span([1e3 * t for t in times[name]], 0)
        lines.append(f"| {name} | {whole} | {size / middle:.1f} | {cost / size:.2f} | {cost / middle:.0f} |")
    if not settings:
        rate = first.cfg.batch_size / statistics.median(times["V-JEPA"])
        known = PUBLISHED[args.precision]
        lines += [
            "",
            f"V-JEPA: {rate / known:.2f} times the official code's {known} clips/s (another machine, two cores).",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
