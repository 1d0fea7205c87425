"""Pictures and films of rollouts, as file content. matplotlib, Pillow and av are imported only when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

_GOOD, _BAD, _WALL, _START, _GOAL = "#1a9850", "#d73027", "#5b6472", "#1f4e9c", "#f2a900"


def new_figure(width: float, height: float, *, dpi: int = 110) -> Any:
    """A matplotlib figure of that many inches that draws into files: no window, no global state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """A figure as the content of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", pil_kwargs={"optimize": True})
    return file.getvalue()


def maze_picture(
    walls: np.ndarray,
    paths: Tensor,
    *,
    unit: float,
    origin: tuple[float, float],
    success: Tensor | None = None,
    goal: Sequence[float] | None = None,
    title: str = "",
) -> bytes:
    """Draw the maze from above with one line an episode: green reached the goal, red did not.

    Args:
        walls: bool [rows, columns], true where a wall is; row i, column j is the square around
            (origin x + j unit, origin y + i unit).
        paths: [T + 1, E, 2] positions in metres, NaN after an episode's end.
        unit: side of a square, metres.
        origin: centre of square (0, 0), metres.
        success: bool [E]; None draws all in one colour.
        goal: position of the goal, if there is one.
        title: above the picture.

    Returns:
        A PNG file.
    """
    from matplotlib.patches import Rectangle

    rows, columns = walls.shape
    figure = new_figure(3.6, 3.6 * rows / columns + 0.3)
    axes = figure.add_subplot()
    left, bottom = origin[0] - unit / 2, origin[1] - unit / 2
    for i, j in np.argwhere(walls):
        axes.add_patch(Rectangle((left + j * unit, bottom + i * unit), unit, unit, color=_WALL, linewidth=0))
    points = paths.cpu().numpy()
    for episode in range(points.shape[1]):
        good = success is None or bool(success[episode])
        axes.plot(*points[:, episode].T, color=_GOOD if good else _BAD, linewidth=1.0, alpha=0.75, zorder=2 + good)
        axes.plot(*points[0, episode], "o", color=_START, markersize=4, zorder=4)
    if goal is not None:
        axes.plot(goal[0], goal[1], "*", color=_GOAL, markeredgecolor="black", markersize=14, zorder=5)
    axes.set_xlim(left, left + columns * unit)
    axes.set_ylim(bottom, bottom + rows * unit)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10)
    return png(figure)


def film(frames: Sequence[np.ndarray], *, frames_per_second: int = 6) -> tuple[str, bytes]:
    """Encode uint8 frames [H, W, 3] of one size: an mp4 with the video extra, otherwise an animated GIF.

    Returns:
        (file name ending, content).
    """
    try:
        import av
    except ImportError:
        return ".gif", _gif(frames, frames_per_second)
    file = io.BytesIO()
    height, width = (size - size % 2 for size in frames[0].shape[:2])  # the codec wants even sizes
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frames_per_second)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return ".mp4", file.getvalue()


def _gif(frames: Sequence[np.ndarray], frames_per_second: int) -> bytes:
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=1000 // frames_per_second, loop=0)
    return file.getvalue()
