"""Making many files in several processes: workers that end with their parent, a progress bar, a lock, a full disk."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import current_process, get_context, parent_process
from pathlib import Path
from typing import Any

from worldmodels import files


def run_jobs(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    *,
    workers: int,
    advance: Callable[[int], None],
    name: str,
    prepare: Callable[..., None] | None = None,
    prepare_arguments: tuple[Any, ...] = (),
) -> None:
    """Call ``function(*job)`` for every job in up to ``workers`` processes. Ctrl-C ends them within one job.

    Args:
        advance: is told the position of each job that is done.
        name: of what is made, for errors.
        prepare: called once in each process, with ``prepare_arguments``.

    Raises:
        RuntimeError: if a process was killed; and whatever a job raises.
    """
    if not jobs:
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=get_context("spawn"),  # a forked process would share MuJoCo's and torch's threads
        initializer=start_worker,
        initargs=(prepare, prepare_arguments),
    )
    try:
        positions: dict[Future[Any], int] = {pool.submit(function, *job): i for i, job in enumerate(jobs)}
        waiting = set(positions)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for job in done:
                job.result()
                advance(positions[job])
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a worker collecting {name} was killed, perhaps for lack of memory. The same command goes on from "
            f"here; use fewer workers if it happens again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def start_worker(prepare: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()) -> None:
    """Called first in a worker process: it leaves Ctrl-C to its parent, ends with it, and calls ``prepare``."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def num_workers(workers: int | None) -> int:
    """Processes to use: ``workers``, or one a core if None."""
    count = os.cpu_count() or 1 if workers is None else workers
    if count < 1:
        raise ValueError(f"workers={count}: at least one process is needed")
    return count


@contextmanager
def progress(name: str, *, total: int, done: int, unit: str, is_shown: bool) -> Iterator[Callable[[int], None]]:
    """Progress over ``total`` units on stderr: a bar on a terminal, a line every half minute in a log file."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=not is_shown)
    started = last = time.monotonic()
    made = 0
    columns = (TextColumn("collecting {task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(name, total=total, completed=done, rate="")

        def advance(count: int) -> None:
            nonlocal made, last
            made += count
            now = time.monotonic()
            rate = made / max(now - started, 1e-9)
            bar.update(task, advance=count, rate=f"{rate:,.0f} {unit}/s")
            if not console.is_terminal and (now - last > 30 or made == total - done):
                last = now
                left = math.ceil((total - done - made) / rate)
                console.print(f"{name}: {done + made:,} of {total:,}, {rate:,.0f} a second, {left} s left")

        yield advance


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time fetch a data set; others wait, then find it finished. ``path`` is the lock file.

    Raises:
        RuntimeError: in a worker that is importing a script without a main guard: it would wait for its own parent.
    """
    if getattr(current_process(), "_inheriting", False):
        raise RuntimeError('workers import the script that starts them: put its code under if __name__ == "__main__":')
    with files.locked(path, is_waiting=True):  # on Windows two at once do the work twice, with the same result
        yield


def disk_errors(folder: Path) -> AbstractContextManager[None]:
    """Turn "no space left" inside the block into one clear line about ``folder``, for commands that can be repeated."""
    return files.disk_errors(folder, then="and repeat the command: finished parts are kept")
