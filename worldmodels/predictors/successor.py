"""Successor predictors: where a policy will go, predicted in latent space by temporal differences.

Notable: the ensemble is one batched module; the loss and its target are two pure functions that every zero-shot method
shares, so that a method's file holds only what is its own.

Sources: TD-JEPA (arXiv 2510.00739) section 4 and its code layout; successor features, Barreto et al. 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodels.nn.mlp import MLP, Embedding


class SuccessorPredictor(nn.Module):
    """Predicts the discounted sum of future latents under the policy of task z: T(state latent, z, action).

    Two embeddings, of (latent, z) and of (latent, action), feed a shared trunk.

    Args:
        latent_dim: width of the state latent.
        task_dim: width of z.
        action_dim: width of the action.
        out_dim: width of the predicted latent.
        width: hidden width; depth: hidden layers of the trunk; num_members: K, the size of the ensemble.
    """

    def __init__(
        self, latent_dim: int, task_dim: int, action_dim: int, out_dim: int, *, width: int, depth: int, num_members: int
    ) -> None:
        super().__init__()
        self.embed_task = Embedding(latent_dim + task_dim, width=width, num_members=num_members)
        self.embed_action = Embedding(latent_dim + action_dim, width=width, num_members=num_members)
        joint_dim = self.embed_task.dim + self.embed_action.dim
        self.trunk = MLP(joint_dim, out_dim, width=width, depth=depth, num_members=num_members)

    def forward(self, latent: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """Predict from ``latent`` [B, L], ``z`` [B, d] and ``action`` [B, A] to [K, B, out_dim]."""
        task = self.embed_task(torch.cat([latent, z], dim=-1))  # [K, B, width / 2]
        act = self.embed_action(torch.cat([latent, action], dim=-1))  # [K, B, width / 2]
        return self.trunk(torch.cat([act, task], dim=-1))  # [K, B, out]


def ensemble_mean(prediction: Tensor, pessimism: float = 0.0) -> Tensor:
    """Reduce an ensemble [K, B, D] to [B, D]: its mean, less ``pessimism`` times the mean distance between members."""
    mean = prediction.mean(0)
    num = prediction.shape[0]
    if pessimism == 0.0 or num == 1:
        return mean
    spread = (prediction[:, None] - prediction[None]).abs().sum((0, 1)) / (num * (num - 1))
    return mean - pessimism * spread


def successor_target(next_latent: Tensor, next_successor: Tensor, discount: Tensor) -> Tensor:
    """TD(0) target of a successor prediction: the latent arrived at, plus the discounted prediction from there.

    Args:
        next_latent: [B, D]; next_successor: [B, D]; discount: [B], zero where the episode terminated.
    """
    return next_latent + discount[:, None] * next_successor


def latent_td_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of ``prediction`` [K, B, D] to ``target`` [B, D]: sum over D, mean over members and batch.

    Source: TD-JEPA eq. 6-7; as its code, without the paper's factor 1/2 (sheet td_jepa section 1.10).
    """
    return (prediction.float() - target).square().sum(-1).mean()
