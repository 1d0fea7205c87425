"""Encoder for a few coordinates near which values jump, such as positions in a maze: random Fourier features.

A network on plain coordinates learns the smooth part of a function first. Values on the two sides of a wall differ, so
its critic sees through walls. Sines and cosines of random projections let it bend at the scale of ``wavelength``.

Source: Rahimi and Recht 2007; Tancik et al. 2020 (arXiv 2006.10739); in RL, Yang et al. 2022 (arXiv 2206.04672).
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite

from perception.state import StateEncoder
from worldmodels.keys import POOLED, TOKENS


class FourierStateEncoder(StateEncoder):
    """The normalised state s with sin(W s) and cos(W s), W fixed and Gaussian.

    Args:
        spec: one step; needs ("observation", "state") of shape [S].
        num_frequencies: rows of W.
        wavelength: over which features repeat, typically, in standard deviations of each of the S entries:
            2 pi / (std(W) sqrt(S)).
        momentum: of the running statistics.

    Raises:
        ValueError: if there is no state, no frequency, or the wavelength is not positive.
    """

    frequencies: Tensor

    def __init__(
        self, spec: Composite, *, num_frequencies: int = 64, wavelength: float = 2.0, momentum: float = 0.01
    ) -> None:
        super().__init__(spec, momentum=momentum)
        if num_frequencies < 1 or wavelength <= 0:
            raise ValueError(f"num_frequencies={num_frequencies}, wavelength={wavelength}: both must be positive")
        scale = 2 * math.pi / (wavelength * math.sqrt(self.dim))
        self.register_buffer("frequencies", scale * torch.randn(num_frequencies, self.dim))  # [F, S]
        self.dim += 2 * num_frequencies

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, 1, S + 2 F] and "pooled" [B, S + 2 F]; ``keep`` must be None."""
        state = super().forward(obs, keep)[POOLED]
        angle = state @ self.frequencies.T
        features = torch.cat([state, angle.sin(), angle.cos()], dim=-1)
        return TensorDict({TOKENS: features.unsqueeze(-2), POOLED: features}, batch_size=obs.batch_size)
