"""Encoders of pictures: a vision transformer, a ResNet-18, and the pixels themselves as a control.

All take bytes and scale them by ImageNet's mean and standard deviation, or those the configuration names.

Notable: the transformer cuts a picture into patches while it is bytes and drops those that are not kept before it
touches them, so that looking at a quarter of a picture costs a quarter; a product of matrices then does what a
convolution would, in less time on a CPU.

Sources: Dosovitskiy et al. 2021 (ViT), in the form of I-JEPA (arXiv 2301.08243): no class token, fixed positions; He et
al. 2016 (ResNet-18), with the zero-initialised last scale of Goyal et al. 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Encoder
from worldmodels.keys import OBSERVATION, PIXELS, POOLED, TOKENS
from worldmodels.masking import validity
from worldmodels.nn.positions import grid_sinusoids
from worldmodels.nn.transformer import Transformer, gather_tokens, init_truncated

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red, green, blue, of values from 0 to 1


class VisionTransformer(Encoder):
    """Patches of a picture through a pre-norm transformer; no class token, fixed positions.

    Args:
        spec: one view; needs ("observation", "pixels") uint8 [C, H, W].
        patch: side of a patch in pixels; must divide height and width.
        dim: width D, a multiple of four; depth: blocks; num_heads: of attention.
        mlp_ratio: width of the feed-forward nets over D.
        mean, std: of each channel, of values from 0 to 1.

    Raises:
        ValueError: if the spec has no pixels or other channels than ``mean``, or if patches do not tile the picture.
    """

    positions: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        spec: Composite,
        *,
        patch: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int | float = 4,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        channels, height, width = picture_shape(spec, mean, std, name="vit_small")
        if height % patch or width % patch:
            raise ValueError(
                f"patches of {patch} x {patch} pixels do not tile pictures of {height} x {width}: set encoder.patch or "
                "the size of the views to fit"
            )
        self.dim, self.patch, self.grid = dim, patch, (height // patch, width // patch)
        scale, shift = (x.repeat_interleave(patch * patch) for x in byte_scale(mean, std))  # of a patch's entries
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("positions", grid_sinusoids(self.grid, dim), persistent=False)  # [N, D]
        self.embed_patch = nn.Linear(channels * patch * patch, dim)
        init_truncated(self.embed_patch)
        self.blocks = Transformer(dim, depth=depth, num_heads=num_heads, hidden=round(mlp_ratio * dim))

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Encode pictures.

        Args:
            obs: batch size [B]; "pixels" uint8 [B, C, H, W].
            keep: int64 [B, K] patches to look at, numbered row by row, -1 for padding; None looks at all of them.

        Returns:
            "tokens" [B, N or K, D], zero at padding, and "pooled" [B, D], their mean.

        Raises:
            ValueError: for pictures of another size than the spec's.
        """
        size, own = tuple(obs[PIXELS].shape[-2:]), tuple(side * self.patch for side in self.grid)
        if size != own:
            raise ValueError(
                f"this transformer has positions for pictures of {own[0]} x {own[1]}; these are {size[0]} x {size[1]}. "
                "Use encoder=resnet18 for pictures of several sizes, as views=saccades gives"
            )
        patches, at, is_valid = self.cut(obs[PIXELS]), self.positions, None
        if keep is not None:
            patches = gather_tokens(patches, keep)  # bytes, [B, K, C P P]
            at, is_valid = at[keep.clamp_min(0)], validity(keep)
        values = torch.addcmul(self.shift, patches.to(self.scale.dtype), self.scale)
        x = self.blocks(self.embed_patch(values) + at, is_valid)  # [B, K, D]
        if is_valid is None:
            pooled = x.mean(1)
        else:
            x = x * is_valid[..., None]
            pooled = x.sum(1) / is_valid.sum(1, keepdim=True).clamp_min(1)
        return TensorDict({TOKENS: x, POOLED: pooled}, batch_size=obs.batch_size)

    def cut(self, pixels: Tensor) -> Tensor:
        """Patches [B, N, C P P] of pictures [B, C, H, W], row by row; entries of a patch channel by channel."""
        cells = pixels.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # [B, C, H', P, W', P]
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norms and a shortcut; starts as the shortcut alone."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        norms = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        nn.init.zeros_(norms[1].weight)
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
            norms[0],
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            norms[1],
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H / stride, W / stride]."""
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class ResNet18(Encoder):
    """Eight residual blocks in four stages, then the mean over the picture: one latent a picture, no grid.

    Batch norms use statistics of the batch while training and running ones in evaluation mode.

    Args:
        spec: one view; needs ("observation", "pixels") uint8 [C, H, W].
        has_small_stem: a 3 x 3 convolution of stride 1 instead of 7 x 7 of stride 2 and a pooling: for pictures of up
            to about 64 pixels.
        width: channels of the first stage; doubled three times, so the latent has 8 times as many.
        mean, std: of each channel, of values from 0 to 1.

    Raises:
        ValueError: if the spec has no pixels or other channels than ``mean``.
    """

    grid = ()
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        spec: Composite,
        *,
        has_small_stem: bool,
        width: int = 64,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        channels, _, _ = picture_shape(spec, mean, std, name="resnet18")
        scale, shift = byte_scale(mean, std)
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        size, stride, padding = (3, 1, 1) if has_small_stem else (7, 2, 3)
        first = nn.Conv2d(channels, width, size, stride, padding, bias=False)
        layers: list[nn.Module] = [first, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        if not has_small_stem:
            layers.append(nn.MaxPool2d(3, 2, 1))
        for stage in range(4):
            before, now = width * 2 ** max(0, stage - 1), width * 2**stage
            layers += [ResidualBlock(before, now, 1 if stage == 0 else 2), ResidualBlock(now, now, 1)]
        self.layers, self.dim = nn.Sequential(*layers), 8 * width
        for module in self.layers.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, 1, D] and "pooled" [B, D] of "pixels" uint8 [B, C, H, W]; ``keep`` must be None."""
        if keep is not None:
            raise ValueError(
                "convolutions need the whole picture: keep must be None. Use encoder=vit_small to hide parts"
            )
        x = torch.addcmul(self.shift, obs[PIXELS].to(self.scale.dtype), self.scale)
        # Channels last: 1.1 to 1.5 times faster on a CPU. Weights stay as they are: optimizers and files see nothing.
        pooled = self.layers(x.contiguous(memory_format=torch.channels_last)).mean((-2, -1))
        return TensorDict({TOKENS: pooled.unsqueeze(-2), POOLED: pooled}, batch_size=obs.batch_size)


class FlatPixels(Encoder):
    """Plain pixels, no weights: the picture averaged down to at most ``side`` x ``side``, values from 0 to 1.

    The raw control of probes: 192 features at the default of 8 x 8, few enough for a linear map on few labels.

    Args:
        spec: one view or picture; needs ("observation", "pixels") uint8 [C, H, W].
        side: greatest height and width.
    """

    grid = ()

    def __init__(self, spec: Composite, *, side: int = 8) -> None:
        super().__init__()
        channels, height, width = picture_shape(spec, name="flat_pixels")
        self.size = (min(side, height), min(side, width))
        self.dim = channels * self.size[0] * self.size[1]

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, 1, F] and "pooled" [B, F] of "pixels" uint8 [B, C, H, W]; ``keep`` must be None."""
        if keep is not None:
            raise ValueError("flat pixels are a single token: keep must be None")
        features = F.adaptive_avg_pool2d(obs[PIXELS].float() / 255, self.size).flatten(1)
        return TensorDict({TOKENS: features.unsqueeze(-2), POOLED: features}, batch_size=obs.batch_size)


def picture_shape(
    spec: Composite, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, *, name: str
) -> tuple[int, int, int]:
    """Channels, height and width of the pictures of ``spec``; ``name`` is the encoder that asks.

    Raises:
        ValueError: if there are none, or ``mean`` and ``std`` are of other channels.
    """
    if (OBSERVATION, PIXELS) not in spec.keys(True):
        have = sorted(map(str, spec[OBSERVATION].keys())) if OBSERVATION in spec.keys() else []
        raise ValueError(f"encoder={name} needs observation/pixels in the data; it has {have}. Use encoder=state.")
    shape = spec[OBSERVATION, PIXELS].shape
    if len(shape) != 3:
        raise ValueError(
            f"encoder={name} needs pictures, observation/pixels [C, H, W]; these are {list(shape)}. Use "
            "encoder=video_tiny for clips."
        )
    channels, height, width = shape
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise ValueError(f"encoder.{key} has {len(values)} numbers; pictures have {channels} channels")
    return channels, height, width


def byte_scale(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] with (byte / 255 - mean) / std = byte scale + shift."""
    middle, spread = torch.tensor(mean), torch.tensor(std)
    return 1 / (255 * spread), -middle / spread
