"""Command-line errors in one line. Nothing here imports torch, so that --help answers at once."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from worldmodels.spelling import did_you_mean

FOR_USERS = (ValueError, OSError, FloatingPointError, ImportError)
NOT_ITS_OWN = (  # what a configuration node is told that was meant for another class
    ": the configuration names it. scale=small sizes the parts that a system has by itself; with another encoder use "
    "scale=paper, or ~KEY to take away what is not its own"
)
LAUNCHERS = {  # of sweeps, and what they come with
    "hydra/launcher/joblib": "'worldmodels[sweep]'",
    "hydra/launcher/submitit_local": "'worldmodels[sweep]'",
    "hydra/launcher/submitit_slurm": "'worldmodels[sweep]'",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/launcher/ray_aws": "hydra-ray-launcher",
}


def fail(message: object, code: int = 2) -> NoReturn:
    """Print one line to stderr and leave with ``code``."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(code)


def choose_renderer() -> None:
    """Tell MuJoCo how to draw before anything imports it; see ``envs.rendering.choose``."""
    from envs import rendering

    try:
        rendering.choose()
    except rendering.RenderError as error:
        fail(error)


def leaves(node: Any, prefix: str = "") -> list[str]:
    """Dotted names of all entries of a nested dictionary."""
    if not isinstance(node, dict):
        return []
    return [n for k, v in node.items() for n in (f"{prefix}{k}", *leaves(v, f"{prefix}{k}."))]


def check_overrides(arguments: list[str], config_name: str = "config") -> None:
    """Compose the configuration once and turn what is wrong with the arguments into one line."""
    if any(a.startswith("-") for a in arguments):  # --cfg, --info, ...: Hydra's own
        return
    from hydra import initialize_config_module

    with initialize_config_module("conf", version_base="1.3"):
        compose_or_fail(arguments, config_name)
    if sweeps := [a for a in arguments if a.startswith("sweep=")]:
        fail(f"{sweeps[0]} asks for several runs: add -m")


def compose_or_fail(arguments: Sequence[str], config_name: str = "config") -> None:
    """Compose; leave with one line if that fails. Hydra must be initialized."""
    from hydra import compose

    with one_line_hydra_errors(arguments, config_name):
        compose(config_name, overrides=list(arguments))


def nested_options(group: str) -> list[str]:
    """Files of a group that has folders only, such as experiment."""
    folder = Path(str(importlib.resources.files("conf"))) / group
    files = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return sorted(path.as_posix() for path in files if "base" not in path.parts)


@contextlib.contextmanager
def one_line_hydra_errors(arguments: Sequence[str], config_name: str = "config") -> Iterator[None]:
    """Turn what Hydra says about ``arguments`` into one line and exit code 2."""
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error)
        if found := re.search(r"Could not override '([^']+)'", text):
            folder = Path(str(importlib.resources.files("conf")))
            groups = [a for a in arguments if (folder / a.partition("=")[0]).is_dir()]  # whose files bring keys
            known = leaves(OmegaConf.to_container(compose(config_name, overrides=groups)))
            fail(f"there is no config key {found[1]}{did_you_mean(found[1], known)}")
        if found := re.search(r"Could not find '([^']+)'", text):
            group, _, name = found[1].partition("/")
            if found[1].startswith("hydra/launcher/") and found[1] in LAUNCHERS:
                fail(f"{found[1].replace('er/', 'er=')} is not installed: pip install {LAUNCHERS[found[1]]}")
            listed = re.search(r"Available options in '[^']+':\s+(.*?)(Config search|$)", text, re.S)
            options = listed[1].split() if listed else nested_options(group)
            name = found[1].split("/")[-1] if listed else name
            if name.startswith("of_"):  # the file of an env that agents choose their parts by
                envs = ", ".join(option.removeprefix("of_") for option in options if option.startswith("of_"))
                fail(f"no agent acts on env={name.removeprefix('of_')}; use one of: {envs}")
            fail(f"there is no {found[1]}{did_you_mean(name, options)} (options: {', '.join(options)})")
        fail(text)
    except ValueError as error:  # what Hydra raises for a null where it wants a name
        fail(f"cannot compose {' '.join(arguments)}: {error}")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors meant for users into one line and exit code 2. WORLDMODELS_TRACEBACK=1 shows where they arose."""
    from hydra.errors import InstantiationException

    try:
        yield
    except (*FOR_USERS, InstantiationException, TypeError) as error:
        # Hydra wraps what a class raised while it was built from a configuration node.
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        is_of_another = isinstance(reason, TypeError) and "got an unexpected keyword argument" in str(reason)
        if os.environ.get("WORLDMODELS_TRACEBACK") or not (is_of_another or isinstance(reason, FOR_USERS)):
            raise
        hint = NOT_ITS_OWN if is_of_another else ""
        fail(f"{str(reason) or repr(reason)}{hint}")
