"""Pure loss functions that several methods share: tensors in, scalars out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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


def cosine_distance(prediction: Tensor, goal: Tensor) -> Tensor:
    """Mean of 1 - cos(prediction, goal) over rows: 0 for equal directions, 2 for opposite ones.

    Args:
        prediction, goal: [B, D], any scale.

    Source: seq-JEPA, section 3; half of ||u - v||^2 of unit vectors, which BYOL (Grill et al. 2020, eq. 2) uses.
    """
    return 1 - F.cosine_similarity(prediction.float(), goal.float(), dim=-1).mean()


def nt_xent(first: Tensor, second: Tensor, *, temperature: int | float) -> Tensor:
    """Normalised temperature-scaled cross entropy: each row must find its partner among the 2 B - 1 others.

    Mean over all 2 B rows u with partner v of -log exp(cos(u, v) / tau) / sum_{w != u} exp(cos(u, w) / tau). The others
    are those of the batch given: of several processes, each compares within its own share.

    Args:
        first, second: [B, D]; row i of one is the partner of row i of the other; B must be at least 2.
        temperature: tau, above 0.

    Raises:
        ValueError: if B < 2, where the partner is the only one to choose, or for another temperature.

    Source: Chen et al. 2020 (SimCLR), eq. 1.
    """
    num = first.shape[0]
    if num < 2:
        raise ValueError(f"nt_xent compares a pair with other pairs and needs a batch of at least 2; got {num}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: cosines are divided by it, so it must be above 0")
    unit = F.normalize(torch.cat([first, second]).float(), dim=-1)  # [2 B, D]
    index = torch.arange(2 * num, device=unit.device)
    is_itself = index[:, None] == index
    logits = (unit @ unit.T / temperature).masked_fill(is_itself, float("-inf"))  # [2 B, 2 B]
    return F.cross_entropy(logits, (index + num) % (2 * num))


def deviation_hinge(latent: Tensor, *, margin: int | float = 1.0, epsilon: float = 1e-4) -> Tensor:
    """Keep every dimension alive: mean over dimensions of max(0, margin - standard deviation over rows).

    Args:
        latent: [B, D]; B must be at least 2.
        margin: wanted standard deviation, in latent units.
        epsilon: added to the variance, so that the gradient of its root stays finite.

    Raises:
        ValueError: if B < 2, where no variance exists.

    Source: Bardes et al. 2022 (VICReg), eq. 1 and 2.
    """
    if latent.shape[0] < 2:
        raise ValueError(f"deviation_hinge needs a batch of at least 2; got {latent.shape[0]}")
    return F.relu(margin - (latent.float().var(0) + epsilon).sqrt()).mean()


def decorrelation(latent: Tensor) -> Tensor:
    """Keep dimensions from repeating each other: squares of their covariances, summed over pairs i != j, over D.

    Args:
        latent: [B, D]; B must be at least 2.

    Raises:
        ValueError: if B < 2, where no covariance exists.

    Source: Bardes et al. 2022 (VICReg), eq. 3 and 4.
    """
    num, dim = latent.shape
    if num < 2:
        raise ValueError(f"decorrelation needs a batch of at least 2; got {num}")
    centred = latent.float() - latent.float().mean(0)
    covariance = centred.T @ centred / (num - 1)  # [D, D]
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / dim


def masked_l1(prediction: Tensor, goal: Tensor, counts: Tensor) -> Tensor:
    """Mean of |prediction - goal| over the entries of all steps that count; 0 where none does.

    Args:
        prediction, goal: [B, T, X], any unit.
        counts: bool [B, T], which steps count: not those that pad a window.
    """
    return masked_mean((prediction.float() - goal.float()).abs().mean(-1), counts)


def masked_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of ``values`` where ``counts``, bool of the same shape; 0 where nothing does."""
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp(min=1)
