"""Rotated NMS against golden keep lists and the greedy loop that defines it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from perception.detection import nms
from perception.detection.nms import rotated_nms, rotated_nms_batched
from worldmodels.geometry.overlap import bev_iou


def scattered(num: int, objects: int, seed: int) -> tuple[Tensor, Tensor]:
    """``num`` boxes that jitter about ``objects`` places, and their scores."""
    generator = Generator().manual_seed(seed)
    places = 40 * torch.rand(objects, 7, generator=generator, dtype=torch.float64)
    places[:, 3:6] = 1 + places[:, 3:6] / 12
    noise = torch.randn(num, 7, generator=generator, dtype=torch.float64)
    boxes = places[torch.randint(objects, (num,), generator=generator)]
    boxes = boxes + noise * torch.tensor([0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.2])
    return boxes, torch.rand(num, generator=generator, dtype=torch.float64)


def greedy(boxes: Tensor, scores: Tensor, iou: float, max_keep: int) -> list[int]:
    """The definition: the best box left is kept, what it overlaps goes."""
    overlap, kept = bev_iou(boxes, boxes), []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if len(kept) < max_keep and not (overlap[i, kept] > iou).any():
            kept.append(i)
    return kept


@pytest.mark.data
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("iou", [0.01, 0.1, 0.3, 0.7])
def test_golden_keep_lists(shared_data, dtype, iou):
    path = shared_data / "kitti_eval_golden" / "nms.npz"
    if not path.is_file():
        pytest.skip("needs ../shared/data/kitti_eval_golden")
    golden = np.load(path, allow_pickle=False)
    boxes, scores = (torch.from_numpy(golden[name]).to(dtype) for name in ("boxes", "scores"))
    assert rotated_nms(boxes, scores, iou, 300).tolist() == golden[f"keep_{iou}"].tolist()


@given(
    seed=st.integers(0, 10_000),
    num=st.integers(1, 80),
    objects=st.integers(1, 20),
    iou=st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.8]),
    max_keep=st.integers(1, 90),
    block=st.sampled_from([1, 3, 16, 256]),
    has_ties=st.booleans(),
)
def test_is_the_greedy_answer(seed, num, objects, iou, max_keep, block, has_ties):
    boxes, scores = scattered(num, objects, seed)
    scores = scores.mul(4).round() if has_ties else scores
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms, "CPU_BLOCK", block)
        found = rotated_nms(boxes, scores, iou, max_keep)
    assert found.tolist() == greedy(boxes, scores, iou, max_keep)


def test_a_sample_does_not_see_its_batch_mates():
    sizes, max_keep = (300, 0, 40, 1), 50
    boxes, scores = torch.randn(4, 300, 7).double(), torch.randn(4, 300).double()
    valid = torch.zeros(4, 300, dtype=torch.bool)
    scenes = [scattered(size, 30, seed) for seed, size in enumerate(sizes)]
    for i, (its_boxes, its_scores) in enumerate(scenes):
        place = torch.randperm(300, generator=Generator().manual_seed(i))[: len(its_boxes)].sort().values
        boxes[i, place], scores[i, place], valid[i, place] = its_boxes, its_scores, True
    scores[1] = torch.nan  # of boxes that do not exist
    found = rotated_nms_batched(boxes, scores, valid, iou=0.1, max_keep=max_keep)
    assert found.shape == (4, max_keep)
    for i, (its_boxes, its_scores) in enumerate(scenes):
        place = valid[i].nonzero()[:, 0]
        alone = place[rotated_nms(its_boxes, its_scores, 0.1, max_keep)]
        assert found[i].tolist() == alone.tolist() + [-1] * (max_keep - len(alone))
    assert not valid[1].any()
    assert int((found[0] >= 0).sum()) > 10


def test_no_boxes_and_wrong_ones():
    boxes, scores = scattered(5, 2, 0)
    assert rotated_nms(boxes[:0], scores[:0], 0.1, 3).tolist() == []
    with pytest.raises(ValueError, match=r"these are \[1, 5, 7\], \[1, 4\], \[1, 4\]"):
        rotated_nms(boxes, scores[:4], 0.1, 3)
    with pytest.raises(ValueError, match="max_keep=0 must be at least 1"):
        rotated_nms(boxes, scores, 0.1, 0)
    scores[1] = torch.nan
    with pytest.raises(ValueError, match="1 of 5 boxes or scores are not finite"):
        rotated_nms(boxes, scores, 0.1, 3)


@pytest.mark.gpu
def test_a_gpu_keeps_the_same():
    boxes, scores = scattered(2000, 200, 0)
    for iou in (0.01, 0.5):
        found = rotated_nms(boxes.cuda(), scores.cuda(), iou, 500)
        assert found.cpu().tolist() == rotated_nms(boxes, scores, iou, 500).tolist()
