"""What benchmarks of whole updates share: a method built as for users, what a part of it costs, arguments, the table.

Arguments without dashes are settings of ``worldmodels.run``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from torch import Tensor

from benchmarks.runs import save_table
from benchmarks.update_speed import hardware
from worldmodels import build
from worldmodels.environment import keep_freed_memory

WARMUP = 2  # calls before any is timed


def arguments(doc: str | None, *, threads: int = 1, **choices: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line and set the process up as a run is.

    Args:
        doc: of the script. threads: unless ``--threads`` says another number. choices: of further arguments, the first
            is the default.

    Returns: the arguments, of which ``device`` is a torch.device, and the settings.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads of torch")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--no-save", action="store_true", help="print the table, write no file")
    for name, values in choices.items():
        parser.add_argument(f"--{name}", default=values[0], choices=values)
    args, settings = parser.parse_known_args()
    torch.set_num_threads(args.threads)
    build.use_fast_matmul(args.device)
    keep_freed_memory()
    return args, settings


def show(text: str, name: str, args: argparse.Namespace) -> None:
    """Print a table and, unless ``--no-save`` was given, keep it under ``name``."""
    if args.no_save:
        print(text)
    else:
        save_table(f"{name}_{hardware(args.device)}_{args.threads}threads", text)


def conditions(args: argparse.Namespace) -> str:
    """The line of a table that says what else bears on its times."""
    return f"torch {torch.__version__}, {args.threads} thread(s), load average {os.getloadavg()[0]:.1f}"


def span(times: list[float], digits: int = 1) -> str:
    """Median [least, greatest]."""
    return f"{statistics.median(times):.{digits}f} [{min(times):.{digits}f}, {max(times):.{digits}f}]"


class Bench:
    """One method, built as for users, on the source that its settings name."""

    is_wall_time = False  # also on a CPU, where processor time is less disturbed

    def __init__(self, settings: list[str], device: torch.device, calls: int) -> None:
        with initialize_config_module("conf", version_base="1.3"):
            self.cfg = compose("config", settings)
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

    def clear(self, function: Callable[[], Tensor]) -> None:
        """Call ``function`` and go backward through what it gives."""
        function().sum().backward()
        self.objective.zero_grad()
