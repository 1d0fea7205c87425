"""Which anchor stands for which box.

Anchors stand on a grid and the overlap is that of axis-aligned rectangles, so it is a product of an overlap along x
[.., X] and one along y [.., Y]: one multiplication a pair. A box meets the anchors of its own class only.

Source: sheet ad_l_jepa, section 2.1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from perception.detection.anchors import AnchorGrid
from worldmodels.geometry.boxes import wrap

NEGATIVE, IGNORED = -1, -2
MAX_PAIRS = 2**24  # anchors x boxes compared at once: 64 MiB for each of a handful of intermediate tensors


class Assignment(NamedTuple):
    """For every anchor, in the head's order."""

    label: Tensor  # int64 [B, N]: class of the box it stands for; NEGATIVE: of none; IGNORED: takes no part
    box: Tensor  # int64 [B, N]: that box, an index into M; means nothing where label is negative


@torch.no_grad()
def assign(anchors: AnchorGrid, boxes: Tensor, box_class: Tensor) -> Assignment:
    """Assign labelled boxes to anchors, each class by itself.

    An anchor stands for the box of its class with which it has the greatest IoU, if that reaches "matched", or if some
    box has no anchor with a greater IoU (all that tie, however small above 0). Below "unmatched" it is negative, in
    between ignored. The IoU is seen from above, box and anchor turned to the nearer axis.

    Args:
        anchors: N = Y * X * C * R of them.
        boxes: [B, M, 7] labelled boxes, M at least 1; box_class: int64 [B, M], -1 for padding.

    Where the sheet is silent: an anchor that is some box's best stands for its own best box, as in OpenPCDet. Between
    boxes of equal IoU it takes the first.
    """
    pairs = boxes.shape[1] * math.prod(anchors.shape) // anchors.shape[2]  # of one sample
    parts = min(len(boxes), math.ceil(len(boxes) * pairs / MAX_PAIRS))
    if parts <= 1:
        return _assign(anchors, boxes, box_class)
    cut = zip(
        boxes.tensor_split(parts), box_class.tensor_split(parts), strict=True
    )  # samples know nothing of each other
    done = [_assign(anchors, *part) for part in cut]
    return Assignment(torch.cat([one.label for one in done]), torch.cat([one.box for one in done]))


def _assign(anchors: AnchorGrid, boxes: Tensor, box_class: Tensor) -> Assignment:
    overlap = iou_with_own_class(anchors, boxes, box_class)  # [B, M, R, Y, X]
    best = overlap.amax((2, 3, 4), keepdim=True)  # of a box
    is_best = overlap == torch.where(best > 0, best, math.inf)
    labels, indices = [], []
    for index in range(anchors.shape[2]):
        is_own = (box_class == index)[:, :, None, None, None]
        value, box = torch.where(is_own, overlap, -1.0).max(1)  # [B, R, Y, X]
        is_positive = (value >= anchors.matched[index]) | (is_best & is_own).any(1)
        rest = torch.where(value < anchors.unmatched[index], NEGATIVE, IGNORED)
        labels.append(torch.where(is_positive, index, rest))
        indices.append(box)
    # [B, Y, X, C, R] in one row
    label, box = (torch.stack(x, -1).permute(0, 2, 3, 4, 1).flatten(1) for x in (labels, indices))
    return Assignment(label, box)


def never_empty(boxes: Tensor, box_class: Tensor) -> tuple[Tensor, Tensor]:
    """The same ``boxes`` [B, M, 7] and ``box_class`` [B, M]; one padding box a sample where M is 0."""
    if boxes.shape[1]:
        return boxes, box_class
    return F.pad(boxes, (0, 0, 0, 1)), F.pad(box_class, (0, 1), value=-1)


def iou_with_own_class(anchors: AnchorGrid, boxes: Tensor, box_class: Tensor) -> Tensor:
    """IoU [B, M, R, Y, X] of each box [B, M, 7] with all anchors of its class, from above, axis-aligned.

    Zero for padding, where ``box_class`` int64 [B, M] is -1.
    """
    own = box_class.clamp_min(0)
    shape = anchors.shape[2:]
    extent = nearest_extent(anchors.sizes[:, None].expand(*shape, 3), anchors.headings.expand(shape))[
        own
    ]  # [B, M, R, 2]
    size = nearest_extent(boxes[..., 3:6], boxes[..., 6])[:, :, None]  # [B, M, 1, 2]
    x = shared_length(size[..., :1], extent[..., :1], boxes[..., None, :1] - anchors.x)  # [B, M, R, X]
    y = shared_length(size[..., 1:], extent[..., 1:], boxes[..., None, 1:2] - anchors.y)  # [B, M, R, Y]
    x = x * (box_class >= 0)[..., None, None]
    both = y[..., :, None] * x[..., None, :]  # [B, M, R, Y, X]
    areas = (extent.prod(-1) + size.prod(-1)).clamp_min(torch.finfo(both.dtype).tiny)
    return both / (areas[..., None, None] - both)


def nearest_extent(sizes: Tensor, heading: Tensor) -> Tensor:
    """Lengths [..., 2] along x and y of boxes of ``sizes`` [..., 3], with ``heading`` [...] at the nearer axis."""
    is_along_x = wrap(heading, 0.5, math.pi).abs() < math.pi / 4
    return torch.where(is_along_x[..., None], sizes[..., :2], sizes[..., :2].flip(-1))


def shared_length(one: Tensor, other: Tensor, distance: Tensor) -> Tensor:
    """Overlap of two intervals of lengths ``one`` and ``other`` whose centres lie ``distance`` apart, broadcast.

    Where one holds the other this is exactly the shorter length, wherever they lie, so that anchors that tie by
    geometry also tie in floating point.
    """
    return torch.minimum(torch.minimum(one, other), (one + other) / 2 - distance.abs()).clamp_min(0)
