"""Where the time of a step goes: named functions are timed wherever they are called, their backward passes with them.

    watch = Watch(device)
    with watch.on([Part("encoder", model.encoder, "forward"), Part("loss", losses, "contrastive")]):
        step()
    for place, spent in watch.read().items(): ...

Time is cut wherever a part begins or ends. What lies between two cuts belongs to the innermost part that was running:
nothing counts twice and the places add up to the whole. In a backward pass each node of autograd's graph belongs to
the part that made it. On a GPU, cuts are events on its stream: nothing waits for them, and work counts where the device
does it, together with the time the device waits for the host.
"""

from __future__ import annotations

import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node


class Part(NamedTuple):
    """A function to watch: ``owner.attribute``, of a module (Python's or torch's), a class or any object."""

    name: str
    owner: Any
    attribute: str


class Place(NamedTuple):
    """Where time was spent."""

    path: tuple[str, ...]  # names of parts, outermost first; empty outside of all
    is_backward: bool

    @property
    def name(self) -> str:
        """The innermost part; "" outside of all."""
        return self.path[-1] if self.path else ""


class Spent(NamedTuple):
    """Seconds."""

    wall: float  # by the clock; on a GPU, on its timeline
    cpu: float  # of processor time, of all threads


class Watch:
    """Cuts the time within ``on`` into places.

    Args:
        device: where the watched code computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._path: tuple[str, ...] = ()
        self._cuts: list[tuple[Place | None, Any, float]] = []  # what begins; seconds or event; CPU seconds
        self._nodes: set[Node] = set()  # that belong to a part; kept, as hash and hooks need them alive

    @contextmanager
    def on(self, parts: Sequence[Part]) -> Iterator[None]:
        """Watch ``parts`` within the block, and ``Tensor.backward``."""
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(replaced(part, lambda function, name=part.name: self._timed(name, function)))
            stack.enter_context(replaced(Part("", Tensor, "backward"), self._backward))
            self._cut(Place((), False))
            try:
                yield
            finally:
                self._cut(None)
                self._nodes.clear()

    def read(self) -> dict[Place, Spent]:
        """What was spent since the last call; waits for the device."""
        found: dict[Place, list[Spent]] = defaultdict(list)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for (place, start, cpu), (_, end, cpu_end) in zip(self._cuts[:-1], self._cuts[1:], strict=True):
            if place is not None:
                wall = 1e-3 * start.elapsed_time(end) if self.device.type == "cuda" else end - start
                found[place].append(Spent(wall, cpu_end - cpu))
        self._cuts.clear()
        return {place: Spent(*map(sum, zip(*pieces, strict=True))) for place, pieces in found.items()}

    def _cut(self, place: Place | None) -> None:
        """From here on time belongs to ``place``; to none after the block."""
        if self._cuts and self._cuts[-1][0] == place:
            return
        now: Any = time.perf_counter()
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._cuts.append((place, now, time.process_time()))

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = {t.grad_fn for t in tensors((args, kwargs))}
            outer, self._path = self._path, (*self._path, name)
            self._cut(Place(self._path, False))
            try:
                out = function(*args, **kwargs)
                self._claim(out, given)
            finally:
                self._path = outer
                self._cut(Place(outer, False))
            return out

        return call

    def _claim(self, out: Any, given: set[Node | None]) -> None:
        """Let every backward node between what was ``given`` and ``out`` cut the time, unless an inner part has it."""
        place, seen = Place(self._path, True), set(given)
        queue = [t.grad_fn for t in tensors(out)]
        while queue:
            node = queue.pop()
            if node is None or node in seen or hasattr(node, "variable"):  # the last: it adds to a leaf's gradient
                continue
            seen.add(node)
            if node not in self._nodes:
                self._nodes.add(node)
                node.register_prehook(lambda *_: self._cut(place))
            queue += [following for following, _ in node.next_functions]

    def _backward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> None:
            self._cut(Place(self._path, True))
            try:
                function(*args, **kwargs)
            finally:
                self._cut(Place(self._path, False))

        return call


@contextmanager
def replaced(part: Part, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put ``change(function)`` in the place of a part's function within the block."""
    _, owner, name = part
    is_own, raw, function = name in vars(owner), inspect.getattr_static(owner, name), getattr(owner, name)
    new = change(function)
    if isinstance(owner, type) and not inspect.isfunction(raw):
        new = staticmethod(new)  # a class method, bound already
    setattr(owner, name, new)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, raw)
        else:
            delattr(owner, name)  # of the class, or inherited


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested mappings (TensorDicts too), sequences and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors(vars(value))
