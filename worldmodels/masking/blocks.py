"""Blocks of a picture's patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from worldmodels.masking import padding
from worldmodels.masking.padding import MOST_BLOCKS, Subsets, counts, covers, first, layers


class MultiBlock:
    """Draws for each picture several blocks to be predicted and, as context, a large block without them.

    One height and width of target blocks and one of context blocks are drawn for the whole batch; positions are drawn
    for every block. All contexts are cut to the size of the least one, or to ``max_context``, by leaving out random
    patches. Where a context block would keep at most ``min_keep`` patches it moves; where it would do so everywhere, it
    may overlap the picture's last target, then the last two, and so on.

    Args:
        grid: rows and columns of patches.
        num_targets: M, blocks of a picture; they may overlap.
        target_scale, context_scale: least and greatest share of the grid that a block covers.
        target_aspect: least and greatest height over width; contexts are as high as they are wide.
        min_keep: patches that a context must exceed.
        max_context: greatest share of the grid that a context keeps; on a GPU, where shapes are fixed, what it costs.
        released: the rules of I-JEPA's code. Blocks never reach the last row and column, one draw decides over both
            area and aspect, and contexts are cut by leaving out the last patches, those at the bottom.

    Raises:
        ValueError: if the grid has no rows and columns or is too small for the blocks, or there are not 1 to 24.

    Source: I-JEPA (arXiv 2301.08243), section 3; its code, sheet dmt_jepa, section 1.1. Differs: a block moves to any
    place that keeps enough, at random, instead of trying 20 times.
    """

    def __init__(
        self,
        grid: Sequence[int],
        *,
        num_targets: int = 4,
        target_scale: Sequence[int | float] = (0.15, 0.2),
        target_aspect: Sequence[int | float] = (0.75, 1.5),
        context_scale: Sequence[int | float] = (0.85, 1.0),
        min_keep: int = 10,
        max_context: int | float = 0.35,
        released: bool = False,
    ) -> None:
        if len(grid) != 2:
            raise ValueError(f"blocks need rows and columns of patches; this encoder's grid is {tuple(grid)}")
        if not 0 < num_targets <= MOST_BLOCKS:
            raise ValueError(f"num_targets={num_targets}: 1 to {MOST_BLOCKS} blocks are to be predicted")
        self.grid, self.num_targets, self.min_keep, self.released = tuple(grid), num_targets, min_keep, released
        self.target_scale, self.target_aspect, self.context_scale = target_scale, target_aspect, context_scale
        num = self.grid[0] * self.grid[1]
        for what, share in (("target_scale", target_scale), ("context_scale", context_scale)):
            counts(share, num, what=what)  # raises for what is no range of shares
        draw = torch.linspace(0, 1, 2049, dtype=torch.float64)
        sides = self._size(target_scale, target_aspect, draw[::16, None], draw)
        targets, context_sides = sides[0] * sides[1], self._size(context_scale, (1, 1), draw, draw)
        contexts = context_sides[0] * context_sides[1]
        least = min_keep + 1 if released else 1  # the released code draws smaller ones again without end
        if int(targets.min()) < least or int(contexts.min()) <= min_keep:
            raise ValueError(
                f"a grid of {self.grid[0]} x {self.grid[1]} patches is too small: its least target has "
                f"{int(targets.min())} of them (needs {least}), its least context {int(contexts.min())} (needs more "
                f"than min_keep={min_keep}). Use smaller patches, larger pictures, or a lower min_keep"
            )
        self.most_target, self.most_context = int(targets.max()), int(contexts.max())
        if not released:
            self.most_context = min(self.most_context, max(min_keep + 1, round(max_context * num)))
        self._least_context = int(context_sides[0].min()), int(context_sides[1].min())

    def _size(
        self, scale: Sequence[int | float], aspect: Sequence[int | float], area_draw: Tensor, aspect_draw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Height and width of a block, int64, from draws that are uniform on (0, 1)."""
        rows, columns = self.grid
        area = (rows * columns * (scale[0] + (scale[1] - scale[0]) * area_draw)).floor()
        ratio = aspect[0] + (aspect[1] - aspect[0]) * aspect_draw
        most = (rows - 1, columns - 1) if self.released else (rows, columns)
        sides = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        return sides[0].clamp_max(most[0]).long(), sides[1].clamp_max(most[1]).long()

    def __call__(self, batch_size: int, generator: Generator) -> Subsets:
        """Draw for ``batch_size`` pictures, on the device of ``generator``."""
        device, (rows, columns) = generator.device, self.grid
        draw = torch.rand((3,), generator=generator, device=device, dtype=torch.float64)
        height, width = self._size(self.target_scale, self.target_aspect, draw[0], draw[0 if self.released else 1])
        place = torch.rand((2, batch_size, self.num_targets), generator=generator, device=device)
        top = (place[0] * self._num_places(rows, height)).long()  # [B, M]
        left = (place[1] * self._num_places(columns, width)).long()

        entry = torch.arange(self.most_target, device=device)
        index = (top[..., None] + entry // width) * columns + left[..., None] + entry % width  # [B, M, K']
        covering = layers(covers(top, height, rows), covers(left, width, columns)).flatten(1)  # [B, N]
        is_context = self._context(covering, draw[2], generator)  # [B, N]
        size = is_context.sum(1).min().clamp_max(self.most_context)
        if self.released:
            order = torch.arange(rows * columns, 0.0, -1, device=device)
        else:
            order = torch.rand(is_context.shape, generator=generator, device=device) + 1
        order = order * is_context  # what is no context comes last
        if padding.is_cut(device):  # those beyond the size need not even be found, nor any order
            context = order.topk(int(size), 1, sorted=False).indices  # [B, K]
        else:
            context = order.topk(self.most_context, 1).indices
        return Subsets(first(context, size, self.most_context), first(index, height * width, self.most_target))

    def _num_places(self, num: int, length: Tensor) -> Tensor:
        """Where a block may start: the released code leaves out the last place."""
        return num - length if self.released else num - length + 1

    def _context(self, covering: Tensor, draw: Tensor, generator: Generator) -> Tensor:
        """Patches of each picture's context, bool [B, N].

        Args:
            covering: float [B, N], targets of each patch, see ``layers``; draw: decides over the size.
        """
        device, (rows, columns) = draw.device, self.grid
        height, width = self._size(self.context_scale, (1, 1), draw, draw)
        # Blocks are large, so there are few places [P, Q] where they may start.
        top = torch.arange(rows - self._least_context[0] + 1, device=device)
        left = torch.arange(columns - self._least_context[1] + 1, device=device)
        fits = (top < self._num_places(rows, height))[:, None] & (left < self._num_places(columns, width))
        down, right = covers(top, height, rows), covers(left, width, columns)
        blocks = (down[:, None, :, None] & right[:, None]).flatten(2).flatten(0, 1)  # [P Q, N]
        respected = torch.arange(self.num_targets + 1, device=device)  # the first of the targets
        limit = (self.num_targets - respected).exp2()  # patches with less are free
        is_free = (limit[:, None] - covering[:, None]).clamp_(0, 1)  # [B, M + 1, N]; of whole numbers, so 0 or 1
        kept = is_free @ blocks.to(is_free.dtype).T  # [B, M + 1, P Q], of a block at each place
        preference = torch.rand((len(covering), 1, len(blocks)), generator=generator, device=device)
        preference = preference + respected[:, None]
        chosen = torch.where((kept > self.min_keep) & fits.flatten(), preference, -1).flatten(1).argmax(1)  # [B]
        return blocks[chosen % len(blocks)] & (covering < limit[chosen // len(blocks), None])
