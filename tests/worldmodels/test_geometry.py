"""Boxes and their overlap against golden values, an independent clipping, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from worldmodels.geometry import overlap
from worldmodels.geometry.boxes import EDGES, corners, footprint, points_in_boxes, wrap
from worldmodels.geometry.overlap import bev_intersection, bev_iou, iou_3d

GOLDEN = {"inter": bev_intersection, "iou_bev": bev_iou, "iou_3d": iou_3d}


def random_boxes(num: int, seed: int, spread: float = 3.0) -> Tensor:
    unit = torch.rand(num, 7, generator=Generator().manual_seed(seed), dtype=torch.float64)
    size = 0.3 + 4 * unit[:, 3:6]
    return torch.cat(((unit[:, :3] - 0.5) * 2 * spread, size, (unit[:, 6:] - 0.5) * 4 * math.pi), 1)


def grid_boxes(num: int, seed: int) -> Tensor:
    """Boxes with many edges in common: positions and sizes in halves of a metre, headings in eighths of a turn."""
    pick = torch.randint(0, 4, (num, 7), generator=Generator().manual_seed(seed)).double()
    return torch.cat((pick[:, :3] / 2, 0.5 + pick[:, 3:6] / 2, pick[:, 6:] * math.pi / 4), 1)


def turned(boxes: Tensor, angle: float, shift: tuple[float, float]) -> Tensor:
    """``boxes`` after a rotation about the origin and a translation in the plane."""
    x, y = boxes[:, 0], boxes[:, 1]
    cos, sin = math.cos(angle), math.sin(angle)
    moved = torch.stack((cos * x - sin * y + shift[0], sin * x + cos * y + shift[1]), 1)
    return torch.cat((moved, boxes[:, 2:6], boxes[:, 6:] + angle), 1)


def clipped_area(a: Tensor, b: Tensor) -> float:
    """Area shared by two boxes: footprint of ``a`` cut by one edge of ``b`` after another (Sutherland-Hodgman)."""
    polygon, edges = footprint(a).tolist(), footprint(b).tolist()
    for (x0, y0), (x1, y1) in zip(edges, edges[1:] + edges[:1], strict=True):
        sides = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in polygon]  # >= 0 on the left of the edge
        cut = []
        for i, (x, y) in enumerate(polygon):
            before, (px, py) = sides[i - 1], polygon[i - 1]
            if (before >= 0) != (sides[i] >= 0):
                t = before / (before - sides[i])
                cut.append((px + t * (x - px), py + t * (y - py)))
            if sides[i] >= 0:
                cut.append((x, y))
        polygon = cut
    return sum(x * polygon[i - 1][1] - y * polygon[i - 1][0] for i, (x, y) in enumerate(polygon)) / -2


# --- overlap --------------------------------------------------------------------------------------------------------
@pytest.mark.data
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize("prefix", ["", "special_"])
def test_golden_overlaps(shared_data, dtype, tolerance, prefix):
    path = shared_data / "kitti_eval_golden" / "rotated_iou.npz"
    if not path.is_file():
        pytest.skip("needs ../shared/data/kitti_eval_golden")
    golden = np.load(path, allow_pickle=False)
    a, b = (torch.from_numpy(golden[prefix + name]).to(dtype) for name in "ab")
    assert len(a) == (17 if prefix else 600)
    for name, function in GOLDEN.items():
        expected = torch.from_numpy(golden[prefix + name])
        for found in (function(a, b, paired=True), function(b, a, paired=True), function(a, b).diagonal()):
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("make", [random_boxes, grid_boxes])
def test_areas_equal_those_of_cut_polygons(make):
    a, b = make(300, 1), make(300, 2)
    expected = [clipped_area(*pair) for pair in zip(a, b, strict=True)]
    assert sum(area > 0.1 for area in expected) > 60
    torch.testing.assert_close(
        bev_intersection(a, b, paired=True), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
    )


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    angle=st.floats(-7, 7),
    shift=st.tuples(st.floats(-1000, 1000), st.floats(-1000, 1000)),
    on_grid=st.booleans(),
)
def test_overlap_knows_no_place_direction_or_order(seed, angle, shift, on_grid):
    make = grid_boxes if on_grid else random_boxes
    a, b = make(8, seed), make(8, seed + 1)
    for function in GOLDEN.values():
        found = function(a, b)
        moved = function(turned(a, angle, shift), turned(b, angle, shift))
        torch.testing.assert_close(moved, found, rtol=0, atol=1e-9)
        torch.testing.assert_close(function(b, a), found.T, rtol=0, atol=1e-11)
        half_turn = a + torch.tensor([0, 0, 0, 0, 0, 0, math.pi], dtype=torch.float64)
        torch.testing.assert_close(function(half_turn, b), found, rtol=0, atol=1e-11)
        torch.testing.assert_close(function(a, a, paired=True), function(a, a).diagonal(), rtol=0, atol=1e-12)
    assert float((bev_iou(a, a, paired=True) - 1).abs().max()) < 1e-12
    assert float((iou_3d(a, a, paired=True) - 1).abs().max()) < 1e-12


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), nudge=st.floats(-8, -1))
def test_float32_is_right_for_nearly_equal_boxes(seed, nudge):
    """The case in which evaluators in float32 are known to fail: an edge beside an edge, almost parallel."""
    a = random_boxes(16, seed, spread=80.0)
    noise = torch.randn(16, 7, generator=Generator().manual_seed(seed), dtype=torch.float64)
    b = a + 10**nudge * noise
    a, b = a.float(), b.float()
    exact = bev_iou(a.double(), b.double(), paired=True)
    torch.testing.assert_close(bev_iou(a, b, paired=True).double(), exact, rtol=0, atol=1e-5)


def test_all_with_all_broadcasts_and_equals_row_by_row():
    a, b = random_boxes(30, 3, spread=6).view(5, 6, 7), random_boxes(4, 4, spread=6)
    for function in GOLDEN.values():
        found = function(a, b)
        assert found.shape == (5, 6, 4)
        one_by_one = function(a[:, :, None].expand(-1, -1, 4, -1), b, paired=True)
        torch.testing.assert_close(found, one_by_one, rtol=0, atol=1e-12)
        assert function(a, b[:0]).shape == (5, 6, 0)
        assert function(a[:0], b).shape == (0, 6, 4)


def test_parts_of_any_size_give_the_same(monkeypatch):
    a, b = random_boxes(40, 5), random_boxes(30, 6)
    whole = iou_3d(a, b)
    monkeypatch.setattr(overlap, "CPU_CHUNK", 7)
    assert torch.equal(iou_3d(a, b), whole)


def test_boxes_beside_each_other_share_exactly_nothing():
    """Ground-truth sampling asks for an overlap above 0, which rounding must not give."""
    a, b = random_boxes(60, 10, spread=6), random_boxes(60, 11, spread=6)
    gap = torch.tensor([0, 0, 0, 1e-3, 1e-3, 0, 0], dtype=torch.float64)
    is_apart = torch.tensor([[clipped_area(x, y) <= 0 for y in b] for x in a + gap])
    is_apart &= overlap.close_pairs(a, b)
    assert int(is_apart.sum()) > 200
    for dtype in (torch.float32, torch.float64):
        assert float(bev_intersection(a.to(dtype), b.to(dtype))[is_apart].max()) == 0


def test_boxes_without_size_overlap_nothing():
    a = random_boxes(3, 7)
    for function in GOLDEN.values():
        assert torch.equal(function(torch.zeros(3, 7).double(), a), torch.zeros(3, 3).double())
        assert torch.equal(function(torch.zeros(3, 7), torch.zeros(3, 7), paired=True), torch.zeros(3))


def test_wrong_boxes_are_refused():
    a = random_boxes(3, 8)
    with pytest.raises(ValueError, match=r"these are float64 \[3, 6\]"):
        bev_iou(a[:, :6], a)
    with pytest.raises(ValueError, match=r"these are int64 \[3, 7\]"):
        bev_iou(a, a.long())
    with pytest.raises(ValueError, match="convert one of them"):
        iou_3d(a, a.float(), paired=True)


# --- boxes ----------------------------------------------------------------------------------------------------------
def test_corners_of_a_turned_box():
    box = torch.tensor([[10.0, 5.0, -1.0, 4.0, 2.0, 1.5, math.pi / 2]])  # looks along +y
    plane = torch.tensor([[9.0, 7.0], [9.0, 3.0], [11.0, 3.0], [11.0, 7.0]])
    torch.testing.assert_close(footprint(box)[0], plane)
    found = corners(box)[0]
    torch.testing.assert_close(found[:4, :2], plane)
    torch.testing.assert_close(found[4:, :2], plane)
    torch.testing.assert_close(found[:, 2], torch.tensor([-1.75] * 4 + [-0.25] * 4))
    assert corners(box.expand(2, 3, 7)).shape == (2, 3, 8, 3)
    start, end = found[torch.tensor(EDGES)].unbind(1)
    assert sorted((end - start).norm(dim=1).tolist()) == pytest.approx([1.5] * 4 + [2] * 4 + [4] * 4)


def test_points_in_boxes_are_those_between_the_faces():
    boxes = random_boxes(40, 9).view(2, 20, 7)
    points = 8 * torch.rand(2, 500, 4, generator=Generator().manual_seed(0), dtype=torch.float64) - 4
    found = points_in_boxes(points, boxes)
    assert found.shape == (2, 500, 20)
    assert 0.01 < float(found.double().mean()) < 0.5
    plane = footprint(boxes)[:, None]  # [2, 1, 20, 4, 2]
    edge = plane.roll(-1, -2) - plane
    to_point = points[:, :, None, None, :2] - plane  # [2, 500, 20, 4, 2]
    is_left = edge[..., 0] * to_point[..., 1] - edge[..., 1] * to_point[..., 0] >= 0
    is_level = (points[:, :, None, 2] - boxes[:, None, :, 2]).abs() <= boxes[:, None, :, 5] / 2
    assert torch.equal(found, is_left.all(-1) & is_level)


def test_faces_belong_to_a_box_and_padding_holds_nothing():
    boxes = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0], [0.0, 0, 0, 0, 0, 0, 0]])
    points = torch.tensor([[1.0, 1, 1], [0.0, 0, 0], [1.001, 0, 0]])
    assert points_in_boxes(points, boxes).tolist() == [[True, False], [True, False], [False, False]]
    with pytest.raises(ValueError, match="must begin with x, y, z"):
        points_in_boxes(points[:, :2], boxes)


def test_wrap_brings_angles_into_the_period():
    angle = torch.tensor([-math.pi, -0.1, 0.0, 3.5, 7.0], dtype=torch.float64)
    centred = wrap(angle, 0.5, 2 * math.pi)
    torch.testing.assert_close(centred, torch.remainder(angle + math.pi, 2 * math.pi) - math.pi)
    assert bool(((wrap(angle, 0, math.pi) >= 0) & (wrap(angle, 0, math.pi) < math.pi)).all())
    np.testing.assert_array_equal(wrap(angle.numpy(), 0.5, 2 * math.pi), centred.numpy())
