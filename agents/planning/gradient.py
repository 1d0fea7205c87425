"""Planning by gradient: several plans a problem descend the cost through the model, by Adam, within the box.

Sources: Henaff et al. 2017 and Srinivas et al. 2018 plan so in latent space; several starts against local minima.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from agents.planning.search import Cost, Planner, pick


class Gradient(Planner):
    """Returns the best plan met on the way; so its cost never rises with iterations, nor above that of the first guess.

    Works under ``torch.no_grad`` too; the model's parameters get no gradient.

    Args:
        lr: step of Adam, in units of the action.
        **search: see ``Planner``; ``std`` is that of the starts around the first guess.

    Raises:
        ValueError: if the step is not positive.
    """

    def __init__(self, *, lr: int | float, **search: Any) -> None:
        super().__init__(**search)
        if lr <= 0:
            raise ValueError(f"lr={lr} must be positive")
        self.lr = lr

    @torch.no_grad()
    def plan(self, cost: Cost, start: Tensor, generator: Generator) -> Tensor:
        """See ``Planner.plan``; ``cost`` must be differentiable."""
        actions = self.around(start, self.std, generator)  # [B, S, H, A]
        optimizer = torch.optim.Adam([actions], lr=self.lr)
        best, lowest = actions, actions.new_full(actions.shape[:2], float("inf"))  # what each start has found [B, S]
        for step in range(self.num_iterations + 1):
            is_last = step == self.num_iterations
            with torch.set_grad_enabled(not is_last):
                variable = actions.clone().requires_grad_(not is_last)
                costs = cost(variable)  # [B, S]
                total = costs.sum()
            is_better = (costs < lowest)[..., None, None]
            best, lowest = torch.where(is_better, actions, best), torch.minimum(costs.detach(), lowest)
            if not is_last:
                (actions.grad,) = torch.autograd.grad(total, variable)
                optimizer.step()
                actions.clamp_(-1, 1)
        return pick(best, lowest.argmin(1, keepdim=True))[:, 0]
