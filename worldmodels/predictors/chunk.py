"""Predicts a sequence of fixed length from a context: one learned query a step asks the context's tokens.

ACT decodes actions with it, ACT-JEPA also the latents of the states to come, in a narrow one. Steps see each other in
both directions. The context is asked by cross-attention, so cost grows with steps times tokens.

Source: ACT-JEPA (arXiv 2501.14622); sheet act_jepa, section 1.4. Differs: no dropout (released: 0.1), for a loss is a
function of its inputs here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from worldmodels.nn.transformer import DecoderBlock


class ChunkDecoder(nn.Module):
    """A stack of decoder layers over learned queries.

    Args:
        dim: width C of the context's tokens.
        num: steps n.
        out_dim: width X of what is predicted for each step.
        width: of the layers; None: C. Where it differs from C, a linear map leads in.
        depth, num_heads, hidden: of the layers; activation, epsilon, has_feed_bias: see ``Block``.

    Raises:
        ValueError: if there is no step.
    """

    def __init__(
        self,
        dim: int,
        num: int,
        out_dim: int,
        *,
        width: int | None = None,
        depth: int,
        num_heads: int,
        hidden: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        epsilon: float = 1e-5,
        has_feed_bias: bool = False,
    ) -> None:
        super().__init__()
        if num < 1:
            raise ValueError(f"a chunk has at least one step; got {num}")
        width = width or dim
        self.inward = nn.Identity() if width == dim else nn.Linear(dim, width)
        self.queries = nn.Parameter(torch.randn(num, width))
        options = {"num_heads": num_heads, "hidden": hidden, "activation": activation, "epsilon": epsilon}
        self.blocks = nn.ModuleList(DecoderBlock(width, **options, has_feed_bias=has_feed_bias) for _ in range(depth))
        self.norm, self.outward = nn.LayerNorm(width, epsilon), nn.Linear(width, out_dim)

    def forward(self, context: Tensor, is_valid: Tensor | None = None) -> Tensor:
        """Predict all steps.

        Args:
            context: [B, N, C].
            is_valid: bool [B, n], steps that others may look at, the first one always; None: all.

        Returns:
            [B, n, X]; what stands at other steps means nothing.
        """
        memory = self.inward(context)  # [B, N, W]
        x = self.queries.to(memory.dtype).expand(len(context), -1, -1)  # [B, n, W]
        for block in self.blocks:
            x = block(x, memory, is_valid)
        return self.outward(self.norm(x))
