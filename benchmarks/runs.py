"""Ordinary runs as the cells of a table, made if they are not there yet: a table can be stopped and taken up again."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import multiprocessing
import shlex
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_module

from worldmodels.cli import choose_renderer

T = TypeVar("T")
RESULTS = Path(__file__).resolve().parent / "results"
FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"


def is_finished(folder: Path) -> bool:
    """Whether ``folder`` holds a run that reached its last step."""
    path = folder / "summary.json"
    return path.is_file() and json.loads(path.read_text())["is_finished"]


def summary_of(folder: Path, *settings: str) -> dict[str, Any] | None:
    """Summary of the run with ``settings`` in ``folder``, made in this process if it is not there; None if it failed.

    Call it through ``run_all`` to have several at a time: starting a process for each short run takes longer than the
    run. Peak memory in such a summary is that of the process so far.
    """
    if not is_finished(folder):
        choose_renderer()
        from worldmodels.session import run

        arguments = [*settings, f"run_dir={folder}"]
        with initialize_config_module("conf", version_base="1.3"):
            cfg = compose("config", arguments)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                run(cfg, command=shlex.join(["python", "-m", "worldmodels.run", *arguments]))
        except Exception as error:  # one failed cell must not cost the others
            print(f"{folder} failed: {type(error).__name__}: {error}", file=sys.stderr)
            return None
    return json.loads((folder / "summary.json").read_text())


def run_all(function: Callable[..., T], cells: list[tuple[Any, ...]], options: Any, *, jobs: int) -> dict[Any, T]:
    """``function(*cell, options)`` of every cell, in ``jobs`` processes."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.map(function, *zip(*cells, strict=True), itertools.repeat(options))
        return dict(zip(cells, found, strict=True))


def spread(values: list[float], *, scale: float = 100.0, digits: int = 0, is_error: bool = False) -> str:
    """Mean of ``values`` and, in brackets, standard deviation or standard error of the mean; times ``scale``."""
    if len(values) < 2:
        return f"{scale * statistics.mean(values):.{digits}f}"
    width = statistics.stdev(values) / (len(values) ** 0.5 if is_error else 1)
    return f"{scale * statistics.mean(values):.{digits}f} ({scale * width:.{digits}f})"
