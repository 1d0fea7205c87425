"""Plans a second of CEM, MPPI and gradient descent through the latent dynamics model, and where the time goes.

    python -m benchmarks.plan_speed
    python -m benchmarks.plan_speed --device cuda --width 512

A plan is a whole search for one problem, all of its iterations. Rows differ in problems B at a time, sequences S and
horizon H; contenders take turns in rounds, the first of which warms up. Time in the model is taken in rounds of its
own, for on a GPU it needs waiting.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from agents.planning.cem import CEM
from agents.planning.costs import mean_distance
from agents.planning.gradient import Gradient
from agents.planning.mppi import MPPI
from agents.planning.search import Planner
from benchmarks.runs import command, save_table, today, version_list
from benchmarks.update_speed import hardware
from worldmodels import build
from worldmodels.predictors.dynamics import LatentDynamics

LATENT_DIM, ACTION_DIM, ITERATIONS = 16, 2, 3
SHAPES = ((1, 64, 16), (25, 64, 16), (25, 256, 16), (25, 64, 64))  # B, S, H
STARTS = 16  # sequences of the gradient planner are a 16th: each of its rounds also goes backward


def planners(num_samples: int, horizon: int) -> dict[str, Planner]:
    """The contenders."""
    search = {"horizon": horizon, "num_iterations": ITERATIONS, "persistence": 0.8}
    return {
        "cem": CEM(num_samples=num_samples, num_elites=max(2, num_samples // 8), **search),
        "mppi": MPPI(num_samples=num_samples, temperature=0.1, **search),
        "gradient": Gradient(num_samples=max(2, num_samples // STARTS), lr=0.1, **search),
    }


class Bench:
    """One planner on B problems of random latents."""

    def __init__(self, planner: Planner, model: LatentDynamics, problems: int, device: torch.device) -> None:
        self.planner, self.model, self.device = planner, model, device
        drawn = Generator().manual_seed(0)
        self.latent, self.goal = torch.randn(2, problems, LATENT_DIM, generator=drawn).to(device)
        self.start = torch.zeros(problems, planner.horizon, ACTION_DIM, device=device)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, *, is_split: bool = False) -> tuple[float, float]:
        """Seconds of one search, and of them in the model's forward passes if ``is_split``."""
        inside = 0.0

        def cost(actions: Tensor) -> Tensor:
            nonlocal inside
            if not is_split:
                return mean_distance(self.model.imagine(self.latent, actions), self.goal)
            self.synchronize()
            began = time.perf_counter()
            imagined = self.model.imagine(self.latent, actions)
            self.synchronize()
            inside += time.perf_counter() - began
            return mean_distance(imagined, self.goal)

        self.synchronize()
        began = time.perf_counter()
        with torch.no_grad():
            self.planner.plan(cost, self.start, Generator().manual_seed(0))
        self.synchronize()
        return time.perf_counter() - began, inside


def measure(benches: dict[str, Bench], rounds: int) -> dict[str, tuple[list[float], float]]:
    """Seconds of each round, and the share of them within the model, by planner."""
    times: dict[str, list[float]] = {name: [] for name in benches}
    shares: dict[str, list[float]] = {name: [] for name in benches}
    for turn in range(rounds + 1):
        for name, bench in benches.items():
            whole, (split, inside) = bench.run()[0], bench.run(is_split=True)
            if turn:
                times[name].append(whole)
                shares[name].append(inside / split)
    return {name: (times[name], statistics.median(shares[name])) for name in benches}


def table(
    make: Callable[[], LatentDynamics], shapes: tuple[tuple[int, int, int], ...], rounds: int, device: torch.device
) -> list[str]:
    """Rows in Markdown."""
    model = make().to(device)
    lines = [
        "| planner | problems B | sequences S | horizon H | plans/s, median [slowest, fastest] | ms a call | model |",
        "|---|---|---|---|---|---|---|",
    ]
    for problems, num_samples, horizon in shapes:
        benches = {k: Bench(p, model, problems, device) for k, p in planners(num_samples, horizon).items()}
        for name, (seconds, share) in measure(benches, rounds).items():
            rates = sorted(problems / second for second in seconds)
            lines.append(
                f"| {name} | {problems} | {benches[name].planner.num_samples} | {horizon} "
                f"| {statistics.median(rates):.3g} [{rates[0]:.3g}, {rates[-1]:.3g}] "
                f"| {1e3 * statistics.median(seconds):.3g} | {share:.0%} |"
            )
    return lines


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=128, help="of the model: 128 (scale=small) or 512")
    parser.add_argument("--members", type=int, default=1, help="of the model's ensemble")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    build.use_fast_matmul(device)
    torch.manual_seed(0)

    def make() -> LatentDynamics:
        sizes = {"width": args.width, "depth": 1, "num_members": args.members}
        return LatentDynamics(LATENT_DIM, ACTION_DIM, is_residual=True, **sizes)

    rows = table(make, SHAPES, args.rounds, device)
    head = [
        f"# Plans a second, {hardware(device)}, {today()}",
        "",
        f"{command('plan_speed')}; {version_list('torch')}; {device}, one thread; width {args.width}, {args.members} "
        f"member(s), latents of {LATENT_DIM}, {ITERATIONS} iterations; {args.rounds} rounds after a first. Last: "
        "the share of time in the model's forward passes.",
        "",
    ]
    save_table(f"plan-speed-{hardware(device)}-width{args.width}", "\n".join([*head, *rows, ""]))


if __name__ == "__main__":
    main()
