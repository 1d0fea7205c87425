"""What tables of runs share: ordinary runs as cells, made if they are not there yet; arguments, numbers, and files.

A table can be stopped (Ctrl-C, SIGTERM) and taken up again: cells that run write a checkpoint, finished ones are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import multiprocessing
import re
import shlex
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from hydra import compose, initialize_config_module

from worldmodels.cli import choose_renderer
from worldmodels.environment import device_name, versions
from worldmodels.files import atomic_write

C = TypeVar("C", bound=tuple[Any, ...])
T = TypeVar("T")
RESULTS = Path(__file__).resolve().parent / "results"
FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"


def table_parser(doc: str | None, *, runs: str, settings: str = "every run") -> argparse.ArgumentParser:
    """Arguments of every table.

    Args:
        doc: of the script. runs: the folder below runs/ that holds the cells. settings: what those after -- are for.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, with one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs") / runs, help="where the runs are")
    parser.add_argument("--out", type=Path, default=None, help="folder of table and picture, instead of the project's")
    parser.add_argument("settings", nargs="*", help=f"settings of {settings}, after --")
    return parser


def finished(folder: Path) -> dict[str, Any] | None:
    """Summary of the run in ``folder``; None if there is none that reached its last step."""
    path = folder / "summary.json"
    found = json.loads(path.read_text()) if path.is_file() else {"is_finished": False}
    return found if found["is_finished"] else None


def summary_of(folder: Path, *settings: str) -> dict[str, Any] | None:
    """Summary of the run with ``settings`` in ``folder``, made in this process if it is not there.

    None if it failed or was stopped, which is told. Call it through ``run_all`` to have several at a time: starting a
    process for each short run takes longer than the run. Peak memory in such a summary is that of the process so far.
    """
    if found := finished(folder):
        return found
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
    if not (found := finished(folder)):
        print(f"{folder} was stopped; the same command goes on with it", file=sys.stderr)
    return found


def run_all(
    function: Callable[..., T],
    cells: Sequence[C],
    options: Any,
    *,
    jobs: int,
    needs: Callable[[C], Sequence[C]] = lambda cell: (),
) -> dict[C, T]:
    """``function(*cell, options)`` of every cell, in ``jobs`` processes, in order.

    A cell waits for those of ``cells`` that it ``needs``; later ones go first if they can.
    """
    waiting, found = list(cells), {}
    running: dict[Future[T], C] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool, _workers_stop_too():
        while waiting or running:
            ready = [cell for cell in waiting if not any(n in waiting or n in running.values() for n in needs(cell))]
            for cell in ready[: jobs - len(running)]:  # no more than run at once, so that nothing starts after a stop
                waiting.remove(cell)
                running[pool.submit(function, *cell, options)] = cell
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                found[running.pop(future)] = future.result()
    return {cell: found[cell] for cell in cells}


@contextlib.contextmanager
def _workers_stop_too() -> Iterator[None]:
    """On SIGTERM, which unlike Ctrl-C reaches one process only, the workers' runs write checkpoints and stop, too."""

    def stop(number: int, frame: Any) -> NoReturn:
        for worker in multiprocessing.active_children():
            worker.terminate()
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def last_metrics(summary: dict[str, Any], evaluator: str) -> dict[str, float]:
    """Metrics of the last evaluation of that name."""
    return summary["evaluations"][evaluator][-1]["metrics"]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of ``values``; 0 for a single one, of which nothing is known."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def spread(values: Sequence[float], *, scale: float = 100.0, digits: int = 0, is_error: bool = False) -> str:
    """Mean of ``values`` and, in brackets, standard deviation or standard error of the mean; times ``scale``."""
    if len(values) < 2:
        return f"{scale * statistics.mean(values):.{digits}f}"
    width = standard_error(values) if is_error else statistics.stdev(values)
    return f"{scale * statistics.mean(values):.{digits}f} ({scale * width:.{digits}f})"


def mean_and_error(values: Sequence[float], *, scale: float = 1.0, digits: int) -> str:
    """Mean and, in brackets, its standard error; a dash where there is none."""
    return spread(values, scale=scale, digits=digits, is_error=True) if values else "-"


def command(module: str) -> str:
    """The line of a table that says how it was made."""
    return f"Command: `{shlex.join(['python', '-m', f'benchmarks.{module}', *sys.argv[1:]])}`"


def version_list(*packages: str) -> str:
    """Versions of ``packages``, those that are installed."""
    return ", ".join(f"{name} {version}" for name, version in versions().items() if name in packages)


def devices_of(summaries: Iterable[Mapping[str, Any]]) -> str:
    """What runs were made on; a CPU by its name, which is that of this machine."""
    names = sorted({summary["device"] for summary in summaries})
    return ", ".join(device_name(torch.device("cpu")) if name == "cpu" else name for name in names)


def finish_axes(axes: Any, *, x: str, y: str) -> None:
    """Titles, a grid to read heights by, and a legend: how curves of a table look."""
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)


def today() -> str:
    """The date in a table's title and name, of UTC: the same wherever it is made."""
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}"


def save_table(name: str, table: str, *, out: Path | None = None) -> None:
    """Print a table and write it to benchmarks/results or the folder ``out``.

    Args:
        name: of the file, which gets the date; what is neither letter nor digit becomes a dash.
        table: Markdown. out: another folder.
    """
    words = re.sub(r"[^a-z0-9]+", "-", f"{name}-{today()}".lower())
    atomic_write((out or RESULTS) / f"{words}.md", table)
    print(table)


def save_figure(name: str, picture: bytes, *, out: Path | None) -> None:
    """Write a PNG file to docs/figures or the folder ``out``."""
    atomic_write((out or FIGURES) / f"{name}.png", picture)
