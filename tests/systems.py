"""Every system, composed on data that need no download: the toy source, hand-made scans, or what it brings itself."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from tests.kitti_folder import write_kitti
from tests.once_folder import write_once
from tests.waymo_folder import write_waymo

CONF = Path(__file__).resolve().parent.parent / "conf"
WRITERS = {"kitti": write_kitti, "once": write_once, "waymo": write_waymo}  # of data that must be downloaded
SYSTEMS = [f"{group}/{path.stem}" for group in ("agent", "objective") for path in sorted((CONF / group).glob("*.yaml"))]


def composed(*overrides: str, batch_size: int = 16) -> DictConfig:
    """The configuration of ``overrides`` on small data; moments come as a batch of one."""
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", overrides=[*overrides])
        if cfg.env.source._target_ == "envs.ogbench.OGBench":
            cfg = compose("config", overrides=["env=toy", *overrides])
        if cfg.env.source._target_ == "envs.lidar_scenes.LidarScenes":
            cfg = compose("config", overrides=[*overrides, "env=kitti", f"env.data_dir={hand_made('kitti')}"])
        if (name := cfg.env.source._target_.split(".")[1]) in WRITERS and cfg.env.data_dir is None:
            cfg = compose("config", overrides=[*overrides, f"env.data_dir={hand_made(name)}"])
    cfg.batch_size = min(cfg.batch_size, batch_size)
    return cfg


@functools.cache
def _folder(name: str) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix=f"worldmodels-{name}-")
    WRITERS[name](Path(folder.name))
    return folder


def hand_made(name: str) -> str:
    """A folder of a few hand-made scans in the layout of env=``name``, removed when the process ends."""
    return _folder(name).name
