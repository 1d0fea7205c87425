"""Encoders of pictures: a vision transformer, a ResNet-18, and the pixels themselves as a control.

All take bytes and scale them by ImageNet's mean and standard deviation, or those the configuration names.

Sources: Dosovitskiy et al. 2021 (ViT), in the form of I-JEPA (arXiv 2301.08243): no class token, fixed positions; He et
al. 2016 (ResNet-18), with the zero-initialised last scale of Goyal et al. 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from perception.patches import MEAN, STD, PatchTransformer, byte_scale
from worldmodels.core import Encoder
from worldmodels.keys import OBSERVATION, PIXELS, POOLED, TOKENS


class VisionTransformer(PatchTransformer):
    """Patches of a picture through a pre-norm transformer; no class token.

    Args:
        spec: one view; needs ("observation", "pixels") uint8 [C, H, W].
        patch: side of a patch in pixels; must divide height and width.
        mean, std: of each channel, of values from 0 to 1.
        options: see ``PatchTransformer``.

    Raises:
        ValueError: if the spec has no pixels or other channels than ``mean``, or if patches do not tile the picture.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        patch: int,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        **options: Any,
    ) -> None:
        _, height, width = picture_shape(spec, mean, std, name="vit_small")
        if height % patch or width % patch:
            raise ValueError(
                f"patches of {patch} x {patch} pixels do not tile pictures of {height} x {width}: set encoder.patch or "
                "the size of the views to fit"
            )
        grid = (height // patch, width // patch)
        super().__init__(grid=grid, num_entries=patch * patch, mean=mean, std=std, **options)
        self.patch = patch

    def cut(self, pixels: Tensor) -> Tensor:
        """Patches [B, N, C P P] of pictures [B, C, H, W], row by row; entries of a patch channel by channel."""
        size, own = tuple(pixels.shape[-2:]), tuple(side * self.patch for side in self.grid)
        if size != own:
            raise ValueError(
                f"this transformer has positions for pictures of {own[0]} x {own[1]}; these are {size[0]} x {size[1]}. "
                "Use encoder=resnet18 for pictures of several sizes, as views=saccades gives"
            )
        cells = pixels.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # [B, C, H', P, W', P]
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def group_norm(channels: int) -> nn.GroupNorm:
    """Norm of groups of 16 channels of each picture; knows nothing of the batch."""
    return nn.GroupNorm(max(1, channels // 16), channels)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with norms and a shortcut; starts as the shortcut alone."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        norms = norm(channels), norm(channels)
        nn.init.zeros_(cast(Tensor, norms[1].weight))
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
            self.shortcut = nn.Sequential(convolution, norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H / stride, W / stride]."""
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class ResNet18(Encoder):
    """Eight residual blocks in four stages; one latent a picture, the mean of the last map, or a token a cell of it.

    Batch norms use statistics of the batch while training and running ones in evaluation mode.

    Args:
        spec: one view; needs ("observation", "pixels") uint8 [C, H, W].
        has_small_stem: a 3 x 3 convolution of stride 1 instead of 7 x 7 of stride 2 and a pooling: for pictures of up
            to about 64 pixels.
        width: channels of the first stage; doubled three times, so the latent has 8 times as many.
        has_map: whether tokens are the cells of the last map, row by row, an 8th (small stem) or a 32nd of the
            picture's height and width, rounded up; otherwise their mean is the only one.
        has_group_norms: whether norms are of each picture's own channels, in groups of 16: for small batches, and for
            moving averages of the weights, which batch norms' running statistics do not follow.
        mean, std: of each channel, of values from 0 to 1.

    Raises:
        ValueError: if the spec has no pixels or other channels than ``mean``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        spec: Composite,
        *,
        has_small_stem: bool,
        width: int = 64,
        has_map: bool = False,
        has_group_norms: bool = False,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        super().__init__()
        channels, *sides = picture_shape(spec, mean, std, name="resnet18")
        cell, norm = 8 if has_small_stem else 32, group_norm if has_group_norms else nn.BatchNorm2d
        self.grid = tuple(-(-side // cell) for side in sides) if has_map else ()
        scale, shift = byte_scale(mean, std)
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        size, stride, padding = (3, 1, 1) if has_small_stem else (7, 2, 3)
        first = nn.Conv2d(channels, width, size, stride, padding, bias=False)
        layers: list[nn.Module] = [first, norm(width), nn.ReLU(inplace=True)]
        if not has_small_stem:
            layers.append(nn.MaxPool2d(3, 2, 1))
        for stage in range(4):
            before, now = width * 2 ** max(0, stage - 1), width * 2**stage
            layers += [ResidualBlock(before, now, 1 if stage == 0 else 2, norm), ResidualBlock(now, now, 1, norm)]
        self.layers, self.dim = nn.Sequential(*layers), 8 * width
        for module in self.layers.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, 1 or N, D] and "pooled" [B, D], their mean, of "pixels" uint8 [B, C, H, W].

        Raises:
            ValueError: if ``keep`` is not None.
        """
        if keep is not None:
            raise ValueError(
                "convolutions need the whole picture: keep must be None. Use encoder=vit_small to hide parts"
            )
        x = torch.addcmul(self.shift, obs[PIXELS].to(self.scale.dtype), self.scale)
        # Channels last: 1.1 to 1.5 times faster on a CPU. Weights stay as they are: optimizers and files see nothing.
        x = self.layers(x.contiguous(memory_format=torch.channels_last))  # [B, D, H', W']
        pooled = x.mean((-2, -1))
        tokens = x.flatten(2).mT if self.grid else pooled.unsqueeze(-2)
        return TensorDict({TOKENS: tokens, POOLED: pooled}, batch_size=obs.batch_size)


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
