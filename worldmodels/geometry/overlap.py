"""How much upright boxes overlap: exact areas and volumes of rotated rectangles, vectorised, nothing compiled.

Notable: no polygon is built and nothing is sorted. In the frame of rectangle A, which is then the range |x| <= p,
|y| <= q, take Q(x, y) = clamp(x, -p, p) where |y| <= q and 0 elsewhere. Its derivative along x is 1 inside A and 0
outside, so by Green's theorem the area that A shares with rectangle B is the integral of Q dy around B. Along an edge,
y is cut to [-q, q] and Q is linear in at most three pieces. Every term is continuous in the boxes, so equal boxes,
shared edges and touching corners need no rule of their own, and rounding costs no more than rounding.

Sheet ad_l_jepa, section 5.2, uses the edges of both rectangles and a rule for collinear ones; here B's are enough.
Boxes are [x, y, z, dx, dy, dz, heading], see ``worldmodels.geometry.boxes``. Gradients are not the purpose.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldmodels.geometry.boxes import CORNERS, check_boxes

# Pairs whose overlap is computed at once: what fits the cache of a CPU, what fills a GPU. Memory is bounded by it.
CPU_CHUNK, GPU_CHUNK = 1 << 13, 1 << 20


def bev_intersection(a: Tensor, b: Tensor, *, paired: bool = False) -> Tensor:
    """Area shared by the boxes seen from above, m^2.

    Args:
        a: [..., N, 7]; b: [..., M, 7], same dtype; leading dimensions broadcast.
        paired: compare row n of ``a`` with row n of ``b`` (N = M, or one of them 1) instead of all with all.

    Returns:
        [..., N, M]; [..., N] if paired. All with all costs one distance a pair and the exact area of close pairs only;
        their number is read from the device. Paired computes every row and waits for nothing.

    Raises:
        ValueError: if the boxes are not float [..., 7] of one dtype.
    """
    if paired:
        _check_pair(a, b)
        return rectangle_intersection(a, b)
    return _of_close_pairs(a, b, rectangle_intersection)


def bev_iou(a: Tensor, b: Tensor, *, paired: bool = False) -> Tensor:
    """Area shared over area covered, seen from above, in [0, 1]. Arguments and shapes as in ``bev_intersection``."""
    if paired:
        _check_pair(a, b)
        return _pair_bev_iou(a, b)
    return _of_close_pairs(a, b, _pair_bev_iou)


def iou_3d(a: Tensor, b: Tensor, *, paired: bool = False) -> Tensor:
    """Volume shared over volume covered, in [0, 1]. Arguments and shapes as in ``bev_intersection``."""
    if paired:
        _check_pair(a, b)
        return _pair_iou_3d(a, b)
    return _of_close_pairs(a, b, _pair_iou_3d)


def close_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Which boxes' circumscribed circles meet, seen from above: bool [..., N, M] for [..., N, 7] and [..., M, 7].

    No others share any area.
    """
    reach = [torch.linalg.vector_norm(boxes[..., 3:5], dim=-1) / 2 for boxes in (a, b)]
    x = a[..., :, None, 0] - b[..., None, :, 0]
    y = a[..., :, None, 1] - b[..., None, :, 1]
    limit = reach[0][..., :, None] + reach[1][..., None, :]
    return x.square_().addcmul_(y, y) < limit.square_()


def split_pairs(is_pair: Tensor) -> tuple[Tensor, ...]:
    """Indices of the true entries of a bool tensor of D dimensions, int64 [P, D], in parts of bounded size.

    Waits for the device: it must say how many there are.
    """
    return is_pair.nonzero().split(CPU_CHUNK if is_pair.device.type == "cpu" else GPU_CHUNK)


def rectangle_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Exact area shared, row by row: [...] for [..., 7] and [..., 7], which broadcast. No prefilter."""
    x, y = b[..., 0] - a[..., 0], b[..., 1] - a[..., 1]  # a local origin: large coordinates cost no digits
    cos, sin = a[..., 6].cos(), a[..., 6].sin()
    turn = b[..., 6] - a[..., 6]
    center = torch.stack((cos * x + sin * y, cos * y - sin * x))  # [2, ...], b in a's frame
    axis = torch.stack((turn.cos(), turn.sin()))
    forward, left = axis * (b[..., 3] / 2), torch.stack((-axis[1], axis[0])) * (b[..., 4] / 2)
    start = torch.stack([center + u * forward + v * left for u, v in CORNERS], 1)  # [2, 4, ...]
    end = start.roll(-1, 1)  # the edges run counter-clockwise
    half = a[..., 3:5].movedim(-1, 0)[:, None] / 2  # [2, 1, ...]
    area = _boundary_integral(start, end, half).sum(0)
    # Beside A the terms cancel to within one unit of rounding of A's area; "overlaps at all" must not see that.
    rounding = 4 * torch.finfo(area.dtype).eps * a[..., 3] * a[..., 4]
    return torch.where(area > rounding, area, 0)


def _boundary_integral(start: Tensor, end: Tensor, half: Tensor) -> Tensor:
    """Integral of Q dy (see the top of this file) along the segments from ``start`` to ``end``, [2, ...] each."""
    (x0, y0), (x1, y1), (p, q) = start, end, half
    low, high = y0.clamp(-q, q), y1.clamp(-q, q)
    slope = (x1 - x0) / torch.where(y1 == y0, 1, y1 - y0)  # where y does not change, nothing is integrated
    # Rounding must not push the ends of nearly level segments far away: x stays between x0 and x1.
    left, right = torch.minimum(x0, x1), torch.maximum(x0, x1)
    first = (x0 + (low - y0) * slope).clamp(left, right)
    last = (x0 + (high - y0) * slope).clamp(left, right)

    # Mean of clamp(x, -p, p) as x runs evenly from ``first`` to ``last``: a middle piece and two constant ones.
    left, right = torch.minimum(first, last), torch.maximum(first, last)
    length = right - left
    length = torch.where(length == 0, 1, length)
    inner_left, inner_right = left.clamp(-p, p), right.clamp(-p, p)
    middle = (inner_left + inner_right) / 2
    below = (inner_left - left).clamp_min(0) / length  # shares of the run
    above = (right - inner_right).clamp_min(0) / length
    mean = middle + below * (-p - middle) + above * (p - middle)
    return mean * (high - low)


def _pair_bev_iou(a: Tensor, b: Tensor) -> Tensor:
    shared = rectangle_intersection(a, b)
    return _ratio(shared, a[..., 3] * a[..., 4] + b[..., 3] * b[..., 4] - shared)


def _pair_iou_3d(a: Tensor, b: Tensor) -> Tensor:
    top = torch.minimum(a[..., 2] + a[..., 5] / 2, b[..., 2] + b[..., 5] / 2)
    bottom = torch.maximum(a[..., 2] - a[..., 5] / 2, b[..., 2] - b[..., 5] / 2)
    shared = rectangle_intersection(a, b) * (top - bottom).clamp_min(0)
    return _ratio(shared, a[..., 3:6].prod(-1) + b[..., 3:6].prod(-1) - shared)


def _ratio(shared: Tensor, covered: Tensor) -> Tensor:
    """IoU; 0 for boxes without size."""
    return (shared / torch.where(covered > 0, covered, 1)).clamp_max(1)


def _of_close_pairs(a: Tensor, b: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``function`` of every close pair and 0 elsewhere, [..., N, M]."""
    _check_pair(a, b)
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = a.expand(*lead, -1, -1), b.expand(*lead, -1, -1)
    is_close = close_pairs(a, b)
    result = a.new_zeros(is_close.shape)
    for part in split_pairs(is_close):
        *where, row, column = part.unbind(1)
        result[(*where, row, column)] = function(a[(*where, row)], b[(*where, column)])
    return result


def _check_pair(a: Tensor, b: Tensor) -> None:
    check_boxes(a)
    check_boxes(b)
    if a.dtype != b.dtype:
        raise ValueError(f"boxes of {a.dtype} and {b.dtype} cannot be compared: convert one of them")
