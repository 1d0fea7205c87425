"""The last step of decoding: suppression across classes, padding, samples of unlike size."""

from __future__ import annotations

import pytest
import torch

from perception.detection.decoding import suppress


def row_of_boxes(num: int, step: float) -> torch.Tensor:
    """Boxes of 4 x 2 x 1.5 m, ``step`` metres apart: [num, 7]."""
    boxes = torch.tensor([0.0, 0, 0, 4, 2, 1.5, 0]).repeat(num, 1)
    boxes[:, 0] = step * torch.arange(num)
    return boxes


def test_the_best_of_overlapping_boxes_stays_whatever_the_classes():
    boxes = row_of_boxes(6, 3.0)[None]  # neighbours share a metre: IoU 1/7
    scores, labels = torch.tensor([[0.5, 0.9, 0.3, 0.2, 0.8, 0.7]]), torch.tensor([[0, 1, 2, 0, 1, 2]])
    found = suppress(boxes, scores, labels, torch.ones(1, 6, dtype=torch.bool), iou=0.01, max_detections=4)
    assert found.labels.tolist() == [[1, 1, -1, -1]]
    assert found.scores.tolist() == [pytest.approx([0.9, 0.8, 0, 0])]
    assert found.boxes[0, :, 0].tolist() == [3, 12, 0, 0]
    alone = torch.tensor([[True, False, True, True, False, True]])
    found = suppress(boxes, scores, labels, alone, iou=0.01, max_detections=4)
    assert found.scores.tolist() == [pytest.approx([0.7, 0.5, 0.3, 0])]  # 0.2 stands beside 0.3
    found = suppress(boxes, scores, labels, alone, iou=0.2, max_detections=4)
    assert found.scores.tolist() == [pytest.approx([0.7, 0.5, 0.3, 0.2])]


@pytest.mark.parametrize("side", [0.0, 1e-9, -1.0, torch.inf, torch.nan])
def test_what_is_no_box_is_not_found(side):
    boxes = row_of_boxes(4, 5.0)[None].repeat(2, 1, 1)
    boxes[1, 2, 4] = side
    scores = torch.tensor([[0.5, 0.9, 0.7, 0.2]]).repeat(2, 1)
    found = suppress(
        boxes, scores, torch.zeros(2, 4).long(), torch.ones(2, 4, dtype=torch.bool), iou=0.01, max_detections=4
    )
    assert (found.labels >= 0).sum(1).tolist() == [4, 3]
    assert found.scores[1].tolist() == pytest.approx([0.9, 0.5, 0.2, 0])
    assert found.boxes.isfinite().all()


def test_a_sample_that_is_done_early_keeps_its_boxes():
    """Suppression goes on in blocks for the crowded sample; the others must not lose what they kept."""
    sizes, num = (1500, 10, 0, 300), 1500
    boxes = row_of_boxes(num, 5.0).repeat(4, 1, 1)
    scores = torch.rand(4, num)
    is_valid = torch.arange(num) < torch.tensor(sizes)[:, None]
    found = suppress(boxes, scores, torch.zeros(4, num).long(), is_valid, iou=0.01, max_detections=500)
    assert (found.labels >= 0).sum(1).tolist() == [500, 10, 0, 300]
    for sample, size in enumerate(sizes):
        best = scores[sample, :size].sort(descending=True).values[:500]
        assert torch.equal(found.scores[sample, : len(best)], best)
