"""Fixed sine and cosine codes of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def sinusoids(num: int, dim: int, *, base: float = 10_000.0, is_interleaved: bool = False) -> Tensor:
    """Codes [num, dim] of positions 0 to num - 1: sin and cos of p / base^(2k / dim).

    Args:
        num: positions; dim: width, even.
        base: ratio of the longest to the shortest wavelength.
        is_interleaved: sin and cos alternate; otherwise all sines come first.

    Raises:
        ValueError: if ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"sines and cosines come in pairs: a width of {dim} must be even")
    frequency = torch.exp(-math.log(base) * torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(num, dtype=torch.float64)[:, None] * frequency  # [num, dim / 2]
    parts = (angle.sin(), angle.cos())
    code = torch.stack(parts, -1).flatten(1) if is_interleaved else torch.cat(parts, -1)
    return code.float()


def grid_sinusoids(grid: Sequence[int], dim: int, *, base: float = 10_000.0) -> Tensor:
    """Codes [H W, dim] of the cells of a grid (H, W), row by row: the column in the first half, the row in the second.

    Each half is what ``sinusoids`` gives for one axis, so a grid need not be square and any size has its own codes.

    Args:
        grid: H, W; dim: width, a multiple of four; base: see ``sinusoids``.

    Raises:
        ValueError: if ``dim`` is no multiple of four.

    Source: I-JEPA (arXiv 2301.08243) and its code (sheet dmt_jepa, section 1).
    """
    if dim % 4:
        raise ValueError(f"a sine and a cosine for each of two axes: a width of {dim} must be a multiple of 4")
    height, width = grid
    column, row = sinusoids(width, dim // 2, base=base), sinusoids(height, dim // 2, base=base)
    return torch.cat([column.repeat(height, 1), row.repeat_interleave(width, 0)], -1)
