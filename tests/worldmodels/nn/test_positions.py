"""Codes of grids, entry by entry, and what networks add of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodels.nn.positions import SinusoidalPositions, grid_sinusoids, sinusoids, volume_sinusoids

SIZES = st.tuples(*(st.integers(1, 6),) * 3)


def code(place: int, width: int) -> list[float]:
    """Of one axis: w_i = 10000^(-i / (width / 2)), all sines first."""
    angles = [place * 10_000 ** (-i / (width / 2)) for i in range(width // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


@given(grid=SIZES, half=st.integers(1, 20))
def test_equal_axes_are_time_row_and_column_cut_to_the_width(grid, half):
    dim, each = 2 * half, 2 * math.ceil(2 * half / 6)
    found = volume_sinusoids(grid, dim).unflatten(0, grid)
    assert found.shape == (*grid, dim)
    when, row, column = (size - 1 for size in grid)
    expected = [*code(when, each), *code(row, each), *code(column, each)][:dim]
    torch.testing.assert_close(found[when, row, column], torch.tensor(expected), rtol=1e-4, atol=1e-5)


@given(grid=SIZES, eighth=st.integers(1, 5))
def test_unequal_axes_give_time_the_half(grid, eighth):
    dim = 8 * eighth
    found = volume_sinusoids(grid, dim, has_equal_axes=False).unflatten(0, grid)
    when, row, column = (size // 2 for size in grid)
    expected = [*code(when, dim // 2), *code(row, dim // 4), *code(column, dim // 4)]
    torch.testing.assert_close(found[when, row, column], torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dim", "options"), [(7, {}), (12, {"has_equal_axes": False})])
def test_widths_that_do_not_split_are_refused(dim, options):
    with pytest.raises(ValueError, match=f"dim={dim}"):
        volume_sinusoids((2, 2, 2), dim, **options)


def test_codes_of_any_grid_are_added_by_place_and_scaled():
    tokens = torch.randn(2, 3, 16)
    index = torch.tensor([[5, 0, 2], [1, 3, -1]])
    for grid, expected in (
        ((6,), sinusoids(6, 16, base=10)),
        ((2, 3), grid_sinusoids((2, 3), 16, base=10)),
        ((1, 2, 3), volume_sinusoids((1, 2, 3), 16, base=10)),
    ):
        positions = SinusoidalPositions(grid, 16, scale=0.1, base=10)
        assert positions.rotations(index) is None
        assert not positions.state_dict()
        added = positions(tokens, index) - tokens
        torch.testing.assert_close(added[0], 0.1 * expected[index[0]], rtol=1e-3, atol=1e-6)
        whole = positions(torch.zeros(2, 6, 16))
        torch.testing.assert_close(whole[1], 0.1 * expected)
