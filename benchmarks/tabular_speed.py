"""Processor time and memory of T-JEPA's update, next to what was measured for the released code.

    python -m benchmarks.tabular_speed --data-dir ../shared/data/tabular

fp32, sizes of networks, batch and masks as there. The figures of the released code are processor seconds an update on
one core (sheet t_jepa, section 4). "ratio" divides them by our processor seconds, "wall ratio" by our wall time: what
``--threads`` cores gain, to be measured on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_module

from benchmarks.runs import command, save_table, today
from benchmarks.update_speed import hardware, resident
from worldmodels import build
from worldmodels.environment import keep_freed_memory

WARMUP = 3


class Case(NamedTuple):
    """One row of the table."""

    label: str
    settings: tuple[str, ...]
    released: float  # CPU seconds an update of the released code


CASES = {
    "adult": Case("Adult, the code's defaults: H 64, 4 layers, predictor 2 x 64", ("env.dataset=adult",), 0.98),
    "california": Case(
        "California, H 16, 2 layers, predictor 2 x 16",
        (
            "env.dataset=california",
            "encoder.dim=16",
            "encoder.depth=2",
            "objective.predictor.width=16",
            "env.scale=minmax",
        ),
        0.12,
    ),
    "jannis": Case("Jannis, released setting: 16 + 16 layers", ("experiment=t_jepa/jannis",), 16.3),
}


def measure(case: Case, data_dir: Path | None, seconds: float, threads: int) -> dict[str, float]:
    """CPU and wall seconds an update, mean over updates, and peak bytes above those before the objective was built."""
    where = [f"env.data_dir={data_dir}"] if data_dir else []
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", ["objective=t_jepa", "scale=paper", *case.settings, *where])
    device = torch.device("cpu")
    torch.set_num_threads(threads)
    build.use_fast_matmul(device)
    keep_freed_memory()
    source: Any = build.build_source(cfg, device)
    before = resident("VmRSS")
    objective = build.build_objective(cfg, source, device)
    learner = build.build_learner(cfg, objective, device)
    transforms = build.build_transforms(cfg, objective)
    generator = torch.Generator().manual_seed(0)

    def update(step: int) -> None:
        batch = source.sample(cfg.batch_size, 1, generator)
        for transform in transforms:
            batch = transform(batch, generator)
        learner.update(batch, step)

    for step in range(WARMUP):
        update(step)
    step, spent, wall = WARMUP, [], time.perf_counter()
    while sum(spent) < seconds or len(spent) < 5:
        started = time.process_time()
        update(step)
        spent.append(time.process_time() - started)
        step += 1
    return {
        "seconds": sum(spent) / len(spent),  # the mean: masks, hence work, differ between updates
        "wall": (time.perf_counter() - wall) / len(spent),
        "epoch": math.ceil(source.num_rows / cfg.batch_size),
        "updates": len(spent),
        "bytes": resident("VmHWM") - before,
        "process": resident("VmHWM"),
        "batch": cfg.batch_size,
        "parameters": build.num_parameters(objective),
    }


def main() -> None:
    """Measure each case in a process of its own, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=30.0, help="of processor time a case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    data_dir = options.data_dir.resolve() if options.data_dir else None
    if options.only:
        print(json.dumps(measure(CASES[options.only], data_dir, options.seconds, options.threads)))
        return
    load = os.getloadavg()[0]
    lines = [
        f"# T-JEPA update, {hardware(torch.device('cpu'))}, {today()}",
        "",
        command("tabular_speed"),
        "",
        f"- torch {torch.__version__}, {options.threads} thread(s), fp32; load average {load:.1f} before the start.",
        "- Memory: peak of the process, and above what it had before networks were built.",
        "- Shares of columns in Adult's and California's masks are those released for Jannis: others are not known.",
        "",
        "| | parameters | batch | CPU s/update | wall s/update | wall s/epoch | rows per CPU s | peak, MB | "
        "above start, MB | released code | ratio | wall ratio |",
        "|---" * 12 + "|",
    ]
    for name in options.cases:
        own = [sys.executable, "-m", "benchmarks.tabular_speed", "--only", name, "--seconds", str(options.seconds)]
        own += ["--threads", str(options.threads)]
        own += ["--data-dir", str(data_dir)] if data_dir else []
        done = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True)
        found, case = json.loads(done.stdout.splitlines()[-1]), CASES[name]
        cells = [case.label, found["parameters"], found["batch"], f"{found['seconds']:.3f}"]
        cells += [
            f"{found['wall']:.3f}",
            f"{found['wall'] * found['epoch']:.1f}",
            round(found["batch"] / found["seconds"]),
            *(round(found[key] / 2**20) for key in ("process", "bytes")),
        ]
        cells += [f"{case.released:g} s", f"{case.released / found['seconds']:.1f}x"]
        cells += [f"{case.released / found['wall']:.1f}x"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
        print(lines[-1], file=sys.stderr, flush=True)
    save_table(f"t-jepa-update-{options.threads}threads", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
