"""Line charts as SVG text for the report: no picture files, no script, colours from the page's light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 340, 170  # of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 22
MAX_POINTS = 300
LOG_RATIO = 50.0  # positive values that span more than this are drawn on a logarithmic axis

Band = tuple[Sequence[float], Sequence[float]]


def line_chart(
    steps: Sequence[int],
    values: Sequence[float],
    *,
    band: Band | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    """Draw one metric over steps.

    Args:
        steps: rising, at least one.
        values: one a step; those that are not finite leave a gap.
        band: lower and upper limits, one a step, drawn as a shaded interval.
        limits: ends of the vertical axis; None fits it to the values.

    Returns:
        An ``<svg>`` element. Long noisy curves get a smoothed line over the faint raw one; positive values that span
        more than ``LOG_RATIO`` get a logarithmic axis.
    """
    everything = [value for row in (values, *(band or ())) for value in row if math.isfinite(value)]
    if not everything:
        return '<p class="empty">no finite value</p>'
    is_log = limits is None and min(everything) > 0 and max(everything) / min(everything) > LOG_RATIO
    low, high = _limits(everything, is_log) if limits is None else limits
    first, last = steps[0], max(steps[-1], steps[0] + 1)

    def x(step: float | int) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float | int) -> float:
        value = math.log10(value) if is_log else value
        share = (value - low) / (high - low)
        return HEIGHT - BOTTOM - min(max(share, -0.02), 1.02) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    ticks = _ticks(low, high, is_log)
    for tick, label in zip(ticks, _labels(ticks), strict=True):
        height = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{height + 3.5:.1f}" text-anchor="end">{label}</text>')
    middle = (first + last) / 2
    for step, anchor in ((first, "start"), (middle, "middle"), (last, "end")):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{compact(step)}</text>')
    index = _thin(len(steps))
    if band is not None:
        parts.append(_area([(x(steps[i]), y(band[0][i]), y(band[1][i])) for i in index if _is_finite(band, i)]))
    raw = [(x(steps[i]), y(values[i])) if math.isfinite(values[i]) else None for i in index]
    smooth = _smooth(values, is_log) if len(values) >= 40 and band is None else None
    parts.append(_path(raw, "raw" if smooth else "line"))
    if smooth:
        parts.append(_path([(x(steps[i]), y(smooth[i])) if math.isfinite(smooth[i]) else None for i in index], "line"))
    if len(steps) <= 30:
        parts += [f'<circle class="dot" cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="2.4"/>' for p in raw if p]
    return "".join([*parts, "</svg>"])


def compact(value: float | int, digits: int = 3) -> str:
    """A number for people, to so many digits: 12.5k, 3e-05, 0.71."""
    if not math.isfinite(value):
        return str(value)
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.{digits}g}{suffix}"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def _limits(values: list[float], is_log: bool) -> tuple[float, float]:
    """Axis limits; a first few extreme values of a long curve must not flatten the rest of it."""
    values = sorted(math.log10(value) for value in values) if is_log else sorted(values)
    cut = len(values) // 100
    low, high = values[cut], values[-1 - cut]
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = max(abs(high) * 0.1, 1e-3)
        return low - pad, high + pad
    pad = 0.04 * (high - low)
    return low - pad, high + pad


def _ticks(low: float, high: float, is_log: bool) -> list[float]:
    if is_log:
        powers = range(math.ceil(max(low, -300)), math.floor(min(high, 300)) + 1)
        if len(powers) >= 2:
            return [10.0**power for power in powers[:: max(1, math.ceil(len(powers) / 4))]]
        near = (factor * 10.0**power for power in (math.floor(low), math.floor(low) + 1) for factor in (1, 2, 5))
        return [tick for tick in near if low <= math.log10(tick) <= high]
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _labels(ticks: list[float]) -> list[str]:
    """Ticks as text, with as many digits as it takes to tell them apart."""
    found = [[compact(tick, digits) for tick in ticks] for digits in range(3, 9)]
    return next((labels for labels in found if len(set(labels)) == len(labels)), found[-1])


def _thin(num: int) -> list[int]:
    if num <= MAX_POINTS:
        return list(range(num))
    return sorted({round(i * (num - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)})


def _smooth(values: Sequence[float], is_log: bool) -> list[float]:
    """Debiased exponential average over about 3 % of the curve; the raw line stays visible behind it."""
    keep = 1 - 1 / max(2.0, 0.03 * len(values))
    total, weight, smooth = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total = keep * total + (1 - keep) * (math.log10(value) if is_log else value)
            weight = keep * weight + 1 - keep
        average = total / weight if weight else math.nan
        smooth.append(10.0**average if is_log else average)
    return smooth


def _is_finite(band: Band, i: int) -> bool:
    return math.isfinite(band[0][i]) and math.isfinite(band[1][i])


def _path(points: Sequence[tuple[float, float] | None], name: str) -> str:
    commands, is_drawing = [], False
    for point in points:
        if point is not None:
            commands.append(f"{'L' if is_drawing else 'M'}{point[0]:.1f} {point[1]:.1f}")
        is_drawing = point is not None
    return f'<path class="{escape(name)}" d="{"".join(commands)}"/>'


def _area(rows: list[tuple[float, float, float]]) -> str:
    if len(rows) == 1:  # one evaluation: a bar
        (at, low, high) = rows[0]
        rows = [(at, low, high), (at + 5, low, high)]
    outline = [(at, low) for at, low, _ in rows] + [(at, high) for at, _, high in reversed(rows)]
    return f'<polygon class="band" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in outline)}"/>' if rows else ""
