"""Greedy non-maximum suppression on rotated bird's-eye-view IoU, vectorised over boxes and samples.

A box is kept unless a kept box of higher score overlaps it by more than the threshold. Boxes are decided in blocks of
falling score. Within a block, "keep whoever no kept better neighbour suppresses" is repeated until it changes nothing,
which gives the greedy answer: the k-th best box is right after k rounds at most, and mostly all are after two or three.
Then the kept boxes of the block remove what they overlap from the rest. So most boxes are never compared with each
other, and memory is that of a block by all boxes, not of all pairs.

Sheet ad_l_jepa, sections 2.1 and 5.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodels.geometry.boxes import check_boxes
from worldmodels.geometry.overlap import bev_iou, close_pairs, split_pairs

# Boxes decided at once. A GPU waits for the host once a block, so there blocks are few.
CPU_BLOCK, GPU_BLOCK = 256, 1024


def rotated_nms(boxes: Tensor, scores: Tensor, iou: int | float, max_keep: int) -> Tensor:
    """Which boxes to keep.

    Args:
        boxes: [N, 7], see ``worldmodels.geometry.boxes``.
        scores: [N], any real numbers; of equal ones the first counts as higher.
        iou: boxes that overlap a kept one by more than this, seen from above, are dropped.
        max_keep: at most this many are kept.

    Returns:
        int64 [K], indices in order of falling score. K depends on the data, so this waits for the device.

    Raises:
        ValueError: if shapes disagree, boxes or scores are not finite, or ``max_keep`` is less than 1.
    """
    valid = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    index = rotated_nms_batched(boxes[None], scores[None], valid[None], iou=iou, max_keep=max_keep)[0]
    return index[index >= 0]


@torch.no_grad()
def rotated_nms_batched(boxes: Tensor, scores: Tensor, valid: Tensor, *, iou: int | float, max_keep: int) -> Tensor:
    """``rotated_nms`` of every sample of a batch.

    Args:
        boxes: [B, N, 7]; scores: [B, N]; valid: bool [B, N], boxes that exist.
        iou, max_keep: as in ``rotated_nms``.

    Returns:
        int64 [B, max_keep], indices into N in order of falling score, then -1.
    """
    _check(boxes, scores, valid, max_keep)
    batch, num = scores.shape
    if num == 0:
        return scores.new_full((batch, max_keep), -1, dtype=torch.int64)
    order = scores.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    boxes, is_open = _take(boxes, order), valid.gather(1, order)  # open: not decided yet
    keep = torch.zeros_like(is_open)
    block = CPU_BLOCK if boxes.device.type == "cpu" else GPU_BLOCK
    while True:
        is_open &= keep.sum(1, keepdim=True) < max_keep
        index, is_real = _front(is_open)  # [B, n], best first
        if not index.shape[1]:
            break
        rest = _take(boxes, index)
        head = rest[:, :block]
        kept = _keep_in_block(head, is_real[:, :block], iou)
        before = keep.gather(1, index[:, :block])  # padding may name boxes kept in an earlier block
        keep.scatter_(1, index[:, :block], kept | before)
        is_open.scatter_(1, index[:, :block], False)
        if index.shape[1] > block:
            winners, is_winner = _front(kept)
            pairs = is_winner[:, :, None] & is_real[:, None, block:]
            hit = _overlapping(_take(head, winners), rest[:, block:], pairs, iou)
            survives = is_real[:, block:] & ~_any(hit[:, 0], hit[:, 2], is_real[:, block:].shape)
            is_open.scatter_(1, index[:, block:], survives)
    rank = keep.cumsum(1)
    slot = torch.where(keep & (rank <= max_keep), rank - 1, max_keep)  # what is left out goes to an extra slot
    found = order.new_full((batch, max_keep + 1), -1).scatter_(1, slot, order)
    return found[:, :max_keep]


def _keep_in_block(boxes: Tensor, is_real: Tensor, iou: int | float) -> Tensor:
    """Greedy answer for boxes [B, C, 7] sorted by falling score: bool [B, C]."""
    size = boxes.shape[1]
    is_better = torch.ones(size, size, dtype=torch.bool, device=boxes.device).triu(1)  # row before column
    pairs = is_better & is_real[:, :, None] & is_real[:, None, :]
    sample, better, worse = _overlapping(boxes, boxes, pairs, iou).unbind(1)
    keep = is_real
    while True:
        active = keep[sample, better]
        settled = is_real & ~_any(sample, worse, keep.shape, active)
        if torch.equal(settled, keep):
            return keep
        keep = settled


def _overlapping(a: Tensor, b: Tensor, pairs: Tensor, iou: int | float) -> Tensor:
    """Those ``pairs`` bool [B, N, M] of boxes [B, N, 7] and [B, M, 7] that overlap by more than ``iou``: [P, 3]."""
    found = []
    for part in split_pairs(pairs & close_pairs(a, b)):
        sample, row, column = part.unbind(1)
        found.append(part[bev_iou(a[sample, row], b[sample, column], paired=True) > iou])
    return torch.cat(found)


def _any(sample: Tensor, index: Tensor, shape: torch.Size, flag: Tensor | None = None) -> Tensor:
    """Bool ``shape`` [B, N]: whether any of the P (sample, index) with a true flag names an entry."""
    flag = torch.ones_like(sample) if flag is None else flag.long()
    count = flag.new_zeros(shape).view(-1).index_add_(0, sample * shape[1] + index, flag)
    return count.view(shape) > 0


def _front(flag: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the true entries of bool [B, N], in order, and which of them are no padding: [B, n] each.

    n is the largest number of any sample, which the device must say.
    """
    size = int(flag.sum(1).max())
    index = flag.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
    return index, flag.gather(1, index)


def _take(boxes: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [B, n] of ``boxes`` [B, N, 7]."""
    return boxes.gather(1, index[..., None].expand(-1, -1, boxes.shape[-1]))


def _check(boxes: Tensor, scores: Tensor, valid: Tensor, max_keep: int) -> None:
    check_boxes(boxes)
    if boxes.ndim != 3 or scores.shape != boxes.shape[:2] or valid.shape != scores.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (boxes, scores, valid))
        raise ValueError(f"boxes, scores and valid are [B, N, 7], [B, N], [B, N]; these are {shapes}")
    if max_keep < 1:
        raise ValueError(f"max_keep={max_keep} must be at least 1")
    bad = ~(boxes.isfinite().all(-1) & scores.isfinite()) & valid
    if bool(bad.any()):
        raise ValueError(f"{int(bad.sum())} of {int(valid.sum())} boxes or scores are not finite")
