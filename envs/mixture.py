"""Several sources as one: each batch holds a sub-batch a name, which a joint objective routes by that name."""

from __future__ import annotations

from collections.abc import Mapping

from tensordict import TensorDict
from torch import Generator
from torchrl.data import Composite

from worldmodels.core import Policy, Source


class Mixture:
    """A named set of sources.

    Args:
        sources: by name; the same source may serve several names, each then gets a batch of its own.
        shares: batch size of each name relative to the whole; None gives every name the full batch.

    Raises:
        ValueError: if there is no source, or a share is missing.
    """

    def __init__(self, sources: Mapping[str, Source], *, shares: Mapping[str, float] | None = None) -> None:
        if not sources:
            raise ValueError("a mixture needs at least one source")
        if shares is not None and set(shares) != set(sources):
            raise ValueError(f"a mixture of {sorted(sources)} needs a share for each of them; got {sorted(shares)}")
        self.sources, self.shares = dict(sources), dict(shares or dict.fromkeys(sources, 1.0))
        self.spec = Composite({name: source.spec for name, source in self.sources.items()})

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw a sub-batch a name, in the order given; the result has batch size []."""
        parts = {
            name: source.sample(max(1, round(batch_size * self.shares[name])), window, generator)
            for name, source in self.sources.items()
        }
        return TensorDict(parts, batch_size=[])

    def attach(self, policy: Policy | None) -> None:
        """Pass the policy on."""
        for source in self.sources.values():
            source.attach(policy)
