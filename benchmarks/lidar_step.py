"""Where the time of one LiDAR training step goes: pre-training, its baseline and detection, on a real KITTI frame.

    python -m benchmarks.lidar_step --data-dir ../shared/data/kitti_mini                # one frame, one CPU thread
    python -m benchmarks.lidar_step --data-dir DIR --threads 2 --batch 4
    python -m benchmarks.lidar_step --data-dir DIR --device cuda --batch 8              # with the share of spconv
    python -m benchmarks.lidar_step --data-dir DIR --device cuda --batch 8 --compile    # as a run on a GPU does it

Published sizes. A step is what the trainer does: rows of the source, here copies of one frame; views (flip, rotation,
scaling, shuffling, other ones for each copy); voxels and masks; losses, backward pass, clipping, optimizer, target. A
round is two steps, one timed as a whole, one by parts. No two have the same batch, as in a run: a matmul engine that
prepares itself for each new size must pay for it here too. Batch i is the same whenever this file runs. What is inside
a compiled loss cannot be told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Generator

from benchmarks.runs import command, save_table, today
from benchmarks.sparse_backbone import copies
from benchmarks.update_speed import hardware
from benchmarks.watch import Part, Place, Spent, Watch
from perception.detection import second
from perception.lidar import backbone, encode
from worldmodels import build
from worldmodels.environment import keep_freed_memory, memory_bytes, peak_memory_bytes
from worldmodels.keys import NUM_VOXELS, OBSERVATION, VOXELS
from worldmodels.trainer import batch_seed

OBJECTIVES = ("ad_l_jepa", "occupancy_mae", "lidar_detection")
WARMUP = 2  # steps; the first one makes the optimizer's state
CONVOLVE, CONVOLUTIONS = "convolve", "sparse convolutions in all"
ROWS = {  # of the table, by the name of a part
    "rows": "rows of the source",
    "views": "views",
    "voxelise": "voxelise",
    "masks": "masks",
    "encoder": "sparse encoder",
    "target": "sparse target encoder",
    "bev": "BEV: predictor, decoder or 2D backbone",
    "head": "head",
    "assign": "assignment",
    "loss": "loss",
    "optimizer": "clipping and optimizer",
    "follow": "target update",
    "": "rest",
}


class Step:
    """A training step, called with its number.

    Args:
        cfg: of a run; its batch has ``batch_size`` copies of ``frame``.
    """

    def __init__(self, cfg: DictConfig, source: Any, frame: str, device: torch.device) -> None:
        self.cfg, self.source, self.frame = cfg, source, frame
        self.objective: Any = build.build_objective(cfg, source, device)
        self.learner = build.build_learner(cfg, self.objective, device)
        (self.runner,) = self.learner.runners
        transforms, num = build.build_transforms(cfg, self.objective), len(cfg.transforms)
        self.configured, self.own = transforms[:num], transforms[num:]
        self.generator, self.num_voxels = Generator(device), torch.zeros(())

    def __call__(self, index: int) -> None:
        """Make batch ``index``, as ``Trainer`` does, and update."""
        self.generator.manual_seed(batch_seed(self.cfg.seed, index, 0))
        batch = self.mask(self.view(self.rows()))
        self.num_voxels = batch[OBSERVATION, VOXELS, NUM_VOXELS].sum()
        self.learner.update(batch, index)

    def rows(self) -> TensorDict:
        return copies(self.source, self.frame, self.cfg.batch_size)

    def view(self, batch: TensorDict) -> TensorDict:
        for transform in self.configured:
            batch = transform(batch, self.generator)
        return batch

    def mask(self, batch: TensorDict) -> TensorDict:
        for transform in self.own:
            batch = transform(batch, self.generator)
        return batch

    def parts(self) -> list[Part]:
        """What is told apart."""
        outer = [
            Part("rows", self, "rows"),
            Part("views", self, "view"),
            Part("masks", self, "mask"),
            Part("voxelise", backbone, "voxelize"),
            Part("loss", self.runner, "loss"),
            Part("optimizer", self.learner, "_step"),
            *(Part("follow", target, "update") for target in self.learner.targets),
        ]
        return outer if self.cfg.compile else outer + inner_parts(self.runner.phase.name, self.objective)


def inner_parts(phase: str, objective: Any) -> list[Part]:
    """Parts of a loss."""
    parts = [Part("encoder", objective.encoder, name) for name in ("forward", "bev")]
    parts.append(Part(CONVOLVE, encode, "convolve"))
    if phase == "ad_l_jepa":
        return [*parts, Part("target", objective.target, "forward"), Part("bev", objective.predictor, "forward")]
    if phase == "occupancy_mae":
        return [*parts, Part("bev", objective, "decode")]
    detector = objective.detector
    parts += [Part("bev", detector.backbone, "forward"), Part("head", detector, "forward")]
    return [*parts, Part("assign", second, "assign")]


def compose_config(objective: str, options: argparse.Namespace) -> DictConfig:
    """A run's configuration."""
    settings = [f"objective={objective}", "env=kitti", f"env.data_dir={options.data_dir}", f"scale={options.scale}"]
    settings += [f"batch_size={options.batch}", f"compile={options.compile}"]
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", settings)


def measure(objective: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of whole steps and of parts, a number a round; voxels; bytes."""
    device = build.choose_device(options.device)
    torch.set_num_threads(options.threads)
    if options.engine == "auto":
        build.use_fast_matmul(device)
    cfg = compose_config(objective, options)
    source = build.build_source(cfg, device)
    if device.type == "cpu":
        keep_freed_memory()  # as a run does
    before = memory_bytes(device)
    step, watch = Step(cfg, source, options.frame, device), Watch(device)
    for index in range(WARMUP):
        step(index)
    wholes, rounds, voxels = [], [], []
    for index in range(WARMUP, WARMUP + 2 * options.rounds, 2):
        wholes.append(timed(step, index, device))
        voxels.append(int(step.num_voxels))
        with watch.on(step.parts()):
            step(index + 1)
        rounds.append(watch.read())
        voxels.append(int(step.num_voxels))
    peak = peak_memory_bytes(device)
    return {
        "parameters": build.num_parameters(step.objective),
        "voxels": voxels,
        "wall": [whole.wall for whole in wholes],
        "cpu": [whole.cpu for whole in wholes],
        "parts": columns(rounds),
        "peak": peak,
        "above": {kind: peak[kind] - before[kind] for kind in peak},
        "backend": step.objective.encoder.backend,
        "matmul": torch.get_float32_matmul_precision(),
    }


def timed(step: Step, index: int, device: torch.device) -> Spent:
    """Seconds of a whole step."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    step(index)
    synchronize()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def columns(rounds: Sequence[Mapping[Place, Spent]]) -> dict[str, dict[str, list[float]]]:
    """Seconds of each row of the table: "forward", "backward", "wall" of both, "cpu" of both, a number a round."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0] * len(rounds)))
    for i, spent in enumerate(rounds):
        for place, (wall, cpu) in spent.items():
            row = next((ROWS[name] for name in reversed(place.path) if name in ROWS), ROWS[""])
            for name in (row, "all parts", *([CONVOLUTIONS] if place.name == CONVOLVE else [])):
                found[name]["backward" if place.is_backward else "forward"][i] += wall
                found[name]["wall"][i] += wall
                found[name]["cpu"][i] += cpu
    return found


def spread(values: Sequence[float], scale: float = 1e3) -> str:
    """Median, and in brackets least and greatest; in milliseconds if ``values`` are seconds."""
    if not values:
        return ""
    low, middle, high = (scale * pick(values) for pick in (min, statistics.median, max))
    digits = 0 if middle >= 10 else 1
    return f"{middle:,.{digits}f} ({low:,.{digits}f}, {high:,.{digits}f})"


def report(found: Mapping[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """Markdown: how it was measured, whole steps, parts of each."""
    device, first = torch.device(options.device), next(iter(found.values()))
    clock = "on the GPU's timeline, waiting for the host included" if device.type == "cuda" else "by the clock"
    backend = first["backend"]
    lines = [
        f"# LiDAR training step, {hardware(device)}, {today()}",
        "",
        command("lidar_step"),
        "",
        f"- torch {torch.__version__}, {device}, {options.threads} CPU thread(s), fp32"
        f"{', compiled' if options.compile else ''}, matmuls `{first['matmul']}`, sparse convolutions by {backend};"
        f" load average {options.load:.1f} before the start.",
        f"- Batches of {options.batch}: KITTI's frame {options.frame}; scale={options.scale}.",
        f"- Median (least, greatest) over {options.rounds} rounds; each objective in a process of its own.",
        f"- Parts: milliseconds {clock}; CPU: processor time of both directions.",
        "- Peak memory: " + ("allocated on the GPU." if device.type == "cuda" else "resident, of the process."),
        "",
        f"| | {' | '.join(found)} |",
        "|---|" + "---|" * len(found),
    ]
    kind = "device" if device.type == "cuda" else "process"
    wholes = {
        "whole step, ms by the clock": lambda f: spread(f["wall"]),
        "whole step, ms of CPU": lambda f: spread(f["cpu"]),
        "frames/s": lambda f: f"{options.batch / statistics.median(f['wall']):.2f}",
        "voxels of a batch": lambda f: spread(f["voxels"], 1),
        "trained parameters": lambda f: f"{f['parameters']:,}",
        "peak memory, MB": lambda f: f"{f['peak'][kind] / 2**20:,.0f}",
        "of it not there before networks, MB": lambda f: f"{f['above'][kind] / 2**20:,.0f}",
    }
    if not options.compile:
        wholes[f"share of time in {backend}'s sparse convolutions"] = lambda f: f"{share(f['parts'], CONVOLUTIONS):.0%}"
    lines += [f"| {name} | {' | '.join(cell(f) for f in found.values())} |" for name, cell in wholes.items()]
    for objective, result in found.items():
        parts = result["parts"]
        lines += ["", f"## objective={objective}", "", "| part | forward | backward | both, CPU | share |"]
        lines.append("|---|---|---|---|---|")
        for row in (*ROWS.values(), "all parts", CONVOLUTIONS):
            if row in parts:
                cells = [spread(parts[row].get(name, [])) for name in ("forward", "backward", "cpu")]
                lines.append(f"| {row} | {' | '.join(cells)} | {share(parts, row):.0%} |")
    return "\n".join(lines) + "\n"


def share(parts: Mapping[str, Mapping[str, list[float]]], row: str) -> float:
    """Median over rounds of a row's share of the time."""
    return statistics.median(a / b for a, b in zip(parts[row]["wall"], parts["all parts"]["wall"], strict=True))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="a folder in KITTI's layout")
    parser.add_argument("--frame", default="000008", help="of its train or val")
    parser.add_argument("--batch", type=int, default=1, help="copies of the frame")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--scale", default="paper", choices=("paper", "small"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--engine", choices=("auto", "highest"), default="auto", help="of fp32 matmuls; auto: a run's")
    parser.add_argument("--compile", action="store_true", help="compile the losses, as a run on a GPU does")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-save", action="store_true", help="print the tables, write no file")
    parser.add_argument("--only", choices=OBJECTIVES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.data_dir, options.load = options.data_dir.resolve(), os.getloadavg()[0]
    return options


def main() -> None:
    """Measure each objective in a process of its own, print and save."""
    options = parse()
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    found = {}
    for name in options.objectives:
        own = [sys.executable, "-m", "benchmarks.lidar_step", *sys.argv[1:], "--only", name]
        done = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {spread(found[name]['wall'])} ms", file=sys.stderr, flush=True)
    text = report(found, options)
    if options.no_save:
        print(text)
    else:
        how = [options.scale, options.device, f"batch{options.batch}", f"{options.threads}threads"]
        how += ["highest"] * (options.engine == "highest") + ["compiled"] * options.compile
        save_table(f"lidar-step-{'-'.join(how)}", text)


if __name__ == "__main__":
    main()
