"""Fixed sine and cosine codes of positions."""

from __future__ import annotations

import math

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
