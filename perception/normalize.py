"""Normalisation by running or fitted statistics, saved and averaged over processes like any other state of a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """Subtracts the running mean and divides by the running standard deviation of each dimension.

    ``observe`` moves the statistics; ``forward`` only uses them, so online and target networks of one update see the
    same numbers. Early on the average is cumulative (1/n), later exponential with ``momentum``.

    Why it exists: the encoders start with Linear, LayerNorm and zero bias, which forgets the length of its input. Raw
    coordinates of a maze (0 to 24 m) then become indistinguishable and no task is ever solved.

    Args:
        dim: observation dimension S.
        momentum: weight of a new batch once the cumulative average has settled, within (0, 1].
        epsilon: added to the variance.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, dim: int, *, momentum: float = 0.01, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Move the statistics towards those of ``x`` [B, S]."""
        self.count += 1
        rate = (1 / self.count).clamp(min=self.momentum)
        mean = x.mean(0)
        var = x.var(0, correction=0)
        delta = mean - self.mean
        # Variance of a mixture: within both parts, plus between them.
        self.var.copy_((1 - rate) * self.var + rate * var + rate * (1 - rate) * delta.square())
        self.mean.add_(rate * delta)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` [..., S]."""
        return (x - self.mean) * torch.rsqrt(self.var + self.epsilon)


class FittedNorm(nn.Module):
    """Subtracts a mean and divides by a standard deviation of each dimension that were fitted once, on training data.

    Until then it changes nothing. Once fitted it stays so: a network that comes trained keeps the units it knows.

    Args:
        dim: S.
    """

    mean: Tensor
    std: Tensor
    is_fitted: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Take ``mean`` [S] and ``std`` [S] if there are none yet.

        Raises:
            ValueError: if a deviation is not positive, or a number not finite.
        """
        if self.is_fitted:
            return
        if not bool((std > 0).all() & std.isfinite().all() & mean.isfinite().all()):
            raise ValueError(f"statistics to normalise by must be finite, deviations positive; mean {mean}, std {std}")
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.is_fitted.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` [..., S]."""
        return (x - self.mean) / self.std

    def inverse(self, x: Tensor) -> Tensor:
        """Bring ``x`` [..., S] back to its own units."""
        return x * self.std + self.mean
