"""Convolutional encoder for small pictures, and the random shift that goes with it.

Source: Yarats et al. 2021 (DrQ-v2), the layout TD-JEPA uses for 64 x 64 pictures.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Encoder
from worldmodels.keys import OBSERVATION, PIXELS, POOLED, TOKENS
from worldmodels.nn.mlp import Tanh, linear


class PixelEncoder(Encoder):
    """Four 3 x 3 convolutions of 32 channels, the first of stride 2, then Linear, LayerNorm, tanh.

    Args:
        spec: one step; needs ("observation", "pixels") uint8 [C, H, W].
        dim: width of the pooled features.
        channels: of every convolution.

    Raises:
        ValueError: if the spec has no pixels.
    """

    grid = ()

    def __init__(self, spec: Composite, *, dim: int = 256, channels: int = 32) -> None:
        super().__init__()
        if (OBSERVATION, PIXELS) not in spec.keys(True):
            have = sorted(map(str, spec[OBSERVATION].keys()))
            raise ValueError(f"encoder=pixels needs observation/pixels in the data; it has {have}. Use encoder=state.")
        shape = spec[OBSERVATION, PIXELS].shape
        if len(shape) != 3:
            raise ValueError(
                f"encoder=pixels needs pictures, observation/pixels [C, H, W]; these are {list(shape)}. Use "
                "encoder=video_tiny for clips."
            )
        in_channels, height, width = shape
        layers: list[nn.Module] = []
        for index in range(4):
            conv = nn.Conv2d(in_channels if index == 0 else channels, channels, 3, stride=2 if index == 0 else 1)
            nn.init.orthogonal_(conv.weight, gain=math.sqrt(2))
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.ReLU(inplace=True)]  # saves a copy of the largest maps; their gradient needs no input
        self.conv = nn.Sequential(*layers)
        with torch.no_grad():
            flat = self.conv(torch.zeros(1, in_channels, height, width)).flatten(1).shape[1]
        self.dim = dim
        self.head = nn.Sequential(linear(flat, dim), nn.LayerNorm(dim), Tanh())

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, 1, D] and "pooled" [B, D]."""
        if keep is not None:
            raise ValueError("convolutions need the whole picture: keep must be None")
        maps = self.conv(obs[PIXELS].to(torch.float32, copy=True).div_(255).sub_(0.5))  # [B, C, H', W']
        pooled = self.head(maps.flatten(1))
        return TensorDict({TOKENS: pooled.unsqueeze(-2), POOLED: pooled}, batch_size=obs.batch_size)


class RandomShift:
    """Shifts every picture by up to ``pad`` pixels, repeating its edge; stacked frames move together.

    Rows of a window are shifted independently of each other (sheet td_jepa, section 1.1). Whole-pixel shifts are exact,
    so each result is a crop of the picture with its edge repeated, not an interpolation, and stays in bytes.

    Args:
        pad: largest shift in pixels.
    """

    def __init__(self, *, pad: int = 2) -> None:
        self.pad = pad

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Shift ("observation", "pixels") [B, T, C, H, W]."""
        pixels = batch[OBSERVATION, PIXELS]
        num, rows = pixels.shape[:2]
        like = {"generator": generator, "device": pixels.device}
        down, right = torch.randint(0, 2 * self.pad + 1, (2, num, rows), **like)  # each [B, T]
        crops = _padded(pixels, self.pad).unfold(-2, pixels.shape[-2], 1).unfold(-2, pixels.shape[-1], 1)
        sample = torch.arange(num, device=pixels.device)[:, None]
        row = torch.arange(rows, device=pixels.device)
        shifted = crops.movedim(2, 4)[sample, row, down, right]  # of [B, T, 2 pad + 1, 2 pad + 1, C, H, W]
        return batch.copy().set(OBSERVATION, batch[OBSERVATION].copy().set(PIXELS, shifted))


def _padded(pixels: Tensor, pad: int) -> Tensor:
    """Repeat the edge of ``pixels`` [..., H, W] ``pad`` times; torch's own padding refuses bytes."""
    height, width = pixels.shape[-2:]
    out = pixels.new_empty((*pixels.shape[:-2], height + 2 * pad, width + 2 * pad))
    inner = slice(pad, pad + width)
    out[..., pad : pad + height, inner] = pixels
    out[..., :pad, inner] = pixels[..., :1, :]
    out[..., pad + height :, inner] = pixels[..., -1:, :]
    out[..., :pad] = out[..., pad : pad + 1].clone()
    out[..., pad + width :] = out[..., pad + width - 1 : pad + width].clone()
    return out
