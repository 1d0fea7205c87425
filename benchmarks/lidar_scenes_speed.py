"""Simulated LiDAR frames a second, and where the time of a frame goes.

    python -m benchmarks.lidar_scenes_speed                    # 200 frames, one process a core, 100 degrees
    python -m benchmarks.lidar_scenes_speed --sweep 360

Frames are made as ``env=lidar_scenes`` makes them, files included, in a temporary folder. Wall time counts from the
first finished frame: the start of processes (importing open3d and torch) does not grow with the number of frames and is
told apart. Processor time of a frame is measured in one process, and says what an idle core does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.runs import command, save_table, today
from benchmarks.update_speed import hardware
from envs import lidar_collect, lidar_scan, lidar_world
from envs.parallel import num_workers, run_jobs

WARMUP = 3
STAGES = ("whole frame", "street", "scan and labels", "files")


def processor_times(settings: dict[str, Any], frames: int, folder: Path) -> dict[str, list[float]]:
    """Processor seconds of each stage of each frame, in this process."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {name: [] for name in STAGES}
    look = {"sweep": settings["sweep"], "min_points": settings["min_points"]}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        started = time.process_time()
        out = function()
        found[name].append(time.process_time() - started)
        return out

    for i in range(frames + WARMUP):
        random = np.random.default_rng([settings["seed"], i])
        world = timed("street", lambda random=random: lidar_world.build(random))
        timed("scan and labels", lambda world=world, random=random: lidar_scan.scan(world, random, **look))
        timed("whole frame", lambda i=i: lidar_collect.make_frame(str(folder), settings, i))
        found["files"].append(max(0.0, found["whole frame"][-1] - found["street"][-1] - found["scan and labels"][-1]))
    return {name: values[WARMUP:] for name, values in found.items()}


def wall_time(settings: dict[str, Any], frames: int, workers: int, folder: Path) -> tuple[float, float]:
    """Seconds until the first frame is there, and frames a second from then on."""
    for name in ("velodyne", "label_2", "calib"):
        (folder / "training" / name).mkdir(parents=True)
    done: list[float] = []
    started = time.perf_counter()
    jobs = [(str(folder), settings, i) for i in range(frames)]
    run_jobs(
        lidar_collect.make_frame,
        jobs,
        workers=workers,
        advance=lambda _: done.append(time.perf_counter()),
        name="frames",
    )
    return done[0] - started, (len(done) - 1) / (done[-1] - done[0])


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--workers", type=int, default=None, help="processes; default one a core")
    parser.add_argument("--sweep", type=float, default=100.0, help="degrees")
    options = parser.parse_args()
    load, workers = os.getloadavg()[0], num_workers(options.workers)
    settings = lidar_collect.settings_of(seed=0, sweep=options.sweep, min_points=5)
    with tempfile.TemporaryDirectory() as folder:
        times = processor_times(settings, max(10, options.frames // 5), Path(folder) / "one")
        start, rate = wall_time(settings, options.frames, workers, Path(folder) / "all")
        sizes = [path.stat().st_size for path in (Path(folder) / "all").rglob("*.bin")]
    whole = statistics.median(times["whole frame"])
    lines = [
        f"# Simulated LiDAR, {hardware(torch.device('cpu'))}, {today()}",
        "",
        command("lidar_scenes_speed"),
        "",
        f"- {options.frames} frames, {options.sweep:g} degrees, {statistics.mean(sizes) / 16:,.0f} points each.",
        f"- {workers} processes: {rate:.1f} frames/s by the clock, {start:.1f} s until the first; load average "
        f"{load:.1f} before the start.",
        f"- One process alone: {1 / whole:.1f} frames per second of processor time.",
        "",
        "| stage | ms of processor time a frame, median | 90th percentile |",
        "|---|---|---|",
    ]
    for name in STAGES:
        values = sorted(times[name])
        lines.append(f"| {name} | {1e3 * statistics.median(values):.1f} | {1e3 * values[int(0.9 * len(values))]:.1f} |")
    save_table(f"lidar-scenes-{options.sweep:g}", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
