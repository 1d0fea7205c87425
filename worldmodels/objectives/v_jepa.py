"""V-JEPA: representations of clips from predicting the latents of hidden tokens from visible ones.

The latents are those of an encoder that sees the whole clip and follows the trained one by moving average.

Papers: Bardes et al. 2024 (V-JEPA, arXiv 2404.08471); V-JEPA 2 (arXiv 2506.09985). Differs from their code (sheet
salt_video, sections 1.2 and 1.3): lengths are made equal without a bias towards first frames, every family of masks has
a query of its own that is trained, rotations have right frequencies; ``released`` switches restore the code's ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Phase, Target
from worldmodels.flops import size_of
from worldmodels.keys import TOKENS
from worldmodels.objectives.clips import CLIP, ClipObjective, target_tokens


class VJEPA(ClipObjective):
    """Predicts hidden tokens of a clip in latent space.

    Args:
        spec: one row of the source; needs ("observation", "pixels").
        predictor: factory ``predictor(dim, grid, num_queries=...)``.
        target: factory of the target encoder.
        has_normalized_targets: whether every target token is brought to mean 0 and variance 1 over its entries.
        options: encoder, views, masks, exponent: see ``ClipObjective``.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        predictor: Callable[..., nn.Module],
        target: Callable[[nn.Module], Target],
        has_normalized_targets: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        self.predictor = predictor(self.encoder.dim, self.encoder.grid, num_queries=len(self.masks.families))
        self.target = target(self.encoder)
        self.has_normalized_targets = has_normalized_targets

    def phases(self) -> tuple[Phase, ...]:
        """A single one."""
        return (Phase("v_jepa", self.loss, self.groups()),)

    @torch.no_grad()
    def goal(self, obs: TensorDict) -> Tensor:
        """Tokens of the target encoder, float32 [B, N, D]."""
        return target_tokens(self.target(obs)[TOKENS], is_normalized=self.has_normalized_targets)

    def judged(self) -> dict[str, nn.Module]:
        """The target encoder, as published."""
        return {CLIP: self.target}

    def costs(self, batch_size: int) -> dict[str, float]:
        """Operations of a sample in a step, by phase."""
        return {"v_jepa": self.operations(batch_size, teacher=size_of(self.encoder))}
