"""A small language for rewards: ``exp(-norm(qpos[:2] - [4, 8]))``. Parsed here, never given to Python's eval.

A value is one number or one array **a state**; the batch is implicit, so ``qpos[0] * qvel`` scales the velocity of each
state by the first coordinate of that state. Everything is computed in float64; true is 1 and false is 0.

=============  =====================================================================================================
names          the fields of the source (``qpos``, ``qvel``, ``state``, …) and ``pi``
operators      ``+ - * / **``, unary ``-``, ``< <= > >= == !=`` (chains too: ``0 < x < 1``), ``and or not``
index, slice   of the last axis: ``qpos[0]``, ``qpos[-1]``, ``qpos[:2]``
vectors        ``[4, 8]``, ``[qpos[0], 0]``
elementwise    ``exp abs sqrt log sin cos tanh``, ``clip(x, low, high)``, ``where(condition, a, b)``
last axis      ``norm sum mean``, ``min`` and ``max`` of one vector; of several arguments they work elementwise
=============  =====================================================================================================
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import NoReturn

import torch
from torch import Tensor

MAX_LENGTH = 2000  # characters
MAX_NESTING, MAX_DEPTH = (
    30,
    100,
)  # of the text and of its tree: far below Python's limit, so no input exhausts the stack

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)"
    r"|(?P<sign>\*\*|<=|>=|==|!=|[-+*/<>()\[\],:]))"
)
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
_BINDING = {"or": 1, "and": 2, **dict.fromkeys(_COMPARISONS, 4), "+": 5, "-": 5, "*": 6, "/": 6}
_NOT = 3
_WORDS = ("and", "or", "not")
_CONSTANTS = {"pi": math.pi}
_ANY = 1_000_000
# fmt: off
_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp, "abs": torch.abs, "sqrt": torch.sqrt, "log": torch.log, "sin": torch.sin, "cos": torch.cos,
    "tanh": torch.tanh,
}
_OVER_LAST_AXIS: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1), "sum": lambda x: x.sum(-1), "mean": lambda x: x.mean(-1),
    "min": lambda x: x.amin(-1), "max": lambda x: x.amax(-1),
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.div, "**": torch.pow,
    "<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge, "==": torch.eq, "!=": torch.ne,
    "and": torch.logical_and, "or": torch.logical_or, "min": torch.minimum, "max": torch.maximum,
}
# fmt: on
_ARITY = {name: (1, 1) for name in (*_ELEMENTWISE, "norm", "sum", "mean")}
_ARITY |= {"min": (1, _ANY), "max": (1, _ANY), "where": (3, 3), "clip": (3, 3)}


@dataclass(frozen=True)
class Reward:
    """A compiled expression. Call it with fields {name: [N, ...]} to get the reward [N], float32."""

    text: str
    names: frozenset[str]
    """The fields it needs."""
    _root: _Node

    def __call__(self, fields: Mapping[str, Tensor]) -> Tensor:
        """Evaluate for every state.

        Args:
            fields: {name: [N, ...]}, any real dtype, all with the same N and on the same device.

        Returns:
            float32 [N].

        Raises:
            ValueError: for an unknown name, shapes that do not fit, more than one number a state, or a value that is
                not finite.
        """
        batch = {tensor.shape[:1] for tensor in fields.values()}
        if len(batch) != 1 or batch == {torch.Size([])}:
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in fields.items())
            raise ValueError(f"fields must be [N, ...] with one N; given: {shapes or 'none'}")
        (num,) = batch.pop()
        value = _Evaluation(self.text, fields, next(iter(fields.values())).device).value(self._root)
        if value.dim() > 1:
            shape = ", ".join(map(str, ["N", *value.shape[1:]]))
            hint = "a reward is one number a state: wrap it in norm(...) or sum(...), or index it"
            _fail(self.text, f"the expression gives [{shape}]; {hint}")
        result = value.expand(num).to(torch.float32)
        finite = torch.isfinite(result)
        if not bool(finite.all()):
            first, count = int((~finite).nonzero()[0]), int((~finite).sum())
            _fail(self.text, f"not finite for {count} of {num} states (first: {float(result[first])} at state {first})")
        return result.clone()


def compile_reward(text: str) -> Reward:
    """Parse a reward expression.

    Args:
        text: see the module; at most ``MAX_LENGTH`` characters.

    Raises:
        ValueError: one line with the expression, the place and what was expected there.
    """
    root = _Parser(text).parse()
    return Reward(text, frozenset(_names(root)), root)


# --- parsing --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Node:
    op: str  # "number", "name", "list", "index", "slice", "call", or an operator
    start: int
    children: tuple[_Node, ...] = ()
    number: float = 0.0
    name: str = ""
    bounds: tuple[int | None, int | None] = (None, None)
    depth: int = 1


def _fail(text: str, what: str, at: int | None = None) -> NoReturn:
    shown = " ".join(text.split())
    shown = shown if len(shown) <= 100 else shown[:97] + "..."
    place = ""
    if at is not None:
        piece = " ".join(text[at : at + 12].split())
        place = f" at character {at + 1}, " + (f"'{piece}'" if piece else "the end")
    raise ValueError(f'reward="{shown}"{place}: {what}')


def _suggest(name: str, known: list[str], what: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean '{near[0]}'?" if near else ";"
    return f"unknown {what} '{name[:40]}'{hint} known: {', '.join(sorted(known))}"


class _Parser:
    """Recursive descent, with precedence climbing for the operators."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > MAX_LENGTH:
            _fail(text, f"{len(text)} characters; at most {MAX_LENGTH}")
        self.tokens = self._tokenize()
        self.next = 0
        self.nesting = 0

    def _tokenize(self) -> list[tuple[str, str, int]]:
        tokens, at = [], 0
        end = len(self.text.rstrip())
        while at < end:
            match = _TOKEN.match(self.text, at)
            if match is None:
                at += len(self.text[at:]) - len(self.text[at:].lstrip())
                _fail(self.text, f"'{self.text[at]}' has no meaning here", at)
            kind = str(match.lastgroup)
            word = match.group(kind)
            tokens.append(("sign" if word in _WORDS else kind, word, match.start(kind)))
            at = match.end()
        return [*tokens, ("end", "", end)]

    def parse(self) -> _Node:
        if len(self.tokens) == 1:
            _fail(self.text, "the expression is empty; for example exp(-norm(qpos[:2] - [4, 8]))")
        root = self._expression()
        if self.tokens[self.next][0] != "end":
            self._expected("an operator or the end")
        return root

    def _at(self) -> int:
        return self.tokens[self.next][2]

    def _sign(self) -> str:
        kind, word, _ = self.tokens[self.next]
        return word if kind == "sign" else ""

    def _is(self, *signs: str) -> bool:
        return self._sign() in signs

    def _take(self) -> str:
        self.next += 1
        return self.tokens[self.next - 1][1]

    def _accept(self, sign: str) -> bool:
        is_next = self._is(sign)
        self.next += is_next
        return is_next

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            self._expected(f"'{sign}'")

    def _expected(self, what: str) -> NoReturn:
        _fail(self.text, f"expected {what}", self._at())

    def _node(self, op: str, start: int, *children: _Node, **rest: object) -> _Node:
        depth = 1 + max((child.depth for child in children), default=0)
        if depth > MAX_DEPTH:
            _fail(self.text, "too many operations in one expression")
        return _Node(op, start, children, depth=depth, **rest)  # type: ignore[arg-type]

    def _expression(self, binding: int = 0) -> _Node:
        """Precedence climbing: take every operator that binds tighter than ``binding``."""
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            _fail(self.text, f"nested deeper than {MAX_NESTING}", self._at())
        start = self._at()
        if binding < _NOT and self._accept("not"):
            left = self._node("not", start, self._expression(_NOT - 1))
        else:
            left = self._unary()
        while _BINDING.get(self._sign(), 0) > binding:
            if self._is(*_COMPARISONS):
                left = self._comparison(left)
            else:
                start, sign = self._at(), self._take()
                left = self._node(sign, start, left, self._expression(_BINDING[sign]))
        self.nesting -= 1
        return left

    def _comparison(self, left: _Node) -> _Node:
        whole: _Node | None = None
        while self._is(*_COMPARISONS):  # a < b < c means a < b and b < c
            start, sign = self._at(), self._take()
            right = self._expression(_BINDING[sign])
            link = self._node(sign, start, left, right)
            whole = link if whole is None else self._node("and", start, whole, link)
            left = right
        return whole or left

    def _unary(self) -> _Node:
        """Signs and powers bind from the right: -2 ** -3 ** 2 is -(2 ** -(3 ** 2)). Collected first, then folded."""
        parts: list[tuple[list[str], int, _Node]] = []
        while not parts or self._accept("**"):
            start, signs = self._at(), []
            while self._is("-", "+"):
                signs += self._take()
            parts.append((signs, start, self._postfix()))
        node: _Node | None = None
        for signs, start, base in reversed(parts):
            node = base if node is None else self._node("**", start, base, node)
            for _ in range(signs.count("-")):
                node = self._node("negate", start, node)
        assert node is not None
        return node

    def _postfix(self) -> _Node:
        node = self._atom()
        while self._is("["):
            start = self._at()
            self._take()
            first = self._integer()
            if self._accept(":"):
                node = self._node("slice", start, node, bounds=(first, self._integer()))
            elif first is None:
                self._expected("an integer, or a slice like :2")
            else:
                node = self._node("index", start, node, bounds=(first, None))
            self._expect("]")
        return node

    def _integer(self) -> int | None:
        negative = self._accept("-")
        kind, word, _ = self.tokens[self.next]
        if kind == "number" and word.isascii() and word.isdigit():
            self._take()
            return (-1 if negative else 1) * int(word[:12])
        if negative or not self._is(":", "]"):
            self._expected("an integer; an index is a plain number, not an expression")
        return None

    def _atom(self) -> _Node:
        kind, word, start = self.tokens[self.next]
        if kind == "number":
            self._take()
            return self._node("number", start, number=float(word))
        if kind == "name":
            self._take()
            if self._is("("):
                return self._call(word, start)
            if word in _ARITY:
                _fail(self.text, f"'{word}' is a function: write {word}(...)", start)
            return self._node("name", start, name=word)
        if self._accept("("):
            node = self._expression()
            self._expect(")")
            return node
        if self._accept("["):
            return self._node("list", start, *self._arguments("]"))
        self._expected("a number, a name, '(' or '['")

    def _call(self, name: str, start: int) -> _Node:
        if name not in _ARITY:
            _fail(self.text, _suggest(name, list(_ARITY), "function"), start)
        self._expect("(")
        arguments = self._arguments(")")
        low, high = _ARITY[name]
        if not low <= len(arguments) <= high:
            _fail(self.text, f"{name} takes {low} argument{'s' if low > 1 else ''}, given {len(arguments)}", start)
        return self._node("call", start, *arguments, name=name)

    def _arguments(self, closing: str) -> list[_Node]:
        arguments = [self._expression()]
        while self._accept(","):
            arguments.append(self._expression())
        self._expect(closing)
        return arguments


def _names(node: _Node) -> set[str]:
    own = {node.name} if node.op == "name" and node.name not in _CONSTANTS else set()
    return own.union(*(_names(child) for child in node.children))


# --- evaluation -----------------------------------------------------------------------------------------------------
class _Evaluation:
    """Values are [N or 1, *shape a state]: constants keep a batch of one and broadcast."""

    def __init__(self, text: str, fields: Mapping[str, Tensor], device: torch.device) -> None:
        self.text, self.fields, self.device = text, fields, device

    def value(self, node: _Node) -> Tensor:
        if node.op == "number":
            return self._constant(node.number)
        if node.op == "name":
            return self._name(node)
        values = [self.value(child) for child in node.children]
        if node.op in ("index", "slice"):
            return self._select(node, values[0])
        if node.op == "list":
            return self._list(node, values)
        if node.op in ("negate", "not"):
            return -values[0] if node.op == "negate" else (values[0] == 0).double()
        if node.op == "call":
            return self._call(node, values)
        return _BINARY[node.op](*self._align(node, values)).double()

    def _constant(self, number: float) -> Tensor:
        return torch.tensor([number], dtype=torch.float64, device=self.device)

    def _name(self, node: _Node) -> Tensor:
        if node.name in self.fields:
            return self.fields[node.name].detach().to(torch.float64)
        if node.name in _CONSTANTS:
            return self._constant(_CONSTANTS[node.name])
        _fail(self.text, _suggest(node.name, [*self.fields, *_CONSTANTS], "name"), node.start)

    def _select(self, node: _Node, value: Tensor) -> Tensor:
        if value.dim() == 1:
            _fail(self.text, "this is one number a state and has no index", node.start)
        size, (first, last) = value.shape[-1], node.bounds
        if node.op == "index":
            if not -size <= (first or 0) < size:
                _fail(self.text, f"index {first} of a vector of length {size}; use 0 to {size - 1}", node.start)
            return value[..., first]
        part = value[..., first:last]
        if part.shape[-1] == 0:
            _fail(self.text, f"an empty slice of a vector of length {size}", node.start)
        return part

    def _list(self, node: _Node, values: list[Tensor]) -> Tensor:
        if any(value.dim() > 1 for value in values):
            _fail(self.text, "a list holds numbers, one a state each, not vectors", node.start)
        return torch.stack(torch.broadcast_tensors(*values), dim=-1)

    def _call(self, node: _Node, values: list[Tensor]) -> Tensor:
        name = node.name
        if name in _ELEMENTWISE:
            return _ELEMENTWISE[name](values[0])
        if name in _OVER_LAST_AXIS and len(values) == 1:
            if values[0].dim() == 1:
                instead = "; use abs(...)" if name == "norm" else ""
                _fail(self.text, f"{name} of one value needs a vector, this is one number a state{instead}", node.start)
            return _OVER_LAST_AXIS[name](values[0])
        values = self._align(node, values)
        if name == "where":
            return torch.where(values[0] != 0, values[1], values[2])
        if name == "clip":
            return torch.minimum(torch.maximum(values[0], values[1]), values[2])
        return reduce(_BINARY[name], values)

    def _align(self, node: _Node, values: list[Tensor]) -> list[Tensor]:
        """Give all values the same rank: ones go between the batch and the shape a state, as NumPy does a state."""
        rank = max(value.dim() for value in values)
        aligned = [v.reshape(v.shape[0], *(1,) * (rank - v.dim()), *v.shape[1:]) for v in values]
        try:
            torch.broadcast_shapes(*(v.shape for v in aligned))
        except RuntimeError:
            shapes = " and ".join(str(list(value.shape[1:])) for value in values)
            _fail(self.text, f"'{node.name or node.op}' cannot combine values of shapes {shapes} a state", node.start)
        return aligned
