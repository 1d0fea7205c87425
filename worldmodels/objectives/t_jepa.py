"""T-JEPA: representations of table rows, learned without augmentation by predicting columns from other columns.

A row is a set of column tokens. The encoder sees some of them; a predictor gives, for several sets of other columns,
their latents in an encoder that sees the whole row and follows by moving average. The loss is the mean squared error.

Paper: Thimonier et al., T-JEPA (arXiv 2410.05016, ICLR 2025). Differs from its released code (sheet t_jepa, section 4):
registers are always visible and never asked for; the sets asked for of a row differ from each other; every column may
be shown and asked for; no dropout; no LayerNorm, Linear, LayerNorm at the end of the predictor. ``official_compat``
restores the first three, ``has_head`` of the predictor the last (docs/t_jepa.md says what else differs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Encoder, Objective, Phase, Target, Transform
from worldmodels.keys import (
    CATEGORICAL,
    CONTEXT,
    LATENT,
    LOSS,
    NUMERICAL,
    OBSERVATION,
    POOLED,
    SHOWN,
    STAT,
    TARGETS,
    TOKENS,
)
from worldmodels.masking import RandomSubsets, counts
from worldmodels.nn.parameters import matrices_and_vectors
from worldmodels.nn.transformer import all_tokens


class TJEPA(Objective):
    """Predicts hidden columns of a row in latent space.

    Args:
        spec: one row of a table.
        encoder: perception with registers, a factory or a module shared with other objectives.
        predictor: factory ``predictor(dim, grid, num_extra=registers)``.
        target: factory of the target encoder.
        context_share, target_share: least and greatest share of the columns shown, and asked for at once.
        num_targets: sets of columns asked for, M.
        official_compat: masks as the released code draws them: all sets of a row are the same, the register counts as
            the first column, and the last column is never shown nor asked for. Needs ``encoder.are_registers_columns``.
    """

    window = 1

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        predictor: Callable[..., nn.Module],
        target: Callable[[nn.Module], Target],
        context_share: Sequence[float],
        target_share: Sequence[float],
        num_targets: int = 4,
        official_compat: bool = False,
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder if isinstance(encoder, nn.Module) else encoder(spec)
        (num_tokens,) = self.encoder.grid
        if official_compat != getattr(self.encoder, "are_registers_columns", False):
            raise ValueError(
                "objective.official_compat and encoder.are_registers_columns are either both true or both false"
            )
        num_columns = num_tokens - 1 if official_compat else num_tokens
        if num_columns < 2:
            raise ValueError("t_jepa predicts columns from other columns and needs at least two; this table has one")
        self.predictor = predictor(self.encoder.dim, self.encoder.grid, num_extra=self.encoder.num_registers)
        self.target = target(self.encoder)
        self.num_targets = num_targets
        self.subsets = RandomSubsets(
            num_columns,
            context=counts(context_share, num_columns, what="context_share"),
            target=counts(target_share, num_columns, what="target_share"),
            num_targets=num_targets,
            is_one_target=official_compat,
        )

    def phases(self) -> tuple[Phase, ...]:
        """A single one; biases and other vectors are groups of their own, to be kept from decay."""
        parts = {"encoder": self.encoder.parameters(), "predictor": self.predictor.parameters()}
        return (Phase("t_jepa", self.loss, matrices_and_vectors(parts)),)

    def transforms(self) -> tuple[Transform, ...]:
        """The masks of a batch."""
        return (self.draw_masks,)

    def draw_masks(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add "context" [B, K] and "targets" [B, M, K']."""
        masks = self.subsets(batch.batch_size[0], generator)
        return batch.copy().update({CONTEXT: masks.context, TARGETS: masks.targets})

    def loss(self, batch: TensorDict) -> TensorDict:
        """Mean over all hidden columns and latent entries of (prediction - target)^2 (sheet section 1.5)."""
        obs, asked = batch[OBSERVATION][:, 0], batch[TARGETS]
        whole = self.target(obs)[TOKENS]  # [B, N, D]
        context = all_tokens(self.encoder(obs, batch[CONTEXT]))  # [B, R + K, D]
        prediction = self.predictor(context, batch[CONTEXT], asked).float()  # [B, M, K', D]
        goal = whole[:, None].expand(-1, self.num_targets, -1, -1)
        index = asked.clamp_min(0)[..., None].expand(-1, -1, -1, whole.shape[-1])
        goal = torch.gather(goal, 2, index)  # [B, M, K', D]
        is_asked = (asked >= 0).float()
        error = ((prediction - goal).square().mean(-1) * is_asked).sum() / is_asked.sum()
        return TensorDict({LOSS: {"prediction": error}, STAT: self.health(prediction, goal, is_asked, whole)})

    @torch.no_grad()
    def health(self, prediction: Tensor, goal: Tensor, is_asked: Tensor, whole: Tensor) -> dict[str, Tensor]:
        """What shows a collapse: cosine of prediction and target, and the target's variance over rows, a column."""
        cosine = F.cosine_similarity(prediction, goal, dim=-1)
        return {
            "cosine": (cosine * is_asked).sum() / is_asked.sum(),
            "target_variance": whole.var(0).mean(),  # per token: tokens of different columns always differ
        }

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """The target encoder's view of whole rows: "row" [B, (R + N) D], all tokens, "pooled" [B, D], their mean."""
        out = self.target(obs)
        return TensorDict({"row": all_tokens(out).flatten(1), "pooled": out[POOLED]}, batch_size=obs.batch_size)

    @torch.no_grad()
    def views(self, batch: TensorDict) -> tuple[TensorDict, TensorDict]:
        """What the context and the first set asked for show of a row, each with the target encoder's pooled latent."""
        obs, (num,) = batch[OBSERVATION][:, 0], self.encoder.grid
        leaves = {key: obs[key].shape[-1] for key in (NUMERICAL, CATEGORICAL) if key in obs.keys()}
        before = num - sum(leaves.values())  # registers that count as columns

        def view(columns: Tensor) -> TensorDict:  # [B, K], -1 is padding
            shown = torch.zeros(len(columns), num + 1, dtype=torch.bool, device=columns.device)
            shown = shown.scatter_(1, columns.remainder(num + 1), True)[:, before:num]  # padding marked one too many
            parts = shown.split(list(leaves.values()), 1)
            latent = {POOLED: self.target(obs, columns)[POOLED]}
            return TensorDict(
                {OBSERVATION: obs, SHOWN: dict(zip(leaves, parts, strict=True)), LATENT: latent}, obs.batch_size
            )

        return view(batch[CONTEXT]), view(batch[TARGETS][:, 0])
