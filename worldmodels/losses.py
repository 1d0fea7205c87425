"""Pure loss functions that several methods share: tensors in, scalars out."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormality(latent: Tensor) -> Tensor:
    """Pull the rows' second moment towards the identity: unrelated rows become orthogonal, each row keeps its length.

    R(E) = 1/2 mean_{i != j} (e_i . e_j)^2 - mean_i (e_i . e_i).

    Args:
        latent: [B, D]; B must be at least 2.

    Raises:
        ValueError: if B < 2, where there is no pair.

    Source: Touati and Ollivier 2021 (FB); TD-JEPA eq. 8. The diagonal is left out of the first mean.
    """
    num = latent.shape[0]
    if num < 2:
        raise ValueError(f"orthonormality compares pairs of rows and needs a batch of at least 2; got {num}")
    gram = latent @ latent.T  # [B, B]
    diagonal = gram.diagonal()  # [B]
    off_diagonal = (gram.square().sum() - diagonal.square().sum()) / (num * (num - 1))
    return 0.5 * off_diagonal - diagonal.mean()


def expectile(error: Tensor, tau: float | Tensor, advantage: Tensor) -> Tensor:
    """Asymmetric square: ``tau`` weighs the errors whose ``advantage`` is positive or zero, 1 - tau the others.

    Args:
        error: [...]; advantage: [...], the sign that decides; tau: within (0, 1).

    Source: Kostrikov et al. 2022 (IQL), in the form HILP uses.
    """
    weight = torch.where(advantage < 0, 1 - tau, tau)
    return weight * error.square()
