"""Every system, composed on data that need no download: the toy source, hand-made scans, or what it brings itself."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from tests.kitti_folder import write_kitti

CONF = Path(__file__).resolve().parent.parent / "conf"
SYSTEMS = [f"{group}/{path.stem}" for group in ("agent", "objective") for path in sorted((CONF / group).glob("*.yaml"))]


def composed(*overrides: str, batch_size: int = 16) -> DictConfig:
    """The configuration of ``overrides`` on small data; moments come as a batch of one."""
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", overrides=[*overrides])
        if cfg.env.source._target_ == "envs.ogbench.OGBench":
            cfg = compose("config", overrides=["env=toy", *overrides])
        if cfg.env.source._target_ == "envs.lidar_scenes.LidarScenes":
            cfg = compose("config", overrides=[*overrides, "env=kitti", f"env.data_dir={kitti_folder().name}"])
    cfg.batch_size = min(cfg.batch_size, batch_size)
    return cfg


@functools.cache
def kitti_folder() -> tempfile.TemporaryDirectory[str]:
    """A few hand-made scans, removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="worldmodels-kitti-")
    write_kitti(Path(folder.name))
    return folder
