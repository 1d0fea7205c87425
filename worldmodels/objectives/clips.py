"""What objectives on masked clips share: V-JEPA, V-Pixel and SALT differ in what is predicted of the hidden tokens.

A clip is hidden in several ways at once, the *families* of masks. For each of them the encoder sees the tokens that are
left, and a predictor gives something for every hidden one: a latent, or its pixels.

Source: Bardes et al. 2024 (V-JEPA, arXiv 2404.08471), section 3; sheet salt_video, sections 1.2 to 1.4.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Encoder, Objective, Transform, Views
from worldmodels.flops import Size, shares_of, size_of, step_flops
from worldmodels.keys import CONTEXT, FAMILIES, LATENT, LOSS, OBSERVATION, PIXELS, POOLED, SHOWN, STAT, TARGETS, TOKENS
from worldmodels.masking import Families, Subsets
from worldmodels.nn.parameters import matrices_and_vectors
from worldmodels.nn.transformer import gather_tokens

CLIP = "clip"  # of ``embed``: what the method is judged by
_DRAWS = 16  # batches of masks, to know their mean size


class ClipObjective(Objective):
    """Predicts hidden tokens of clips from visible ones (abstract); a method says what is predicted.

    Args:
        spec: one row of the source; needs ("observation", "pixels").
        encoder: perception with a grid of time, rows and columns, a factory or a module.
        views: factory of the transform that makes clips.
        masks: factory of the families of masks, ``masks(grid)``.
        exponent: p of the error |prediction - goal|^p / p: 1 is L1, 2 half of the square.

    Raises:
        ValueError: if the encoder has no such grid, or there are several views.
    """

    predictor: nn.Module

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        views: Callable[[Composite], Views],
        masks: Callable[..., Families],
        exponent: int | float = 1,
    ) -> None:
        super().__init__()
        self.make_views = views(spec)  # core.TwoViews calls something else views
        if self.make_views.num != 1:
            raise ValueError(
                f"views.num_views={self.make_views.num}: {type(self).__name__} looks at one clip of a sample. "
                "Use views=clips"
            )
        self.window = self.num_rows = self.make_views.window
        self.encoder: Any = encoder if isinstance(encoder, nn.Module) else encoder(self.make_views.spec)
        if len(self.encoder.grid) != 3:
            raise ValueError(
                f"{type(self).__name__} hides tokens of a grid of time, rows and columns and "
                f"{type(self.encoder).__name__} has {self.encoder.grid}: use encoder=video_tiny or another video_..."
            )
        self.masks = masks(self.encoder.grid)
        self.exponent = exponent
        self._shares: dict[int, dict[str, tuple[float, float]]] = {}  # of masks, by the size of batches

    @abstractmethod
    def goal(self, obs: TensorDict) -> Tensor:
        """What is to be predicted of every token of clips [B], float32 [B, N, X]; without gradient."""

    def groups(self, encoder: str = "encoder", predictor: str = "predictor") -> dict[str, list[nn.Parameter]]:
        """What is trained, under these names; vectors are groups of their own, to be kept from decay."""
        return matrices_and_vectors({encoder: self.encoder.parameters(), predictor: self.predictor.parameters()})

    def transforms(self) -> tuple[Transform, ...]:
        """The crop and the masks of a batch."""
        return (self.make_views, self.draw_masks)

    def draw_masks(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add "families": "context" [B, K] and "targets" [B, 1, K'] of each."""
        masks = self.masks(batch.batch_size[0], generator)
        found = {name: {CONTEXT: mask.context, TARGETS: mask.targets} for name, mask in masks.items()}
        return batch.copy().update({FAMILIES: found})

    # --- the loss -----------------------------------------------------------------------------------------------
    def loss(self, batch: TensorDict) -> TensorDict:
        """Mean over families of the mean error of their hidden tokens (V-JEPA, section 3.1; sheet, 1.4)."""
        return self.errors(batch, name="prediction")

    def errors(self, batch: TensorDict, *, name: str) -> TensorDict:
        """The loss under ``name``, and how it comes about."""
        obs, goal = batch[OBSERVATION][:, 0], self.goal_of(batch)
        errors: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        for number, family in enumerate(self.masks.families):
            mask = Subsets(batch[FAMILIES, family, CONTEXT], batch[FAMILIES, family, TARGETS])
            prediction, wanted = self.predict(obs, mask, number), goal_at(goal, mask)
            is_asked = (mask.targets[:, 0] >= 0).float()  # [B, K']
            error = (prediction - wanted).abs() ** self.exponent / self.exponent  # [B, K', X]
            errors[family] = (error.mean(-1) * is_asked).sum() / is_asked.sum()
            with torch.no_grad():
                cosine = F.cosine_similarity(prediction, wanted, dim=-1)
                stats[f"error_{family}"] = errors[family].detach()
                stats[f"cosine_{family}"] = (cosine * is_asked).sum() / is_asked.sum()
                stats[f"context_share_{family}"] = (mask.context >= 0).float().sum() / goal[..., 0].numel()
        with torch.no_grad():
            stats |= spread_of(goal)
        return TensorDict({LOSS: {name: torch.stack(list(errors.values())).mean()}, STAT: stats})

    def goal_of(self, batch: TensorDict) -> Tensor:
        """``goal`` of the clips of a batch."""
        return self.goal(batch[OBSERVATION][:, 0])

    def predict(self, obs: TensorDict, mask: Subsets, family: int) -> Tensor:
        """What the predictor gives for the hidden tokens of clips, float32 [B, K', X]."""
        seen = self.encoder(obs, mask.context)[TOKENS]  # [B, K, D]
        return self.predictor(seen, mask.context, mask.targets, query=family)[:, 0].float()

    # --- what evaluators ask for --------------------------------------------------------------------------------
    @torch.no_grad()
    def prediction_error(self, obs: TensorDict, context: Tensor, targets: Tensor) -> Tensor:
        """Mean absolute error of hidden tokens, float32 [B, K'], 0 at padding; the mean of what all queries give.

        Args:
            obs: clips [B]; context: int64 [B, K]; targets: int64 [B, 1, K'], -1 is padding.
        """
        obs, mask = self.make_views.fitted(obs), Subsets(context, targets)
        wanted = goal_at(self.goal(obs), mask)
        seen = self.encoder(obs, context)[TOKENS]
        found = [
            (self.predictor(seen, context, targets, query=number)[:, 0].float() - wanted).abs().mean(-1)
            for number in range(len(self.masks.families))
        ]
        return torch.stack(found).mean(0) * (targets[:, 0] >= 0)

    def judged(self) -> dict[str, nn.Module]:
        """The encoders that are looked at, by name; "clip" is the one that counts."""
        return {CLIP: self.encoder}

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """Mean token of clips, fitted to the size of views, [B, D] of every encoder judged."""
        fitted = self.make_views.fitted(obs)
        found = {name: encoder(fitted)[POOLED] for name, encoder in self.judged().items()}
        return TensorDict(found, batch_size=obs.batch_size)

    @torch.no_grad()
    def embed_tokens(self, obs: TensorDict) -> TensorDict:
        """All tokens of clips by time, row and column, [B, N, D] of every encoder judged."""
        fitted = self.make_views.fitted(obs)
        found = {name: encoder(fitted)[TOKENS] for name, encoder in self.judged().items()}
        return TensorDict(found, batch_size=obs.batch_size)

    @torch.no_grad()
    def patches(self, obs: TensorDict) -> Tensor:
        """The tokens [B, N, D] of the encoder that counts, on ``encoder.grid``."""
        return self.judged()[CLIP](self.make_views.fitted(obs))[TOKENS]

    @torch.no_grad()
    def views(self, batch: TensorDict) -> tuple[TensorDict, TensorDict]:
        """What context and targets of the first family show of a clip, with pooled latents of the judged encoder."""
        obs, mask = batch[OBSERVATION][:, 0], batch[FAMILIES, next(iter(self.masks.families))]
        num, encoder = len(obs[PIXELS]), self.judged()[CLIP]
        frames, _, height, width = obs[PIXELS].shape[1:]
        sizes = [side // cells for side, cells in zip((frames, height, width), self.encoder.grid, strict=True)]

        def view(index: Tensor) -> TensorDict:  # [B, K], -1 is padding
            cells = torch.zeros(num, self.num_tokens + 1, dtype=torch.bool, device=index.device)
            cells = cells.scatter_(1, index.remainder(self.num_tokens + 1), True)[:, :-1]
            shown = cells.view(num, *self.encoder.grid)
            for axis, size in enumerate(sizes, 1):
                shown = shown.repeat_interleave(size, axis)
            latent = {POOLED: encoder(obs, index)[POOLED]}
            return TensorDict({OBSERVATION: obs, SHOWN: {PIXELS: shown[:, :, None]}, LATENT: latent}, obs.batch_size)

        return view(mask[CONTEXT]), view(mask[TARGETS][:, 0])

    # --- what it costs ------------------------------------------------------------------------------------------
    @property
    def num_tokens(self) -> int:
        """N of a clip."""
        steps, rows, columns = self.encoder.grid
        return steps * rows * columns

    def operations(self, batch_size: int, *, teacher: Size | None) -> float:
        """Floating-point operations of one sample in one step, with masks of the mean size (``worldmodels.flops``)."""
        if batch_size not in self._shares:  # drawing masks of thousands of clips takes seconds
            self._shares[batch_size] = mean_shares(self.masks, batch_size, self.num_tokens)
        sizes, shares = (size_of(self.encoder), size_of(self.predictor)), self._shares[batch_size]
        return step_flops(*sizes, num_tokens=self.num_tokens, shares=shares, teacher=teacher)


def target_tokens(tokens: Tensor, *, is_normalized: bool) -> Tensor:
    """Latents [..., D] as targets: float32 and, if so wished, each with mean 0 and variance 1 over its entries."""
    tokens = tokens.float()
    return F.layer_norm(tokens, tokens.shape[-1:]) if is_normalized else tokens


def goal_at(goal: Tensor, mask: Subsets) -> Tensor:
    """Of ``goal`` [B, N, X] what is hidden, [B, K', X]; anything at padding."""
    return gather_tokens(goal, mask.targets[:, 0])


def spread_of(goal: Tensor) -> dict[str, Tensor]:
    """Variance of goals [B, N, X]: over the tokens of a clip, and at equal places over clips.

    What a place alone tells needs no encoder: a target whose second variance is small teaches nothing.
    """

    def variance(axis: int) -> Tensor:  # Tensor.var takes up to five times as long along the first axis, on a CPU
        return (goal - goal.mean(axis, keepdim=True)).square().mean()

    return {"target_variance_within": variance(1), "target_variance_between": variance(0)}


def mean_shares(masks: Families, batch_size: int, num_tokens: int) -> dict[str, tuple[float, float]]:
    """Mean shares of all tokens that contexts and targets have, by family; always the same draws, on the CPU."""
    generator = Generator().manual_seed(0)
    drawn = [masks(batch_size, generator) for _ in range(_DRAWS)]
    lengths = {
        name: [
            sum(part.shape[-1] for part in parts) / _DRAWS
            for parts in zip(*(mask[name] for mask in drawn), strict=True)
        ]
        for name in masks.families
    }
    return shares_of(lengths, num_tokens)
