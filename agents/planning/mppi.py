"""Model predictive path integral control: the mean of drawn plans, weighted by exp(-cost / temperature).

Source: Williams et al., Information-Theoretic Model Predictive Control, 2017, without its cost of control. Differs:
costs are measured in their standard deviation over the samples, so that a temperature suits every scale of latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from agents.planning.search import Cost, Planner


class MPPI(Planner):
    """Returns a mean, which need not be as good as the best plan drawn.

    Args:
        temperature: in standard deviations of the samples' costs; towards 0 only the best plan counts.
        **search: see ``Planner``; ``std`` stays as it is.

    Raises:
        ValueError: if the temperature is not positive.
    """

    def __init__(self, *, temperature: int | float, **search: Any) -> None:
        super().__init__(**search)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be positive")
        self.temperature = temperature

    def plan(self, cost: Cost, start: Tensor, generator: Generator) -> Tensor:
        """See ``Planner.plan``."""
        mean = start
        for _ in range(self.num_iterations):
            actions = self.around(mean, self.std, generator)  # [B, S, H, A]
            costs = cost(actions)  # [B, S]
            scale = self.temperature * costs.std(1, keepdim=True).clamp(min=torch.finfo(costs.dtype).tiny)
            weights = torch.softmax((costs.amin(1, keepdim=True) - costs) / scale, 1)
            mean = torch.einsum("bs,bsha->bha", weights, actions)
        return mean
