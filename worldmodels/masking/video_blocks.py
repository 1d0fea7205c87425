"""Masks of clips that hide blocks: multi-block masks of short and long range, causal ones, spans of time.

Notable: nothing is drawn again. Every clip gets several candidates at once and takes the first that leaves a context;
where none does, the last blocks of the best one are given up. V-JEPA's code draws again until something is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from worldmodels.masking.padding import MOST_BLOCKS, covers, layers
from worldmodels.masking.video import Range, VideoMask, check_grid, limits

_TRIES = 8  # candidates of a clip


class VideoBlocks(VideoMask):
    """Hides a union of blocks, cuboids of the grid; shows the rest.

    One size of blocks is drawn for the whole batch, places for every block. V-JEPA's two families are 8 blocks of 0.15
    (short range) and 2 of 0.7 (long range).

    Args:
        grid: T, H, W.
        num_blocks: M of a clip; they may overlap.
        spatial_scale: share of a frame that a block covers, or the least and the greatest.
        temporal_scale: share of the steps, likewise; 1: blocks last for the whole clip.
        aspect: height over width, the least and the greatest.
        max_temporal_keep: share of the steps that a context may show, the first ones; later steps are asked for whole.
            Below 1 masks are causal.
        min_context: share of all tokens that a context has at least; 0: one column.
        cut: max_context, max_target, full_complement, pred_full_complement, inv_block, released: see ``VideoMask``.

    Raises:
        ValueError: if blocks would be empty or could leave too little context; if a setting makes no sense.

    Source: V-JEPA (arXiv 2404.08471), section 3.2 and its code; sheet salt_video, section 1.2. Differs: see above.
    """

    def __init__(
        self,
        grid: Sequence[int],
        *,
        num_blocks: int,
        spatial_scale: Range,
        temporal_scale: Range = 1.0,
        aspect: Range = (0.75, 1.5),
        max_temporal_keep: int | float = 1.0,
        min_context: int | float = 0.0,
        **cut: Any,
    ) -> None:
        self.grid, self.num_blocks, self.aspect = check_grid(grid), num_blocks, limits(aspect, "aspect", most=math.inf)
        self.spatial_scale = limits(spatial_scale, "spatial_scale")
        self.temporal_scale = limits(temporal_scale, "temporal_scale")
        self.steps_shown = max(1, int(self.grid[0] * limits(max_temporal_keep, "max_temporal_keep")[0]))
        most_shown, most_hidden = self._bounds(min_context)
        super().__init__(
            grid,
            most_shown=most_shown,
            most_hidden=most_hidden,
            **cut,
        )

    def _bounds(self, min_context: int | float) -> tuple[int, int]:
        """Greatest number of tokens shown and hidden; also sets what ``visible`` needs to know of all sizes."""
        (steps, rows, columns), draw = self.grid, torch.linspace(0, 1, 1025, dtype=torch.float64)
        length, (height, width) = self._length(draw), self._sides(draw[:, None], draw)
        area = height * width
        if not 0 < self.num_blocks <= MOST_BLOCKS or not int(area.min()):
            raise ValueError(
                f"num_blocks={self.num_blocks} of spatial_scale={self.spatial_scale} on a grid of {rows} x {columns} "
                f"patches: the least block is {int(height.min())} x {int(width.min())}. Use 1 to {MOST_BLOCKS} blocks, "
                "smaller patches, larger clips, or larger blocks"
            )
        if not 0 <= min_context < 1:
            raise ValueError(f"min_context={min_context}: a share of all tokens lies within [0, 1)")
        self.is_tube = int(length.min()) == steps  # blocks last for the whole clip: places of a frame tell all
        tokens = self.steps_shown if self.is_tube else 1  # of a place
        num_places = rows * columns * self.steps_shown // tokens
        deepest = 1 if self.is_tube else min(int(length.max()), self.steps_shown)
        self.least_places = max(1, math.ceil(min_context * steps * rows * columns / tokens))
        if num_places - deepest * int(area.max()) < self.least_places:
            raise ValueError(
                f"spatial_scale={self.spatial_scale}: a block of {int(height.max())} x {int(width.max())} patches for "
                f"{int(length.max())} steps leaves less than {self.least_places * tokens} tokens of a grid of "
                f"{steps} x {rows} x {columns} to the context. Use smaller blocks or patches, or a lower min_context"
            )
        later = steps - self.steps_shown
        shown = self.steps_shown * rows * columns - max(0, int(length.min()) - later) * int(area.min())
        hidden = self.num_blocks * int(length.max()) * int(area.max()) + later * rows * columns
        return shown, min(hidden, steps * rows * columns - self.least_places * tokens)

    def _length(self, draw: Tensor) -> Tensor:
        """Steps of a block, int64, from draws that are uniform on (0, 1)."""
        low, high = self.temporal_scale
        return (self.grid[0] * (low + (high - low) * draw)).floor().clamp_min(1).long()

    def _sides(self, area_draw: Tensor, aspect_draw: Tensor) -> tuple[Tensor, Tensor]:
        """Height and width of a block, likewise."""
        rows, columns = self.grid[1:]
        low, high = self.spatial_scale
        area = (rows * columns * (low + (high - low) * area_draw)).floor()
        ratio = self.aspect[0] + (self.aspect[1] - self.aspect[0]) * aspect_draw
        height, width = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        return height.clamp_max(rows).long(), width.clamp_max(columns).long()

    def visible(self, batch_size: int, generator: Generator) -> Tensor:
        """See ``VideoMask``."""
        (steps, rows, columns), like = self.grid, {"generator": generator, "device": generator.device}
        draw = torch.rand((3,), **like, dtype=torch.float64)
        length, (height, width) = self._length(draw[0]), self._sides(draw[1], draw[2])
        place = torch.rand((3, batch_size, _TRIES, self.num_blocks), **like)
        down, right = placed(place[1], height, rows), placed(place[2], width, columns)
        if self.is_tube:
            covering = layers(down, right)  # [B, R, H, W]
        else:
            when = placed(place[0], length, steps)[..., : self.steps_shown]
            covering = layers(when, (down[..., :, None] & right[..., None, :]).flatten(-2))  # [B, R, X, H W]
        is_shown = uncovered(covering.flatten(2), self.least_places).unflatten(1, (-1, rows * columns))
        if self.steps_shown == steps:
            return is_shown  # [B, T or 1, H W]
        return F.pad(is_shown.expand(-1, self.steps_shown, -1), (0, 0, 0, steps - self.steps_shown))


class TemporalBlocks(VideoMask):
    """Hides whole frames: a union of spans of the clip, each a share of its steps. All other frames are shown.

    Args:
        grid: T, H, W.
        num_blocks: spans of a clip; they may overlap.
        temporal_scale: share of the steps that a span covers, or the least and the greatest.
        cut: max_context, max_target, full_complement, pred_full_complement, inv_block, released: see ``VideoMask``.

    Raises:
        ValueError: if a span may cover the whole clip.
    """

    def __init__(
        self,
        grid: Sequence[int],
        *,
        num_blocks: int = 1,
        temporal_scale: Range = 0.5,
        **cut: Any,
    ) -> None:
        self.steps, rows, columns = check_grid(grid)
        self.num_blocks, self.temporal_scale = num_blocks, limits(temporal_scale, "temporal_scale")
        shortest, longest = (max(1, int(self.steps * share)) for share in self.temporal_scale)
        if longest == self.steps or not 0 < num_blocks <= MOST_BLOCKS:
            raise ValueError(
                f"num_blocks={num_blocks} of temporal_scale={temporal_scale} on {self.steps} steps: there must be 1 "
                f"to {MOST_BLOCKS} spans, and each must leave a step. Use longer clips or shorter spans"
            )
        super().__init__(
            grid,
            most_shown=(self.steps - shortest) * rows * columns,
            most_hidden=min(num_blocks * longest, self.steps - 1) * rows * columns,
            **cut,
        )

    def visible(self, batch_size: int, generator: Generator) -> Tensor:
        """See ``VideoMask``."""
        like, (low, high) = {"generator": generator, "device": generator.device}, self.temporal_scale
        draw = torch.rand((), **like, dtype=torch.float64)
        length = (self.steps * (low + (high - low) * draw)).floor().clamp_min(1).long()
        place = torch.rand((batch_size, _TRIES, self.num_blocks), **like)
        when = placed(place, length, self.steps)  # [B, R, M, T]
        is_shown = uncovered(layers(when, torch.ones_like(when[..., :1])).flatten(2), 1)  # [B, T]
        return is_shown[..., None].expand(-1, -1, self.grid[1] * self.grid[2])


def placed(draw: Tensor, length: Tensor, num: int) -> Tensor:
    """Which of ``num`` places [..., num] an interval covers that begins anywhere it fits, for draws [...] on (0, 1)."""
    return covers((draw * (num - length + 1)).long(), length, num)


def uncovered(covering: Tensor, least: int) -> Tensor:
    """Places that no block of the first fitting candidate covers.

    A candidate fits if it leaves ``least`` places. Where none of a clip does, its last block is given up, then the last
    two, and so on, for all candidates; a single block must leave enough.

    Args:
        covering: float [B, R, P], see ``layers``, of R candidates.

    Returns:
        bool [B, P].
    """
    # Places with fewer bits than the least-th number has are enough: the blocks of those bits are given up
    bits = covering.amin(2) if least == 1 else covering.topk(least, 2, largest=False, sorted=False).values.amax(2)
    given_up = bits.frexp().exponent  # [B, R]
    num_tries = covering.shape[1]
    best = (given_up * num_tries + torch.arange(num_tries, device=bits.device)).argmin(1)  # [B]
    clip = torch.arange(len(covering), device=bits.device)
    return covering[clip, best] < given_up[clip, best, None].exp2()
