"""Features of two views: which there are, how much they covary, how far one view determines the other's.

For centred views x, y with S_xx = E[x x^T] and S = (E[y x^T] + E[x y^T]) / 2, features are generalised eigenvectors

    S v_i = rho_i S_xx v_i,    V^T S_xx V = I.

v_i is a *filter*: v_i^T x is the feature's value. a_i = S_xx v_i is its *pattern*: x = sum_i a_i (v_i^T x). rho_i, the
regression coefficient of the feature in y on the feature in x, does not depend on the scale of v_i; a covariance does.
Here every feature is scaled so that its pattern has length 1 (its value is then measured in units of the input):

    sigma_i^2 = |a_i|^2,    lambda_i = rho_i sigma_i^2.

Why the pattern and not the filter: (1) sum_i sigma_i^2 = tr S_xx and sum_i lambda_i = tr S, so that variance and
covariance are divided among features without rest; (2) for x = A f with independent features f and columns of A of
length 1 it gives the moments of f itself, however oblique A is, where filters of length 1 give less the more columns of
A resemble each other; (3) a filter is only defined up to directions in which x never varies, a pattern is unique. If
S_xx and S are diagonal in one orthogonal basis, both agree and give the theory's lambda_i and sigma_i^2.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodels.linear_theory import critical_time, fixed_point

_EQUAL = 1e-9  # of the largest |rho|: less is rounding
_ERRORS = 6.0  # standard errors within which two rho count as equal: of 3, 4, 5, 6, 8 the best on known models


class Sampled(NamedTuple):
    """What moments were estimated from; without it they are taken as exact."""

    yy: Tensor  # E[y y^T], [D, D]
    num: int  # pairs


class Spectrum(NamedTuple):
    """Features by falling lambda, float64; k of them in D entries."""

    lam: Tensor  # [k] covariance between the views, of a pattern of length 1
    rho: Tensor  # [k] influence
    variance: Tensor  # [k] sigma^2 in x
    patterns: Tensor  # [D, k] of length 1, largest entry positive
    filters: Tensor  # [D, k] for values of variance 1
    num_dropped: int  # directions of x without variance
    asymmetry: float  # |S_yx - S_yx^T| / |S_yx|, Frobenius; what the symmetric part leaves out


def influence_spectrum(
    xx: Tensor, yx: Tensor, *, sampled: Sampled | None = None, rank_tolerance: float = 1e-6
) -> Spectrum:
    """Solve for the features of S_xx = ``xx`` and S_yx = ``yx``, float64 [D, D].

    Features of equal rho are one eigenspace. Eigenvectors within it are arbitrary, or noise where rho are equal up to
    the errors of an estimate; so the orthogonal patterns in it are taken, its principal components.

    Args:
        xx, yx: E[x x^T] and E[y x^T] of centred views.
        sampled: if the moments are estimates. A rho has the standard error of a regression coefficient,
            sqrt((E[f(y)^2] - rho^2) / num) for a feature f of variance 1.
        rank_tolerance: directions in which x has less than this share of its largest variance are left out.

    Raises:
        ValueError: if the moments are not finite, not square or of different sizes, or x does not vary.
    """
    if xx.ndim != 2 or xx.shape[0] != xx.shape[1] or xx.shape != yx.shape:
        raise ValueError(f"moments of two views are square and of one size; got {list(xx.shape)} and {list(yx.shape)}")
    xx, yx = xx.double(), yx.double()
    if not bool(torch.isfinite(xx).all() & torch.isfinite(yx).all()):
        raise ValueError("moments of two views must be finite")
    size, skew = float(yx.norm()), float((yx - yx.T).norm())
    power, basis = torch.linalg.eigh((xx + xx.T) / 2)
    kept = power > rank_tolerance * power[-1].clamp_min(0)
    if not bool(kept.any()):
        raise ValueError("the first view does not vary: it has no features")
    root, basis = power[kept].sqrt(), basis[:, kept]
    whitener = basis / root  # [D, k]
    rho, rotation = torch.linalg.eigh(whitener.T @ ((yx + yx.T) / 2) @ whitener)
    rho, rotation = rho.flip(0), rotation.flip(1)
    equal = torch.full_like(rho, _EQUAL * float(rho.abs().max()))
    if sampled is not None:
        filters = whitener @ rotation
        spread = (filters * (sampled.yy.double() @ filters)).sum(0) - rho.square()
        equal = torch.maximum(equal, _ERRORS * (spread.clamp_min(0) / sampled.num).sqrt())
    rotation, rho = _settle_ties(basis * root, rotation, rho, equal)

    filters, patterns = whitener @ rotation, (basis * root) @ rotation  # [D, k]
    length = patterns.norm(dim=0)
    order = (rho * length.square()).argsort(descending=True, stable=True)
    filters, patterns, length, rho = filters[:, order], patterns[:, order], length[order], rho[order]
    largest = patterns.gather(0, patterns.abs().argmax(0, keepdim=True))[0]
    sign = torch.where(largest < 0, -1.0, 1.0).to(length)
    return Spectrum(
        lam=rho * length.square(),
        rho=rho,
        variance=length.square(),
        patterns=patterns * sign / length,
        filters=filters * sign,
        num_dropped=int((~kept).sum()),
        asymmetry=skew / size if size else 0.0,
    )


def _settle_ties(scaled: Tensor, rotation: Tensor, rho: Tensor, equal: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the filters within each group of equal ``rho`` [k], falling, so that their patterns are orthogonal.

    A group holds what differs from its first by no more than ``equal`` [k], the larger of the two. Sums of lambda and
    of sigma^2 over a group do not change.
    """
    rotation, settled = rotation.clone(), rho.clone()
    values, ties, first = rho.tolist(), equal.tolist(), 0
    for end in range(1, len(values) + 1):
        if end < len(values) and values[first] - values[end] <= max(ties[first], ties[end]):
            continue
        if end - first > 1:
            turn = torch.linalg.svd(scaled @ rotation[:, first:end], full_matrices=False).Vh.T
            rotation[:, first:end] = rotation[:, first:end] @ turn
            settled[first:end] = turn.square().T @ rho[first:end]
        first = end
    return rotation, settled


def learning_times(
    loss: Literal["jepa", "mae"],
    lam: np.ndarray,
    rho: np.ndarray,
    *,
    depth: int,
    scale: float,
    fraction: float = 0.5,
) -> np.ndarray:
    """When a deep linear encoder has learned each feature [k], in gradient descent's time (updates x step size).

    Data are scaled so that the largest lambda is 1. A feature has been learned when its weight is ``fraction`` of what
    it becomes; see ``worldmodels.linear_theory``. Time is infinite for those never learned: lambda <= 0, or rho so
    small (for JEPA: not above the ``scale`` of the start) that the weight does not even grow by 1 / fraction.
    """
    times = np.full(np.shape(lam), np.inf)
    grows = (lam > 0) & (rho > 0)
    grows[grows] = fraction * fixed_point(loss, rho[grows], depth) > scale**depth
    if grows.any():
        options = {"depth": depth, "scale": scale, "fraction": fraction}
        times[grows] = critical_time(loss, lam[grows] / lam.max(), rho[grows], **options) / depth
    return times


def ranks(times: np.ndarray) -> list[int | None]:
    """Place of each feature in the order of learning, from 1; None if its time is infinite."""
    order = np.argsort(times, kind="stable")
    place = {int(feature): i + 1 for i, feature in enumerate(order)}
    return [place[i] if np.isfinite(time) else None for i, time in enumerate(times)]
