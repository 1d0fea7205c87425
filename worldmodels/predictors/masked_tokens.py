"""Predicts the latents of hidden tokens from those of visible ones: the predictor of I-JEPA and its family.

Source: Assran et al. 2023 (I-JEPA), section 3; T-JEPA (arXiv 2410.05016) for tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from worldmodels.masking import validity
from worldmodels.nn.positions import grid_sinusoids, sinusoids
from worldmodels.nn.transformer import Transformer, gather_tokens, init_truncated


class MaskedTokenPredictor(nn.Module):
    """A narrow transformer over visible tokens and one query a hidden token.

    Args:
        dim: width D of latents in and out.
        grid: of the encoder; positions are numbered row by row, and have codes of row and column where there are two.
        width, depth, num_heads, hidden: of the transformer.
        num_extra: tokens in front that lie on no grid (registers).
        is_pre_norm, activation, epsilon: of its blocks.
        has_head: whether LayerNorm, Linear, LayerNorm follow the blocks, as in T-JEPA's released code.
    """

    positions: Tensor

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        *,
        width: int,
        depth: int,
        num_heads: int,
        hidden: int,
        num_extra: int = 0,
        is_pre_norm: bool = True,
        activation: Callable[[], nn.Module] = nn.GELU,
        epsilon: float = 1e-6,
        has_head: bool = False,
    ) -> None:
        super().__init__()
        self.num_extra = num_extra
        self.inward, self.outward = nn.Linear(dim, width), nn.Linear(width, dim)
        positions = grid_sinusoids(grid, width) if len(grid) == 2 else sinusoids(math.prod(grid), width)
        self.register_buffer("positions", positions, persistent=False)  # [N, P]
        self.query = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.query, std=0.02, a=-0.04, b=0.04)
        options = {"num_heads": num_heads, "hidden": hidden, "is_pre_norm": is_pre_norm}
        self.blocks = Transformer(width, depth=depth, **options, activation=activation, epsilon=epsilon)
        self.norm = nn.Identity() if is_pre_norm else nn.LayerNorm(width, epsilon)
        self.head = nn.Sequential()
        if has_head:
            norms = (nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon))
            self.head = nn.Sequential(norms[0], nn.Linear(width, width), norms[1])
        for module in (self.inward, self.outward, *self.head):
            init_truncated(module)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """Predict the tokens at ``target_index``.

        Args:
            context: [B, E + K, D] latents, the E extra ones first.
            context_index: int64 [B, K]; target_index: int64 [B, M, K']; -1 for padding.

        Returns:
            [B, M, K', D]; what stands at padding means nothing.
        """
        size, num_targets, num_asked = target_index.shape
        at = self.positions.expand(size, -1, -1)
        context = self.inward(context)
        shown = context[:, self.num_extra :] + gather_tokens(at, context_index)
        context = torch.cat([context[:, : self.num_extra], shown], 1)  # [B, E + K, P]
        queries = self.query + gather_tokens(at, target_index.flatten(1)).unflatten(1, (num_targets, num_asked))
        context = context[:, None].expand(-1, num_targets, -1, -1)
        x = torch.cat([context, queries], 2).flatten(0, 1)  # [B M, E + K + K', P]
        seen = torch.cat([context_index.new_zeros(size, self.num_extra), context_index], 1)[:, None]
        is_valid = validity(torch.cat([seen.expand(-1, num_targets, -1), target_index], 2).flatten(0, 1))
        x = self.norm(self.head(self.blocks(x, is_valid, last=num_asked)))
        return self.outward(x).unflatten(0, (size, num_targets))
