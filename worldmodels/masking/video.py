"""Masks of clips: what a context shows of a grid of time, rows and columns, and what is asked for.

Places are numbered t H W + h W + w. Contexts of a batch have one length, and so have its targets: what is too long
loses tokens. Here it loses random *columns* of the grid, places in the picture with all their steps, so that no step is
shown less often than another; V-JEPA's code keeps the first entries of the sorted list, which are those of the first
frames (``released``; sheet salt_video, section 1.2, has measured what that does).

Sources: Bardes et al. 2024 (V-JEPA, arXiv 2404.08471), section 3 and its code; Tong et al. 2022 (VideoMAE) for tubes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor

from worldmodels.masking import padding
from worldmodels.masking.padding import Subsets

Range = int | float | Sequence[int | float]


class VideoMask(ABC):
    """One context and one set of targets a clip, from what a subclass shows.

    Args:
        grid: T, H, W.
        most_shown, most_hidden: greatest number of tokens that ``visible`` can show and hide.
        max_context, max_target: greatest share of all tokens that is kept; None: no limit. On a GPU, where shapes are
            fixed, this is what they cost, and what is beyond the batch's own length is padding.
        full_complement: ask for all that the context, cut to its length, does not show.
        pred_full_complement: show all that is not asked for, after targets are cut to their length.
        inv_block: exchange context and targets, last of all.
        released: cut as V-JEPA's code does, see the module.

    Raises:
        ValueError: for a grid without three axes, or settings that exclude each other.
    """

    def __init__(
        self,
        grid: Sequence[int],
        *,
        most_shown: int,
        most_hidden: int,
        max_context: int | float | None = None,
        max_target: int | float | None = None,
        full_complement: bool = False,
        pred_full_complement: bool = False,
        inv_block: bool = False,
        released: bool = False,
    ) -> None:
        self.grid, self.released, self.inv_block = check_grid(grid), released, inv_block
        if full_complement and pred_full_complement:
            raise ValueError("full_complement and pred_full_complement exclude each other: set one of them")
        self.full_complement, self.pred_full_complement = full_complement, pred_full_complement
        self.num = math.prod(self.grid)
        self._limits = (
            self._limit(most_shown, max_context, "max_context"),
            self._limit(most_hidden, max_target, "max_target"),
        )
        self.most_context = self.num - 1 if pred_full_complement else self._limits[0]
        self.most_target = self.num - 1 if full_complement else self._limits[1]
        if inv_block:
            self.most_context, self.most_target = self.most_target, self.most_context

    def _limit(self, most: int, share: int | float | None, what: str) -> int:
        """Tokens kept at most, those of whole columns: one or more."""
        if share is None:
            return most
        if not 0 < share <= 1:
            raise ValueError(f"{what}={share}: a share of all tokens lies within (0, 1]")
        steps = self.grid[0]
        return min(most, steps * max(1, int(self.num * share) // steps))

    @abstractmethod
    def visible(self, batch_size: int, generator: Generator) -> Tensor:
        """Tokens that a context may show, at least one a clip and not all; the others are asked for.

        Returns:
            bool [B, T, H W], or [B, 1, H W] for what is the same at every step.
        """

    def __call__(self, batch_size: int, generator: Generator) -> Subsets:
        """Draw for ``batch_size`` clips, on the device of ``generator``: indices ascend, padding comes last."""
        is_shown = self.visible(batch_size, generator)
        if self.released:
            is_shown = is_shown.expand(-1, self.grid[0], -1)  # [B, T or 1, H W]
        like = {"generator": generator, "device": generator.device}
        columns = torch.rand((batch_size, is_shown.shape[2]), **like).argsort(1)  # the first are kept
        steps = torch.rand((batch_size, is_shown.shape[1]), **like)
        shown, asked = (
            self._equalised(part, most, columns, steps)
            for part, most in zip((is_shown, ~is_shown), self._limits, strict=True)
        )
        if self.full_complement:
            asked = ~shown
        elif self.pred_full_complement:
            shown = ~asked
        if self.inv_block:
            shown, asked = asked, shown
        context, targets = (
            _indices(shown, self.grid[0], self.most_context),
            _indices(asked, self.grid[0], self.most_target),
        )
        return Subsets(context, targets[:, None])

    def _equalised(self, is_in: Tensor, most: int, columns: Tensor, steps: Tensor) -> Tensor:
        """As many of the tokens ``is_in`` [B, T or 1, H W] of a clip as the least clip has, but at most ``most``."""
        size = is_in.sum((1, 2)).min().clamp_max(most * is_in.shape[1] // self.grid[0])
        if self.released:
            flat = is_in.flatten(1)
            return (flat & (flat.cumsum(1) <= size)).view_as(is_in)
        return without_columns(is_in, size, columns, steps)


def without_columns(is_in: Tensor, size: Tensor, columns: Tensor, steps: Tensor) -> Tensor:
    """Leave out columns of every clip until ``size`` tokens are left; of the last of them, single tokens.

    Args:
        is_in: bool [B, T, C], at least ``size`` true entries a clip; size: int64, a scalar.
        columns: int64 [B, C], an order; the first are kept. steps: float [B, T], likewise the smallest.

    Returns:
        bool [B, T, C], true for exactly ``size`` entries a clip.
    """
    of_each = is_in.sum(1).gather(1, columns)  # [B, C], in their order
    room = size - (of_each.cumsum(1) - of_each)  # tokens of a column that may stay; what stays whole has enough
    room = torch.empty_like(room).scatter_(1, columns, room)[:, None]  # [B, 1, C]
    is_earlier = steps[:, None] <= steps[..., None]  # [B, T, T]
    rank = is_earlier.float() @ is_in.float()  # [B, T, C], from 1
    return is_in & (rank <= room)


def _indices(is_in: Tensor, steps: int, most: int) -> Tensor:
    """Where ``is_in`` [B, T or 1, C] holds in T = ``steps`` steps, ascending, [B, K]; all clips have as many.

    On a GPU [B, most], -1 beyond.
    """
    num, columns = len(is_in), is_in.shape[2]
    if padding.is_cut(is_in.device):
        index = is_in.flatten(1).nonzero()[:, 1].view(num, 1, -1)
        later = columns * torch.arange(steps // is_in.shape[1], device=is_in.device)[:, None]  # of what never changes
        return (index + later).flatten(1)
    flat = is_in.expand(-1, steps, -1).flatten(1)
    place = torch.where(flat, flat.cumsum(1) - 1, most)  # what is out goes one beyond the end
    index = torch.arange(flat.shape[1], device=flat.device).expand_as(place)
    return place.new_full((num, most + 1), -1).scatter_(1, place, index)[:, :most]


class RandomTubes(VideoMask):
    """Shows random places of the picture for the whole clip and asks for all others (VideoMAE).

    Args:
        grid: T, H, W; context: share of the places that is shown.
    """

    def __init__(self, grid: Sequence[int], *, context: int | float = 0.1) -> None:
        steps, rows, columns = check_grid(grid)
        self.num_shown = _part(context, rows * columns)
        most = steps * self.num_shown
        super().__init__(grid, most_shown=most, most_hidden=steps * rows * columns - most)

    def visible(self, batch_size: int, generator: Generator) -> Tensor:
        """See ``VideoMask``."""
        _, rows, columns = self.grid
        return random_part((batch_size, 1, rows * columns), self.num_shown, generator)


class RandomTokens(VideoMask):
    """Shows random tokens and asks for all others.

    Args:
        grid: T, H, W; context: share of the tokens that is shown.
    """

    def __init__(self, grid: Sequence[int], *, context: int | float = 0.1) -> None:
        num = math.prod(check_grid(grid))
        self.num_shown = _part(context, num)
        super().__init__(grid, most_shown=self.num_shown, most_hidden=num - self.num_shown)

    def visible(self, batch_size: int, generator: Generator) -> Tensor:
        """See ``VideoMask``."""
        return random_part((batch_size, self.num), self.num_shown, generator).view(batch_size, self.grid[0], -1)


class Families:
    """Several masks of the same clips, by name: V-JEPA's short-range and long-range ones.

    Args:
        grid: T, H, W; families: factories ``mask(grid)``, by name.
    """

    def __init__(self, grid: Sequence[int], *, families: Mapping[str, Callable[..., VideoMask]]) -> None:
        check_grid(grid)
        if not families:
            raise ValueError("masks.families is empty: name one or more masks")
        self.families = {str(name): make(grid) for name, make in families.items()}

    def __call__(self, batch_size: int, generator: Generator) -> dict[str, Subsets]:
        """Context [B, K] and targets [B, 1, K'] of every family, one after another."""
        return {name: mask(batch_size, generator) for name, mask in self.families.items()}


def random_part(shape: tuple[int, ...], num: int, generator: Generator) -> Tensor:
    """Bool of ``shape``, ``num`` random entries of each last dimension true."""
    order = torch.rand(shape, generator=generator, device=generator.device).argsort(-1)
    is_in = torch.arange(shape[-1], device=order.device) < num
    return torch.zeros(shape, dtype=torch.bool, device=order.device).scatter_(-1, order, is_in.expand(shape))


def check_grid(grid: Sequence[int]) -> tuple[int, int, int]:
    """T, H, W; a ValueError for grids of another kind."""
    if len(grid) != 3:
        raise ValueError(
            f"masks of clips need a grid of time, rows and columns, not {tuple(grid)}: use encoder=video_tiny"
        )
    steps, rows, columns = grid
    return steps, rows, columns


def limits(value: Range, what: str, *, most: float = 1.0) -> tuple[float, float]:
    """Least and greatest of a range, or of a number alone; a ValueError if they lie outside of (0, most]."""
    low, high = (value, value) if isinstance(value, int | float) else value
    if not 0 < low <= high <= most:
        raise ValueError(f"{what}={value}: a number, or the least and the greatest, above 0 and at most {most:g}")
    return float(low), float(high)


def _part(share: int | float, num: int) -> int:
    """A share of ``num`` as a number; neither nothing nor all of it."""
    part = round(share * num)
    if not 0 < part < num:
        raise ValueError(f"context={share} of {num} places is {part}: something must be shown and something hidden")
    return part
