"""Processor time of the LiDAR encoder on a real scan: voxels, sparse convolutions forward and backward, both backends.

    python -m benchmarks.sparse_backbone --scan ../shared/data/kitti_mini/training/velodyne/000008.bin
    python -m benchmarks.sparse_backbone --scan FILE --engine highest      # without torch's faster matmul engine

KITTI's range and voxels, the published widths, training mode, one thread. The scan is cropped to what the camera sees,
by the file of the same name in ``calib``. Backends take turns, so that both meet the same state of the machine; each
number is the median over rounds, the first one dropped. Processor time, which other processes disturb less than wall
time.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.data import Composite, Unbounded

from benchmarks.runs import RESULTS
from benchmarks.update_speed import hardware
from perception.lidar import encode, sparse_conv
from perception.lidar.backbone import VoxelBackbone
from perception.lidar.sparse_conv import BACKENDS, use_backend
from worldmodels import build
from worldmodels.environment import keep_freed_memory
from worldmodels.files import atomic_write

WIDTH, HEIGHT = 1242, 375  # of most of KITTI's pictures
STAGES = ("voxels", "rulebooks", "convolutions", "norms", "dense view", "forward", "backward")
Times = dict[str, list[float]]


def read_scan(path: Path) -> torch.Tensor:
    """Points [P, 4] of a KITTI scan that the camera sees (sheet ad_l_jepa, section 3.2)."""
    points = np.fromfile(path, np.float32).reshape(-1, 4)
    lines = (path.parent.parent / f"calib/{path.stem}.txt").read_text().splitlines()
    table = {key: np.array(values.split(), float) for key, _, values in (line.partition(":") for line in lines)}
    rectify, to_camera, projection = np.eye(4), np.eye(4), table["P2"].reshape(3, 4)
    rectify[:3, :3], to_camera[:3] = table["R0_rect"].reshape(3, 3), table["Tr_velo_to_cam"].reshape(3, 4)
    homogeneous = np.concatenate([points[:, :3], np.ones((len(points), 1))], 1)
    u, v, depth = projection @ rectify @ to_camera @ homogeneous.T
    is_seen = (depth >= projection[2, 3]) & (u >= 0) & (u < WIDTH * depth) & (v >= 0) & (v < HEIGHT * depth)
    return torch.from_numpy(points[is_seen])


@contextmanager
def watched(times: Times) -> Iterator[None]:
    """Note the processor time of the parts of the torch backend's forward pass."""
    parts = [
        ("rulebooks", sparse_conv, "submanifold_rules"),
        ("rulebooks", sparse_conv, "strided_rules"),
        ("convolutions", sparse_conv.Convolve, "apply"),
        ("norms", encode, "normalized"),
        ("dense view", encode.Densify, "apply"),
    ]
    before = [(owner, name, owner.__dict__.get(name), getattr(owner, name)) for _, owner, name in parts]
    spent: dict[str, float] = defaultdict(float)

    def timed(stage, function):
        def call(*args):
            started = time.process_time()
            out = function(*args)
            spent[stage] += time.process_time() - started
            return out

        return staticmethod(call) if isinstance(owner, type) else call

    for (stage, owner, name), (*_, function) in zip(parts, before, strict=True):
        setattr(owner, name, timed(stage, function))
    try:
        yield
    finally:
        for owner, name, own, _ in before:
            if own is None:
                delattr(owner, name)  # inherited
            else:
                setattr(owner, name, own)
    for stage, seconds in spent.items():
        times[stage].append(seconds)


def measure(encoder: VoxelBackbone, obs: TensorDict, backends: list[str], rounds: int) -> dict[str, Times]:
    """Seconds of processor time, of each backend and stage, one number a round."""
    found: dict[str, Times] = {name: defaultdict(list) for name in backends}
    for index in range(rounds + 1):
        for name, times in found.items():
            with use_backend(name), watched(times):
                started = time.process_time()
                voxels = encoder.voxelize(obs)
                made = time.process_time()
                bev = encoder.bev(voxels)
                done = time.process_time()
                bev.backward(torch.full_like(bev, 1e-3))
                times["backward"].append(time.process_time() - done)
                times["forward"].append(done - made)
                times["voxels"].append(made - started)
        if not index:
            for times in found.values():
                times.clear()
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, required=True, help="a .bin file of KITTI's velodyne folder")
    parser.add_argument("--batch", type=int, default=1, help="copies of the scan")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engine", choices=("auto", "highest"), default="auto", help="of float32 matmuls")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, load = torch.device("cpu"), os.getloadavg()[0]
    is_fast = build.use_fast_matmul(device) if options.engine == "auto" else False
    engine = "oneDNN" if is_fast else "MKL"
    keep_freed_memory()  # as a run does
    points = read_scan(options.scan).expand(options.batch, -1, -1)
    spec = Composite({"observation": {"points": Unbounded(points.shape[1:]), "num_points": Unbounded(())}})
    with initialize_config_module("conf", version_base="1.3"):
        encoder = instantiate(compose("encoder/lidar_voxels").encoder)(spec)
    counts = torch.full((options.batch,), points.shape[1])
    obs = TensorDict({"points": points, "num_points": counts}, batch_size=[options.batch])
    num_voxels = int(encoder.voxelize(obs)["voxels", "num_voxels"].sum())
    backends = [name for name in BACKENDS if name == "torch" or importlib.util.find_spec("spconv")]
    found = measure(encoder, obs, backends, options.rounds)

    day = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}"
    lines = [
        f"# LiDAR encoder, {hardware(device)}, {day}",
        "",
        f"Command: `python -m benchmarks.sparse_backbone {' '.join(sys.argv[1:])}`",
        "",
        f"- torch {torch.__version__}, one thread, fp32, {engine} matmuls; load average {load:.1f} before the start.",
        f"- {num_voxels:,} voxels, {len(points)} scan(s). By default, torch runs on a CPU.",
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
    text = "\n".join(lines) + "\n"
    print(text)
    atomic_write(RESULTS / f"lidar-encoder-batch{options.batch}-{engine.lower()}-{day}.md", text)


if __name__ == "__main__":
    main()
