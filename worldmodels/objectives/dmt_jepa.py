"""DMT-JEPA: I-JEPA whose targets are aggregates of similar neighbours instead of single patches.

Of the neighbours of a hidden patch those most similar to it are chosen, by the cosine of the target encoder's features.
A head of class attention, whose query is the picture's mean feature, makes the target of them alone: noise of single
patches averages out, borders of objects stay. A second head mixes the visible patches before the predictor; the first
follows it by moving average. Probes look at the target encoder without its head.

Paper: Mo & Yun, DMT-JEPA (arXiv 2405.17995). Differs from its released code, which cannot start (sheet dmt_jepa,
section 2.3): each patch's query is the mean of its own picture, not of another one; the neighbourhood ends at the
picture's edge instead of going on at the opposite one; ``released`` restores both. Neighbours may lie beside the target
block, as in the code; ``is_within_block`` is the paper's figure. Heads are saved and averaged like everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Target
from worldmodels.keys import ASKED, OBSERVATION, TARGETS
from worldmodels.masking import union, validity
from worldmodels.nn.transformer import gather_tokens
from worldmodels.objectives.i_jepa import IJEPA

OFFSETS = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0))


class DMTJEPA(IJEPA):
    """Predicts aggregates of similar neighbours of hidden patches.

    Args:
        spec: one row of the source.
        target: factory of the target encoder, and of the target of the head.
        head: factory ``head(dim)`` of class attention (``worldmodels.nn.class_attention``).
        num_neighbours: k, how many of the eight around a patch are aggregated.
        is_within_block: whether neighbours lie in the patch's own target block.
        released: whether queries and neighbourhoods are those of the released code, defects 2 and 3 of the sheet.
        options: see ``IJEPA``.

    Raises:
        ValueError: if ``num_neighbours`` is not 1 to 8, or ``released`` and ``is_within_block`` are both set.
    """

    edge: Tensor
    neighbours: Tensor

    def __init__(
        self,
        spec: Composite,
        *,
        target: Callable[[nn.Module], Target],
        head: Callable[..., nn.Module],
        num_neighbours: int = 4,
        is_within_block: bool = False,
        released: bool = False,
        **options: Any,
    ) -> None:
        if not 1 <= num_neighbours <= len(OFFSETS):
            raise ValueError(f"objective.num_neighbours={num_neighbours}: a patch has up to {len(OFFSETS)}, so 1 to 8")
        if released and is_within_block:
            raise ValueError("the released code looks beyond blocks: released and is_within_block exclude each other")
        super().__init__(spec, target=target, **options)
        self.head = head(self.encoder.dim)
        self.head_target = target(self.head)
        self.num_neighbours, self.is_within_block, self.released = num_neighbours, is_within_block, released
        rows, columns = self.encoder.grid
        place = torch.arange(rows * columns)
        down, right = (place // columns)[:, None], (place % columns)[:, None]
        at = down + torch.tensor([o[0] for o in OFFSETS]), right + torch.tensor([o[1] for o in OFFSETS])
        is_outside = (at[0] < 0) | (at[0] >= rows) | (at[1] < 0) | (at[1] >= columns)
        self.register_buffer("edge", is_outside & (not released), persistent=False)  # [N, 8]: no neighbour there
        self.register_buffer("neighbours", at[0] % rows * columns + at[1] % columns, persistent=False)  # [N, 8]

    def trained(self) -> dict[str, nn.Module]:
        """The networks that get gradients, by name."""
        return {**super().trained(), "head": self.head}

    def draw_masks(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add also "asked" [B, T]: patches in several blocks are aggregated once."""
        batch = super().draw_masks(batch, generator)
        return batch.update({ASKED: union(batch[TARGETS], len(self.neighbours))})  # a copy already

    def context(self, obs: TensorDict, context: Tensor) -> Tensor:
        """Visible patches after the head: h(f(x_c)), [B, K, D]."""
        return self.head(super().context(obs, context), validity(context))

    @torch.no_grad()
    def goal(self, batch: TensorDict) -> Tensor:
        """Local aggregation targets h'(mean of s; the k of N_i nearest to s_i) (sheet section 2.2), [B, M, K', D]."""
        targets, features = batch[TARGETS], self.whole(batch[OBSERVATION][:, 0])  # s: [B, N, D]
        if self.is_within_block:
            found = self.aggregate(features, targets.flatten(1), self.beside(targets).flatten(1, 2))
            return found.unflatten(1, targets.shape[1:])
        asked = batch[ASKED]  # [B, T]
        found = self.aggregate(features, asked, self.edge[asked.clamp_min(0)])
        # Where in ``asked`` each patch stands; what padding writes is never read.
        stands = asked.new_zeros(len(asked), len(self.neighbours) + 1)
        stands = stands.scatter_(
            1,
            asked.remainder(len(self.neighbours) + 1),
            torch.arange(asked.shape[1], device=asked.device).expand_as(asked),
        )
        index = stands.gather(1, targets.flatten(1).clamp_min(0))
        return gather_tokens(found, index).unflatten(1, targets.shape[1:])

    @torch.no_grad()
    def aggregate(self, features: Tensor, asked: Tensor, is_barred: Tensor) -> Tensor:
        """Targets of the patches ``asked``.

        Args:
            features: s, [B, N, D]; asked: int64 [B, R], -1 for padding.
            is_barred: bool [B, R, 8], which neighbours do not count.

        Returns:
            float32 [B, R, D].
        """
        index, is_valid = self.nearest(features, asked, is_barred)
        mean = features.mean(1)  # [B, D]
        if self.released:  # rows are picture by picture, but means were repeated batch by batch
            size, num = features.shape[:2]
            row = torch.arange(size, device=asked.device)[:, None] * num + asked.clamp_min(0)
            query = mean[row % size]  # [B, R, D]
        else:
            query = mean[:, None].expand(-1, asked.shape[1], -1)
        return self.head_target(query, is_valid, features, index).float()

    def nearest(self, features: Tensor, asked: Tensor, is_barred: Tensor) -> tuple[Tensor, Tensor]:
        """The k most similar neighbours of each patch asked: indices and which exist, [B, R, k] each."""
        similarity = neighbour_similarity(features, self.encoder.grid, wraps=self.released)
        similarity = gather_tokens(similarity, asked).masked_fill(is_barred, float("-inf"))  # [B, R, 8]
        best, which = similarity.topk(self.num_neighbours, -1)
        return self.neighbours[asked.clamp_min(0)].gather(-1, which), best > float("-inf")

    def beside(self, targets: Tensor) -> Tensor:
        """Which neighbours of target patches lie outside their own block, bool [B, M, K', 8]."""
        num = len(self.neighbours)
        is_block = torch.zeros((*targets.shape[:2], num + 1), dtype=torch.bool, device=targets.device)
        is_block = is_block.scatter_(2, targets.remainder(num + 1), True)
        around = self.neighbours[targets.clamp_min(0)]  # [B, M, K', 8]
        inside = is_block.gather(2, around.flatten(2)).view_as(around)
        return ~inside | self.edge[targets.clamp_min(0)]


def neighbour_similarity(features: Tensor, grid: tuple[int, int], *, wraps: bool = False) -> Tensor:
    """Cosine of each patch of ``features`` [B, H W, D] and its eight neighbours, float32 [B, H W, 8].

    In full precision, as neighbours often differ by less than 0.01; without a copy of the features for every neighbour.

    Args:
        features: [B, H W, D]; grid: H, W.
        wraps: whether the grid goes on at its opposite edge; otherwise neighbours beyond an edge get 0.
    """
    rows, columns = grid
    unit = F.normalize(features.float(), dim=-1).unflatten(1, grid)
    around = F.pad(unit, (0, 0, 1, 1, 1, 1))  # [B, H + 2, W + 2, D]
    found = []
    for down, right in OFFSETS:
        if wraps:
            other = unit.roll((-down, -right), (1, 2))
        else:
            other = around[:, 1 + down : 1 + down + rows, 1 + right : 1 + right + columns]
        found.append((unit * other).sum(-1).flatten(1))
    return torch.stack(found, -1)
