"""What one update of TD-JEPA on pictures costs, and where the time goes.

    python -m benchmarks.pixel_update                            # visual-cube as published, one thread
    python -m benchmarks.pixel_update experiment=td_jepa/visual-walker
    python -m benchmarks.pixel_update experiment=td_jepa/point_mass_maze_pixels_small scale=small --updates 20

Arguments without dashes are settings of ``worldmodels.run``. The data are random pictures in a store like the real one.
Each part is measured by itself, in CPU time of this process, and multiplied by how often an update does it; "all of it"
is a whole update, so what is left over shows how far the parts can be trusted.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite

from benchmarks.runs import save_table
from benchmarks.update_speed import hardware, resident, today
from envs.replay import TrajectoryStore
from worldmodels import build
from worldmodels.core import Policy
from worldmodels.environment import keep_freed_memory
from worldmodels.keys import ACTION, LOSS, OBSERVATION, PIXELS, POOLED, TERMINATED

ROWS, LENGTH = 4_000, 200  # of the store: 47 MiB, larger than the caches
ACTION_DIMS = {"point_mass_maze": 2, "walker": 6, "cheetah": 6, "quadruped": 12}  # others: an arm's 5
WARMUP = 2  # calls before any is timed


class Part(NamedTuple):
    """A row of the table."""

    label: str
    times: int
    seconds: float
    """Once."""


class RandomPictures:
    """Random pictures in the trajectories of a ``TrajectoryStore``: the speed does not depend on what they show."""

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        generator, stack = torch.Generator().manual_seed(0), cfg.env.frame_stack
        dim = ACTION_DIMS.get(cfg.env.get("domain", ""), 5)
        chunk = cfg.env.get("action_chunk", 1)
        pixels = torch.randint(0, 256, (ROWS, 3, 64, 64), dtype=torch.uint8, generator=generator)
        rows = TensorDict(
            {
                OBSERVATION: {PIXELS: pixels},
                ACTION: torch.rand(ROWS, dim, generator=generator) * 2 - 1,
                TERMINATED: torch.zeros(ROWS, dtype=torch.bool),
            },
            batch_size=[ROWS],
        ).to(device)
        ends = torch.arange(1, ROWS + 1) % LENGTH == 0
        self.store = TrajectoryStore(rows, ends, frame_stack=stack, action_chunk=chunk)
        picture = Bounded(0, 255, (3 * stack, 64, 64), dtype=torch.uint8, device=device)
        action = Bounded(-1, 1, (dim * chunk,), device=device)
        self.spec = Composite(observation=Composite(pixels=picture), action=action)

    def sample(self, batch_size: int, window: int, generator: torch.Generator) -> TensorDict:
        """As sources do."""
        return self.store.sample(batch_size, window, generator)

    def attach(self, policy: Policy | None) -> None:
        """Nothing to do: no environment."""


class Given(torch.nn.Module):
    """Stands in for an encoder: hands out features of the right shape, so that only what follows is timed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.scale = torch.nn.Parameter(torch.ones(dim))
        self.features: dict[int, Tensor] = {}

    def observe(self, obs: TensorDict) -> None:
        """No statistics."""

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Features [B, D] with a gradient to where the encoder's would go."""
        num = obs.batch_size[0]
        if num not in self.features:
            self.features[num] = torch.randn(num, self.dim, device=self.scale.device)
        return TensorDict({POOLED: self.features[num] * self.scale}, [num])


class Bench:
    """One configuration, built as for users."""

    def __init__(self, cfg: DictConfig, device: torch.device, updates: int) -> None:
        self.cfg, self.device, self.updates = cfg, device, updates
        self.source = RandomPictures(cfg, device)
        self.objective: Any = build.build_objective(cfg, self.source, device)
        self.learner = build.build_learner(cfg, self.objective, device)
        self.transforms = build.build_transforms(cfg, self.objective)
        self.generator = torch.Generator(device).manual_seed(0)
        self.step = 0

    def sampled(self) -> TensorDict:
        """A batch as the source gives it."""
        return self.source.sample(self.cfg.batch_size, self.objective.window, self.generator)

    def update(self) -> None:
        """All that one step of training does."""
        batch = self.sampled()
        for transform in self.transforms:
            batch = transform(batch, self.generator)
        self.learner.update(batch, self.step)
        self.step += 1

    def cost(self, function: Callable[[], Any], count: int | None = None) -> float:
        """Median seconds of process time of a call, after two to warm up."""
        for _ in range(WARMUP):
            function()
        return statistics.median(self.once(function) for _ in range(count or self.updates))

    def once(self, function: Callable[[], Any]) -> float:
        """Seconds of one call: processor time, on a GPU time until it is done."""
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        self.synchronize()
        started = clock()
        function()
        self.synchronize()
        return clock() - started

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def encodings(self) -> dict[bool, int]:
        """How often an update encodes a batch, with gradient (True) and without."""
        counts = {True: 0, False: 0}

        def seen(*_: Any) -> None:
            counts[torch.is_grad_enabled()] += 1

        handles = [encoder.register_forward_hook(seen) for encoder in self.objective.encoders()]
        self.update()
        for handle in handles:
            handle.remove()
        return counts

    def parts(self) -> list[Part]:
        """The breakdown."""
        counts, batch = self.encodings(), self.sampled()
        rows = [Part("gather stacked pictures", 1, self.cost(self.sampled))]
        for transform in self.transforms:
            name = "random shift" if type(transform).__name__ == "RandomShift" else "noise"
            rows.append(Part(name, 1, self.cost(lambda t=transform: t(batch, self.generator))))
        shifted = batch
        for transform in self.transforms:
            shifted = transform(shifted, self.generator)
        obs, encoder = shifted[OBSERVATION][:, 0], self.objective.encoder

        def forward() -> Tensor:
            return encoder(obs)[POOLED]

        rows.append(Part("encode, no gradient", counts[False], self.cost(torch.no_grad()(forward))))
        rows.append(
            Part("encode with gradient, and backward", counts[True], self.cost(lambda: forward().sum().backward()))
        )
        rows += [Part(f"optimiser: {r.phase.name}", 1, self.optimizer(r)) for r in self.learner.runners]
        rows.append(Part("targets", 1, self.cost(lambda: [target.update(0) for target in self.learner.targets])))
        return rows + self.heads(shifted)

    def optimizer(self, runner: Any) -> float:
        """Seconds of a step of one phase's optimizer."""
        for param in runner.params:
            param.grad = torch.zeros_like(param)
        seconds = self.cost(runner.optimizer.step)
        runner.optimizer.zero_grad(set_to_none=True)
        return seconds

    def heads(self, batch: TensorDict) -> list[Part]:
        """What comes after the encoders, forward and backward, with features that cost nothing."""
        agent, dim = self.objective, self.objective.encoder.dim
        is_shared = agent.task_encoder is agent.encoder
        agent.encoder = Given(dim).to(self.device)
        agent.task_encoder = agent.encoder if is_shared else Given(dim).to(self.device)
        rows = [Part("task vectors", 1, self.cost(lambda: agent.prepare(batch)))]
        prepared = agent.prepare(batch)
        labels = {"representation": "phi, psi, predictors, targets", "actor": "actor"}
        for runner in self.learner.runners:

            def loss(runner: Any = runner) -> None:
                sum(runner.phase.loss(prepared)[LOSS].values()).backward()
                runner.optimizer.zero_grad(set_to_none=True)

            rows.append(Part(labels[runner.phase.name], 1, self.cost(loss)))
        return rows


def report(bench: Bench, settings: list[str], whole: list[float], parts: list[Part], peak: int) -> str:
    """Markdown: how it was measured, and the table."""
    cfg, total = bench.cfg, statistics.median(whole)
    trained = build.num_parameters(bench.objective)
    lines = [
        f"# Pixel update of TD-JEPA, {' '.join(settings)}, {hardware(bench.device)}, {today()}",
        "",
        f"Command: `python -m benchmarks.pixel_update {' '.join(sys.argv[1:])}`",
        "",
        f"- Python {platform.python_version()}, torch {torch.__version__}, {bench.device},"
        f" {torch.get_num_threads()} thread(s); load average {os.getloadavg()[0]:.1f}; CPU time of the process.",
        f"- Batch {cfg.batch_size}, {cfg.env.frame_stack} stacked pictures of 64 x 64, {trained / 1e6:.1f} M trained"
        " parameters.",
        f"- {len(whole)} updates after {WARMUP} to warm up: median {total:.3f} s [{min(whole):.3f}, {max(whole):.3f}],"
        f" {1 / total:.2f} updates/s; peak memory {peak / 2**20:.0f} MB above the imports and the store.",
        "",
        "| part | times | ms, once | ms, an update | share |",
        "|---|---|---|---|---|",
    ]
    for part in sorted(parts, key=lambda part: -part.times * part.seconds):
        cost = part.times * part.seconds
        lines.append(
            f"| {part.label} | {part.times} | {1e3 * part.seconds:.1f} | {1e3 * cost:.1f} | {cost / total:.1%} |"
        )
    left = total - sum(part.times * part.seconds for part in parts)
    lines += [f"| left over | | | {1e3 * left:.1f} | {left / total:.1%} |"]
    return "\n".join([*lines, f"| **all of it** | | | {1e3 * total:.1f} | 100% |"]) + "\n"


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line: options, and settings of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--no-save", action="store_true", help="print the table, write no file")
    args, settings = parser.parse_known_args(argv)
    return args, settings or ["experiment=td_jepa/visual-cube-single-play"]


def main() -> None:
    """Measure, print and save."""
    args, settings = parse()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    build.use_fast_matmul(device)
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", settings)
    bench = Bench(cfg, device, args.updates)
    keep_freed_memory()  # as a run does
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS")
    for _ in range(WARMUP):
        bench.update()
    whole = [bench.once(bench.update) for _ in range(args.updates)]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM") - before
    text = report(bench, settings, whole, bench.parts(), peak)
    if args.no_save:
        print(text)
    else:
        save_table(f"pixel_update_{'_'.join(settings)}_{hardware(device)}_{args.threads}threads", text)


if __name__ == "__main__":
    main()
