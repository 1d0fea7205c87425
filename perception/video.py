"""Encoder of clips: a vision transformer on small cuboids of a clip, some steps long and a patch high and wide.

It takes bytes and scales them by ImageNet's mean and standard deviation, or those the configuration names.

Notable: a clip is cut while it is bytes, and cuboids that are not kept are dropped before anything is computed of them,
so that looking at a tenth of a clip costs a tenth; a product of matrices then does what a convolution would. Sizes of
clips are those of the spec: any number of frames, rows and columns that cuboids tile.

Sources: Bardes et al. 2024 (V-JEPA, arXiv 2404.08471) and V-JEPA 2 (arXiv 2506.09985) for rotary positions; sheet
salt_video, sections 1.1 and 1.3. No class token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from perception.image import MEAN, STD, byte_scale
from worldmodels.core import Encoder
from worldmodels.keys import OBSERVATION, PIXELS, POOLED, TOKENS
from worldmodels.masking import validity
from worldmodels.nn.positions import Positions, SinusoidalPositions
from worldmodels.nn.transformer import Transformer, init_truncated


class VideoTransformer(Encoder):
    """Cuboids of a clip through a pre-norm transformer.

    Args:
        spec: one clip; needs ("observation", "pixels") uint8 [T, C, H, W].
        patch: side of a cuboid in pixels; must divide height and width.
        tubelet: its frames; must divide T.
        dim: width D; depth: blocks; num_heads: of attention.
        mlp_ratio: width of the feed-forward nets over D.
        positions: factory ``positions(grid, dim, num_heads=...)``; None: sine and cosine codes, added.
        is_init_scaled, is_checkpointed: see ``Transformer``.
        mean, std: of each channel, of values from 0 to 1.

    Raises:
        ValueError: if the spec has no clips or other channels than ``mean``, or if cuboids do not tile the clip.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        spec: Composite,
        *,
        patch: int,
        tubelet: int = 2,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int | float = 4,
        positions: Callable[..., Positions] | None = None,
        is_init_scaled: bool = True,
        is_checkpointed: bool = False,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        frames, channels, height, width = clip_shape(spec, mean, std)
        if frames % tubelet or height % patch or width % patch:
            raise ValueError(
                f"cuboids of {tubelet} x {patch} x {patch} do not tile clips of {frames} frames of {height} x {width}: "
                "set encoder.tubelet, encoder.patch, or the views' num_frames and size to fit"
            )
        self.dim, self.patch, self.tubelet = dim, patch, tubelet
        self.grid = (frames // tubelet, height // patch, width // patch)
        self.clip = (frames, channels, height, width)
        entries = tubelet * patch * patch
        scale, shift = (x.repeat_interleave(entries) for x in byte_scale(mean, std))  # of a cuboid's entries
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.positions = (positions or SinusoidalPositions)(self.grid, dim, num_heads=num_heads)
        self.embed_patch = nn.Linear(channels * entries, dim)
        init_truncated(self.embed_patch)
        options = {"is_init_scaled": is_init_scaled, "is_checkpointed": is_checkpointed}
        self.blocks = Transformer(dim, depth=depth, num_heads=num_heads, hidden=round(mlp_ratio * dim), **options)

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Encode clips.

        Args:
            obs: batch size [B]; "pixels" uint8 [B, T, C, H, W].
            keep: int64 [B, K] cuboids to look at, numbered by time, row, column, -1 for padding; None: all of them.

        Returns:
            "tokens" [B, N or K, D], zero at padding, and "pooled" [B, D], their mean.

        Raises:
            ValueError: for clips of another shape than the spec's.
        """
        cuboids = self.cut(obs[PIXELS])  # bytes, [B, N, C U P P]
        is_valid = None
        if keep is not None:
            cuboids, is_valid = taken(cuboids, keep), validity(keep)
        values = torch.addcmul(self.shift, cuboids.to(self.scale.dtype), self.scale)
        x = self.positions(self.embed_patch(values), keep)
        x = self.blocks(x, is_valid, rotations=self.positions.rotations(keep))  # [B, K, D]
        if is_valid is None:
            pooled = x.mean(1)
        else:
            x = x * is_valid[..., None]
            pooled = x.sum(1) / is_valid.sum(1, keepdim=True).clamp_min(1)
        return TensorDict({TOKENS: x, POOLED: pooled}, batch_size=obs.batch_size)

    def cut(self, pixels: Tensor) -> Tensor:
        """Cuboids [B, N, C U P P] of clips [B, T, C, H, W], by time, row, column.

        Entries of a cuboid lie as those of a three-dimensional convolution's weight: by channel, frame, row, column.
        """
        if tuple(pixels.shape[1:]) != self.clip:
            raise ValueError(
                f"this encoder takes clips [T, C, H, W] = {list(self.clip)}, not {list(pixels.shape[1:])}: `fitted` of "
                "the views brings them to its size; a still picture is a clip of equal frames"
            )
        cells = pixels.unflatten(4, (-1, self.patch)).unflatten(3, (-1, self.patch)).unflatten(1, (-1, self.tubelet))
        return cells.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3)  # of [B, T', U, C, H', P, W', P]


def taken(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, K, F] at ``index`` [B, K] of ``rows`` [B, N, F]; where it is -1 (padding), the first.

    Whole rows are copied at once: several times faster for bytes on a CPU than ``gather``, which looks at every entry.
    """
    num = rows.shape[1]
    start = torch.arange(0, len(rows) * num, num, device=index.device)[:, None]
    return rows.flatten(0, 1).index_select(0, (index.clamp_min(0) + start).flatten()).view(*index.shape, -1)


def clip_shape(spec: Composite, mean: Sequence[float], std: Sequence[float]) -> tuple[int, int, int, int]:
    """Frames, channels, height and width of the clips of ``spec``.

    Raises:
        ValueError: if there are none, or ``mean`` and ``std`` are of other channels.
    """
    have = sorted(map(str, spec[OBSERVATION].keys())) if OBSERVATION in spec.keys() else []
    if PIXELS not in have:
        raise ValueError(f"encoder=video_... needs observation/pixels in the data; it has {have}. Use encoder=state.")
    shape = spec[OBSERVATION, PIXELS].shape
    if len(shape) != 4:
        raise ValueError(
            f"encoder=video_... needs clips, observation/pixels [T, C, H, W]; these are {list(shape)}. Use "
            "encoder=vit_small for pictures, or views=clips, which makes clips of frames and of pictures."
        )
    frames, channels, height, width = shape
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"encoder.{key} has {len(values)} numbers; clips have {channels} channels")
    return frames, channels, height, width
