"""Several sources as one: a sub-batch a name, which a joint objective routes, or one batch with a share of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Composite

from envs.relabel import Wrapper
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


class Blend(Wrapper):
    """Several sources made around one; every batch is one joint batch with a share of each, in the order given.

    ``parts: {offline: envs.rewards.Rewards, online: envs.online.Online}`` are the halves of an offline-to-online batch.
    What a blend does not say itself (labels, tasks, rewards) is the first part's.

    Args:
        source: what every part wraps.
        parts: factories by name, each called as ``part(source)``; they must give batches of the same entries.
        shares: of the batch, for each part; they add up to 1.

    Raises:
        ValueError: if there is no part, a share is missing, shares do not add up to 1, or the parts' specs differ.
    """

    def __init__(
        self, source: Any, *, parts: Mapping[str, Callable[[Any], Any]], shares: Mapping[str, int | float]
    ) -> None:
        if not parts or set(shares) != set(parts):
            raise ValueError(f"a blend of {sorted(parts)} needs a share for each of them; got {sorted(shares)}")
        if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares {dict(shares)} of a blend must be positive and add up to 1")
        self.parts: dict[str, Any] = {name: make(source) for name, make in parts.items()}
        self.bounds = list(itertools.accumulate(float(shares[name]) for name in self.parts))
        super().__init__(next(iter(self.parts.values())))
        for name, part in self.parts.items():
            if str(part.spec) != str(self.spec):
                raise ValueError(f"the parts of a blend give different entries: {name} has {sorted(part.spec.keys())}")

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw each part's share of the batch; batch size [B]."""
        ends = [round(bound * batch_size) for bound in self.bounds]
        sizes = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        drawn = [part.sample(size, window, generator) for part, size in zip(self.parts.values(), sizes, strict=True)]
        return torch.cat(drawn)  # type: ignore[arg-type, return-value]

    def attach(self, policy: Policy | None) -> None:
        """Pass the policy on."""
        for part in self.parts.values():
            part.attach(policy)

    def gathered(self) -> dict[str, Tensor]:
        """What interactive parts have gathered, under "part/name"."""
        return {
            f"{name}/{key}": value
            for name, part in self.parts.items()
            if hasattr(part, "gathered")
            for key, value in part.gathered().items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Give each part what it had gathered."""
        for name, part in self.parts.items():
            if hasattr(part, "restore"):
                prefix = f"{name}/"
                part.restore({key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)})
