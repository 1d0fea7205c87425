"""Clips decoded ahead by processes of their own, into memory that they share with this one.

A batch is a block of that memory; each of its clips is a task. Processes never import torch, and end with their parent.
"""

from __future__ import annotations

import queue
import signal
from collections import deque
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np

from envs.parallel import num_workers, start_worker
from envs.video_files import Facts, Place, Unreadable, read_rows


class Clip(NamedTuple):
    """A window of one video."""

    place: Place
    facts: Facts
    first: int
    """Row it begins at."""


class Read(NamedTuple):
    """What became of a batch."""

    pixels: np.ndarray
    """uint8 [B, T, 3, H, W], shared: gone once the batch is given back."""
    used: np.ndarray
    """int64 [B], which of its candidates each clip is."""
    failed: list[tuple[int, int, str]]
    """Clip, candidate, and what is wrong with it."""


class _Task(NamedTuple):
    ticket: int
    clip: int
    offset: int  # bytes into the memory
    window: int
    candidates: Sequence[Clip]


_Done = tuple[int, int, int, list[tuple[int, str]]]  # ticket, clip, candidate used or -1, candidates that failed


class ClipReaders:
    """Processes that decode clips.

    Args:
        frame_rate, size: see ``envs.video_files.read_rows``.
        workers: processes; None one a core; 0: none, clips are decoded here when they are asked for.
        num_blocks: batches in memory at a time. block_bytes: of each.
    """

    def __init__(
        self, *, frame_rate: int | float, size: Sequence[int], workers: int | None, num_blocks: int, block_bytes: int
    ) -> None:
        self.block_bytes, self._frame_rate, self._size = block_bytes, frame_rate, tuple(size)
        context = get_context("spawn")  # a forked process would share torch's threads
        self._memory: Any = context.RawArray("B", num_blocks * block_bytes) if workers != 0 else bytearray(block_bytes)
        self._blocks = deque(range(num_blocks if workers != 0 else 1))
        self._waiting: dict[int, list[_Task]] = {}  # of tickets that are decoded here
        self._pending: dict[int, int] = {}  # tasks of a ticket that are not done
        self._done: dict[int, list[_Done]] = {}
        self._places: dict[int, tuple[int, int, int]] = {}  # ticket: block, clips, window
        self._abandoned: set[int] = set()
        self._next = 0
        self._processes: list[BaseProcess] = []
        if workers != 0:
            self._tasks, self._results = context.Queue(), context.Queue()
            self._tasks.cancel_join_thread()  # what nobody reads any more must not keep this process alive
            arguments = (self._tasks, self._results, self._memory, frame_rate, self._size)
            self._processes = [
                context.Process(target=_work, args=arguments, daemon=True, name=f"decoder {number}")
                for number in range(num_workers(workers))
            ]
            for process in self._processes:
                process.start()
            self._finalizer = Finalize(self, _end, (self._processes,), exitpriority=10)

    @property
    def has_room(self) -> bool:
        """Whether another batch can be begun."""
        self._receive_all()
        return bool(self._blocks)

    def clip_bytes(self, window: int) -> int:
        """Bytes of a clip of ``window`` rows."""
        return window * 3 * self._size[0] * self._size[1]

    def begin(self, clips: Sequence[Sequence[Clip]], window: int) -> int:
        """Have a batch decoded; waits only if there is no room.

        Args:
            clips: [B] candidates of each clip: the first is taken that can be decoded. window: rows of each, T.

        Returns:
            a ticket for ``finish``.
        """
        size = self.clip_bytes(window)
        assert len(clips) * size <= self.block_bytes
        while not self._blocks:
            assert self._abandoned, "every block is waited for by somebody"
            self._receive()
        ticket, block = self._next, self._blocks.popleft()
        self._next += 1
        self._places[ticket], self._done[ticket] = (block, len(clips), window), []
        begin = block * self.block_bytes
        tasks = [_Task(ticket, i, begin + i * size, window, candidates) for i, candidates in enumerate(clips)]
        self._pending[ticket] = len(tasks)
        if self._processes:
            for task in tasks:
                self._tasks.put(task)
        else:
            self._waiting[ticket] = tasks
        return ticket

    def finish(self, ticket: int) -> Read:
        """Wait for a batch.

        Raises:
            RuntimeError: if a process was killed.
        """
        for task in self._waiting.pop(ticket, []):
            self._note(_run(task, self._memory, self._frame_rate, self._size))
        while self._pending[ticket]:
            self._receive()
        block, num, window = self._places[ticket]
        shape = (num, window, 3, *self._size)
        count = num * self.clip_bytes(window)
        pixels = np.frombuffer(self._memory, np.uint8, count, offset=block * self.block_bytes).reshape(shape)
        used, failed = np.empty(num, np.int64), []
        for _, clip, candidate, errors in sorted(self._done[ticket]):
            used[clip] = candidate
            failed += [(clip, number, reason) for number, reason in errors]
        return Read(pixels, used, failed)

    def give_back(self, ticket: int) -> None:
        """Let the memory of a batch be used again, now or when those who still write to it are done."""
        self._waiting.pop(ticket, None)
        if not self._processes:
            self._pending[ticket] = 0
        self._abandoned.add(ticket)
        self._sweep()

    def close(self) -> None:
        """End the processes."""
        if self._processes:
            self._finalizer()

    def _receive_all(self) -> None:
        while self._processes and not self._results.empty():
            self._receive()

    def _receive(self) -> None:
        try:
            self._note(self._results.get(timeout=1))
        except queue.Empty:
            if dead := [process for process in self._processes if not process.is_alive()]:
                raise RuntimeError(
                    f"{dead[0].name}, a process that decodes clips, was killed (exit code {dead[0].exitcode}), "
                    "perhaps for lack of memory, or by a damaged video: use fewer env.workers, or env.is_cached=true"
                ) from None

    def _note(self, done: _Done) -> None:
        self._done[done[0]].append(done)
        self._pending[done[0]] -= 1
        self._sweep()

    def _sweep(self) -> None:
        for ticket in [ticket for ticket in self._abandoned if not self._pending[ticket]]:
            self._abandoned.remove(ticket)
            self._blocks.append(self._places.pop(ticket)[0])
            del self._pending[ticket], self._done[ticket]


def _work(tasks: Any, results: Any, memory: Any, frame_rate: int | float, size: tuple[int, int]) -> None:
    start_worker()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all at once; the parent still finishes its step
    while True:
        results.put(_run(tasks.get(), memory, frame_rate, size))


def _run(task: _Task, memory: Any, frame_rate: int | float, size: tuple[int, int]) -> _Done:
    """Decode the first candidate that can be, to its place in the memory."""
    failed: list[tuple[int, str]] = []
    for number, clip in enumerate(task.candidates):
        try:
            rows = read_rows(clip.place, clip.facts, clip.first, task.window, frame_rate=frame_rate, size=size)
        except Unreadable as error:
            failed.append((number, str(error)))
            continue
        np.frombuffer(memory, np.uint8, rows.size, offset=task.offset)[:] = rows.reshape(-1)
        return task.ticket, task.clip, number, failed
    return task.ticket, task.clip, -1, failed


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
