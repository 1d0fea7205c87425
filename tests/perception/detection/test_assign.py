"""Anchors and their assignment: the published grid, ties by hand, and a slow reference written from the sheet alone."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perception.detection import assign as module
from perception.detection.anchors import AnchorGrid
from perception.detection.assign import IGNORED, NEGATIVE, assign

KITTI = {
    "Car": {"size": [3.9, 1.6, 1.56], "bottom": -1.78, "matched": 0.6, "unmatched": 0.45},
    "Pedestrian": {"size": [0.8, 0.6, 1.73], "bottom": -0.6, "matched": 0.5, "unmatched": 0.35},
    "Cyclist": {"size": [1.76, 0.6, 1.73], "bottom": -0.6, "matched": 0.5, "unmatched": 0.35},
}
FULL = {"low": (0, -40, -3), "high": (70.4, 40, 1), "grid": (200, 176)}
SMALL = {"low": (0.0, -3.0, -3.0), "high": (8.0, 3.0, 1.0), "grid": (9, 14)}


def grid_of(place=SMALL, classes=tuple(KITTI), anchors=KITTI) -> AnchorGrid:
    return AnchorGrid(**place, classes=classes, anchors=anchors)


def some_boxes(num_samples: int, num_boxes: int, *, place=SMALL) -> tuple[Tensor, Tensor]:
    """Boxes like anchors of their class at random places, some outside, some of odd sizes, some padding; float64."""
    sizes = torch.tensor([one["size"] for one in KITTI.values()], dtype=torch.float64)
    box_class = torch.randint(-1, 3, (num_samples, num_boxes))
    low, high = (torch.tensor(place[name], dtype=torch.float64) for name in ("low", "high"))
    boxes = torch.zeros(num_samples, num_boxes, 7, dtype=torch.float64)
    boxes[..., :3] = low - 0.5 + (high - low + 1) * torch.rand(num_samples, num_boxes, 3, dtype=torch.float64)
    scale = (0.2 * torch.randn(num_samples, num_boxes, 3, dtype=torch.float64)).exp()
    boxes[..., 3:6] = sizes[box_class.clamp_min(0)] * scale
    boxes[..., 6] = 4 * torch.randn(num_samples, num_boxes, dtype=torch.float64)
    return boxes * (box_class >= 0)[..., None], box_class


def rectangle(box: list[float]) -> tuple[float, float, float, float]:
    x, y, _, length, width, _, heading = box
    turned = math.remainder(heading, math.pi)  # within +-pi/2
    if abs(turned) >= math.pi / 4:
        length, width = width, length
    return x - length / 2, y - width / 2, x + length / 2, y + width / 2


def iou(one, other) -> float:
    x = min(one[2], other[2]) - max(one[0], other[0])
    y = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(x, 0.0) * max(y, 0.0)
    area = [(r[2] - r[0]) * (r[3] - r[1]) for r in (one, other)]
    return shared / (sum(area) - shared)


def reference(grid: AnchorGrid, boxes: Tensor, box_class: Tensor) -> tuple[list[int], list[int]]:
    """One sample, one class, one pair after the other."""
    names = list(KITTI.values())
    anchors = grid.boxes().flatten(0, 3).tolist()
    label, index = [NEGATIVE] * len(anchors), [-1] * len(anchors)
    for c, facts in enumerate(names):
        rows = [n for n in range(len(anchors)) if n // 2 % 3 == c]
        columns = [m for m, k in enumerate(box_class.tolist()) if k == c]
        if not columns:
            continue
        truth = [rectangle(boxes[m].tolist()) for m in columns]
        table = [[iou(rectangle(anchors[n]), t) for t in truth] for n in rows]
        best_of_box = [max(row[k] for row in table) for k in range(len(columns))]
        for n, row in zip(rows, table, strict=True):
            best = max(row)
            ties = any(b > 0 and v > b - 1e-12 for v, b in zip(row, best_of_box, strict=True))
            if best >= facts["matched"] or ties:
                label[n], index[n] = c, columns[row.index(best)]
            elif best >= facts["unmatched"]:
                label[n] = IGNORED
    return label, index


def test_published_grid():
    grid = grid_of(FULL)
    boxes = grid.boxes()
    assert boxes.shape == (200, 176, 3, 2, 7)
    assert boxes.numel() // 7 == 211_200
    assert grid.per_cell == 6
    torch.testing.assert_close(boxes[0, 0, 0, 0], torch.tensor([0, -40, -1.0, 3.9, 1.6, 1.56, 0]))  # on the limit
    torch.testing.assert_close(boxes[-1, -1, 1, 1], torch.tensor([70.4, 40, 0.265, 0.8, 0.6, 1.73, 1.57]))
    step = boxes[1, 1, 2, 0, :2] - boxes[0, 0, 2, 0, :2]
    assert step.tolist() == pytest.approx([70.4 / 175, 80 / 199], abs=1e-5)  # not the cells' 0.4


def test_classes_are_those_of_the_data_in_their_order():
    grid = grid_of(classes=("Cyclist", "Car"))
    assert grid.boxes()[0, 0, :, 0, 3].tolist() == pytest.approx([1.76, 3.9])
    assert not list(grid.parameters())
    assert not grid.state_dict()  # facts, not weights


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        (
            {k: v for k, v in KITTI.items() if k != "Cyclist"},
            "no entry for the class Cyclist .* it has Car, Pedestrian",
        ),
        ({**KITTI, "Car": {"size": [1, 1, 1], "bottom": 0, "matched": 0.6}}, "Car has size, bottom, matched; it needs"),
        ({**KITTI, "Car": {**KITTI["Car"], "size": [3.9, 1.6]}}, r"Car.size=\[3.9, 1.6\]: three lengths above 0"),
        ({**KITTI, "Car": {**KITTI["Car"], "size": [3.9, 1.6, 0]}}, r"Car.size=\[3.9, 1.6, 0\]: three lengths above 0"),
        ({**KITTI, "Car": {**KITTI["Car"], "matched": 0.4}}, "0 <= unmatched=0.45 <= matched=0.4 <= 1 fails"),
    ],
)
def test_wrong_anchors_are_named(anchors, message):
    with pytest.raises(ValueError, match=message):
        grid_of(anchors=anchors)


def test_no_classes_is_an_error():
    with pytest.raises(ValueError, match="at least one class"):
        grid_of(classes=())


@pytest.mark.parametrize("max_pairs", [module.MAX_PAIRS, 1])
def test_equals_a_slow_reference(max_pairs, monkeypatch):
    monkeypatch.setattr(module, "MAX_PAIRS", max_pairs)
    grid = grid_of().double()
    boxes, box_class = some_boxes(6, 7)
    box_class[-1], boxes[-1] = -1, 0.0  # a sample without boxes
    found = assign(grid, boxes, box_class)
    counts = {NEGATIVE: 0, IGNORED: 0, 0: 0, 1: 0, 2: 0}
    for sample in range(len(boxes)):
        label, index = reference(grid, boxes[sample], box_class[sample])
        assert found.label[sample].tolist() == label
        positive = found.label[sample] >= 0
        assert found.box[sample][positive].tolist() == [m for m in index if m >= 0]
        for one in label:
            counts[one] += 1
    assert all(num > 5 for num in counts.values())  # every case occurred
    assert (found.label[-1] == NEGATIVE).all()


def test_all_anchors_that_tie_for_a_box_stand_for_it():
    """A box of 0.2 m within an anchor has the same small IoU wherever it lies: all such anchors are positive."""
    grid = grid_of(classes=("Car",))
    x, y = 4.1, 0.1
    box = torch.tensor([[[x, y, -1.0, 0.2, 0.2, 1.5, 0.3]]])
    label = assign(grid, box, torch.zeros(1, 1, dtype=torch.int64)).label.view(9, 14, 1, 2)
    for turned, (length, width) in enumerate([(3.9, 1.6), (1.6, 3.9)]):
        dx, dy = (grid.x - x).abs(), (grid.y - y).abs()
        holds = (dy <= (width - 0.2) / 2)[:, None] & (dx <= (length - 0.2) / 2)
        assert holds.sum() >= 8
        assert torch.equal(label[..., 0, turned] == 0, holds)
        assert (label[..., 0, turned][~holds] == NEGATIVE).all()


def test_box_off_the_map_gets_no_anchor():
    boxes = torch.tensor([[[100.0, 0, -1, 3.9, 1.6, 1.5, 0]]])
    assert (assign(grid_of(), boxes, torch.zeros(1, 1, dtype=torch.int64)).label == NEGATIVE).all()


def test_full_size_batch_needs_little_memory():
    """211,200 anchors, 40 boxes, 4 samples: below 0.5 GB above what the process holds."""
    if not Path("/proc/self/clear_refs").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("peak memory is read from Linux's /proc, with glibc")
    boxes, box_class = some_boxes(4, 40, place=FULL)
    grid = grid_of(FULL)

    def memory(kind: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))

    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed and the process kept would be used first
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    label = assign(grid, boxes.float(), box_class).label
    used = memory("VmHWM") - before
    assert label.shape == (4, 211_200)
    assert 0 < used < 5e8, f"{used / 1e6:.0f} MB"
    for sample in range(4):
        on_map = (box_class[sample] >= 0) & (boxes[sample, :, 0] > 0.5) & (boxes[sample, :, 0] < 69)
        on_map &= boxes[sample, :, 1].abs() < 39
        assert (label[sample] >= 0).sum() >= on_map.sum() / 2  # boxes that lie on each other may share
