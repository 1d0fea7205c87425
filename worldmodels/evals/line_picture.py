"""Curves of several rows over one number, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worldmodels.evals.pictures import new_figure, png

_COLORS = ("#1f4e9c", "#d98e04", "#1a9850", "#9aa3ae", "#d73027", "#7b3294")


def lines_picture(
    at: Sequence[int | float], rows: Mapping[str, Sequence[float]], *, title: str, x: str, y: str
) -> bytes:
    """Draw one curve a row.

    Args:
        at: where the rows were measured; rows: values by name, one a place; NaN leaves a gap.
        title: above; x, y: what the axes show. R2 below -0.5 is cut off.
    """
    figure = new_figure(4.6, 3.2)
    axes = figure.add_subplot()
    axes.axhline(0, color="#9aa3ae", linewidth=0.7)
    for i, (name, values) in enumerate(rows.items()):
        axes.plot(at, values, ".-", color=_COLORS[i % len(_COLORS)], label=name.replace("_", " "))
    axes.set_ylim(bottom=max(axes.get_ylim()[0], -0.5))
    axes.set_xticks(list(at)[:: len(at) // 12 + 1])
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7, frameon=False, loc="lower left")  # where none is named, the search is slow, and warns
    axes.tick_params(labelsize=7)
    return png(figure)
