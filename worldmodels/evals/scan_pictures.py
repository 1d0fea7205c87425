"""LiDAR scans as pictures: from above with boxes, as colours of an embedding, and in 3D in a browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from worldmodels.evals.pictures import new_figure, png
from worldmodels.geometry.boxes import EDGES, corners, footprint

TRUTH, FOUND = "#1a9850", "#e8590c"
MIN_SCORE = 0.3  # of detections that are drawn


def bev_picture(
    points: np.ndarray,
    *,
    low: Sequence[int | float],
    high: Sequence[int | float],
    truth: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    title: str = "",
) -> bytes:
    """A scan from above, forward upwards: points by height, truth green, detections orange, a tick at the front.

    Args:
        points: [P, 3 or more] metres; low, high: range drawn.
        truth: [M, 7]; boxes: [K, 7], of which those with ``scores`` [K] from ``MIN_SCORE`` on are drawn.

    Returns:
        A PNG file.
    """
    depth, width = high[0] - low[0], high[1] - low[1]
    figure = new_figure(5.2, 5.2 * depth / width + 0.3, dpi=130)
    axes = figure.add_subplot()
    inside = np.logical_and.reduce([(points[:, i] >= low[i]) & (points[:, i] < high[i]) for i in range(3)])
    shown = points[inside]
    axes.scatter(shown[:, 1], shown[:, 0], c=shown[:, 2], s=0.25, cmap="viridis", vmin=low[2], vmax=high[2], lw=0)
    is_sure = scores >= MIN_SCORE
    for group, color, line in ((truth, TRUTH, 1.4), (boxes[is_sure], FOUND, 0.9)):
        for outline in outlines(group):
            axes.plot(outline[:, 1], outline[:, 0], color=color, linewidth=line)
    for box, score in zip(boxes[is_sure], scores[is_sure], strict=True):
        axes.annotate(f"{score:.2f}", (box[1], box[0]), color=FOUND, fontsize=4, ha="center", va="center")
    axes.set(xlim=(high[1], low[1]), ylim=(low[0], high[0]), aspect="equal")  # y to the left, as the sensor sees it
    axes.set_title(f"{title}: truth green, found orange (score at least {MIN_SCORE})", fontsize=7)
    axes.tick_params(labelsize=6)
    return png(figure)


def outlines(boxes: np.ndarray) -> np.ndarray:
    """Closed outlines of boxes [N, 7] from above, with a tick from the centre to the front: [N, 7, 2]."""
    plane = footprint(torch.from_numpy(boxes)).numpy()  # [N, 4, 2], front left, rear left, rear right, front right
    front = (plane[:, :1] + plane[:, 3:]) / 2
    return np.concatenate([plane, plane[:, :1], front, boxes[:, None, :2]], 1)


def map_picture(
    colors: np.ndarray, *, low: Sequence[int | float], high: Sequence[int | float], title: str = ""
) -> bytes:
    """A map [Y, X, 3] of colours in 0..1 from above, forward upwards; a PNG file."""
    depth, width = high[0] - low[0], high[1] - low[1]
    figure = new_figure(4.2, 4.2 * depth / width + 0.3, dpi=110)
    axes = figure.add_subplot()
    axes.imshow(colors.transpose(1, 0, 2), origin="lower", extent=(low[1], high[1], low[0], high[0]), aspect="equal")
    axes.invert_xaxis()
    axes.set_title(title, fontsize=7)
    axes.tick_params(labelsize=6)
    return png(figure)


def scene_html(points: np.ndarray, *, truth: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> bytes | None:
    """A scan to turn and zoom in a browser, one file without network; None if plotly is not installed."""
    try:
        import plotly.graph_objects as plotly
    except ImportError:
        return None
    x, y, z = points[:, :3].T
    dots = {"size": 1, "color": z, "colorscale": "Viridis"}
    parts: list[Any] = [plotly.Scatter3d(x=x, y=y, z=z, mode="markers", marker=dots, name="points")]
    sure = boxes[scores >= MIN_SCORE]
    for name, group, color in (("truth", truth, TRUTH), ("found", sure, FOUND)):
        x, y, z = wires(group).T
        parts.append(plotly.Scatter3d(x=x, y=y, z=z, mode="lines", line={"color": color, "width": 4}, name=name))
    figure = plotly.Figure(parts)
    figure.update_layout(scene={"aspectmode": "data"}, margin={"l": 0, "r": 0, "t": 0, "b": 0})
    return figure.to_html(include_plotlyjs=True).encode()


def wires(boxes: np.ndarray) -> np.ndarray:
    """Edges of boxes [N, 7] as one line with gaps (NaN): [36 N, 3]."""
    edges = corners(torch.from_numpy(boxes)).numpy()[:, np.array(EDGES)]  # [N, 12, 2, 3]
    return np.concatenate([edges, np.full_like(edges[:, :, :1], np.nan)], 2).reshape(-1, 3)
