"""Train: ``python -m worldmodels.run agent=td_jepa env=ogbench [key=value ...]``. ``--help`` lists groups and keys.

With ``-m`` and lists of values, ``-m agent=td_jepa,fb seed=0,1,2``, every combination is a run: worldmodels/sweep.py.
"""

from __future__ import annotations

import shlex
import sys

import hydra
from omegaconf import DictConfig

from worldmodels.cli import check_overrides
from worldmodels.help import help_text
from worldmodels.sweep import is_sweep, sweep, train


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def launch(cfg: DictConfig) -> None:
    """Run one composed configuration."""
    if code := train(cfg, command=shlex.join(["python", "-m", "worldmodels.run", *sys.argv[1:]])):
        sys.exit(code)


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv):
        print(help_text([argument for argument in sys.argv[1:] if not argument.startswith("-")]))
        sys.exit()
    if is_sweep(sys.argv[1:]):
        sys.exit(sweep(sys.argv[1:]))
    check_overrides(sys.argv[1:])
    launch()
