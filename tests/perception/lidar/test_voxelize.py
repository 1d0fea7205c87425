from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.lidar.voxelize import Voxels, bev_cells, grid_size, voxelize

LOW, HIGH, SIZE = (-2.0, -1.0, -1.0), (2.0, 1.0, 1.0), (0.5, 0.25, 0.4)


def run(points, num_points=None, *, max_voxels=1000, max_points=100, generator=None) -> Voxels:
    if num_points is None:
        num_points = torch.full((len(points),), points.shape[1])
    caps = {"max_voxels": max_voxels, "max_points": max_points}
    return voxelize(points, num_points, low=LOW, high=HIGH, voxel_size=SIZE, generator=generator, **caps)


def by_hand(points, count, *, max_voxels, max_points):
    """Voxels of one sample, point by point: {(z, y, x): mean}, in order of arrival, and how many did not fit."""
    grid, voxels, dropped = grid_size(LOW, HIGH, SIZE), {}, set()
    for point in points[:count].tolist():
        place = tuple(math.floor((p - low) / side) for p, low, side in zip(point, LOW, SIZE, strict=False))
        if not all(0 <= i < n for i, n in zip(place, grid, strict=True)):
            continue
        if place not in voxels and len(voxels) == max_voxels:
            dropped.add(place)
            continue
        voxels.setdefault(place, []).append(point)
    means = {key[::-1]: torch.tensor(found[:max_points]).mean(0) for key, found in voxels.items()}
    return means, len(dropped)


@pytest.mark.parametrize(("max_voxels", "max_points"), [(1000, 100), (1000, 2), (40, 3)])
def test_a_batch_is_what_a_loop_over_points_gives(max_voxels, max_points):
    points, counts = torch.randn(3, 300, 5), torch.tensor([300, 0, 170])
    found = run(points, counts, max_voxels=max_voxels, max_points=max_points)
    assert found.features.shape == (3, max_voxels, 5)
    for i in range(3):
        means, dropped = by_hand(points[i], int(counts[i]), max_voxels=max_voxels, max_points=max_points)
        num = len(means)
        assert (int(found.num_voxels[i]), int(found.num_dropped[i])) == (num, dropped)
        assert [tuple(c) for c in found.coords[i, :num].tolist()] == list(means)
        if num:
            torch.testing.assert_close(found.features[i, :num], torch.stack(list(means.values())))
        assert (found.coords[i, num:] == -1).all()
        assert (found.features[i, num:] == 0).all()


def test_both_sides_of_the_range():
    inside, outside = [[-2.0, -1, -1], [1.99, 0.99, 0.99]], [[2.0, 0, 0], [0, 1, 0], [0, 0, 1], [-2.01, 0, 0]]
    found = run(torch.tensor([inside + outside]))
    assert found.coords[0, :3].tolist() == [[0, 0, 0], [4, 7, 7], [-1, -1, -1]]


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_order_of_points_does_not_matter_without_caps(seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(1, 60, 4, generator=generator)
    other = points[:, torch.randperm(60, generator=generator)]

    def table(found):
        num = int(found.num_voxels[0])
        order = bev_cells(found.coords[0, :num], (64, 64), 1) * 64 + found.coords[0, :num, 0]
        return found.features[0, :num][order.argsort()], order.sort().values

    for a, b in zip(table(run(points)), table(run(other)), strict=True):
        torch.testing.assert_close(a, b)


def test_with_a_generator_the_cap_drops_random_voxels_the_same_ones_again():
    points, counts = torch.randn(2, 500, 3), torch.tensor([500, 400])
    runs = [run(points, counts, max_voxels=30, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].coords, runs[1].coords)
    assert not torch.equal(runs[0].coords, runs[2].coords)
    whole = run(points, counts)
    assert torch.equal(runs[0].num_voxels + runs[0].num_dropped, whole.num_voxels)
    # not only those that arrive first
    first = {tuple(c) for c in whole.coords[0, :30].tolist()}
    assert not {tuple(c) for c in runs[0].coords[0].tolist()} <= first


def test_points_that_are_no_numbers_are_dropped_and_counted():
    points = torch.randn(2, 50, 4) * 0.3
    broken = points.clone()
    broken[0, 3, 0], broken[0, 7, 3], broken[1, 49, 2] = math.nan, math.inf, math.nan
    counts = torch.tensor([50, 49])  # the last one is padding
    found = run(broken, counts)
    assert found.num_broken.tolist() == [2, 0]
    keep = [i for i in range(50) if i not in (3, 7)]
    expected = run(points[:1, keep])
    assert torch.equal(found.coords[:1], expected.coords)
    torch.testing.assert_close(found.features[:1], expected.features)


def test_scans_without_points():
    for points in (torch.zeros(2, 0, 4), torch.full((2, 5, 4), 9.0)):
        found = run(points)
        assert found.num_voxels.tolist() == [0, 0]
        assert (found.coords == -1).all()


def test_cells_are_columns_of_voxels():
    coords = torch.tensor([[3, 0, 0], [0, 7, 15], [1, 8, 0], [0, 23, 31], [-1, -1, -1]])
    assert bev_cells(coords, (3, 4)).tolist() == [0, 1, 4, 11, -1]


def test_bad_input_is_named():
    points = torch.zeros(2, 5, 4)
    with pytest.raises(ValueError, match=r"num_points \[B\]; got \[2, 5, 4\] and \[3\]"):
        run(points, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one each"):
        run(points, max_voxels=0)
    with pytest.raises(ValueError, match="every side must be positive"):
        grid_size((0, 0, 0), (1, 1, 1), (0.1, 0, 0.1))
    with pytest.raises(ValueError, match="hold no voxel"):
        grid_size((0, 0, 0), (1, 1, -1), (0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="three numbers each"):
        grid_size((0, 0), (1, 1), (0.1, 0.1))
    with pytest.raises(ValueError, match=r"\(rows, columns\)"):
        bev_cells(torch.zeros(1, 3, dtype=torch.long), (3,))
