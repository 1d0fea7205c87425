"""What every mask is made of: index sets of a whole batch, cut to size where looking is free and padded elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOST_BLOCKS = 24  # of a mask: bits that a float32 holds


class Subsets(NamedTuple):
    """What a row shows and what it asks for."""

    context: Tensor  # int64 [B, K]
    targets: Tensor  # int64 [B, M, K']


def counts(share: Sequence[float], num: int, *, what: str) -> tuple[int, int]:
    """Least and greatest number of tokens for a range of shares of ``num``; at least one each.

    Raises:
        ValueError: if the range is no range within (0, 1].
    """
    least, most = share
    if not 0 < least <= most <= 1:
        raise ValueError(f"{what}={list(share)}: shares lie within (0, 1], the smaller one first")
    low = max(1, round(num * least))
    return low, max(low, round(num * most))


def covers(start: Tensor, length: Tensor, num: int) -> Tensor:
    """Which of ``num`` places [..., num] an interval of ``length`` covers that begins at ``start`` [...]."""
    place = torch.arange(num, device=start.device)
    return (place >= start[..., None]) & (place < start[..., None] + length)


def layers(rows: Tensor, columns: Tensor) -> Tensor:
    """Which blocks cover each place, as a number with a bit for every block, that of the first the highest.

    Without the last n blocks a place is free where its number is below 2^n. One product of matrices adds up the bits.

    Args:
        rows, columns: bool [..., M, X] and [..., M, Y], where blocks are along two axes; M at most ``MOST_BLOCKS``.

    Returns:
        float [..., X, Y].
    """
    bits = torch.arange(rows.shape[-2] - 1, -1, -1, device=rows.device).exp2()[:, None]  # [M, 1]
    return (rows * bits).mT @ columns.to(bits.dtype)


def is_cut(device: torch.device) -> bool:
    """Whether what is short is cut to size instead of padded."""
    return device.type == "cpu"


def first(index: Tensor, size: Tensor, most: int) -> Tensor:
    """The first ``size`` entries of the last dimension: exactly those on a CPU; ``most`` with padding elsewhere."""
    if is_cut(index.device):
        return index[..., : int(size)]
    index = index[..., :most]
    return torch.where(torch.arange(most, device=index.device) < size, index, -1)


def validity(index: Tensor) -> Tensor | None:
    """Which entries are no padding; None if none is, so that attention needs no mask. Looks only where that is free."""
    is_valid = index >= 0
    if index.device.type != "cpu" or torch.compiler.is_compiling():
        return is_valid
    return None if bool(is_valid.all()) else is_valid


def union(targets: Tensor, num: int) -> Tensor:
    """Every token of ``targets`` [B, M, K'] once, [B, T], rows padded to the longest; on a GPU to min(M K', num).

    Args:
        targets: int64, indices below ``num``, -1 for padding; num: of tokens.
    """
    is_asked = torch.zeros((len(targets), num + 1), device=targets.device)
    is_asked = is_asked.scatter_(1, targets.flatten(1).remainder(num + 1), 1.0)[:, :num]  # padding marked one too many
    most = int(is_asked.sum(1).max()) if is_cut(targets.device) else min(targets[0].numel(), num)
    found, index = is_asked.topk(most, 1)
    return torch.where(found > 0, index, -1)
