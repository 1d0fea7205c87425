"""What one update of I-JEPA and of DMT-JEPA costs, and where the time goes.

    python -m benchmarks.image_update                                  # scale=small, one thread
    python -m benchmarks.image_update encoder=vit_tiny batch_size=32 --updates 5

Arguments without dashes are settings of ``worldmodels.run``, for both methods. Each part is measured by itself; whole
updates of the two methods alternate, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from torch import Tensor

from benchmarks.runs import save_table
from benchmarks.update_speed import hardware, today
from worldmodels import build
from worldmodels.environment import keep_freed_memory
from worldmodels.keys import CONTEXT, LOSS, OBSERVATION, TARGETS

METHODS = ("i_jepa", "dmt_jepa")
WARMUP = 2  # calls before any is timed


class Bench:
    """One method, built as for users, on the source that its settings name."""

    is_wall_time = False  # also on a CPU, where processor time is less disturbed

    def __init__(self, method: str, settings: list[str], device: torch.device, calls: int) -> None:
        with initialize_config_module("conf", version_base="1.3"):
            self.cfg = compose("config", [f"objective={method}", *settings])
        self.device, self.calls, self.step = device, calls, 0
        self.source = build.build_source(self.cfg, device)
        self.objective: Any = build.build_objective(self.cfg, self.source, device)
        self.learner = build.build_learner(self.cfg, self.objective, device)
        self.transforms = build.build_transforms(self.cfg, self.objective)
        self.generator = torch.Generator(device).manual_seed(0)

    def batch(self) -> TensorDict:
        """A batch with its crop and masks."""
        batch = self.source.sample(self.cfg.batch_size, self.objective.window, self.generator)
        for transform in self.transforms:
            batch = transform(batch, self.generator)
        return batch

    def update(self) -> None:
        """All that one step of training does."""
        self.learner.update(self.batch(), self.step)
        self.step += 1

    def once(self, function: Callable[[], Any]) -> float:
        """Milliseconds of one call: processor time, on a GPU time until it is done."""
        is_cuda = self.device.type == "cuda"
        clock = time.perf_counter if is_cuda or self.is_wall_time else time.process_time
        if is_cuda:
            torch.cuda.synchronize()
        started = clock()
        function()
        if is_cuda:
            torch.cuda.synchronize()
        return 1e3 * (clock() - started)

    def cost(self, function: Callable[[], Any]) -> float:
        """Median milliseconds of a call."""
        for _ in range(WARMUP):
            function()
        return statistics.median(self.once(function) for _ in range(self.calls))

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

        def clear(function: Callable[[], Tensor]) -> None:
            function().sum().backward()
            objective.zero_grad()

        found = {
            "sample": self.cost(lambda: self.source.sample(size, objective.window, self.generator)),
            "crop": self.cost(lambda: objective.make_views(raw, self.generator)),
            "masks": self.cost(lambda: objective.draw_masks(viewed, self.generator)),
            "target encoder": self.cost(lambda: objective.whole(obs)),
            "targets beyond it": self.cost(lambda: objective.goal(batch)),
            "visible patches, forward and backward": self.cost(lambda: clear(lambda: objective.context(obs, context))),
            "predictor, forward and backward": self.cost(
                lambda: clear(lambda: objective.predictor(latent, context, asked))
            ),
            "loss, forward and backward": self.cost(lambda: clear(lambda: total(batch))),
        }
        found["targets beyond it"] -= found["target encoder"]
        return found


def report(benches: list[Bench], whole: list[list[float]], parts: list[dict[str, float]], settings: list[str]) -> str:
    """Markdown: how it was measured, and the table."""
    cfg, objective = benches[0].cfg, benches[0].objective
    what, machine = " ".join(settings) or "scale=small", hardware(benches[0].device)
    lines = [
        f"# Update of I-JEPA and DMT-JEPA, {what}, {machine}, {today()}",
        "",
        f"Command: `{' '.join(['python -m benchmarks.image_update', *sys.argv[1:]])}`",
        "",
        f"- torch {torch.__version__}, {torch.get_num_threads()} thread(s), load average {os.getloadavg()[0]:.1f}; CPU "
        "time of the process, on a GPU wall time. Median of "
        f"{len(whole[0])} alternating updates after {WARMUP} to warm up [least, greatest].",
        f"- Batch {cfg.batch_size}, grid {tuple(objective.encoder.grid)}, width {objective.encoder.dim}; trained "
        "parameters in millions: " + ", ".join(f"{build.num_parameters(b.objective) / 1e6:.2f}" for b in benches) + ".",
        "",
        "| ms | I-JEPA | DMT-JEPA |",
        "|---|---|---|",
    ]
    spans = (f"{statistics.median(times):.1f} [{min(times):.1f}, {max(times):.1f}]" for times in whole)
    lines.append(f"| **update** | {' | '.join(spans)} |")
    lines += [f"| {name} | {' | '.join(f'{found[name]:.1f}' for found in parts)} |" for name in parts[0]]
    ratio = statistics.median(b / a for a, b in zip(*whole, strict=True))
    return (
        "\n".join([*lines, "", f"An update of DMT-JEPA takes {ratio:.2f} times that of I-JEPA (median of pairs)."])
        + "\n"
    )


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--no-save", action="store_true", help="print the table, write no file")
    args, settings = parser.parse_known_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    build.use_fast_matmul(device)
    keep_freed_memory()  # as a run does
    benches = [Bench(method, settings, device, args.updates) for method in METHODS]
    for bench in benches * WARMUP:
        bench.update()
    pairs = [[bench.once(bench.update) for bench in benches] for _ in range(args.updates)]
    whole = [list(times) for times in zip(*pairs, strict=True)]
    text = report(benches, whole, [bench.parts() for bench in benches], settings)
    if args.no_save:
        print(text)
    else:
        save_table(f"image_update_{'_'.join(settings) or 'small'}_{hardware(device)}_{args.threads}threads", text)


if __name__ == "__main__":
    main()
