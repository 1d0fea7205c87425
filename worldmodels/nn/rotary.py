"""Rotary positions on a grid: every attention turns pairs of channels of queries and keys by angles of their places.

A product of a query and a key then depends on how far apart they are along each axis, and on nothing else of places.

Notable: the channels of a head that are left over have the angle 0, so a head is turned as a whole, in one pass;
cosines and sines are tables of float32, whatever type the network computes in, and rows of them are taken by the cells
of a token, so tokens that are kept stand where they stood. On a CPU a pair is a complex number: torch's kernels for
them turn it many times faster than it swaps neighbours in memory; compilers fuse the swap instead.

Sources: Su et al. 2021 (RoFormer), section 3.2; V-JEPA 2 (arXiv 2506.09985) for three axes; sheet salt_video, 1.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from worldmodels.nn.positions import Positions


class RotaryPositions(Positions):
    """Rotations in every attention, nothing added to tokens.

    Of the channels of a head, every one of the A axes has the same even number S, as many as fit; pair i of an axis
    turns by p / base^(2 i / S), p the place along the axis. What is left over is not turned.

    Args:
        grid: any number of axes; dim: width of tokens; num_heads: of attention.
        base: ratio of the longest to the shortest wavelength.
        released: the angles of V-JEPA 2's code, which go through all rates of an axis twice, one after another, yet
            turn neighbours, so that the two of a pair differ in angle. This is no rotation; it is for its weights.

    Raises:
        ValueError: if heads have no pair for every axis, or an odd width.
    """

    turns: Tensor
    pairs: Tensor

    def __init__(
        self,
        grid: Sequence[int],
        dim: int,
        *,
        num_heads: int,
        base: int | float = 10_000.0,
        released: bool = False,
    ) -> None:
        super().__init__()
        width = dim // num_heads
        size = 2 * (width // max(1, len(grid)) // 2)
        if dim % num_heads or width % 2 or not size or not grid:
            raise ValueError(
                f"rotations along {len(grid)} axes need heads of an even number of channels, at least {2 * len(grid)}: "
                f"a width of {dim} has {num_heads} heads of {dim / num_heads:g}. Use another number of heads, or "
                "worldmodels.nn.positions.SinusoidalPositions"
            )
        self.released = released
        rate = torch.exp(-math.log(base) * torch.arange(0, size, 2, dtype=torch.float64) / size)  # [S / 2]
        rate = rate.repeat(2) if released else rate.repeat_interleave(2)  # [S]
        place = torch.cartesian_prod(*(torch.arange(num, dtype=torch.float64) for num in grid)).view(-1, len(grid))
        angle = torch.zeros(len(place) + 1, width, dtype=torch.float64)  # the last row: nowhere on the grid
        angle[:-1, : size * len(grid)] = (place[..., None] * rate).flatten(1)  # [N, A S]
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(width // 2)
        turns = torch.stack([angle.cos(), angle.sin() * sign], 1).to(torch.float32)  # [N + 1, 2, C]
        self.register_buffer("turns", turns, persistent=False)
        pairs = torch.stack([angle.cos(), angle.sin()], -1)[:, ::2].to(torch.float32)  # [N + 1, C / 2, 2]
        self.register_buffer("pairs", pairs, persistent=False)

    def forward(self, tokens: Tensor, index: Tensor | None = None) -> Tensor:
        """The tokens as they are."""
        return tokens

    def rotations(self, index: Tensor | None = None) -> Tensor:
        """What ``rotated`` takes, of the cells at ``index`` [B, K] or, [1, N, ...], of all."""
        is_paired = self.turns.device.type == "cpu" and not self.released and not torch.compiler.is_compiling()
        table = self.pairs if is_paired else self.turns
        rows = table[None, :-1] if index is None else table[index]  # -1 is the last row: no rotation
        return torch.view_as_complex(rows) if is_paired else rows


def rotated(heads: Tensor, rotations: Tensor) -> Tensor:
    """Turn neighbouring channels of queries or keys.

    Args:
        heads: [B, N, H, C], any floating type; C even.
        rotations: complex [B or 1, N, C / 2], a number of modulus 1 a pair; or float [B or 1, N, 2, C], the cosine and
            the sine of every channel, those of even channels with a minus.

    Returns:
        [B, N, H, C], computed in the wider of both types and rounded to that of ``heads``.
    """
    neighbours = heads.unflatten(-1, (-1, 2))  # [B, N, H, C / 2, 2]
    if rotations.is_complex():
        wide = neighbours.to(torch.promote_types(heads.dtype, torch.float32))
        turned = torch.view_as_real(torch.view_as_complex(wide) * rotations[:, :, None]).flatten(-2)
    else:
        cosine, sine = rotations[:, :, :1], rotations[:, :, 1:]  # [B, N, 1, C]
        turned = heads * cosine + neighbours.flip(-1).flatten(-2) * sine
    return turned.to(heads.dtype)
