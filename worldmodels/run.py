"""Train: ``python -m worldmodels.run agent=td_jepa env=ogbench [key=value ...]``. ``--help`` lists groups and keys."""

from __future__ import annotations

import shlex
import sys

import hydra
from omegaconf import DictConfig

from worldmodels.cli import check_overrides, choose_renderer, one_line_errors


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def launch(cfg: DictConfig) -> None:
    """Run one composed configuration."""
    with one_line_errors():
        choose_renderer()
        from worldmodels.session import run  # imports torch, which --help does not need

        command = shlex.join(["python", "-m", "worldmodels.run", *sys.argv[1:]])
        if code := run(cfg, command=command):
            sys.exit(code)


if __name__ == "__main__":
    check_overrides(sys.argv[1:])
    launch()
