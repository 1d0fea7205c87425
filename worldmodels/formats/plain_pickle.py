"""Pickle files of plain data, read without running anything that they name.

A pickle names functions and the reader calls them: whoever writes one can run any program. Here only the names by which
numpy pickles arrays, numbers and dtypes are known, and each stands for a recorder of this file instead of for numpy's
own function, whose pickled state can reach memory it should not. Arrays are then built from the recorded bytes.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_NUMBERS_AND_TEXT = re.compile(r"[biuf]\d+|[US]\d+")


def read_plain_pickle(path: str | os.PathLike[str]) -> Any:
    """The content of a pickle of None, bool, int, float, str, bytes, list, tuple, dict and numpy arrays of these.

    Protocols 3 to 5, as Python 3 and numpy 1 or 2 write them; arrays of Python objects and of records are refused.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: naming the file and what is wrong: a name that is not allowed, a damaged or foreign file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    with file.open("rb") as content:
        return load_plain_pickle(content, name=str(file))


def load_plain_pickle(content: io.BufferedIOBase, *, name: str, is_python_2: bool = False) -> Any:
    """The content of an open pickle; see ``read_plain_pickle``.

    Args:
        content: open for reading, in bytes. name: of the file, for errors.
        is_python_2: whether Python 2 may have written it: its texts, keys of dicts too, then come as bytes.

    Raises:
        ValueError: as there.
    """
    try:
        return _plain(_Unpickler(content, encoding="bytes" if is_python_2 else "ASCII").load())
    except Exception as error:  # a damaged pickle raises errors of nearly any kind
        raise ValueError(f"{name} is no pickle of plain data: {error or type(error).__name__}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A recorder, never what the name stands for elsewhere."""
        if (known := _KNOWN.get((module, name))) is None:
            raise ValueError(f"it wants {module}.{name}; only numpy arrays and Python's own containers are allowed")
        return known


class _Dtype:
    """What numpy.dtype was called with; the byte order comes with the state."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not _NUMBERS_AND_TEXT.fullmatch(code):
            raise ValueError(f"it has an array of dtype {code}; numbers, flags and text are allowed")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, byte order, subarray, names, fields, ...)."""
        if any(part is not None for part in state[2:5]):
            raise ValueError("it has an array of records")
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array whose bytes are still to come."""

    def __init__(self, *_: Any) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, shape, dtype, whether columns come first, bytes)."""
        _, shape, dtype, is_fortran, data = state
        self.array = _array_of(data, dtype, shape, "F" if is_fortran else "C").array


def _array_of(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> _Array:
    made = _Array()
    made.array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy()
    return made


def _number_of(dtype: _Dtype, data: Any) -> Any:
    return np.frombuffer(data, dtype.dtype)[0]


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{
        (f"numpy.{core}.{module}", name): recorder
        for core in ("core", "_core")  # numpy 1 and 2
        for module, name, recorder in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _number_of),
            ("numeric", "_frombuffer", _array_of),
        )
    },
}


def _plain(value: Any) -> Any:
    """``value`` with arrays in place of their recorders."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(entry) for entry in value)
    if not isinstance(value, bool | int | float | str | bytes | np.generic | None):
        raise ValueError(f"it holds {type(value).__name__.lstrip('_')}")
    return value
