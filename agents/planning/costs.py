"""How far imagined latents stay from the goal's: what a plan towards a goal costs.

All take latents [B, S, H, D] and goals [B, D], and give costs [B, S]; distances are in latent units.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def last_distance(latents: Tensor, goal: Tensor) -> Tensor:
    """Distance at the end of the plan: free to go around things, indifferent to when it arrives."""
    return _distances(latents[:, :, -1:], goal)[..., 0]


def mean_distance(latents: Tensor, goal: Tensor) -> Tensor:
    """Mean distance over the plan: arrives early and stays, and shuns detours."""
    return _distances(latents, goal).mean(-1)


def last_cosine(latents: Tensor, goal: Tensor) -> Tensor:
    """1 - cosine at the end of the plan: for latents whose length means nothing, such as seq-JEPA's."""
    return 1 - F.cosine_similarity(latents[:, :, -1].float(), goal[:, None].float(), dim=-1)


def _distances(latents: Tensor, goal: Tensor) -> Tensor:
    """[B, S, H], kept away from zero where the gradient is undefined."""
    return (latents.float() - goal[:, None, None]).square().sum(-1).clamp(min=1e-12).sqrt()
