"""The cross-entropy method: draw plans from a Gaussian, fit it to the best of them, again.

Sources: Rubinstein and Kroese, The Cross-Entropy Method, 2004; for planning with learned models, Chua et al. 2018
(PETS); keeping the best plan among the candidates and noise that is correlated in time, Pinneri et al. 2020 (iCEM),
whose noise has a power spectrum where ours is autoregressive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from agents.planning.search import Cost, Planner, pick


class CEM(Planner):
    """Returns the best plan ever drawn; so its cost never rises with iterations, nor above that of the first guess.

    Args:
        num_elites: E, plans the Gaussian is fitted to. One iteration is random shooting.
        **search: see ``Planner``; ``std`` is that of the first round.

    Raises:
        ValueError: if there are fewer elites than two, or more than samples.
    """

    def __init__(self, *, num_elites: int, **search: Any) -> None:
        super().__init__(**search)
        if not 2 <= num_elites <= self.num_samples:
            raise ValueError(f"num_elites={num_elites} must be at least 2 and at most num_samples={self.num_samples}")
        self.num_elites = num_elites

    def plan(self, cost: Cost, start: Tensor, generator: Generator) -> Tensor:
        """See ``Planner.plan``."""
        best, mean, std = start, start, torch.full_like(start, self.std)
        for _ in range(self.num_iterations):
            drawn = self.around(mean, std, generator)
            actions = torch.cat([best.unsqueeze(1), drawn[:, 1:]], 1)  # [B, S, H, A]
            order = cost(actions).topk(self.num_elites, largest=False).indices  # [B, E], the best first
            elites = pick(actions, order)
            best, mean, std = elites[:, 0], elites.mean(1), elites.std(1, correction=0)
        return best
