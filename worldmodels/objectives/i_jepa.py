"""I-JEPA: representations of pictures from predicting the latents of hidden blocks from those of a visible part.

The encoder sees some patches of a picture. For each of several blocks beside them a predictor gives the latents of the
block's patches in an encoder that sees the whole picture and follows by moving average.

Paper: Assran et al., I-JEPA (arXiv 2301.08243, CVPR 2023). Differs from its released code (sheet dmt_jepa, section 1):
masks are drawn as the paper has them, at random over the whole picture (``masks.released`` restores the code's rules).
The target's patches pass a LayerNorm without weights, as in the code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Encoder, Objective, Phase, Target, Transform, Views
from worldmodels.keys import (
    CONTEXT,
    LATENT,
    LOSS,
    OBSERVATION,
    PIXELS,
    POOLED,
    SHOWN,
    STAT,
    TARGETS,
    TOKENS,
)
from worldmodels.masking import MultiBlock
from worldmodels.nn.parameters import matrices_and_vectors
from worldmodels.nn.transformer import gather_tokens


class IJEPA(Objective):
    """Predicts hidden blocks of a picture in latent space.

    Args:
        spec: one row of the source; needs ("observation", "pixels").
        encoder: perception with a grid of patches, a factory or a module shared with other objectives.
        views: factory of the transform that crops pictures.
        predictor: factory ``predictor(dim, grid)``.
        target: factory of the target encoder.
        masks: factory of the masks, ``masks(grid)``.
        has_squared_loss: squared error, as both papers have it, or smooth L1, as both released codes do.

    Raises:
        ValueError: if the encoder has no rows and columns of patches, or there are several views.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        views: Callable[[Composite], Views],
        predictor: Callable[..., nn.Module],
        target: Callable[[nn.Module], Target],
        masks: Callable[..., MultiBlock],
        has_squared_loss: bool = False,
    ) -> None:
        super().__init__()
        self.make_views = views(spec)  # core.TwoViews calls something else views
        if self.make_views.num != 1:
            raise ValueError(
                f"views.num_views={self.make_views.num}: i_jepa and dmt_jepa look at one view of a picture. "
                "Use views=crop or views.num_views=1"
            )
        self.window = self.make_views.window
        self.encoder: Any = encoder if isinstance(encoder, nn.Module) else encoder(self.make_views.spec)
        if len(self.encoder.grid) != 2:
            raise ValueError(
                f"i_jepa and dmt_jepa hide patches of a grid and {type(self.encoder).__name__} has none: "
                "use encoder=vit_small or another vit_..."
            )
        self.masks = masks(self.encoder.grid)
        self.predictor = predictor(self.encoder.dim, self.encoder.grid)
        self.target = target(self.encoder)
        self.has_squared_loss = has_squared_loss

    def phases(self) -> tuple[Phase, ...]:
        """A single one; biases and other vectors are groups of their own, to be kept from decay."""
        parts = {name: module.parameters() for name, module in self.trained().items()}
        return (Phase("i_jepa", self.loss, matrices_and_vectors(parts)),)

    def trained(self) -> dict[str, nn.Module]:
        """The networks that get gradients, by name."""
        return {"encoder": self.encoder, "predictor": self.predictor}

    def transforms(self) -> tuple[Transform, ...]:
        """The crop and the masks of a batch."""
        return (self.make_views, self.draw_masks)

    def draw_masks(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add "context" [B, K] and "targets" [B, M, K']."""
        masks = self.masks(batch.batch_size[0], generator)
        return batch.copy().update({CONTEXT: masks.context, TARGETS: masks.targets})

    def loss(self, batch: TensorDict) -> TensorDict:
        """Mean over hidden patches and latent entries of the error (I-JEPA, section 3; sheet section 1)."""
        obs, context, asked = batch[OBSERVATION][:, 0], batch[CONTEXT], batch[TARGETS]
        goal = self.goal(batch)  # [B, M, K', D]
        prediction = self.predictor(self.context(obs, context), context, asked).float()
        is_asked = (asked >= 0).float()  # [B, M, K']
        measure = F.mse_loss if self.has_squared_loss else F.smooth_l1_loss
        error = (measure(prediction, goal, reduction="none").mean(-1) * is_asked).sum() / is_asked.sum()
        return TensorDict({LOSS: {"prediction": error}, STAT: self.health(prediction, goal, is_asked, context)})

    def context(self, obs: TensorDict, context: Tensor) -> Tensor:
        """What the predictor is given of the visible patches ``context`` [B, K]: [B, K, D]."""
        return self.encoder(obs, context)[TOKENS]

    @torch.no_grad()
    def whole(self, obs: TensorDict) -> Tensor:
        """The target encoder's patches of whole pictures, each to mean 0 and variance 1 over D: float32 [B, N, D]."""
        tokens = self.target(obs)[TOKENS].float()
        return F.layer_norm(tokens, tokens.shape[-1:])

    @torch.no_grad()
    def goal(self, batch: TensorDict) -> Tensor:
        """What is to be predicted of the target blocks, [B, M, K', D]; anything at padding."""
        asked = batch[TARGETS]
        whole = self.whole(batch[OBSERVATION][:, 0])
        return gather_tokens(whole, asked.flatten(1)).unflatten(1, asked.shape[1:])

    @torch.no_grad()
    def health(self, prediction: Tensor, goal: Tensor, is_asked: Tensor, context: Tensor) -> dict[str, Tensor]:
        """What shows a collapse, and how much is visible.

        Targets can become alike within each picture while pictures still differ: their variance is taken over the
        patches of a picture. Entries of targets are of about unit size.
        """
        cosine, weight = F.cosine_similarity(prediction, goal, dim=-1), is_asked.flatten(1)[..., None]  # [B, M K', 1]
        patches = goal.flatten(1, 2)
        mean = (patches * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)  # [B, 1, D]
        within = ((patches - mean).square() * weight).sum(1) / weight.sum(1)  # [B, D]
        num = self.encoder.grid[0] * self.encoder.grid[1]
        return {
            "cosine": (cosine * is_asked).sum() / is_asked.sum(),
            "target_variance_within": within.mean(),
            "target_variance_between": mean.var(0, correction=0).mean(),  # of the pictures' means
            "context_share": (context >= 0).float().sum(1).mean() / num,
        }

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """The target encoder's mean patch of pictures, resized if need be: "picture" [B, D]."""
        return TensorDict({"picture": self.target(self.make_views.fitted(obs))[POOLED]}, batch_size=obs.batch_size)

    @torch.no_grad()
    def patches(self, obs: TensorDict) -> Tensor:
        """The target encoder's patches of whole pictures, [B, H W, D] on ``encoder.grid``."""
        return self.target(obs)[TOKENS]

    @torch.no_grad()
    def views(self, batch: TensorDict) -> tuple[TensorDict, TensorDict]:
        """What the context and the first target block show of a picture, with the target encoder's pooled latents."""
        obs, (rows, columns) = batch[OBSERVATION][:, 0], self.encoder.grid
        height, width = obs[PIXELS].shape[-2:]

        def view(patches: Tensor) -> TensorDict:  # [B, K], -1 is padding
            num = rows * columns
            shown = torch.zeros(len(patches), num + 1, dtype=torch.bool, device=patches.device)
            shown = shown.scatter_(1, patches.remainder(num + 1), True)[:, :num].view(-1, 1, rows, columns)
            shown = shown.repeat_interleave(height // rows, 2).repeat_interleave(width // columns, 3)
            latent = {POOLED: self.target(obs, patches)[POOLED]}
            return TensorDict({OBSERVATION: obs, SHOWN: {PIXELS: shown}, LATENT: latent}, obs.batch_size)

        return view(batch[CONTEXT]), view(batch[TARGETS][:, 0])
