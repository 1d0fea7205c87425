"""What ``--help`` prints: groups with their options, keys with their defaults.

Hydra's own help composes the configuration anew for every folder it looks into, which takes seconds for some hundred
files; here the folders are listed and the configuration is composed once.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from worldmodels.cli import one_line_hydra_errors

_HEADER = "worldmodels: train a joint-embedding predictive world model or a zero-shot RL agent."
_FOOTER = """\
Give any key as name=value, for example:
  python -m worldmodels.run agent=td_jepa env=ogbench
  python -m worldmodels.run agent=td_jepa env=ogbench env.dataset=cube-single-play-v0 steps=100000 run_dir=runs/cube
  python -m worldmodels.run experiment=td_jepa/antmaze-medium-navigate device=cuda
Several runs, every combination of the listed values (docs/sweeps.md):
  python -m worldmodels.run -m agent=td_jepa,fb seed=0,1,2 run_dir=runs/a hydra/launcher=joblib
Go on after an interruption with the same command, run_dir=... and resume=true."""


def help_text(overrides: Sequence[str]) -> str:
    """All groups, and all keys as ``overrides`` set them."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("conf", version_base="1.3"), one_line_hydra_errors(overrides):
        keys = OmegaConf.to_yaml(compose("config", overrides=list(overrides)))
    groups = "\n".join(f"{name}: {', '.join(options)}" for name, options in groups_with_options().items())
    return f"{_HEADER}\n\n== Groups (choose with group=option) ==\n{groups}\n\n== Keys ==\n{keys}\n{_FOOTER}"


def groups_with_options() -> dict[str, list[str]]:
    """Every folder of configuration files with what it offers; files that others build on (``base``) are no options."""
    root = Path(str(importlib.resources.files("conf")))
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.yaml")):
        folder = path.parent.relative_to(root)
        if folder.parts and "base" not in folder.parts:
            found.setdefault(folder.as_posix(), []).append(path.stem)
    return found
