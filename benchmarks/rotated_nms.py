"""Time of rotated NMS, next to the loop that defines it.

    python -m benchmarks.rotated_nms                   # 4,096 boxes, one thread; CUDA if there is a GPU

Candidates of a detector lie in heaps about objects: cars, pedestrians and cyclists on 70 x 80 m, jittered in place,
size and heading, scores at random. The worst cases lie anywhere, or in one heap of which the threshold keeps all. The
loop first computes the overlaps of all close pairs with the same code, then goes through the boxes one by one.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from benchmarks.runs import command, save_table, today
from benchmarks.update_speed import hardware
from perception.detection.nms import rotated_nms
from worldmodels.geometry.overlap import bev_iou

SIZES = ((3.9, 1.6, 1.56), (0.8, 0.6, 1.73), (1.76, 0.6, 1.73))  # car, pedestrian, cyclist
SHARES = (0.7, 0.2, 0.1)


class Case(NamedTuple):
    """One row of the table."""

    label: str
    objects: int
    iou: float
    max_keep: int


CASES = (
    Case("100 objects, IoU 0.01, keep 500 (SECOND)", 100, 0.01, 500),
    Case("300 objects, IoU 0.01, keep 500 (SECOND)", 300, 0.01, 500),
    Case("500 objects, IoU 0.01, keep 500 (SECOND)", 500, 0.01, 500),
    Case("300 objects, IoU 0.1, keep 500", 300, 0.1, 500),
    Case("300 objects, IoU 0.7, keep 500 (CenterPoint)", 300, 0.7, 500),
    Case("300 objects, IoU 0.7, keep all", 300, 0.7, 4096),
    Case("anywhere, IoU 0.7, keep all", 4096, 0.7, 4096),
    Case("one heap, IoU 0.999, keep all: every pair is compared", 1, 0.999, 4096),
)


def scene(num: int, objects: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``num`` boxes float32 [num, 7] about ``objects`` places, and scores [num]."""
    generator = Generator().manual_seed(seed)
    place = torch.rand(objects, 2, generator=generator) * torch.tensor([70.0, 80.0]) - torch.tensor([0.0, 40.0])
    size = torch.tensor(SIZES)[torch.multinomial(torch.tensor(SHARES), objects, True, generator=generator)]
    heading = torch.rand(objects, 1, generator=generator) * 2 * torch.pi
    at = torch.randint(objects, (num,), generator=generator)
    noise = torch.randn(num, 7, generator=generator)
    boxes = torch.cat(
        (
            place[at] + 0.3 * noise[:, :2],
            0.1 * noise[:, 2:3] - 1,
            size[at] * (1 + 0.1 * noise[:, 3:6]).clamp(0.7, 1.3),
            heading[at] + 0.1 * noise[:, 6:],
        ),
        1,
    )
    return boxes.to(device), torch.rand(num, generator=generator).to(device)


def greedy_loop(boxes: Tensor, scores: Tensor, iou: float, max_keep: int) -> Tensor:
    """What one writes first: all overlaps, then one box after another."""
    order = scores.argsort(descending=True, stable=True)
    is_over = bev_iou(boxes[order], boxes[order]) > iou
    is_gone, kept = torch.zeros_like(order, dtype=torch.bool), []
    for i in range(len(order)):
        if not is_gone[i] and len(kept) < max_keep:
            kept.append(i)
            is_gone |= is_over[i]
    return order[kept]


def measure(
    function: Callable[[], Tensor], device: torch.device, seconds: float, least: int = 5
) -> tuple[list[float], list[float]]:
    """Wall and processor time of at least ``least`` calls, in milliseconds; the first call is dropped."""
    wall, cpu = [], []
    function()
    while sum(wall) < 1000 * seconds or len(wall) < least:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started, worked = time.perf_counter(), time.process_time()
        function()  # ends with its result on the host's side: no call returns before the device is done
        wall.append(1000 * (time.perf_counter() - started))
        cpu.append(1000 * (time.process_time() - worked))
    return wall, cpu


def row(case: Case, num: int, device: torch.device, seconds: float) -> str:
    """Measure one case; a line of the table."""
    boxes, scores = scene(num, case.objects, device)
    arguments = (boxes, scores, case.iou, case.max_keep)
    kept = rotated_nms(*arguments)
    if not torch.equal(kept, greedy_loop(*arguments)):
        raise RuntimeError(f"{case.label}: the loop keeps other boxes")
    wall, cpu = measure(lambda: rotated_nms(*arguments), device, seconds)
    _, loop = measure(lambda: greedy_loop(*arguments), device, 0.0, least=2)
    cells = [case.label, str(len(kept)), f"{statistics.median(wall):.1f} [{min(wall):.1f}, {max(wall):.1f}]"]
    cells += [f"{statistics.median(cpu):.1f}", f"{statistics.median(loop):.0f}"]
    cells += [f"{statistics.median(loop) / statistics.median(cpu):.1f}x"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure every case, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=0.5, help="at least, for each case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, load = torch.device(options.device), os.getloadavg()[0]
    lines = [
        f"# Rotated NMS of {options.boxes} boxes, {hardware(device)}, {today()}",
        "",
        command("rotated_nms"),
        "",
        f"- Python {platform.python_version()}, torch {torch.__version__}, {device}, {options.threads} thread(s),"
        f" float32; load average {load:.1f} before the start (0 is an idle machine).",
        "- Medians of calls [fastest, slowest]; the loop keeps the same boxes in every case.",
        "",
        "| | kept | ms | CPU ms | loop, CPU ms | ratio of CPU ms |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        lines.append(row(case, options.boxes, device, options.seconds))
        print(lines[-1], file=sys.stderr, flush=True)
    save_table(f"rotated_nms_{options.boxes}_{hardware(device)}", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
