"""A linear map of latents whose matrix an action chooses.

Source: Garrido et al. 2023 (SIE, arXiv 2302.10283), section 4: the linear hypernetwork.
"""

from __future__ import annotations

from torch import Tensor, nn


class ActionMap(nn.Module):
    """latent -> (sum_k action_k W_k) latent, without bias: no action, no latent.

    The matrices of a batch are never built: the sum is one Linear of the products of latent and action entries, which
    also starts it at the scale of a Linear (released: entries sqrt(D) times larger).

    Args:
        dim: width D of latents, in and out; action_dim: A.
    """

    def __init__(self, dim: int, action_dim: int) -> None:
        super().__init__()
        self.weights = nn.Linear(action_dim * dim, dim, bias=False)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """Map ``latent`` [B, D] as ``action`` [B, A] says: [B, D]."""
        products = action[:, :, None] * latent[:, None, :]  # [B, A, D]
        return self.weights(products.flatten(1))
