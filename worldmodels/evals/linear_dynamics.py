"""Theory against training for deep linear networks: when each feature is learned, and in which order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from tensordict import TensorDict

from worldmodels.core import Objective
from worldmodels.evals.pictures import new_figure, png
from worldmodels.evals.results import pack
from worldmodels.linear_theory import critical_time, fixed_point, grows, trajectory

_COLORS = ("#1f4e9c", "#1a9850", "#f2a900", "#d73027", "#7b3294", "#5b6472")
_GREY = "#8a93a0"
_NAMES = {"jepa": "JEPA", "mae": "reconstruction"}


class Curves(NamedTuple):
    """One network: a panel under a loss. Times are updates x step size; d features."""

    panel: str
    loss: Any
    depth: int
    scale: float
    lam: np.ndarray  # [d]
    rho: np.ndarray  # [d]
    times: np.ndarray  # [T]
    weights: np.ndarray  # [T, d]
    predicted: np.ndarray  # [d] critical times; NaN where there is none
    measured: np.ndarray  # [d] NaN if not reached

    @property
    def end(self) -> np.ndarray:
        """Fixed points [d]."""
        return np.asarray(fixed_point(self.loss, self.rho, self.depth))


class LinearDynamics:
    """Critical times of every feature of every panel and loss, predicted and measured, and a picture of all of them.

    A critical time is when a weight reaches ``fraction`` of its fixed point, in updates x step size. Metrics:
    "<panel>.<loss>.<i>/lambda", "/rho", "/predicted", "/measured" and "/error" (relative). A feature that is not
    learned in time has a measured time of NaN, one that starts too high a predicted one of NaN, and a warning says so.
    Notes give the orders.

    Args:
        source: ``envs.linear_features``.
        every: steps between two looks; 0 looks at the end only.
        fraction: within (0, 1).
        name: of this evaluator in logs and files.
    """

    def __init__(self, *, source: Any, every: int = 0, fraction: float = 0.5, name: str = "dynamics") -> None:
        if not hasattr(source, "panels"):
            raise ValueError(f"{name} needs the features of env=linear_features; {type(source).__name__} has none")
        self.source, self.every, self.fraction, self.name = source, every, fraction, name

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Compare what was recorded so far with the closed forms."""
        if not hasattr(objective, "trajectory"):
            raise ValueError(f"{self.name} needs objective=linear; {type(objective).__name__} records no trajectory")
        curves = self.curves(objective, step)
        metrics: dict[str, float] = {}
        for c in curves:
            columns = {"lambda": c.lam, "rho": c.rho, "predicted": c.predicted, "measured": c.measured}
            columns["error"] = np.abs(c.measured / c.predicted - 1)
            for i in range(len(c.lam)):
                metrics |= {f"{c.panel}.{c.loss}.{i}/{column}": values[i] for column, values in columns.items()}
        notes = [f"{c.panel}, {c.loss}: order {order(c.measured)}, predicted {order(c.predicted)}" for c in curves]
        warnings = [line for c in curves for line in complaints(c, self.fraction)]
        files = {"dynamics.png": picture(curves, self.fraction)} if len(curves[0].times) > 1 else {}
        return pack(metrics, files=files, notes=notes, warnings=warnings)

    def curves(self, objective: Any, step: int) -> list[Curves]:
        """What was recorded in ``step`` updates, panel after panel."""
        depth, scale = objective.depth, objective.scale
        weights = objective.trajectory[: -(-step // objective.record_every)].cpu().numpy()  # [T, G, d]
        found = []
        for panel, features in self.source.panels.items():
            views = features.views()
            lam, rho = views.yx.numpy(), views.rho.numpy()
            for loss in objective.losses:
                row = weights[:, len(found)]
                times = np.arange(len(row)) * float(objective.step_size[len(found)]) * objective.record_every
                predicted = np.full(len(lam), np.nan)
                can = grows(loss, rho, depth=depth, scale=scale, fraction=self.fraction)
                predicted[can] = (
                    critical_time(loss, lam[can], rho[can], depth=depth, scale=scale, fraction=self.fraction) / depth
                )
                measured = crossing(times, row, self.fraction * np.asarray(fixed_point(loss, rho, depth)))
                found.append(Curves(panel, loss, depth, scale, lam, rho, times, row, predicted, measured))
        return found


def crossing(times: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """First of ``times`` [T] at which each column of ``weights`` [T, d] rises to its level [d]; NaN if it does not.

    Between two rows ln w is taken to be linear.
    """
    found = np.full(len(levels), np.nan)
    for i, level in enumerate(levels):
        above = np.flatnonzero(weights[:, i] >= level)
        if len(above) and above[0] > 0:
            pair = slice(above[0] - 1, above[0] + 1)
            found[i] = np.interp(np.log(level), np.log(weights[pair, i]), times[pair])
    return found


def order(times: np.ndarray) -> str:
    """Features that have a time, the first first: "3 2 0 1"."""
    return " ".join(str(i) for i in np.argsort(times, kind="stable") if np.isfinite(times[i])) or "none"


def complaints(c: Curves, fraction: float) -> list[str]:
    """Why features have no critical time, and what to do."""
    lines = []
    for i in range(len(c.lam)):
        name = f"{c.panel}, {c.loss}: feature {i} (lambda={c.lam[i]:.3g}, rho={c.rho[i]:.3g})"
        if np.isnan(c.predicted[i]):
            lines.append(
                f"{name} starts at scale^depth={c.scale**c.depth:.3g}, not below {fraction:g} of its fixed point "
                f"{c.end[i]:.3g}: it has no critical time. Use a smaller objective.scale"
            )
        elif np.isnan(c.measured[i]):
            reached = c.times[-1] if len(c.times) else 0.0
            lines.append(
                f"{name} is due at {c.predicted[i]:.4g}, but training went to {reached:.4g} (updates x step size). "
                "Use more steps or a larger one of objective.step_sizes"
            )
    return lines


def picture(curves: list[Curves], fraction: float) -> bytes:
    """One axes a panel and loss: theory as lines, training as dots, w / w_inf over time."""
    from matplotlib.lines import Line2D

    panels, losses = (list(dict.fromkeys(c[i] for c in curves)) for i in (0, 1))
    figure = new_figure(3.5 * len(panels) + 0.3, 2.5 * len(losses) + 1.1, dpi=130)
    grid = figure.subplots(len(losses), len(panels), squeeze=False, sharey=True)
    for c in curves:
        axes = grid[losses.index(c.loss)][panels.index(c.panel)]
        draw(axes, c, fraction)
        if c.loss == losses[0]:  # features have the same colours in all rows
            axes.legend(fontsize=7.5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2)
            axes.text(0.5, 1.34, headline(c), transform=axes.transAxes, ha="center", fontsize=10.5, fontweight="bold")
        if c.loss == losses[-1]:
            axes.set_xlabel("updates × step size", fontsize=8.5)
    for row in grid:
        row[0].set_ylabel("$w\\,/\\,w_\\infty$", fontsize=9)
    key = [
        Line2D([], [], color=_GREY, linewidth=1.4, label="theory"),
        Line2D([], [], color=_GREY, marker="o", markersize=3.6, linewidth=0, label="gradient descent"),
        Line2D([], [], color=_GREY, linestyle=":", linewidth=1.2, label="predicted critical time"),
    ]
    figure.legend(
        handles=key, loc="outside lower center", ncols=3, fontsize=8, frameon=False, columnspacing=1.2, handlelength=1.4
    )
    return png(figure)


def draw(axes: Any, c: Curves, fraction: float) -> None:
    """The features of one network."""
    due = c.predicted[np.isfinite(c.predicted)]
    last = min(c.times[-1], 1.25 * due.max()) if len(due) else c.times[-1]
    line = np.linspace(0, last, 400)
    options = {"depth": c.depth, "scale": c.scale}
    theory = trajectory(c.loss, c.lam, c.rho, line * c.depth, **options) / c.end[:, None]
    end = np.searchsorted(c.times, last, "right")
    axes.axhline(fraction, color="#c9ced6", linewidth=0.8, zorder=0)
    for i in range(len(c.lam)):
        color = _COLORS[i % len(_COLORS)]
        label = f"{i}:  $\\lambda$ = {c.lam[i]:.3g}, $\\rho$ = {c.rho[i]:.3g}"
        axes.plot(line, theory[i], color=color, linewidth=1.4, label=label)
        times, weights = c.times[:end], c.weights[:end, i] / c.end[i]
        shown = spread(times / last, weights, 24)
        axes.plot(times[shown], weights[shown], "o", color=color, markersize=3.6, markeredgewidth=0)
        axes.plot([c.predicted[i]] * 2, [0, fraction], ":", color=color, linewidth=1.2, zorder=0)
    axes.set_title(f"{_NAMES[c.loss]}{verdict(c)}", fontsize=8.5, color="#3c434d", loc="left", pad=3)
    axes.set_xlim(0, last)
    axes.set_ylim(0, max(1.06, float(theory.max()) * 1.06))
    axes.tick_params(labelsize=7, color=_GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)


def headline(c: Curves) -> str:
    """What differs between the features of a panel."""
    differs = [name for name, values in (("$\\lambda$", c.lam), ("$\\rho$", c.rho)) if np.ptp(values) > 0]
    if len(differs) < 2:
        return f"{c.panel}: only {differs[0]} differs" if differs else c.panel
    opposed = np.all(np.diff(c.lam) * np.diff(c.rho) < 0)
    return f"{c.panel}: $\\lambda$ and $\\rho$ " + ("in conflict" if opposed else "differ")


def verdict(c: Curves) -> str:
    """The order that was measured, in words."""
    found = c.measured[np.isfinite(c.measured)]
    if len(found) < 2:
        return ""
    between = np.ptp(found) / found.mean()
    return f" learns all within {between:.1%}" if between < 0.03 else f" learns {', '.join(order(c.measured).split())}"


def spread(x: np.ndarray, y: np.ndarray, num: int) -> np.ndarray:
    """Rows of up to ``num`` points of a curve, equally far apart along it: a step shows as well as a plateau."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    return np.unique(np.searchsorted(along, np.linspace(0, along[-1], num)).clip(0, len(x) - 1))
