"""AD-L-JEPA: representations of LiDAR scans from predicting hidden cells of a bird's-eye view, empty ones too.

Cells that hold points are hidden or shown; the encoder sees the points of shown cells, the target encoder those of
hidden ones: two disjoint halves of a scan. Shown empty cells carry one learned token, all hidden cells another. A
convolutional predictor fills in the hidden cells. The loss is 1 - cosine, and a hinge keeps the variance of cells up.

Paper: Zhu et al., AD-L-JEPA (arXiv 2501.04969, AAAI 2026). Differs from its released code (sheet ad_l_jepa, section 6),
each behind a switch: tokens are trained; hidden cells are drawn for each scan, not over a batch; pre-training sees no
label unless the source pastes objects (``envs.paste``). The variance of fewer than two cells counts as none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Encoder, Objective, Phase, Target, Transform
from worldmodels.keys import CELLS_OCCUPIED, CELLS_SHOWN, LOSS, OBSERVATION, POOLED, STAT, TOKENS

VARIANCE_EPSILON = 1e-4


class ADLJEPA(Objective):
    """Predicts hidden cells of a scan in latent space.

    Args:
        spec: one scan.
        encoder: perception with voxels and a BEV grid (``perception.lidar``), a factory or a shared module.
        predictor: factory ``predictor(dim)`` of a map of BEV maps.
        target: factory of the target encoder.
        mask_ratio: share of occupied, and of empty, cells that are hidden.
        are_tokens_trained: whether the tokens of hidden and of empty cells learn; in the released code they stay as
            drawn, by accident.
        is_split_over_batch: whether exactly that share of the *batch's* occupied cells is hidden, as released, or of
            each scan's.
    """

    window = 1

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        predictor: Callable[..., nn.Module],
        target: Callable[[nn.Module], Target],
        mask_ratio: int | float = 0.5,
        are_tokens_trained: bool = True,
        is_split_over_batch: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise ValueError(f"objective.mask_ratio={mask_ratio}: a share of the cells, above 0 and below 1")
        self.encoder: Any = encoder if isinstance(encoder, nn.Module) else encoder(spec)
        self.predictor = predictor(self.encoder.dim)
        self.target = target(self.encoder)
        self.mask_ratio, self.is_split_over_batch = mask_ratio, is_split_over_batch
        dim = self.encoder.dim
        self.mask_token = nn.Parameter(torch.randn(dim), requires_grad=are_tokens_trained)
        self.empty_token = nn.Parameter(torch.randn(dim), requires_grad=are_tokens_trained)

    def phases(self) -> tuple[Phase, ...]:
        """A single one."""
        tokens = [token for token in (self.mask_token, self.empty_token) if token.requires_grad]
        params = {"encoder": [*self.encoder.parameters()], "predictor": [*self.predictor.parameters()]}
        return (Phase("ad_l_jepa", self.loss, {**params, "tokens": tokens} if tokens else params),)

    def transforms(self) -> tuple[Transform, ...]:
        """Voxels and masks of a batch, once for both encoders."""
        return (self.draw_masks,)

    def draw_masks(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add voxels, and bool [B, Y X]: "cells_occupied", which hold points, and "cells_shown"."""
        batch = self.encoder.add_voxels(batch, generator)
        occupied = self.encoder.occupied(batch[OBSERVATION][:, 0])
        return batch.update({CELLS_OCCUPIED: occupied, CELLS_SHOWN: self._draw_shown(occupied, generator)})

    def _draw_shown(self, occupied: Tensor, generator: Generator) -> Tensor:
        """Of n occupied cells exactly floor((1 - ratio) n) are shown; each empty one with chance 1 - ratio."""
        draw = torch.rand(occupied.shape, generator=generator, device=occupied.device)
        order = (draw + ~occupied).reshape(1, -1) if self.is_split_over_batch else draw + ~occupied  # occupied first
        rank = order.argsort(1).argsort(1).view_as(occupied)
        num = occupied.sum() if self.is_split_over_batch else occupied.sum(1, keepdim=True)
        num_shown = (num * (1 - self.mask_ratio)).floor()
        return torch.where(occupied, rank < num_shown, draw < 1 - self.mask_ratio)

    def loss(self, batch: TensorDict) -> TensorDict:
        """1 - cosine over hidden cells, occupied and empty ones apart, and the variance hinge (sheet section 1.5)."""
        obs, occupied, shown = batch[OBSERVATION][:, 0], batch[CELLS_OCCUPIED], batch[CELLS_SHOWN]
        context = self.context(obs, occupied, shown)  # [B, N, D]
        prediction = self.predictor(context.mT.unflatten(2, self.encoder.grid)).flatten(2).mT
        prediction = F.normalize(prediction.float(), dim=-1, eps=1e-12)
        hidden, hidden_empty = occupied & ~shown, ~occupied & ~shown
        seen = self.target(self.encoder.showing(obs, hidden))[TOKENS]
        goal = F.normalize(torch.where(hidden_empty[..., None], self.empty_token, seen).float(), dim=-1, eps=1e-12)
        distance = 1 - (prediction * goal).sum(-1)  # [B, N]
        kept_up = [(context, occupied & shown), (prediction, hidden)]
        losses = {
            "occupied": masked_mean(distance, hidden),
            "empty": masked_mean(distance, hidden_empty),
            "variance": torch.stack([variance_hinge(z, mask).mean() for z, mask in kept_up]).sum(),
        }
        with torch.no_grad():
            stats = {
                "cosine_occupied": 1 - losses["occupied"],
                "cosine_empty": 1 - losses["empty"],
                "target_variance_hinge": variance_hinge(goal, hidden).mean(),
                "target_zero": masked_mean((seen == 0).all(-1).float(), hidden),  # dead: no gradient, cosine 0
            }
        return TensorDict({LOSS: losses, STAT: stats})

    def context(self, obs: TensorDict, occupied: Tensor, shown: Tensor) -> Tensor:
        """Unit vectors [B, N, D] of what is shown; tokens elsewhere, over what leaked there through convolutions."""
        seen = self.encoder(self.encoder.showing(obs, occupied & shown))[TOKENS]
        token = torch.where(shown[..., None], self.empty_token, self.mask_token)
        return F.normalize(torch.where((occupied & shown)[..., None], seen, token).float(), dim=-1, eps=1e-12)

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """The encoder's view of whole scans: "scan" [B, D], the mean, and "cell" [B, D], that of one voxel's cell."""
        obs = self.encoder.voxelize(obs)
        out, cells = self.encoder(obs), self.encoder.cells(obs)  # [B, V]
        middle = cells.gather(1, ((cells >= 0).sum(1, keepdim=True) // 2).clamp_max(cells.shape[1] - 1)).clamp_min(0)
        cell = out[TOKENS].take_along_dim(middle[..., None], 1)[:, 0]
        return TensorDict({"scan": out[POOLED], "cell": cell}, batch_size=obs.batch_size)

    @torch.no_grad()
    def bev(self, obs: TensorDict) -> Tensor:
        """The encoder's map of whole scans, [B, D, Y, X]."""
        return self.encoder.bev(obs)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` where ``mask`` is true; 0 if it is nowhere."""
    return (x * mask).sum() / mask.sum().clamp_min(1)


def variance_hinge(z: Tensor, mask: Tensor) -> Tensor:
    """Mean over dimensions of max(0, 1/sqrt(D) - standard deviation over cells), [B]; 0 for fewer than two cells.

    1/sqrt(D) is the standard deviation of unit vectors that point everywhere.

    Args:
        z: [B, N, D] unit vectors; mask: bool [B, N], which cells count.
    """
    weight = mask.to(z.dtype)[:, None]  # [B, 1, N]
    num = mask.sum(1, keepdim=True)
    with torch.autocast(z.device.type, enabled=False):  # a difference of two means: bfloat16 leaves nothing of it
        mean, square = ((weight @ values)[:, 0] / num.clamp_min(1) for values in (z, z.square()))
    variance = (square - mean.square()).clamp_min(0) * num / (num - 1).clamp_min(1)
    hinge = F.relu(1 / math.sqrt(z.shape[-1]) - (variance + VARIANCE_EPSILON).sqrt()).mean(-1)
    return torch.where(num[:, 0] >= 2, hinge, 0.0)
