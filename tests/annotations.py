"""Arguments and results are checked against their annotations while tests run: beartype by jaxtyping's import hook.

jaxtyping binds the arguments of every call to be ready for annotations of shapes, ``Float[Tensor, "B D"]``: ten
microseconds a call, where beartype alone takes one. Functions of modules that import nothing from jaxtyping are handed
to beartype alone, at their first call; the others go through jaxtyping as usual.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
import torch
from beartype import beartype

_through_jaxtyping = jaxtyping.jaxtyped


def install() -> None:
    """Check what is imported from now on from our packages, unless ``jaxtyping.config.jaxtyping_disable`` pauses it."""
    jaxtyping.jaxtyped = check  # the name that the hook writes before every function
    jaxtyping.install_import_hook(["worldmodels", "agents", "envs", "perception"], "beartype.beartype")


def check(function: Any = None, *, typechecker: Any) -> Any:
    """A decorator like ``jaxtyping.jaxtyped``."""
    if function is None:
        return functools.partial(check, typechecker=typechecker)
    if torch.compiler.is_compiling():  # a function inside one that is traced
        return function
    if not isinstance(function, types.FunctionType) or has_shapes(function.__globals__):
        return _through_jaxtyping(function, typechecker=typechecker)
    strict: Callable[..., Any] | None = None

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal strict
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if strict is None:
            strict = beartype(_with_hints(function))
        return strict(*args, **kwargs)

    return checked


def has_shapes(names: dict[str, Any]) -> bool:
    """Whether a module took anything from jaxtyping."""
    own = [value for name, value in names.items() if not name.startswith("__")]  # __loader__ is the hook itself
    return any(str(getattr(value, "__module__", "")).startswith("jaxtyping") for value in own)


def _with_hints(function: types.FunctionType) -> types.FunctionType:
    """A copy whose annotations are objects in place of strings; Any where a name is known to type checkers only."""
    parts = (function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy = types.FunctionType(*parts)
    copy.__kwdefaults__, copy.__module__ = function.__kwdefaults__, function.__module__
    copy.__qualname__, copy.__doc__ = function.__qualname__, function.__doc__
    copy.__annotations__ = {name: _hint(value, function) for name, value in function.__annotations__.items()}
    return copy


def _hint(value: Any, function: types.FunctionType) -> Any:
    try:
        holder = types.SimpleNamespace(__annotations__={"value": value}, __globals__=function.__globals__)
        return typing.get_type_hints(holder, function.__globals__, include_extras=True)["value"]
    except Exception:  # NameError, and whatever else a string may raise that is no expression here
        return Any
