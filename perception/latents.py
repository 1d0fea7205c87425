"""Encoder for observations that are latents already."""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite

from worldmodels.core import Encoder
from worldmodels.keys import OBSERVATION, POOLED, TOKENS


class Latents(Encoder):
    """Hands tokens on, no weights.

    Args:
        spec: one sample; needs ("observation", "tokens") of shape [N, D].

    Raises:
        ValueError: if the spec has no tokens.
    """

    def __init__(self, spec: Composite) -> None:
        super().__init__()
        if (OBSERVATION, TOKENS) not in spec.keys(True):
            raise ValueError(
                "encoder=frozen needs latents in the data, which relabel.run_dir=... of a finished run gives. "
                "Use encoder=tabular to learn from rows."
            )
        num, self.dim = spec[OBSERVATION, TOKENS].shape
        self.grid = (num,)

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, N, D] and "pooled" [B, D], their mean; ``keep`` must be None."""
        if keep is not None:
            raise ValueError("latents of whole samples cannot be dropped: keep must be None")
        tokens = obs[TOKENS]
        return TensorDict({TOKENS: tokens, POOLED: tokens.mean(1)}, batch_size=obs.batch_size)
