"""Command-line errors in one line. Nothing here imports torch, so that --help answers at once."""

from __future__ import annotations

import contextlib
import ctypes.util
import difflib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

FOR_USERS = (ValueError, OSError, FloatingPointError, ImportError)


def fail(message: object, code: int = 2) -> NoReturn:
    """Print one line to stderr and leave with ``code``."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(code)


def suggestion(name: str, options: list[str]) -> str:
    """A clause naming the closest of ``options``, or nothing."""
    close = difflib.get_close_matches(name, options, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def choose_renderer() -> None:
    """Tell MuJoCo how to draw before anything imports it: EGL where its library is, else not at all.

    Left alone it takes GLFW, which complains on a machine without a display and may end the process.
    """
    if "MUJOCO_GL" not in os.environ:
        os.environ["MUJOCO_GL"] = "egl" if ctypes.util.find_library("EGL") else "disabled"


def leaves(node: Any, prefix: str = "") -> list[str]:
    """Dotted names of all entries of a nested dictionary."""
    if not isinstance(node, dict):
        return []
    return [n for k, v in node.items() for n in (f"{prefix}{k}", *leaves(v, f"{prefix}{k}."))]


def check_overrides(arguments: list[str], config_name: str = "config") -> None:
    """Compose the configuration once and turn what is wrong with the arguments into one line."""
    if any(a.startswith("-") for a in arguments):  # --help, --multirun, ...: Hydra's own
        return
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with initialize_config_module("conf", version_base="1.3"):
        try:
            compose(config_name, overrides=arguments)
        except (HydraException, OmegaConfBaseException) as error:
            text = str(error)
            if found := re.search(r"Could not override '([^']+)'", text):
                groups = [a for a in arguments if re.match(r"(agent|objective|env|encoder|experiment)=", a)]
                known = leaves(OmegaConf.to_container(compose(config_name, overrides=groups)))
                fail(f"there is no config key {found[1]}{suggestion(found[1], known)}")
            if found := re.search(
                r"Could not find '([^']+)'\s+Available options in '[^']+':\s+(.*?)(Config search|$)", text, re.S
            ):
                options = found[2].split()
                name = found[1].split("/")[-1]
                fail(f"there is no {found[1]}{suggestion(name, options)} (options: {', '.join(options)})")
            fail(text)
        except ValueError as error:  # what Hydra raises for a null where it wants a name
            fail(f"cannot compose {' '.join(arguments)}: {error}")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors meant for users into one line and exit code 2. WORLDMODELS_TRACEBACK=1 shows where they arose."""
    from hydra.errors import InstantiationException

    try:
        yield
    except (*FOR_USERS, InstantiationException) as error:
        # Hydra wraps what a class raised while it was built from a configuration node.
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        if os.environ.get("WORLDMODELS_TRACEBACK") or not isinstance(reason, FOR_USERS):
            raise
        fail(str(reason) or repr(reason))
