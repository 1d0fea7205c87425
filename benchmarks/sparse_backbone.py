"""Processor time of the LiDAR encoder on a real scan: voxels, sparse convolutions forward and backward, both backends.

    python -m benchmarks.sparse_backbone --data-dir ../shared/data/kitti_mini
    python -m benchmarks.sparse_backbone --data-dir DIR --engine highest      # without torch's faster matmul engine

KITTI's range and voxels, the published widths, training mode, one thread. The scan is cropped to what the camera sees.
Backends take turns, so that both meet the same state of the machine; each number is the median over rounds, the first
one dropped. Processor time, which other processes disturb less than wall time.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from tensordict import TensorDict

from benchmarks.runs import command, save_table, today
from benchmarks.update_speed import hardware
from benchmarks.watch import Part, Place, Spent, Watch
from envs.kitti import Kitti
from envs.scans import LabelledScans
from perception.lidar import encode, sparse_conv
from perception.lidar.backbone import VoxelBackbone
from perception.lidar.sparse_conv import BACKENDS, use_backend
from worldmodels import build
from worldmodels.environment import keep_freed_memory
from worldmodels.keys import OBSERVATION

STAGES = ("voxels", "rulebooks", "convolutions", "norms", "dense view", "forward", "backward")
PARTS = (  # of the torch backend's forward pass
    Part("rulebooks", sparse_conv, "submanifold_rules"),
    Part("rulebooks", sparse_conv, "strided_rules"),
    Part("convolutions", sparse_conv.Convolve, "apply"),
    Part("norms", encode, "normalized"),
    Part("dense view", encode.Densify, "apply"),
)
Times = dict[str, list[float]]


def copies(source: LabelledScans, frame: str, num: int) -> TensorDict:
    """A frame of "train" or "val", ``num`` times: batch size [B], leaves [B, 1, ...].

    Raises:
        ValueError: if neither has such a frame.
    """
    for name in ("train", "val"):
        split = source.frames(name)
        if frame in split.names:
            return split.rows(torch.full((num,), split.names.index(frame)))
    raise ValueError(f"{source.where}: neither train nor val has a frame {frame}")


def measure(encoder: VoxelBackbone, obs: TensorDict, backends: list[str], rounds: int) -> dict[str, Times]:
    """Seconds of processor time, of each backend and stage, one number a round."""
    found: dict[str, Times] = {name: defaultdict(list) for name in backends}
    watch = Watch(torch.device("cpu"))
    parts = [Part("voxels", encoder, "voxelize"), Part("forward", encoder, "bev"), *PARTS]
    for index in range(rounds + 1):
        for name, times in found.items():
            with use_backend(name), watch.on(parts):
                bev = encoder.bev(encoder.voxelize(obs))
                bev.backward(torch.full_like(bev, 1e-3))
            for stage, seconds in stages(watch.read()).items():
                times[stage].append(seconds)
        if not index:
            for times in found.values():
                times.clear()
    return found


def stages(spent: Mapping[Place, Spent]) -> dict[str, float]:
    """Seconds of processor time of each stage, those within it included."""
    found: dict[str, float] = defaultdict(float)
    for place, (_, cpu) in spent.items():
        for stage in ("backward",) if place.is_backward else place.path:
            found[stage] += cpu
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="a folder in KITTI's layout")
    parser.add_argument("--frame", default="000008", help="of its train or val")
    parser.add_argument("--batch", type=int, default=1, help="copies of the scan")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engine", choices=("auto", "highest"), default="auto", help="of float32 matmuls")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, load = torch.device("cpu"), os.getloadavg()[0]
    is_fast = build.use_fast_matmul(device) if options.engine == "auto" else False
    engine = "oneDNN" if is_fast else "MKL"
    keep_freed_memory()  # as a run does
    source = Kitti(data_dir=options.data_dir, is_labelled=False)
    obs = copies(source, options.frame, options.batch)[OBSERVATION][:, 0]
    with initialize_config_module("conf", version_base="1.3"):
        encoder = instantiate(compose("encoder/lidar_voxels").encoder)(source.spec)
    num_voxels = int(encoder.voxelize(obs)["voxels", "num_voxels"].sum())
    backends = [name for name in BACKENDS if name == "torch" or importlib.util.find_spec("spconv")]
    found = measure(encoder, obs, backends, options.rounds)

    lines = [
        f"# LiDAR encoder, {hardware(device)}, {today()}",
        "",
        command("sparse_backbone"),
        "",
        f"- torch {torch.__version__}, one thread, fp32, {engine} matmuls; load average {load:.1f} before the start.",
        f"- {num_voxels:,} voxels, frame {options.frame}, {options.batch} times. By default, torch runs on a CPU.",
        "- Milliseconds of processor time, median (least, greatest) over rounds.",
        "- Rulebooks to dense view are parts of forward; spconv does the first two inside.",
        "",
        "| | " + " | ".join(backends) + " |",
        "|---|" + "---|" * len(backends),
    ]
    for stage in STAGES:
        cells = [
            f"{statistics.median(t):.0f} ({min(t):.0f}, {max(t):.0f})" if t else ""
            for t in ([1e3 * seconds for seconds in found[name][stage]] for name in backends)
        ]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    save_table(f"lidar-encoder-batch{options.batch}-{engine}", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
