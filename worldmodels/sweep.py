"""Many runs by one command: ``python -m worldmodels.run -m agent=td_jepa,fb seed=0,1,2 run_dir=runs/a``.

Every combination of the listed values is an ordinary run in a folder of its own below ``run_dir``, such as
``runs/a/agent-fb/seed-1``. Hydra's launchers start them: one after the other in this process, or, as
``hydra/launcher=`` says, in processes of this machine or on a cluster. ``sweep=NAME`` takes values from
``conf/sweep/NAME.yaml``. With ``resume=true`` finished runs are skipped and stopped ones go on.

Hydra's own multirun composes the whole command once without the listed keys, so ``-m agent=a,b agent.discount=0.9``
fails there: without an agent there is no discount. Here jobs are made first, and each is composed as it is.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from worldmodels.cli import choose_renderer, compose_or_fail, fail, one_line_errors, one_line_hydra_errors

FLAGS = ("-m", "--multirun")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
OUTCOMES = {0: "finished", 1: "failed", 2: "refused"}  # exit codes of a run; greater ones say that it was stopped
STOPPING = threading.Event()  # of this process: a signal that ends one run also ends those after it


class Job(NamedTuple):
    """One run of a sweep."""

    name: str
    """Its folder below the sweep's."""
    overrides: list[str]


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for several runs."""
    return any(flag in arguments for flag in FLAGS)


def sweep(arguments: Sequence[str]) -> int:
    """Run every combination of the listed values; returns the exit code, the greatest of the runs' codes.

    Leaves with one line and code 2 before anything starts if a value, key or launcher does not exist.
    """
    given = [a for a in arguments if a not in FLAGS]
    if flags := [a for a in given if a.startswith("-")]:
        fail(f"{flags[0]} does not go with -m, which runs every combination of listed values")
    with initialize_config_module("conf", version_base="1.3", job_name="run"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        with one_line_hydra_errors(given):
            overrides = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(given)
        root, own, rest = _split(overrides)
        own += [f"hydra.sweep.dir={quoted(root)}", "hydra.sweep.subdir=."]
        with one_line_hydra_errors(own):
            master = hydra.compose_config("config", own, run_mode=RunMode.MULTIRUN, from_shell=False)
            params = _parsed(master.hydra.sweeper.params or {})
        jobs = make_jobs([*params, *rest], root, named={o.key_or_group for o in params if o.is_sweep_override()})
        _check(jobs)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run_job, config=master)
        codes = _launch(launcher, jobs)
    return _report(root, jobs, codes)


def _split(overrides: Sequence[Override]) -> tuple[str, list[str], list[Override]]:
    """The folder of all runs; arguments of the sweep itself, for Hydra; those of the runs."""
    root, own, rest = None, [], []
    for override in overrides:
        if override.key_or_group == "run_dir":
            if override.is_sweep_override():
                fail("run_dir is one folder; each run of a sweep gets a folder of its own below it")
            root = None if override.value() is None else str(override.value())
        elif override.is_hydra_override() or override.key_or_group == "sweep":
            own.append(override.input_line or "")
        else:
            rest.append(override)
    if root is None and any(o.key_or_group == "resume" and o.value() is True for o in rest):
        fail("resume=true needs run_dir: which sweep shall go on?")
    root = root or f"runs/sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    if (Path(root) / "config.yaml").is_file():
        fail(f"run_dir={root} holds a single run; choose another folder for the sweep")
    return root, own, rest


def _parsed(params: Mapping[str, Any]) -> list[Override]:
    lines = [f"{key}={value}" for key, value in params.items()]
    return OverridesParser.create().parse_overrides(lines)


def make_jobs(overrides: Sequence[Override], root: str, *, named: set[str] | None = None) -> list[Job]:
    """Every combination of the listed values, in order; a later argument replaces an earlier one of the same key.

    Args:
        overrides: parsed arguments. root: folder of the sweep.
        named: keys that name folders though they have one value only; those with several always do.
    """
    choices: dict[str, list[tuple[str, str]]] = {}  # by key: (what it adds to the folder's name, argument)
    for override in overrides:
        key = override.get_key_element()
        lines = [override.input_line or ""]
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                fail(f"{override.input_line}: an interval has no list of values; give them, such as {key}=1,2")
            lines = [f"{key}={value}" for value in override.sweep_string_iterator()]
        is_named = override.is_sweep_override() or override.key_or_group in (named or ())
        choices[key] = [(_folder(line) if is_named else "", line) for line in lines]
    jobs: dict[str, Job] = {}
    for combination in itertools.product(*choices.values()):
        name = "/".join(sorted(folder for folder, _ in combination if folder))
        if name in jobs:
            fail(f"two runs of the sweep would be {name}: values must differ in letters or digits")
        line = f"run_dir={quoted(os.path.join(root, name))}"
        jobs[name] = Job(name, [*(argument for _, argument in combination), line])
    return list(jobs.values())


def _folder(line: str) -> str:
    key, _, value = line.lstrip("+").partition("=")
    return f"{key}-" + (re.sub(r"[^\w.+-]+", "_", value).strip("_") or "none")


def quoted(value: str) -> str:
    """A value as Hydra's grammar takes it, whatever is in it."""
    return value if re.fullmatch(r"[\w./+-]+", value) else "'" + value.replace("'", "\\'") + "'"


def _check(jobs: Sequence[Job]) -> None:
    """Compose until every argument was part of a composition: a misspelt one must not be found after hours."""
    seen: set[str] = set()
    for job in jobs:
        new = {o for o in job.overrides if not o.startswith(("seed=", "run_dir="))} - seen
        if new or not seen:
            compose_or_fail(job.overrides)
            seen |= new


def _launch(launcher: Any, jobs: Sequence[Job]) -> list[int]:
    """Exit codes of all runs. Ctrl-C reaches workers by itself, SIGTERM is passed on; then they save and stop."""

    def stop(number: int, frame: Any) -> None:
        is_second, workers = STOPPING.is_set(), multiprocessing.active_children()
        STOPPING.set()
        if number == signal.SIGTERM:
            for worker in workers:
                worker.terminate()
        if is_second or not workers:
            raise KeyboardInterrupt

    STOPPING.clear()
    print(f"{len(jobs)} runs", flush=True)
    with _on_signals(stop):
        try:
            returned = launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
        except KeyboardInterrupt:
            return [128 + signal.SIGINT] * len(jobs)
    return [one.return_value for one in returned]


@contextlib.contextmanager
def _on_signals(action: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, action) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(root: str, jobs: Sequence[Job], codes: Sequence[int]) -> int:
    """Say what became of the runs; returns the greatest code."""
    left = [(job.name, code) for job, code in zip(jobs, codes, strict=True) if code]
    print(f"{root}: {len(jobs) - len(left)} of {len(jobs)} runs are finished")
    for name, code in left:
        print(f"  {name}: {OUTCOMES.get(code, 'stopped')}")
    if left:
        print(f"go on with the same command, run_dir={root} and resume=true")
    return max(codes, default=0)


def run_job(cfg: DictConfig) -> int:
    """One run of a sweep, in whatever process its launcher chose; returns its exit code and raises nothing."""
    if STOPPING.is_set():
        return 128 + signal.SIGINT
    overrides = list(HydraConfig.get().overrides.task)
    name = os.path.relpath(cfg.run_dir, HydraConfig.get().sweep.dir)
    _catch_signals(_interrupt)  # until the trainer takes them over
    out, error = _Named(sys.stdout, name), _Named(sys.stderr, name)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = _code_of(lambda: train(cfg, command=shlex.join(["python", "-m", "worldmodels.run", *overrides])))
    finally:
        _catch_signals(_remember)  # a worker must live on while others save
        out.flush()
        error.flush()
    if code > 128:
        STOPPING.set()
    return code


def train(cfg: DictConfig, *, command: str) -> int:
    """Run one composed configuration; returns the exit code. Errors meant for users leave with code 2."""
    with one_line_errors():
        choose_renderer()
        from worldmodels.session import run  # imports torch, which --help does not need

        choices = OmegaConf.to_container(HydraConfig.get().runtime.choices)
        assert isinstance(choices, dict)
        chosen = {str(k): v for k, v in choices.items() if not str(k).startswith("hydra") and v is not None}
        return run(cfg, command=command, choices=chosen)


def _code_of(function: Callable[[], int]) -> int:
    try:
        return function()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception:  # one failed run must not cost the others
        traceback.print_exc()
        return 1


def _catch_signals(action: Callable[[int, Any], None]) -> None:
    for number in SIGNALS:
        signal.signal(number, action)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _remember(number: int, frame: Any) -> None:
    STOPPING.set()


class _Named(io.TextIOBase):
    """Writes lines to ``stream`` with a name before each: several runs share one terminal."""

    def __init__(self, stream: Any, name: str) -> None:
        self.stream, self.name, self.rest = stream, name, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        if lines:
            self.stream.write("".join(f"{self.name}: {line}\n" for line in lines))
            self.stream.flush()
        return len(text)

    def flush(self) -> None:
        if self.rest:
            self.write("\n")
        self.stream.flush()
