"""Where tokens stand on a grid: fixed sine and cosine codes, and the contract they share with rotations.

``Positions`` has two sides, because networks learn of places in two ways: something added to tokens before the first
block, and something every attention does to its queries and keys (``worldmodels/nn/rotary.py``). Networks call both,
so a configuration chooses between them by naming a class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Positions(nn.Module, ABC):
    """Tells tokens where they stand; built as ``Positions(grid, dim, num_heads=...)``."""

    @abstractmethod
    def forward(self, tokens: Tensor, index: Tensor | None = None) -> Tensor:
        """Tokens [B, K, D] with what is added for their places.

        Args:
            tokens: [B, K, D].
            index: int64 [B, K], cells of the grid, -1 for padding; None: all cells in their order.
        """

    @abstractmethod
    def rotations(self, index: Tensor | None = None) -> Tensor | None:
        """What attention shall do to queries and keys of tokens at ``index`` [B, K], one row a token; None: nothing.

        Args:
            index: int64 [B, K], cells of the grid, -1 for what stands on none; None: all cells in their order.
        """


class SinusoidalPositions(Positions):
    """Sine and cosine codes, added.

    Args:
        grid: one to three axes. Any size has its own codes; nothing is interpolated.
        dim: width D; num_heads: not needed.
        scale: factor on the codes. Their entries are about 0.7, those of patches of a fresh network much smaller: in
            tiny networks and short runs positions drown the content (sheet salt_video, section 6: 0.1 helps).
        base: ratio of the longest to the shortest wavelength.
        has_equal_axes: of three axes; see ``volume_sinusoids``.
    """

    code: Tensor

    def __init__(
        self,
        grid: Sequence[int],
        dim: int,
        *,
        num_heads: int = 1,
        scale: int | float = 1.0,
        base: int | float = 10_000.0,
        has_equal_axes: bool = True,
    ) -> None:
        super().__init__()
        if len(grid) == 3:
            code = volume_sinusoids(grid, dim, base=base, has_equal_axes=has_equal_axes)
        else:
            codes, size = (grid_sinusoids, grid) if len(grid) == 2 else (sinusoids, math.prod(grid))
            code = codes(size, dim, base=base)
        self.register_buffer("code", scale * code, persistent=False)  # [N, D]

    def forward(self, tokens: Tensor, index: Tensor | None = None) -> Tensor:
        """Add the code of every token's cell; at padding that of the first."""
        return tokens + (self.code if index is None else self.code[index.clamp_min(0)])

    def rotations(self, index: Tensor | None = None) -> None:
        """None."""


def sinusoids(num: int, dim: int, *, base: int | float = 10_000.0, is_interleaved: bool = False) -> Tensor:
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


def grid_sinusoids(grid: Sequence[int], dim: int, *, base: int | float = 10_000.0) -> Tensor:
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


def volume_sinusoids(
    grid: Sequence[int], dim: int, *, base: int | float = 10_000.0, has_equal_axes: bool = True
) -> Tensor:
    """Codes [T H W, dim] of the cells of a grid (T, H, W), in this order: that of time, of the row, of the column.

    Args:
        grid: T, H, W; dim: width; base: see ``sinusoids``.
        has_equal_axes: every axis has 2 ceil(dim / 6) entries and what is beyond ``dim`` is cut off, at the column's
            end; otherwise time has a half of them, row and column a quarter each.

    Raises:
        ValueError: if ``dim`` is not even, or no multiple of eight for unequal axes.

    Source: V-JEPA (arXiv 2404.08471) and its code (sheet salt_video, section 1.1).
    """
    time, height, width = grid
    if dim % (2 if has_equal_axes else 8):
        raise ValueError(
            f"codes of three axes need an even width, and a multiple of 8 where time has the half of it: dim={dim}"
        )
    sizes = (2 * -(-dim // 6),) * 3 if has_equal_axes else (dim // 2, dim // 4, dim // 4)
    parts = [sinusoids(num, size, base=base) for num, size in zip(grid, sizes, strict=True)]
    when = parts[0].repeat_interleave(height * width, 0)
    row, column = parts[1].repeat_interleave(width, 0).repeat(time, 1), parts[2].repeat(time * height, 1)
    return torch.cat([when, row, column], -1)[:, :dim].contiguous()
