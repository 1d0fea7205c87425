"""Updates per second of TD-JEPA against the straightforward implementation, with equal networks and batches.

    python -m benchmarks.update_speed                            # table for the paper's sizes, one thread
    python -m benchmarks.update_speed --scale small --threads 2
    python -m benchmarks.update_speed --profile eager            # where the time of ours goes, by operator

An update is all that follows once the batch is on the device: random numbers, task vectors, losses, backward passes,
optimizer steps, targets. Contenders take turns in short rounds, so all meet the same state of the machine; the first
updates (allocation, compilation, capture) are dropped. Peak memory is measured in a process for each contender.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from benchmarks.runs import command, save_table, today
from benchmarks.td_jepa_yardstick import YardstickConfig, make_yardstick
from worldmodels import build
from worldmodels.core import Objective, Policy

OBS_DIM, ACTION_DIM = 28, 5  # cube-single
NUM_BATCHES = 8  # prepared batches, used in turn
MIN_WARMUP = 5
ROOT = Path(__file__).resolve().parent.parent

Update = Callable[[int], None]


class Contender(NamedTuple):
    """One row of the table."""

    label: str
    build: Callable[[DictConfig, torch.device], Update]
    matmul: str
    """What ``torch.set_float32_matmul_precision`` is while it runs."""


class Timing(NamedTuple):
    """One round."""

    wall: float  # seconds an update
    cpu: float  # seconds of processor time an update


def compose_config(scale: str) -> DictConfig:
    """TD-JEPA with the flow actor, as published on OGBench, at a scale."""
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", ["agent=td_jepa", "actor=flow", "encoder=state", "env=ogbench", f"scale={scale}"])


def yardstick_config(cfg: DictConfig) -> YardstickConfig:
    """The same sizes and coefficients for the yardstick."""
    agent, actor = cfg.agent, cfg.agent.actor
    if (agent.state_net.width, agent.state_net.depth) != (agent.task_net.width, agent.task_net.depth):
        raise ValueError("the yardstick's phi and psi have the same hidden layers")
    return YardstickConfig(
        state_dim=agent.state_net.dim,
        task_dim=agent.task_net.dim,
        encoder_width=agent.state_net.width,
        encoder_depth=agent.state_net.depth,
        predictor_width=agent.predictor.width,
        predictor_depth=agent.predictor.depth,
        num_members=agent.predictor.num_members,
        actor_width=actor.width,
        actor_depth=actor.depth,
        field_width=actor.field_width,
        field_depth=actor.field_depth,
        flow_steps=actor.get("num_flow_steps", 10),
        discount=agent.discount,
        tau=agent.target.tau,
        lr=cfg.optim.lr,
        lr_field=cfg.param_groups.vector_field.get("lr", cfg.optim.lr),
        weight_state=cfg.weights.orthonormality_state,
        weight_task=cfg.weights.orthonormality_task,
        bc_weight=cfg.weights.distillation,
        goal_ratio=agent.goal_ratio,
    )


class RandomSource:
    """Windows of random numbers in cube-single's sizes: the speed does not depend on the values."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        state = Unbounded((OBS_DIM,), device=device)
        action = Bounded(-1, 1, (ACTION_DIM,), device=device)
        self.spec = Composite(observation=Composite(state=state), action=action)

    def sample(self, batch_size: int, window: int, generator: torch.Generator) -> TensorDict:
        shape, like = (batch_size, window), {"generator": generator, "device": self.device}
        row = {
            "observation": {"state": torch.randn((*shape, OBS_DIM), **like)},
            "action": torch.rand((*shape, ACTION_DIM), **like) * 2 - 1,
            "terminated": torch.zeros(shape, dtype=torch.bool, device=self.device),
        }
        return TensorDict(row, batch_size=[batch_size], device=self.device)

    def attach(self, policy: Policy | None) -> None:
        """Nothing to do: no environment."""


def make_batches(cfg: DictConfig, device: torch.device) -> list[TensorDict]:
    """The prepared batches, the same for every contender."""
    generator = torch.Generator(device).manual_seed(0)
    return [RandomSource(device).sample(cfg.batch_size, 2, generator) for _ in range(NUM_BATCHES)]


def build_yardstick(cfg: DictConfig, device: torch.device) -> Update:
    """The straightforward implementation."""
    yardstick = make_yardstick(OBS_DIM, ACTION_DIM, yardstick_config(cfg), device)
    batches = [
        {
            "observation": b["observation", "state"][:, 0].contiguous(),
            "next_observation": b["observation", "state"][:, 1].contiguous(),
            "action": b["action"][:, 0].contiguous(),
            "terminated": b["terminated"][:, 0].contiguous(),
        }
        for b in make_batches(cfg, device)
    ]

    def update(step: int) -> None:
        yardstick.update(batches[step % NUM_BATCHES])

    return update


def updates_of(cfg: DictConfig, objective: Objective, batches: list[TensorDict], device: torch.device) -> Update:
    """Updates of ``objective`` by the package's learner on ``batches`` in turn, as users have them."""
    learner = build.build_learner(cfg, objective, device)
    transforms = build.build_transforms(cfg, objective)
    generator = torch.Generator(device).manual_seed(0)

    def update(step: int) -> None:
        batch = batches[step % len(batches)]
        for transform in transforms:
            batch = transform(batch, generator)
        learner.update(batch, step)

    return update


def build_ours(cfg: DictConfig, device: torch.device) -> Update:
    """The package's agent and learner, as built for users."""
    objective = build.build_objective(cfg, RandomSource(device), device)
    return updates_of(cfg, objective, make_batches(cfg, device), device)


def ours(label: str, engine: str, **changes: bool) -> Contender:
    """A row of ours with other values of ``compile`` and ``cuda_graph``."""
    keys = {"compile": False, "cuda_graph": False, **changes}
    return Contender(label, lambda cfg, device: build_ours(OmegaConf.merge(cfg, keys), device), engine)


def contenders(device: torch.device) -> dict[str, Contender]:
    """Rows for this device; the first is what ratios refer to, the second separates out the matmul engine."""
    build.use_fast_matmul(device)
    engine = torch.get_float32_matmul_precision()
    rows = {
        "yardstick": Contender("yardstick, eager", build_yardstick, "highest"),
        "yardstick_engine": Contender("yardstick, eager, matmul engine of ours", build_yardstick, engine),
        "eager": ours("ours, eager", engine),
        "compiled": ours("ours, compiled", engine, compile=True),
    }
    if device.type == "cuda":
        rows["captured"] = ours("ours, one CUDA graph", engine, cuda_graph=True)
        rows["compiled_captured"] = ours("ours, compiled, one CUDA graph", engine, compile=True, cuda_graph=True)
    return rows


class Runner:
    """A contender, built and warmed up, that runs rounds."""

    def __init__(self, contender: Contender, cfg: DictConfig, device: torch.device) -> None:
        self.contender, self.device, self.step = contender, device, 0
        torch.manual_seed(0)
        torch.set_float32_matmul_precision(contender.matmul)
        started = time.perf_counter()
        self.update = contender.build(cfg, device)
        self.update(0)
        self.synchronize()
        self.first = time.perf_counter() - started
        """Seconds from nothing to the first finished update."""
        self.run(MIN_WARMUP)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self, count: int) -> Timing:
        """Time ``count`` updates."""
        torch.set_float32_matmul_precision(self.contender.matmul)
        self.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            self.step += 1
            self.update(self.step)
        self.synchronize()
        return Timing((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count)


def measure(cfg: DictConfig, device: torch.device, names: list[str], rounds: int, seconds: float) -> dict[str, dict]:
    """Interleave rounds of all contenders; each takes about ``seconds``."""
    table = contenders(device)
    runners = {name: Runner(table[name], cfg, device) for name in names}
    counts = {name: max(1, round(seconds / runner.run(3).wall)) for name, runner in runners.items()}
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    gc.disable()
    for _ in range(rounds):
        for name, runner in runners.items():
            timings[name].append(runner.run(counts[name]))
    gc.enable()
    return {
        name: {"rounds": rows, "first": runners[name].first, "updates": counts[name] * rounds}
        for name, rows in timings.items()
    }


def memory_alone(name: str, args: argparse.Namespace) -> int:
    """Peak bytes of one contender, in a process of its own: above the imports on a CPU, allocated on a GPU."""
    own = [sys.executable, "-m", "benchmarks.update_speed", "--memory-of", name, "--scale", args.scale]
    own += ["--threads", str(args.threads), "--device", args.device]
    result = subprocess.run(own, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def resident(which: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most so far (``getrusage`` would count the parent's, too)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return 1024 * int(line.split()[1])


def measure_memory(name: str, cfg: DictConfig, device: torch.device) -> int:
    """Peak memory of building one contender and of a few updates, in this process."""
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS")
    Runner(contenders(device)[name], cfg, device)
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM") - before


def hardware(device: torch.device) -> str:
    """Model name of what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    if not facts:
        return platform.processor()
    return f"{facts['model name']} family {facts['cpu family']} model {facts['model']}"


def engine_error(device: torch.device, precision: str) -> float:
    """Relative error of a float32 matmul, to show what the setting means on this machine."""
    torch.set_float32_matmul_precision(precision)
    a, b = torch.randn(2, 512, 512, device=device)
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).norm() / exact.norm())


def ratio(slow: list[Timing], fast: list[Timing]) -> float:
    """Median over rounds of the speed-up in wall time."""
    return statistics.median(a.wall / b.wall for a, b in zip(slow, fast, strict=True))


def num_trained(cfg: DictConfig) -> int:
    """Trained parameters of the yardstick."""
    networks = make_yardstick(OBS_DIM, ACTION_DIM, yardstick_config(cfg)).networks().values()
    return sum(p.numel() for network in networks for p in network.parameters())


def report(
    results: dict[str, dict], memory: dict[str, int], args: argparse.Namespace, cfg: DictConfig, device: torch.device
) -> str:
    """Markdown: how it was measured, and the table."""
    table = contenders(device)
    engine = table["eager"].matmul
    lines = [
        f"# TD-JEPA update, scale={args.scale}, {hardware(device)}, {today()}",
        "",
        command("update_speed"),
        "",
        f"- Python {platform.python_version()}, torch {torch.__version__}, {device}, {args.threads} thread(s), fp32;"
        f" load average {args.load:.1f} before the start (0 is an idle machine).",
        f"- Observations {OBS_DIM}, actions {ACTION_DIM}, batch {cfg.batch_size}; the same networks on both sides,"
        f" {num_trained(cfg) / 1e6:.2f} M trained parameters.",
        f"- {args.rounds} interleaved rounds; median [slowest, fastest] round; ratios are medians of paired rounds.",
        f"- Matmul engine: yardstick `highest` (relative error {engine_error(device, 'highest'):.1e}), ours `{engine}`"
        f" ({engine_error(device, engine):.1e}).",
        "- Memory: peak of a process that runs only this contender"
        + (", above its imports." if device.type == "cpu" else ", allocated on the device."),
        "",
        "| | updates/s | ms/update | CPU ms/update | peak memory, MB | first update, s | x yardstick "
        "| x yardstick, same engine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        rows: list[Timing] = result["rounds"]
        speeds = sorted(1 / row.wall for row in rows)
        wall, cpu = statistics.median(r.wall for r in rows), statistics.median(r.cpu for r in rows)
        peak = f"{memory[name] / 2**20:.0f}" if name in memory else "-"
        ratios = [
            f"{ratio(results[base]['rounds'], rows):.2f}" if base in results else "-"
            for base in ("yardstick", "yardstick_engine")
        ]
        lines.append(
            f"| {table[name].label} | {statistics.median(speeds):.2f} [{speeds[0]:.2f}, {speeds[-1]:.2f}] "
            f"| {1e3 * wall:.2f} | {1e3 * cpu:.2f} | {peak} | {result['first']:.1f} | {ratios[0]} | {ratios[1]} |"
        )
    return "\n".join(lines) + "\n"


def profile(name: str, cfg: DictConfig, device: torch.device) -> None:
    """Print where the time of one contender goes, by operator."""
    runner = Runner(contenders(device)[name], cfg, device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        runner.run(20)
    by = "self_cpu_time_total" if device.type == "cpu" else "self_cuda_time_total"
    print(f"{contenders(device)[name].label}, 20 updates")
    print(profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=45))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="paper", help="a file of conf/scale: paper (default) or small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one contender's round")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders to run (default: all)")
    parser.add_argument("--no-save", action="store_true", help="print the table, write no file")
    parser.add_argument(
        "--profile", metavar="NAME", help="print a profile of this contender instead: eager, compiled, ..."
    )
    parser.add_argument("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    """Measure, print and save."""
    args = parse()
    torch.set_num_threads(args.threads)
    device, cfg = torch.device(args.device), compose_config(args.scale)
    names = args.only or list(contenders(device))
    if unknown := sorted({*names, *filter(None, [args.profile, args.memory_of])} - set(contenders(device))):
        sys.exit(f"unknown contender {', '.join(unknown)}; on {device} there are: {', '.join(contenders(device))}")
    if args.memory_of:
        print(measure_memory(args.memory_of, cfg, device))
        return
    if args.profile:
        profile(args.profile, cfg, device)
        return
    args.load = os.getloadavg()[0]
    results = measure(cfg, device, names, args.rounds, args.seconds)
    memory = {name: memory_alone(name, args) for name in names}
    text = report(results, memory, args, cfg, device)
    if args.no_save:
        print(text)
    else:
        save_table(f"td_jepa_update_{args.scale}_{hardware(device)}_{args.threads}threads", text)


if __name__ == "__main__":
    main()
