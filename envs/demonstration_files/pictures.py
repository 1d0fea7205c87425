"""Columns of pictures. Needs Pillow: pip install 'worldmodels[imitation]'."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.demonstration_files.recording import Recording


def pictures(recording: Recording, name: str, size: int) -> np.ndarray:
    """What camera ``name`` saw: uint8 [T, 3, S, S], scaled so that it covers the square, its middle.

    A column has pictures [T, H, W, C] or [T, C, H, W], C = 1 or 3, of bytes or of numbers from 0 to 255, or a file's
    content in each row (JPEG, PNG), which may be padded.

    Raises:
        ValueError: if there is no such camera, or its pictures are not to be read.
    """
    where = f"{recording.name}: {name}"
    if name in recording.cameras:
        return recording.cameras[name](size)
    if name not in recording.columns:
        known = [*recording.cameras, *(key for key, column in recording.columns.items() if _is_camera(column))]
        raise ValueError(f"{where}: env.cameras names no camera; there are {', '.join(sorted(known)) or 'none'}")
    return np.stack(
        [_picture(row, size, f"{where}, row {i}") for i, row in enumerate(_loaded(recording.columns[name]))]
    )


def _is_camera(column: Any) -> bool:
    return column.ndim == 4 or column.dtype.kind == "O" or (column.ndim == 2 and column.dtype == np.uint8)


def _loaded(column: Any) -> Any:
    return column[:] if column.dtype.kind == "O" else np.asarray(column)  # rows of several lengths are objects


def _picture(row: Any, size: int, where: str) -> np.ndarray:
    from PIL import Image

    from envs.image_files import Unreadable, decode, fit

    try:
        if row.ndim == 1:
            return decode(row.astype(np.uint8).tobytes(), size)
        row = row if row.shape[-1] in (1, 3) else np.moveaxis(row, 0, -1)
        if row.shape[-1] not in (1, 3) or not 0 <= row.min() <= row.max() <= 255:
            raise Unreadable(f"is [{', '.join(map(str, row.shape))}] of {row.min()} to {row.max()}, no picture")
        levels = np.rint(row).astype(np.uint8).repeat(3 // row.shape[-1], -1)
        return fit(Image.fromarray(levels), size)
    except Unreadable as error:
        raise ValueError(f"{where} {error}") from error
