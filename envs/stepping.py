"""Stepping several gymnasium environments, in this process or in others. Numpy only, so workers never load torch.

An episode is a function of its seed alone: every environment owns its random streams, also numpy's global generator,
which OGBench draws from. While an environment runs, its own bit generator is swapped in; the caller's is put back.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable

import numpy as np

from envs.rendering import RenderError, check_picture
from worldmodels.spelling import did_you_mean

Arrays = dict[str, np.ndarray]
_FLAGS = {
    "reward": np.float64,
    "success": np.float64,
    "coverage": np.float64,
    "terminated": np.bool_,
    "truncated": np.bool_,
    "stepped": np.bool_,
}
_START = {"reward": 0.0, "terminated": False, "truncated": False, "stepped": False}


@runtime_checkable
class Maker(Protocol):
    """Builds environments of one kind and knows where they keep what a rollout reports. Must pickle."""

    max_steps: int
    """After so many steps an episode is truncated."""

    def make(self, task: int) -> Any:
        """A new environment for one task, counted from 1: gymnasium's reset and step, never resetting itself."""
        ...

    def enter(self, env: Any) -> None:
        """Called before an environment runs: bring back what it shares with others."""
        ...

    def leave(self, env: Any) -> None:
        """Called after it ran: save what it shares."""
        ...

    def physics(self, env: Any) -> Arrays:
        """State of the simulator."""
        ...

    def is_solved(self, env: Any) -> bool | None:
        """Whether the environment's present state solves the task; None where tasks have rewards, but no success."""
        ...

    def render(self, env: Any) -> np.ndarray:
        """A picture, uint8 [H, W, 3]."""
        ...

    def close(self, env: Any) -> None:
        """Free what the environment holds."""
        ...

    def finish(self) -> None:
        """Free what environments share; all of them are closed."""
        ...


def task_number(task: str, names: Sequence[str], *, of: str, elsewhere: Mapping[str, str] | None = None) -> int:
    """Place of a task among ``names``, counted from 1.

    Args:
        task: by name.
        names: tasks there are, in the benchmark's order.
        of: whose tasks these are, for errors.
        elsewhere: tasks of others, and whose: for errors.

    Raises:
        ValueError: if it is not one of them; says who has it, or suggests near names.
    """
    if task in names:
        return list(names).index(task) + 1
    owner = (elsewhere or {}).get(task)
    hint = f"; it belongs to {owner}." if owner else did_you_mean(task, names, num=2) or "."
    raise ValueError(f"{of} has no task {task!r}{hint} It has {', '.join(names)}")


class EnvGroup:
    """Some environments of one task that step together. Finished ones wait: they are not reset and not stepped.

    Args:
        maker: builds them.
        task: counted from 1.
        seeds: one for each environment.
        max_steps: end of an episode; None takes the maker's.
        ends_on_success: whether the environment's own end is one; if not, episodes go on to ``max_steps``.
    """

    def __init__(
        self,
        maker: Maker,
        task: int,
        seeds: Sequence[int],
        max_steps: int | None = None,
        ends_on_success: bool = True,
    ) -> None:
        self._maker = maker
        self._max_steps = maker.max_steps if max_steps is None else max_steps
        self._ends_on_success = ends_on_success
        self.size, self._seeds = len(seeds), list(seeds)
        self.envs = [maker.make(task) for _ in seeds]
        self.goals: list[Any] = []
        """What ``reset`` of each environment told as its goal."""
        self._streams = [np.random.MT19937() for _ in seeds]
        self._now: Arrays = {}
        self._result: Any = None

    def reset(self) -> Arrays:
        """Begin the episodes of the seeds; same keys as ``step``."""
        rows, self.goals = [], []
        with keeping_random_state():
            for env, stream, seed in zip(self.envs, self._streams, self._seeds, strict=True):
                first, second, third = (int(state) for state in np.random.SeedSequence(seed).generate_state(3))
                stream.state = np.random.RandomState(first).get_state(legacy=False)  # as np.random.seed would
                env.action_space.seed(second)
                with self._running(env, stream):
                    observation, info = env.reset(seed=third)
                    solved = self._maker.is_solved(env)
                rows.append(
                    self._row(env, observation, **_START | {"success": solved, "coverage": info.get("coverage")})
                )
                self.goals.append(info.get("goal"))
        self._steps = 0
        self._now = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return self._copy()

    def step(self, actions: np.ndarray) -> Arrays:
        """Step the environments that have not finished.

        Args:
            actions: float [n, A]; clipped to [-1, 1]. Rows of finished environments are ignored.

        Returns:
            "observation" [n, ...]; "reward", and where defined "success", "coverage", float64 [n]; "terminated",
            "truncated" bool [n], which stay true; "stepped" bool [n], true where this call did step; "physics/..."
            [n, ...].
        """
        now = self._now
        stepped = ~(now["terminated"] | now["truncated"])
        now["stepped"][:] = stepped
        now["reward"][~stepped] = 0.0
        if "success" in now:
            now["success"][~stepped] = 0.0
        self._steps += 1
        is_last = self._steps >= self._max_steps
        with keeping_random_state():
            for index in np.flatnonzero(stepped):
                env = self.envs[index]
                with self._running(env, self._streams[index]):
                    action = np.clip(actions[index], -1.0, 1.0)
                    observation, reward, terminated, truncated, info = env.step(action)
                terminated = terminated and self._ends_on_success
                row = self._row(
                    env,
                    observation,
                    reward=reward,
                    success=info.get("success"),
                    coverage=info.get("coverage"),
                    terminated=terminated,
                    truncated=truncated or is_last,
                    stepped=True,
                )
                for key, value in row.items():
                    now[key][index] = value
        return self._copy()

    def render(self, index: int) -> np.ndarray:
        """A picture of one environment, uint8 [H, W, 3].

        Raises:
            RenderError: if there is no renderer.
        """
        self._maker.enter(self.envs[index])
        return self._maker.render(self.envs[index])

    def close(self) -> None:
        """Free the environments."""
        while self.envs:
            self._maker.close(self.envs.pop())

    def start(self, command: str, *arguments: Any) -> None:
        """Call a method whose result ``finish`` hands out: the same two steps as for a group in another process."""
        self._result = getattr(self, command)(*arguments)

    def finish(self) -> Any:
        """The result of ``start``."""
        return self._result

    def _row(self, env: Any, observation: np.ndarray, **flags: Any) -> dict[str, Any]:
        row = {key: kind(flags[key]) for key, kind in _FLAGS.items() if flags[key] is not None}
        physics = {f"physics/{key}": value.copy() for key, value in self._maker.physics(env).items()}
        seen = np.asarray(observation)
        if seen.dtype == np.uint8 and seen.ndim == 3:
            check_picture(seen, "an environment")
        return {"observation": seen, **row, **physics}

    def _copy(self) -> Arrays:
        return {key: value.copy() for key, value in self._now.items()}

    @contextmanager
    def _running(self, env: Any, stream: np.random.MT19937) -> Iterator[None]:
        np.random.set_bit_generator(stream)
        self._maker.enter(env)
        yield
        self._maker.leave(env)


@contextmanager
def keeping_random_state() -> Iterator[None]:
    """Put numpy's global generator back as it was: an evaluation must not change what training draws next."""
    stream, state = np.random.get_bit_generator(), np.random.get_state(legacy=False)
    try:
        yield
    finally:
        np.random.set_bit_generator(stream)
        np.random.set_state(state)


class WorkerPool:
    """Processes that each step groups of environments. They end with this process, or when closed.

    Args:
        maker: sent to every process, which builds its own environments.
        workers: processes.
    """

    def __init__(self, maker: Maker, workers: int) -> None:
        context = get_context("spawn")  # a forked process would share MuJoCo's and torch's threads
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, maker), daemon=True)
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)
        self._opened = 0

    def open(
        self, task: int, seeds: Sequence[int], max_steps: int | None, ends_on_success: bool = True
    ) -> list[RemoteGroup]:
        """Spread one environment a seed over the processes, in order."""
        shares = [list(share) for share in np.array_split(np.asarray(seeds), len(self._connections)) if len(share)]
        self._opened += 1
        groups = [RemoteGroup(self._connections[i], self._opened, len(share)) for i, share in enumerate(shares)]
        for group, share in zip(groups, shares, strict=True):
            group.start("open", task, [int(seed) for seed in share], max_steps, ends_on_success)
        for group in groups:
            group.finish()
        return groups

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.close()  # a worker ends when its pipe does
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        self._connections, self._processes = [], []


class RemoteGroup:
    """An ``EnvGroup`` in another process. ``start`` several, then ``finish`` each: they run side by side."""

    def __init__(self, connection: Connection, key: int, size: int) -> None:
        self._connection, self._key, self.size = connection, key, size

    def start(self, command: str, *arguments: Any) -> None:
        """Ask for a method of the group."""
        try:
            self._connection.send((self._key, command, arguments))
        except (BrokenPipeError, OSError) as error:
            raise RuntimeError("a worker that steps environments has ended") from error

    def finish(self) -> Any:
        """Wait for the answer.

        Raises:
            RuntimeError: with the worker's traceback if the method failed there.
        """
        try:
            is_good, answer = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise RuntimeError("a worker that steps environments was killed, perhaps for lack of memory") from error
        if not is_good:
            kind, text = answer
            raise (RenderError if kind == RenderError.__name__ else RuntimeError)(text)
        return answer


def _serve(connection: Connection, maker: Maker) -> None:
    """Answer requests (key, command, arguments) until the other end closes."""
    import signal
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    groups: dict[int, EnvGroup] = {}
    while True:
        try:
            key, command, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = None
            if command == "open":
                groups[key] = EnvGroup(maker, *arguments)
            elif command == "close":
                groups.pop(key).close()
            else:
                answer = getattr(groups[key], command)(*arguments)
            connection.send((True, answer))
        except RenderError as error:
            connection.send((False, (RenderError.__name__, str(error))))
        except Exception:  # whatever a simulator raises must reach the caller, not end the worker silently
            connection.send(
                (False, (RuntimeError.__name__, f"in a worker that steps environments:\n{traceback.format_exc()}"))
            )
