"""Clips a second that env=moving_scenes generates on one thread, and where the time goes.

    python -m benchmarks.moving_scenes_speed
    python -m benchmarks.moving_scenes_speed --device cuda --batch-size 256

On a CPU processor time counts, which other processes disturb less than wall time; on a GPU wall time, synchronised. The
smallest of several rounds in turns.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
from torch import Generator

from benchmarks.runs import command, save_table, today, version_list
from benchmarks.update_speed import hardware
from envs.moving_scenes import MovingScenes

CLIPS = ((16, 64), (8, 32))  # frames, side in pixels
PUBLISHED = 5.7  # V-JEPA updates a second of clips of 16 x 64 x 64 by the official code: sheet salt_video, section 6


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of one call: processor time on a CPU, wall time on a GPU."""
    if device.type == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(device: torch.device, *, batch_size: int, rounds: int) -> list[tuple[int, int, float, float]]:
    """Frames, side, milliseconds a clip to draw the scenes, and to draw and paint them."""
    generator = Generator(device).manual_seed(0)
    sources = [(frames, size, MovingScenes(size=size, device=device)) for frames, size in CLIPS]
    best = {(frames, size): [float("inf")] * 2 for frames, size in CLIPS}
    for _ in range(rounds + 1):  # the first one warms up; the smallest counts
        for frames, size, source in sources:
            for place, function in enumerate((source.draw, source.sample)):
                spent = seconds(lambda f=function, t=frames: f(batch_size, t, generator), device)
                best[frames, size][place] = min(best[frames, size][place], 1e3 * spent / batch_size)
    return [(frames, size, *times) for (frames, size), times in best.items()]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, load = torch.device(options.device), os.getloadavg()[0]
    found = measure(device, batch_size=options.batch_size, rounds=options.rounds)
    kind = "processor time" if device.type == "cpu" else "wall time"
    rows = [
        f"| {frames} x {size} x {size} | {draw:.2f} | {whole:.2f} | {1e3 / whole:,.0f} |"
        for frames, size, draw, whole in found
    ]
    text = [
        f"# Moving scenes, {hardware(device)}, {today()}",
        "",
        f"{command('moving_scenes_speed')}; {version_list('torch', 'numpy')}; one thread; load average {load:.1f} on "
        f"{os.cpu_count()} cores: above 1, other work slows all rows down.",
        "",
        f"Batches of {options.batch_size}, the settings of conf/env/moving_scenes.yaml. For comparison: the official "
        f"code's update of V-JEPA with a ViT-tiny takes {1e3 / PUBLISHED:.0f} ms a clip of 16 x 64 x 64 on two cores "
        "(sheet salt_video, section 6; another machine).",
        "",
        f"| clip | ms of {kind} to draw a scene | ms to draw and paint it | clips a second |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    save_table(f"moving-scenes-{hardware(device)}", "\n".join(text))


if __name__ == "__main__":
    main()
