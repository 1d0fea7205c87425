"""Latent dynamics: what an action does to a latent, predicted in latent space.

One predictor serves one-step methods (BYOL*), multi-step targets (BYOL-gamma*) and roll-outs (RLDP), where each member
of the ensemble continues from its own prediction.

Source: the latent predictor of TD-JEPA's comparison (arXiv 2510.00739; sheet td_jepa, section 1.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodels.nn.mlp import MLP, Embedding


class LatentDynamics(nn.Module):
    """P(latent, action): the layout of ``SuccessorPredictor`` without a task, from latents to latents.

    Args:
        latent_dim: width of the latent, in and out.
        action_dim: width of the action.
        width: hidden width; depth: hidden layers of the trunk; num_members: K, the size of the ensemble.
        is_residual: whether networks predict how the latent changes; at first it does not.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        *,
        width: int,
        depth: int,
        num_members: int,
        is_residual: bool = False,
    ) -> None:
        super().__init__()
        self.is_residual = is_residual
        self.embed_latent = Embedding(latent_dim, width=width, num_members=num_members)
        self.embed_action = Embedding(latent_dim + action_dim, width=width, num_members=num_members)
        joint_dim = self.embed_latent.dim + self.embed_action.dim
        self.trunk = MLP(joint_dim, latent_dim, width=width, depth=depth, num_members=num_members)
        if is_residual:
            nn.init.zeros_(self.trunk.layers[-1].weight)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """Predict [K, B, D] from ``latent`` [B, D], or one a member [K, B, D], and ``action`` [B, A]."""
        action = action.expand(*latent.shape[:-1], -1)
        moved = self.embed_action(torch.cat([latent, action], dim=-1))  # [K, B, width / 2]
        predicted = self.trunk(torch.cat([self.embed_latent(latent), moved], dim=-1))  # [K, B, D]
        return latent + predicted if self.is_residual else predicted

    def rollout(self, latent: Tensor, actions: Tensor) -> Tensor:
        """Continue from ``latent`` [B, D] under ``actions`` [B, H, A]: [H, K, B, D], the latents after each of them."""
        reached = []
        for action in actions.unbind(1):
            latent = self(latent, action)
            reached.append(latent)
        return torch.stack(reached)

    def imagine(self, latent: Tensor, actions: Tensor) -> Tensor:
        """Continue from each ``latent`` [B, D] under S sequences [B, S, H, A]: [B, S, H, D], mean over members."""
        start = latent[:, None].expand(-1, actions.shape[1], -1).flatten(0, 1)  # [B S, D]
        reached = self.rollout(start, actions.flatten(0, 1))  # [H, K, B S, D]
        return reached.mean(1).transpose(0, 1).unflatten(0, actions.shape[:2])
