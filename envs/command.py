"""The command line of tools in this folder: ``key=value`` arguments over a YAML of ``conf``, errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def run_command(arguments: list[str], *, config: str, function: Callable[..., Any], help: str) -> int:
    """Call ``function`` with the settings of ``conf/<config>.yaml`` and print what it returns.

    Args:
        arguments: of the command line, Hydra overrides.
        config: whose keys are the function's arguments.
        help: printed for -h.

    Returns:
        the exit code: 0, 1 for a wrong setting or file, 130 after Ctrl-C.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(help)
        return 0
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_module("conf", version_base="1.3"):
            settings = OmegaConf.to_container(compose(config, arguments), throw_on_missing=True)
        result = function(**settings)  # type: ignore[arg-type]
    except (ValueError, OSError, RuntimeError, ImportError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(result)
    return 0
