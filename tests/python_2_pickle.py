"""Pickles as Python 2 wrote them: texts are strings of bytes, and so is what an array holds."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any, ClassVar


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python, whose parts can be replaced
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(data)) + data)  # BINSTRING
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python_2_pickle(value: Any) -> bytes:
    """``value`` in protocol 2, with numpy's names of those days."""
    file = io.BytesIO()
    _Python2Pickler(file, 2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
