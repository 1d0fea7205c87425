"""Exact learning dynamics of deep linear networks under JEPA and masked reconstruction (MAE).

With aligned initial weights and views that share an eigenbasis, every feature learns on its own. Its weight w, the norm
of a column of the encoder, obeys (time in the paper's clock, which is L times that of gradient descent)

    JEPA   dw/dt = lambda w^(3 - 1/L) - (lambda / rho) w^3          w -> rho^L
    MAE    dw/dt = lambda w^(2 - 1/L) - (lambda / rho) w^3          w -> rho^(L / (L + 1))

from w(0) = s^L. Here lambda is the covariance of the feature between the two views, rho = lambda / var(x) its
regression coefficient ("influence"), L the encoder's depth, s the scale of each layer at the start.

Both objectives learn features of large lambda first. Among those of equal lambda only JEPA prefers large rho. Where the
two are in conflict, JEPA's order can be the reverse of MAE's if s / rho is not small (deep encoders, moderate s).

Source: Littwin et al., arXiv 2407.03475 (NeurIPS 2024); the closed form for MAE is derived here (docs/linear.md).
All functions take arrays that broadcast, and compute in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.special import hyp2f1

Loss = Literal["jepa", "mae"]
Array = NDArray[Any] | np.float64  # NumPy turns results without axes into scalars
Values = float | Sequence[float] | Array


def fixed_point(loss: Loss, rho: Values, depth: int) -> Array:
    """Weight w that a feature of influence ``rho`` ends at."""
    exponent = depth if _is_jepa(loss) else depth / (depth + 1)
    return np.asarray(rho, np.float64) ** exponent


def grows(loss: Loss, rho: Values, *, depth: int, scale: float, fraction: float = 1.0) -> Array:
    """Whether a feature starts below ``fraction`` of its fixed point; if not, it has no critical time.

    Below all of it means s < rho for JEPA, s < rho^(1 / (L + 1)) for MAE; features that start above shrink.
    """
    return np.asarray(scale**depth < fraction * fixed_point(loss, rho, depth))


def time_to_reach(loss: Loss, weight: Values, lam: Values, rho: Values, *, depth: int, scale: float) -> Array:
    """Time at which a growing feature's weight w is ``weight``, from w(0) = scale^depth; paper clock.

    Args:
        loss: "jepa" or "mae"; weight: between the start and the fixed point; lam, rho: of the feature, positive.
        depth: L; scale: s, the singular value of each layer at the start.

    Raises:
        ValueError: if a weight lies outside the path from start to fixed point, or a feature shrinks.
    """
    lam, rho, weight = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in (lam, rho, weight)))
    if not (np.all(lam > 0) and np.all(rho > 0) and scale > 0 and depth >= 1):
        raise ValueError(f"lambda={lam}, rho={rho}, scale={scale} must be positive and depth={depth} at least 1")
    start, end = scale**depth, np.asarray(fixed_point(loss, rho, depth))
    for index in np.argwhere(~((start <= weight) & (weight < end))):
        at = tuple(index)
        raise ValueError(
            f"{loss}, depth={depth}: a feature of lambda={lam[at]:.4g}, rho={rho[at]:.4g} goes from scale^depth="
            f"{start:.4g} to {end[at]:.4g} and never grows to {weight[at]:.4g}. Use a scale smaller than {scale}"
        )
    u, u0 = weight ** (1 / depth), np.float64(scale)
    if _is_jepa(loss):
        factor = depth / (lam * rho ** (2 * depth - 1))
        return factor * (_jepa_primitive(u / rho, depth) - _jepa_primitive(u0 / rho, depth))
    return depth / lam * (_mae_primitive(u, rho, depth) - _mae_primitive(u0, rho, depth))


def critical_time(loss: Loss, lam: Values, rho: Values, *, depth: int, scale: float, fraction: float = 0.5) -> Array:
    """Time at which a feature's weight is ``fraction`` of its fixed point; paper clock, exact.

    Divide by ``depth`` for the time of gradient descent (updates times learning rate).

    Raises:
        ValueError: if a feature starts above ``fraction`` of its fixed point, so that no such time exists.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1")
    return time_to_reach(loss, fraction * fixed_point(loss, rho, depth), lam, rho, depth=depth, scale=scale)


def small_start(loss: Loss, lam: Values, rho: Values, *, depth: int, scale: float) -> Array:
    """The part of ``critical_time`` that diverges as the start w(0) = eps = scale^depth goes to 0.

    JEPA: (1 / lambda) sum_{n=1}^{2L-1} L / (n rho^(2L-n-1) eps^(n/L)); what is left out grows like log eps. MAE: L /
    ((L - 1) lambda) eps^(-(L-1)/L), or log(1 / eps) / lambda at L = 1; what is left out is bounded. Far off unless s /
    rho is small: compare gradient descent with ``critical_time``.
    """
    lam, rho = np.asarray(lam, np.float64), np.asarray(rho, np.float64)
    if _is_jepa(loss):
        order = np.arange(1, 2 * depth)
        terms = depth / (order * rho[..., None] ** (2 * depth - order - 1) * scale**order)
        return terms.sum(-1) / lam
    if depth == 1:
        return -np.log(scale) / lam * np.ones_like(rho)
    return depth / (depth - 1) * scale ** (1 - depth) / lam * np.ones_like(rho)


def trajectory(loss: Loss, lam: Values, rho: Values, times: Values, *, depth: int, scale: float) -> Array:
    """Weights w [..., T] at ``times`` [T] (paper clock), by an adaptive integrator of x = ln w."""
    lam, rho = np.broadcast_arrays(np.asarray(lam, np.float64), np.asarray(rho, np.float64))
    times = np.asarray(times, np.float64)
    if not np.all(np.isfinite(times)):  # the integrator would never end
        raise ValueError(f"times={times} must be finite")
    power = (2 if _is_jepa(loss) else 1) - 1 / depth
    flat_lam, flat_rho = lam.ravel(), rho.ravel()

    def speed(_: float, x: Array) -> Array:
        return flat_lam * np.exp(power * x) - flat_lam / flat_rho * np.exp(2 * x)

    begin = np.full(flat_lam.size, depth * np.log(scale))
    span = (0.0, float(times.max()))
    solved = solve_ivp(speed, span, begin, method="LSODA", t_eval=times, rtol=1e-10, atol=1e-12)
    if not solved.success:
        raise ValueError(f"the integrator gave up: {solved.message}")
    return np.exp(solved.y).reshape(*lam.shape, -1)


def integrated_critical_time(
    loss: Loss, lam: float, rho: float, *, depth: int, scale: float, fraction: float = 0.5
) -> float:
    """``critical_time`` of one feature by integration, which knows nothing of the closed form."""
    power = (2 if _is_jepa(loss) else 1) - 1 / depth
    goal = float(np.log(fraction * fixed_point(loss, rho, depth)))

    def speed(_: float, x: Array) -> Array:
        return lam * np.exp(power * x) - lam / rho * np.exp(2 * x)

    def arrived(_: float, x: Any) -> float:
        return float(x[0]) - goal

    arrived.terminal = True  # type: ignore[attr-defined]
    begin = depth * np.log(scale)
    horizon = 1e3 * float(small_start(loss, lam, rho, depth=depth, scale=scale)) + 1e3 / lam
    solved = solve_ivp(speed, (0.0, horizon), [begin], method="LSODA", events=arrived, rtol=1e-11, atol=1e-13)
    if not len(solved.t_events[0]):
        raise ValueError(f"the feature lambda={lam}, rho={rho} never reaches {fraction:.0%} of its fixed point")
    return float(solved.t_events[0][0])


def _is_jepa(loss: Loss) -> bool:
    if loss not in ("jepa", "mae"):
        raise ValueError(f"loss={loss}: the theory is of jepa and mae")
    return loss == "jepa"


def _jepa_primitive(psi: Array, depth: int) -> Array:
    """F(psi) with dF/dpsi = 1 / (psi^(2L) (1 - psi)), for psi = u / rho below 1."""
    order = np.arange(1, 2 * depth)
    poles = (1 / (order * np.expand_dims(psi, -1) ** order)).sum(-1)
    return -poles + np.log(psi) - np.log1p(-psi)


def _mae_primitive(u: Array | np.float64, rho: Array, depth: int) -> Array:
    """G(u) with dG/du = 1 / (u^L (1 - u^(L+1) / rho)), for u below the fixed point."""
    x = np.asarray(u) ** (depth + 1) / rho
    if depth == 1:
        return np.log(u) - 0.5 * np.log1p(-x)
    ratio = depth + 1
    return u ** (1 - depth) / (1 - depth) * hyp2f1(1.0, (1 - depth) / ratio, 2 / ratio, x)
