"""Predicts the latents of hidden tokens from those of visible ones: the predictor of I-JEPA and its family.

Source: Assran et al. 2023 (I-JEPA), section 3; T-JEPA (arXiv 2410.05016) for tables; V-JEPA (arXiv 2404.08471) and SALT
(arXiv 2509.24317) for clips.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodels.masking import validity
from worldmodels.nn.positions import Positions, SinusoidalPositions
from worldmodels.nn.transformer import Transformer, init_truncated


class MaskedTokenPredictor(nn.Module):
    """A narrow transformer over visible tokens and one query a hidden token.

    Args:
        dim: width D of latents that come in.
        grid: of the encoder, one to three axes; positions are numbered row by row, or by time, row, column.
        width, depth, num_heads, hidden: of the transformer.
        out_dim: width D' of what is predicted, such as a wider teacher's latents or the pixels of a patch; None: D.
        num_queries: learned queries, one for every kind of masks, chosen by ``forward``.
        positions: factory ``positions(grid, width, num_heads=...)``; None: sine and cosine codes, added.
        num_extra: tokens in front that lie on no grid (registers).
        is_pre_norm, activation, epsilon: of its blocks.
        has_head: whether LayerNorm, Linear, LayerNorm follow the blocks, as in T-JEPA's released code.
        is_init_by_width, is_init_scaled, is_checkpointed: see ``Transformer``; the first holds for all linear maps.

    Raises:
        ValueError: if there is no query.
    """

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
        out_dim: int | None = None,
        num_queries: int = 1,
        positions: Callable[..., Positions] | None = None,
        is_init_by_width: bool = False,
        is_init_scaled: bool = False,
        is_checkpointed: bool = False,
    ) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"predictor.num_queries={num_queries}: at least one")
        self.num_extra = num_extra
        self.inward, self.outward = nn.Linear(dim, width), nn.Linear(width, out_dim or dim)
        self.positions = (positions or SinusoidalPositions)(grid, width, num_heads=num_heads)
        self.query = nn.Parameter(torch.zeros(width))
        self.more_queries = nn.ParameterList(torch.zeros(width) for _ in range(num_queries - 1))  # vectors: not decayed
        for query in (self.query, *self.more_queries):
            nn.init.trunc_normal_(query, std=0.02, a=-0.04, b=0.04)
        options = {"num_heads": num_heads, "hidden": hidden, "is_pre_norm": is_pre_norm}
        options |= {"is_init_by_width": is_init_by_width, "is_init_scaled": is_init_scaled}
        options |= {"is_checkpointed": is_checkpointed}
        self.blocks = Transformer(width, depth=depth, **options, activation=activation, epsilon=epsilon)
        self.norm = nn.Identity() if is_pre_norm else nn.LayerNorm(width, epsilon)
        self.head = nn.Sequential()
        if has_head:
            norms = (nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon))
            self.head = nn.Sequential(norms[0], nn.Linear(width, width), norms[1])
        for module in (self.inward, self.outward, *self.head):
            init_truncated(module, is_by_width=is_init_by_width)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor, query: int = 0) -> Tensor:
        """Predict the tokens at ``target_index``.

        Args:
            context: [B, E + K, D] latents, the E extra ones first.
            context_index: int64 [B, K]; target_index: int64 [B, M, K']; -1 for padding.
            query: which of the learned queries asks.

        Returns:
            [B, M, K', D']; what stands at padding means nothing.
        """
        size, num_targets, num_asked = target_index.shape
        asked = target_index.flatten(1)
        context = self.inward(context)
        shown = self.positions(context[:, self.num_extra :], context_index)
        context = torch.cat([context[:, : self.num_extra], shown], 1)  # [B, E + K, P]
        learned = self.query if query == 0 else self.more_queries[query - 1]
        queries = self.positions(learned.expand(*asked.shape, -1), asked).unflatten(1, (num_targets, num_asked))
        context = context[:, None].expand(-1, num_targets, -1, -1)
        x = torch.cat([context, queries], 2).flatten(0, 1)  # [B M, E + K + K', P]
        seen = context_index[:, None].expand(-1, num_targets, -1)
        index = torch.cat([seen, target_index], 2).flatten(0, 1)  # int64 [B M, K + K']
        is_valid = validity(F.pad(index, (self.num_extra, 0)))
        rotations = self.positions.rotations(F.pad(index, (self.num_extra, 0), value=-1))  # extra ones lie nowhere
        x = self.norm(self.head(self.blocks(x, is_valid, last=num_asked, rotations=rotations)))
        return self.outward(x).unflatten(0, (size, num_targets))
