"""What a user may have meant who wrote a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, num: int = 1, cutoff: float = 0.6) -> str:
    """A clause with the names that come nearest, for the end of an error: "; did you mean a or b?", or "".

    Args:
        name: what was asked for; known: what there is.
        num: names at most; cutoff: how alike they must be, from 0 to 1.
    """
    near = difflib.get_close_matches(name, list(known), n=num, cutoff=cutoff)
    return f"; did you mean {' or '.join(near)}?" if near else ""
