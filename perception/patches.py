"""What transformers on pictures and on clips share: patches of bytes, those to look at, positions, blocks.

Notable: patches that are not kept are dropped while they are bytes, before anything is computed of them: looking
at a tenth costs a tenth. A product of matrices then does what a convolution would, in less time on a CPU.

Sources: Dosovitskiy et al. 2021 (ViT), in the form of I-JEPA (arXiv 2301.08243) and V-JEPA (arXiv 2404.08471): no class
token; sheets dmt_jepa, section 1, and salt_video, sections 1.1 and 1.3.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from worldmodels.core import Encoder
from worldmodels.keys import PIXELS, POOLED, TOKENS
from worldmodels.masking import validity
from worldmodels.nn.positions import Positions, SinusoidalPositions
from worldmodels.nn.transformer import Transformer, init_truncated

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red, green, blue, of values from 0 to 1


class PatchTransformer(Encoder):
    """Patches through a pre-norm transformer (abstract); a kind of input adds how it is cut.

    Args:
        grid: of patches; num_entries: numbers of a patch a channel.
        dim: width D; depth: blocks; num_heads: of attention.
        mlp_ratio: width of the feed-forward nets over D.
        positions: factory ``positions(grid, dim, num_heads=...)``; None: sine and cosine codes, added.
        is_init_by_width, is_init_scaled, is_checkpointed: see ``Transformer``; the first holds for patches, too.
        mean, std: of each channel, of values from 0 to 1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        *,
        grid: tuple[int, ...],
        num_entries: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int | float = 4,
        positions: Callable[..., Positions] | None = None,
        is_init_by_width: bool = False,
        is_init_scaled: bool = False,
        is_checkpointed: bool = False,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        self.dim, self.grid = dim, grid
        scale, shift = (x.repeat_interleave(num_entries) for x in byte_scale(mean, std))  # of a patch's entries
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.positions = (positions or SinusoidalPositions)(grid, dim, num_heads=num_heads)
        self.embed_patch = nn.Linear(len(mean) * num_entries, dim)
        init_truncated(self.embed_patch, is_by_width=is_init_by_width)
        options = {"is_init_by_width": is_init_by_width, "is_init_scaled": is_init_scaled}
        options |= {"is_checkpointed": is_checkpointed}
        self.blocks = Transformer(dim, depth=depth, num_heads=num_heads, hidden=round(mlp_ratio * dim), **options)

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Encode pictures or clips.

        Args:
            obs: batch size [B]; "pixels" uint8 [B, ..., C, H, W], of the spec's shape.
            keep: int64 [B, K] patches to look at, numbered along the grid, -1 for padding; None: all of them.

        Returns:
            "tokens" [B, N or K, D], zero at padding, and "pooled" [B, D], their mean.

        Raises:
            ValueError: for another shape than the spec's.
        """
        patches, is_valid = self.cut(obs[PIXELS]), None  # bytes, [B, N, F]
        if keep is not None:
            patches, is_valid = taken(patches, keep), validity(keep)
        values = torch.addcmul(self.shift, patches.to(self.scale.dtype), self.scale)
        x = self.positions(self.embed_patch(values), keep)
        x = self.blocks(x, is_valid, rotations=self.positions.rotations(keep))  # [B, K, D]
        if is_valid is None:
            pooled = x.mean(1)
        else:
            x = x * is_valid[..., None]
            pooled = x.sum(1) / is_valid.sum(1, keepdim=True).clamp_min(1)
        return TensorDict({TOKENS: x, POOLED: pooled}, batch_size=obs.batch_size)

    @abstractmethod
    def cut(self, pixels: Tensor) -> Tensor:
        """Patches uint8 [B, N, F] along the grid, their entries channel by channel."""


def taken(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, K, F] at ``index`` [B, K] of ``rows`` [B, N, F]; where it is -1 (padding), the first.

    Whole rows are copied at once: several times faster for bytes on a CPU than ``gather``, which looks at every entry.
    """
    num = rows.shape[1]
    start = torch.arange(0, len(rows) * num, num, device=index.device)[:, None]
    return rows.flatten(0, 1).index_select(0, (index.clamp_min(0) + start).flatten()).view(*index.shape, -1)


def byte_scale(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] with (byte / 255 - mean) / std = byte scale + shift."""
    middle, spread = torch.tensor(mean), torch.tensor(std)
    return 1 / (255 * spread), -middle / spread
