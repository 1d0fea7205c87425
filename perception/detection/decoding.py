"""From candidates to detections: the same last step for every head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from perception.detection.nms import rotated_nms_batched

MIN_SIDE = 1e-3  # m; shorter sides are no box, and a result file would round them to nothing


class Detections(NamedTuple):
    """What a head finds, best first."""

    boxes: Tensor  # float32 [B, K, 7], zero where padding
    scores: Tensor  # float32 [B, K], 0 where padding
    labels: Tensor  # int64 [B, K], class; -1 where padding


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, is_valid: Tensor, *, iou: float, max_detections: int
) -> Detections:
    """Keep the best of boxes that overlap from above by more than ``iou``, whatever their classes.

    An untrained or broken head may say boxes of no or of endless size: they are no candidates.

    Args:
        boxes: [B, N, 7]; scores: [B, N]; labels: int64 [B, N]; is_valid: bool [B, N], which are candidates at all.
        iou: rotated BEV IoU; max_detections: K.
    """
    is_box = boxes.isfinite().all(-1) & (boxes[..., 3:6] >= MIN_SIDE).all(-1)
    index = rotated_nms_batched(boxes, scores, is_valid & is_box, iou=iou, max_keep=max_detections)  # [B, K]
    is_kept, index = index >= 0, index.clamp_min(0)
    return Detections(
        boxes=torch.where(is_kept[..., None], take(boxes, index), 0.0),
        scores=torch.where(is_kept, scores.gather(1, index), 0.0),
        labels=torch.where(is_kept, labels.gather(1, index), -1),
    )


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` int64 [B, K] of ``values`` [B, N, D]: [B, K, D]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
