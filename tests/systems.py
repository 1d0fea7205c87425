"""Every system, composed on data that need no download: the toy source, or what the system brings itself."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
SYSTEMS = [f"{group}/{path.stem}" for group in ("agent", "objective") for path in sorted((CONF / group).glob("*.yaml"))]


def composed(*overrides: str, batch_size: int = 16) -> DictConfig:
    """The configuration of ``overrides`` on small data; moments come as a batch of one."""
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", overrides=[*overrides])
        if cfg.env.source._target_ == "envs.ogbench.OGBench":
            cfg = compose("config", overrides=["env=toy", *overrides])
    cfg.batch_size = min(cfg.batch_size, batch_size)
    return cfg
