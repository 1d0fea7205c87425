"""Rows of small pictures as a PNG file: matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from worldmodels.evals.pictures import new_figure, png

_MARK = "#f2a900"


class Tile(NamedTuple):
    """One small picture."""

    image: np.ndarray  # [H, W, 3] uint8, or float 0 to 1
    box: tuple[float, float, float, float] | None = None  # left, top, width, height in pixels, drawn as a frame
    title: str = ""


def tile_picture(rows: Sequence[Sequence[Tile]], *, title: str, side: float = 1.1, aspect: float = 1.0) -> bytes:
    """Draw rows of tiles; shorter rows end earlier.

    Args:
        rows: at least one, of at least one tile; title: above all.
        side: height of a tile in inches; aspect: its width over that.
    """
    columns = max(len(row) for row in rows)
    figure = new_figure(max(side * aspect * columns, 2.4), side * len(rows) * 1.12 + 0.3)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, tiles in zip(grid, rows, strict=True):
        for axes, tile in zip(row, tiles, strict=False):
            axes.imshow(tile.image, interpolation="nearest")
            axes.set_title(tile.title, fontsize=6, pad=2)
            if tile.box is not None:
                _frame(axes, tile.box)
    figure.suptitle(title, fontsize=8)
    return png(figure)


def _frame(axes: object, box: tuple[float, float, float, float]) -> None:
    from matplotlib.patches import Rectangle

    left, top, width, height = box
    patch = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=_MARK, linewidth=1.5)
    axes.add_patch(patch)  # pyright: ignore[reportAttributeAccessIssue]
