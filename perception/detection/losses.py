"""Losses of detection heads: tensors in, unreduced tensors or scalars out, always float32.

Source: sheet ad_l_jepa, sections 2.1 and 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_focal(logits: Tensor, target: Tensor, *, alpha: float = 0.25, gamma: int | float = 2) -> Tensor:
    """Cross-entropy of independent classes, small where the answer is already right; unreduced.

    Args:
        logits: [...]; target: [...], 0 or 1.
        alpha: weight of the ones, 1 - alpha that of the zeros; gamma: how fast easy entries lose weight.

    Source: Lin et al. 2017 (RetinaNet).
    """
    chance = logits.sigmoid()
    wrong = target * (1 - chance) + (1 - target) * chance
    weight = target * alpha + (1 - target) * (1 - alpha)
    return weight * wrong.pow(gamma) * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def box_code_error(prediction: Tensor, target: Tensor, *, beta: float = 1 / 9) -> Tensor:
    """Smooth L1 of box codes [..., 7], summed over the seven: [...].

    Headings are compared by the sine of their difference: half a turn costs nothing, the direction loss sees it.
    """
    difference = prediction - target
    difference = torch.cat([difference[..., :6], difference[..., 6:].sin()], -1)
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=beta, reduction="none").sum(-1)


def penalty_reduced_focal(logits: Tensor, heat: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """Focal loss of a heat map, a scalar: zeros near a centre count less; divided by the number of centres.

    Args:
        logits: [...]; heat: [...], 1 at centres, falling off around them.
        epsilon: chances are kept this far from 0 and 1.

    Source: Law and Deng 2018 (CornerNet) with exponents 2 and 4; Yin et al. 2021 (CenterPoint).
    """
    chance = logits.sigmoid().clamp(epsilon, 1 - epsilon)
    is_centre = heat == 1
    hit = chance.log() * (1 - chance).square()
    miss = (1 - chance).log() * chance.square() * (1 - heat).pow(4)
    return -torch.where(is_centre, hit, miss).sum() / is_centre.sum().clamp_min(1)
