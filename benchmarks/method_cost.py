"""Updates per second of every zero-shot method, relative to FB, at the paper's sizes on OGBench states.

    python -m benchmarks.method_cost                        # one thread, processor time
    python -m benchmarks.method_cost --agents fb hilp icvf --rounds 5

An update is what ``benchmarks.update_speed`` times: all that follows once the batch is on the device. Methods take
turns in short rounds; ratios are medians of paired rounds, in processor time on a CPU, so that other work on the
machine counts little, and in wall time on a GPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from benchmarks.runs import today
from benchmarks.update_speed import (
    ACTION_DIM,
    NUM_BATCHES,
    OBS_DIM,
    Contender,
    Runner,
    Timing,
    Update,
    hardware,
    updates_of,
)
from envs.replay import TrajectoryStore
from worldmodels import build
from worldmodels.core import Policy
from worldmodels.environment import versions

AGENTS = sorted(path.stem for path in (Path(__file__).resolve().parent.parent / "conf" / "agent").glob("*.yaml"))
BASE = "fb"
TRAJECTORIES, ROWS = 10, 101


class RandomStore:
    """Trajectories of random numbers in cube-single's sizes, with a store for futures and long windows."""

    def __init__(self, *, device: torch.device) -> None:
        num, generator = TRAJECTORIES * ROWS, torch.Generator().manual_seed(0)
        rows = {
            "observation": {"state": torch.randn(num, OBS_DIM, generator=generator)},
            "action": torch.rand(num, ACTION_DIM, generator=generator) * 2 - 1,
            "terminated": torch.zeros(num, dtype=torch.bool),
        }
        ends = torch.arange(num) % ROWS == ROWS - 1
        self.store = TrajectoryStore(TensorDict(rows, batch_size=[num]).to(device), ends)
        state = Unbounded((OBS_DIM,), device=device)
        self.spec = Composite(
            observation=Composite(state=state), action=Bounded(-1, 1, (ACTION_DIM,), device=device), device=device
        )

    def sample(self, batch_size: int, window: int, generator: torch.Generator) -> TensorDict:
        """Draw windows [B, T]."""
        return self.store.sample(batch_size, window, generator)

    def attach(self, policy: Policy | None) -> None:
        """Fixed data needs no policy."""


def compose_config(agent: str) -> DictConfig:
    """An agent as published on OGBench states; on a GPU one CUDA graph, uncompiled."""
    overrides = [f"agent={agent}", "actor=flow", "encoder=state", "env=ogbench", "scale=paper", "compile=false"]
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", overrides)
    cfg.env = {"source": {"_target_": "benchmarks.method_cost.RandomStore"}}
    return cfg


def build_update(cfg: DictConfig, device: torch.device) -> Update:
    """One update of the agent of ``cfg`` on batches that are already there."""
    source = build.build_source(cfg, device)
    objective = build.build_objective(cfg, source, device)
    generator = torch.Generator(device).manual_seed(0)
    batches = [source.sample(cfg.batch_size, objective.window, generator) for _ in range(NUM_BATCHES)]
    return updates_of(cfg, objective, batches, device)


def measure(agents: list[str], device: torch.device, *, rounds: int, updates: int) -> dict[str, list[Timing]]:
    """Interleaved rounds of ``updates`` updates of every agent."""
    build.use_fast_matmul(device)
    engine = torch.get_float32_matmul_precision()
    runners = {a: Runner(Contender(a, build_update, engine), compose_config(a), device) for a in agents}
    timings: dict[str, list[Timing]] = {agent: [] for agent in agents}
    for _ in range(rounds):
        for agent, runner in runners.items():
            timings[agent].append(runner.run(updates))
    return timings


def report(timings: dict[str, list[Timing]], device: torch.device, args: argparse.Namespace) -> str:
    """Markdown: how it was measured, and the table, cheapest first."""
    is_cpu = device.type == "cpu"
    seconds = {agent: [t.cpu if is_cpu else t.wall for t in rows] for agent, rows in timings.items()}
    ratios = {
        agent: [mine / base for mine, base in zip(rows, seconds[BASE], strict=True)] for agent, rows in seconds.items()
    }
    lines = [
        f"# Cost of an update of every zero-shot method, {hardware(device)}, {today()}",
        "",
        f"Command: `python -m benchmarks.method_cost --rounds {args.rounds} --updates {args.updates}`",
        "",
        f"- Python {platform.python_version()}, torch {versions()['torch']}, {device}, {args.threads} thread(s), fp32, "
        f"flow actor, observations {OBS_DIM}, actions {ACTION_DIM}, batch 256, published sizes; load average "
        f"{os.getloadavg()[0]:.1f}.",
        f"- {args.rounds} interleaved rounds of {args.updates} updates, in {'processor' if is_cpu else 'wall'} time; "
        "median [least, greatest] of paired rounds.",
        "",
        f"| agent | updates/s | x {BASE}'s cost |",
        "|---|---|---|",
    ]
    for agent in sorted(ratios, key=lambda agent: statistics.median(ratios[agent])):
        speed, cost = 1 / statistics.median(seconds[agent]), ratios[agent]
        lines.append(f"| {agent} | {speed:.2f} | {statistics.median(cost):.2f} [{min(cost):.2f}, {max(cost):.2f}] |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the table where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", default=AGENTS, choices=AGENTS, help=f"{BASE} is always among them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=3, help="a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="file for the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = build.choose_device(args.device)
    agents = [BASE, *(agent for agent in args.agents if agent != BASE)]
    table = report(measure(agents, device, rounds=args.rounds, updates=args.updates), device, args)
    print(table)
    if args.out is not None:
        args.out.write_text(table)


if __name__ == "__main__":
    main()
