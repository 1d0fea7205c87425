"""Sources that wrap a source and add rows from elsewhere in the store: what a transform cannot do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import Policy
from worldmodels.keys import FUTURE, OBSERVATION


class Wrapper:
    """A source around another one; what it does not say itself (labels, tasks) is the wrapped source's."""

    def __init__(self, source: Any) -> None:
        self.source, self.spec = source, source.spec

    def __getattr__(self, name: str) -> Any:
        """Ask the wrapped source."""
        if name == "source":  # not there yet: this object is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.source, name)

    def attach(self, policy: Policy | None) -> None:
        """Pass the policy on."""
        self.source.attach(policy)


class Futures(Wrapper):
    """Adds "future": the observation k rows after the window's first row, k ~ Geometric(1 - discount), k >= 1.

    The future stays in its trajectory: beyond the end it is the last row (sheet td_jepa, section 1.9).

    Args:
        source: fixed data with a ``store``.
        discount: of the horizon, within (0, 1).
        names: keys of the batch, each with a future drawn independently of the others.

    Raises:
        ValueError: if the source has no store.
    """

    def __init__(self, source: Any, *, discount: float, names: Sequence[str] = (FUTURE,)) -> None:
        if not hasattr(source, "store"):
            raise ValueError(
                f"futures need fixed data with a store; {type(source).__name__} has none. Use env=ogbench."
            )
        if not 0 < discount < 1:
            raise ValueError(f"discount={discount}: a geometric horizon needs it within (0, 1)")
        super().__init__(source)
        self.discount, self.names = discount, tuple(names)

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw windows as the source does, each with its futures, of batch size [B]."""
        store = self.source.store
        first = store.draw(batch_size, window, generator)  # [B]
        batch = store.windows(first, window)
        for name in self.names:
            batch[name] = store.rows(self.later(first, generator)).select(OBSERVATION)
        return batch

    def later(self, first: Tensor, generator: Generator) -> Tensor:
        """Rows [B] that lie k rows of a window ahead of ``first`` [B], or end its trajectory."""
        store = self.source.store
        uniform = torch.rand(len(first), generator=generator, device=generator.device).to(first.device)
        ahead = (torch.log1p(-uniform) / math.log(self.discount)).floor() + 1  # inverse of the geometric distribution
        rows = (ahead * store.action_chunk).clamp(max=store.num_rows)  # a long horizon must not overflow the index
        return torch.minimum(first + rows.to(first.dtype), store.last_rows(first))
