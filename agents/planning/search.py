"""What all planners share: sequences of actions in a box, drawn around a plan, for B problems at once.

A planner knows neither model nor goal: it is given the cost of sequences, and returns one of low cost. It keeps nothing
between calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Generator, Tensor

Cost = Callable[[Tensor], Tensor]
"""Costs [B, S] of S sequences of actions [B, S, H, A] for each of B problems."""


class Planner(ABC):
    """Searches sequences of actions within [-1, 1].

    All problems of a batch are given the same noise, so that a plan does not depend on its batch mates.

    Args:
        horizon: H, actions of a plan.
        num_samples: S, sequences tried at a time, at least 2.
        num_iterations: rounds of search.
        std: of the noise around a plan, in units of the action.
        persistence: correlation of the noise of neighbouring steps, within [0, 1). White noise averages out over a
            horizon: it hardly moves a body whose steps are short.
        action_chunk: steps h that an action decides, as the source says; A is that of a whole chunk.

    Raises:
        ValueError: if one of them is out of range.
    """

    def __init__(
        self,
        *,
        horizon: int,
        num_samples: int,
        num_iterations: int,
        std: int | float = 0.5,
        persistence: int | float = 0.0,
        action_chunk: int = 1,
    ) -> None:
        if horizon < 1 or num_samples < 2 or num_iterations < 1:
            raise ValueError(f"{horizon=}, {num_samples=}, {num_iterations=}: at least 1, 2 and 1")
        if std <= 0 or not 0 <= persistence < 1:
            raise ValueError(f"{std=}, {persistence=}: std must be positive, persistence within [0, 1)")
        self.horizon, self.num_samples, self.num_iterations, self.std = horizon, num_samples, num_iterations, std
        self.action_chunk = action_chunk
        step = torch.arange(horizon * action_chunk)
        lag = step[:, None] - step  # [H h, H h]
        innovation = torch.where(step == 0, 1.0, (1 - persistence**2) ** 0.5)  # an AR(1) process of variance 1
        self._filter = torch.where(lag < 0, 0.0, float(persistence) ** lag.clamp(min=0)) * innovation

    @abstractmethod
    def plan(self, cost: Cost, start: Tensor, generator: Generator) -> Tensor:
        """Search from ``start`` [B, H, A], all of whose entries are within [-1, 1]; returns a plan like it.

        Args:
            cost: of sequences; called with [B, S, H, A].
            start: the first guess.
            generator: of all randomness, on any device.
        """

    def around(self, mean: Tensor, std: Tensor | float, generator: Generator) -> Tensor:
        """Draw S sequences [B, S, H, A] around ``mean`` [B, H, A], which is the first of them."""
        shape = (self.num_samples - 1, *mean.shape[1:])
        white = torch.randn(shape, generator=generator, device=generator.device).to(mean)  # [S - 1, H, A]
        steps = white.unflatten(-1, (self.action_chunk, -1)).flatten(1, 2)  # [S - 1, H h, A / h]
        noise = (self._filter.to(mean) @ steps).view_as(white)
        moved = mean.unsqueeze(1) + (std.unsqueeze(1) if isinstance(std, Tensor) else std) * noise
        return torch.cat([mean.unsqueeze(1), moved], 1).clamp(-1, 1)


def pick(actions: Tensor, index: Tensor) -> Tensor:
    """The sequences ``index`` [B, E] of ``actions`` [B, S, H, A], as [B, E, H, A]."""
    return actions.take_along_dim(index[..., None, None], 1)
