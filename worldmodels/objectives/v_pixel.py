"""V-Pixel: representations of clips from predicting the pixels of hidden tokens; the teacher of SALT.

A masked autoencoder with V-JEPA's masks: the encoder sees the visible tokens, a decoder gives the pixels of the others.

Papers: SALT (arXiv 2509.24317), stage 1; Tong et al. 2022 (VideoMAE) for pixels normalised token by token. Notes on
SALT disagree about the norm of the error (sheet salt_video, section 1.6): ``exponent`` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Phase
from worldmodels.keys import PIXELS
from worldmodels.objectives.clips import ClipObjective


class VPixel(ClipObjective):
    """Predicts the pixels of hidden tokens of a clip.

    Args:
        spec: one row of the source; needs ("observation", "pixels").
        predictor: factory of the decoder, ``predictor(dim, grid, num_queries=..., out_dim=...)``.
        has_normalized_pixels: whether the pixels of a token are brought to mean 0 and variance 1 in every channel;
            otherwise they are values from 0 to 1.
        options: encoder, views, masks, exponent: see ``ClipObjective``.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        predictor: Callable[..., nn.Module],
        has_normalized_pixels: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        self.num_channels = self.make_views.spec["observation", PIXELS].shape[1]
        self.has_normalized_pixels = has_normalized_pixels
        sizes = {"num_queries": len(self.masks.families), "out_dim": self.encoder.embed_patch.in_features}
        self.predictor = predictor(self.encoder.dim, self.encoder.grid, **sizes)

    def phases(self) -> tuple[Phase, ...]:
        """A single one."""
        return (Phase("v_pixel", self.loss, self.groups(predictor="decoder")),)

    def loss(self, batch: TensorDict) -> TensorDict:
        """Mean over families of the mean error of their hidden tokens' pixels (SALT, stage 1)."""
        return self.errors(batch, name="pixels")

    @torch.no_grad()
    def goal(self, obs: TensorDict) -> Tensor:
        """Pixels of every token, channel by channel, float32 [B, N, C U P P]."""
        pixels = (self.encoder.cut(obs[PIXELS]).float() / 255).unflatten(-1, (self.num_channels, -1))
        if self.has_normalized_pixels:
            pixels = (pixels - pixels.mean(-1, keepdim=True)) / (
                pixels.var(-1, keepdim=True, correction=0) + 1e-6
            ).sqrt()
        return pixels.flatten(-2)

    def costs(self, batch_size: int) -> dict[str, float]:
        """Operations of a sample in a step, by phase."""
        return {"v_pixel": self.operations(batch_size, teacher=None)}
