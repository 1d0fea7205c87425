"""Commands as a user types them, each a process of its own, that need not import torch anew: seconds a command.

A server, started with the first command, imports what commands import and forks for each. It is a plain interpreter,
without the hooks of tests: a forked command goes on as ``python -m MODULE ARGUMENTS`` and ends as that does.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTED_ONCE = (
    "worldmodels.session",
    "worldmodels.sweep",
    "worldmodels.pretrained",
    "worldmodels.report",
    "worldmodels.evals.zero_shot",
    "worldmodels.evals.coverage",
    "worldmodels.evals.probes",
    "agents.td_jepa",
    "agents.rnd",
    "envs.online",
    "envs.toy",
    "envs.tables",
    "envs.ogbench",
    "matplotlib.figure",
)


class Command:
    """A running command: the part of ``subprocess.Popen`` that tests need.

    Args:
        module: as after ``python -m``.
        arguments: of the command.
        cwd: where it runs; None: here.
        environment: variables to set.
    """

    def __init__(
        self, module: str, *arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.returncode: int | None = None
        self._ended = threading.Event()
        self._folder = tempfile.mkdtemp(prefix="worldmodels-command-")
        wanted = {"module": module, "arguments": arguments, "folder": self._folder, "cwd": str(cwd or Path.cwd())}
        wanted["environment"] = environment or {}
        self.pid = _server().start(wanted, self)

    def poll(self) -> int | None:
        """The exit status, as ``Popen`` gives it; None while the command runs."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to a command that may have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it with signal 9."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 300) -> int | None:
        """Wait for the end; kill the command and raise if it takes longer than ``timeout`` seconds."""
        if not self._ended.wait(timeout):
            self.kill()
            raise subprocess.TimeoutExpired(f"command {self.pid}", timeout)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end; return what was written to stdout and to stderr."""
        self.wait(timeout)
        written = tuple(Path(self._folder, name).read_text() for name in ("stdout", "stderr"))
        shutil.rmtree(self._folder, ignore_errors=True)
        return written

    def end(self, status: int) -> None:
        """Called by the server: the command ended with ``status``."""
        self.returncode = status
        self._ended.set()


def launch(*arguments: str, module: str = "worldmodels.run") -> subprocess.CompletedProcess[str]:
    """Run a command to its end, at most 300 seconds."""
    command = Command(module, *arguments)
    out, error = command.communicate()
    return subprocess.CompletedProcess([module, *arguments], command.returncode or 0, out, error)


class _Server:
    """The process that forks; a thread here listens for commands that begin and end."""

    def __init__(self) -> None:
        line = [sys.executable, "-m", __name__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # A session of its own: a Ctrl-C that ends the tests ends it by its closed stdin, not with a traceback.
        self._process = subprocess.Popen(line, cwd=ROOT, text=True, start_new_session=True, **pipes)
        self._lock, self._begun = threading.Lock(), threading.Event()
        self._starting: Command | None = None
        self._running: dict[int, Command] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, wanted: dict[str, object], command: Command) -> int:
        """Start a command; returns its process id."""
        with self._lock:
            self._begun.clear()
            self._starting = command
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()
            if not self._begun.wait(600):
                raise RuntimeError(f"the server of commands did not answer; it ended: {self._process.poll()}")
            return next(pid for pid, other in self._running.items() if other is command)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            what, pid, status = line.split()
            if what == "begun":
                assert self._starting is not None
                self._running[int(pid)] = self._starting
                self._begun.set()
            else:
                self._running[int(pid)].end(int(status))


@functools.cache
def _server() -> _Server:
    return _Server()


def _serve() -> str:
    """Fork for every line of stdin. Returns in the forked processes only, the module to run; ends with stdin."""
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else a collection in a forked process would copy every page
    rest = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        with contextlib.suppress(ChildProcessError):  # there is none
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                print("ended", ended[0], os.waitstatus_to_exitcode(ended[1]), flush=True)
        if not ready:
            continue
        read = os.read(0, 65536)
        if not read:
            sys.exit()
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                return _become(**json.loads(line))
            print("begun", pid, 0, flush=True)


def _become(module: str, arguments: list[str], folder: str, cwd: str, environment: dict[str, str]) -> str:
    """Make this forked process look like ``python -m module arguments``."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes what it starts with "&" deaf to Ctrl-C
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in enumerate((os.devnull, f"{folder}/stdout", f"{folder}/stderr")):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.argv = [module, *arguments]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    return module


if __name__ == "__main__":
    runpy.run_module(_serve(), run_name="__main__", alter_sys=True)
