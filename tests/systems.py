"""Every system, composed on data that need no download: the toy source, hand-made scans, or what it brings itself."""

from __future__ import annotations

import atexit
import copy
import functools
import shutil
import tempfile
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from tests.kitti_folder import write_kitti
from tests.objects_folder import SIZE, write_objects
from tests.once_folder import write_once
from tests.waymo_folder import write_waymo
from worldmodels import build, checkpoint
from worldmodels.core import Source

CONF = Path(__file__).resolve().parent.parent / "conf"
WRITERS = {  # of data that must be downloaded, or drawn
    "kitti": write_kitti,
    "once": write_once,
    "waymo": write_waymo,
    "rendered_objects": write_objects,
}
IMITATION = {
    "agent=act",
    "agent=act_jepa",
    "agent=act_cvae",
    "agent=bc",
    "agent=diffusion_policy",
}  # need demonstrations
_SOURCES: dict[str, Source | None] = {}
SYSTEMS = [f"{group}/{path.stem}" for group in ("agent", "objective") for path in sorted((CONF / group).glob("*.yaml"))]


def composed(*overrides: str, batch_size: int = 16) -> DictConfig:
    """The configuration of ``overrides`` on small data; moments come as a batch of one.

    What goes on with a finished run gets an untrained agent, and little to collect.
    """
    cfg = copy.deepcopy(_composed_once(overrides))
    cfg.batch_size = min(cfg.batch_size, batch_size)
    if OmegaConf.select(cfg, "agent.start") is not None and cfg.agent.start.run_dir is None:
        cfg.agent.start.run_dir = finished_run(torch.get_default_dtype())
        cfg.relabel.parts.online.first_transitions = 16
    if OmegaConf.select(cfg, "relabel.first_transitions") is not None:
        cfg.relabel.first_transitions = 2 * cfg.relabel.num_envs
    return cfg


@functools.cache
def _composed_once(overrides: tuple[str, ...]) -> DictConfig:
    """Hydra takes a quarter of a second, and a test of every system asks again; each gets a copy."""
    with initialize_config_module("conf", version_base="1.3"):
        if IMITATION & set(overrides):
            overrides = ("env=metaworld", *overrides)
        elif overrides[0].startswith("agent=") and not any(o.startswith(("env=", "experiment=")) for o in overrides):
            overrides = ("env=toy", *overrides)
        cfg = compose("config", overrides=[*overrides])
        if cfg.env.source._target_ == "envs.metaworld.MetaWorld":
            cfg.env.source = {"_target_": "tests.reaching.Reaching"}
        if cfg.env.source._target_ == "envs.ogbench.OGBench":  # an objective on the default
            cfg = compose("config", overrides=["env=toy", *overrides])
        if cfg.env.source._target_ == "envs.lidar_scenes.LidarScenes":
            cfg = compose("config", overrides=[*overrides, "env=kitti", f"env.data_dir={hand_made('kitti')}"])
        if (name := cfg.env.source._target_.split(".")[1]) in WRITERS and cfg.env.data_dir is None:
            cfg = compose("config", overrides=[*overrides, *hand_made_overrides(name)])
    return cfg


def fixed_source(cfg: DictConfig) -> Source | None:
    """The source of ``cfg``, built once for all tests that only draw from it; None if it gathers data as it goes on."""
    parts = (cfg.env.source, cfg.relabel, cfg.agent is None, cfg.objective is None, torch.get_default_dtype())
    key = repr([OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part for part in parts])
    if key not in _SOURCES:
        source = build.build_source(cfg, torch.device("cpu"))
        _SOURCES[key] = None if hasattr(source, "gathered") else source
    return _SOURCES[key]


@functools.cache
def finished_run(dtype: torch.dtype) -> str:
    """The folder of a TD-JEPA on the toy source, as a run of no steps leaves it; its weights are of type ``dtype``."""
    cfg, device = composed("agent=td_jepa"), torch.device("cpu")
    source = build.build_source(cfg, device)
    agent = build.build_objective(cfg, source, device)
    assert next(agent.parameters()).dtype == dtype
    folder = tempfile.mkdtemp(prefix="worldmodels-run-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    state = {"spec": str(source.spec)}
    checkpoint.save(Path(folder) / "checkpoints", 0, model=agent, optimizer={}, state=state)
    return folder


@functools.cache
def _folder(name: str) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix=f"worldmodels-{name}-")
    WRITERS[name](Path(folder.name))
    return folder


def hand_made_overrides(name: str) -> list[str]:
    """What makes env=``name`` read its hand-made data."""
    folder = hand_made(name)
    if name == "rendered_objects":  # split by view: four objects are too few to leave some out
        tree = [f"env.path={folder}/tree", "env.label_by=object", f"env.size={SIZE}", "env.workers=1"]
        return [*tree, f"env.data_dir={folder}/decoded"]
    return [f"env.data_dir={folder}"]


def hand_made(name: str) -> str:
    """A folder of a few hand-made scans in the layout of env=``name``, removed when the process ends."""
    return _folder(name).name
