"""Rotations against complex numbers written out; what they must keep, and what the released tiling breaks."""

from __future__ import annotations

import cmath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodels.nn.rotary import RotaryPositions, rotated

GRID = (3, 4, 5)


def table(positions: RotaryPositions, index: torch.Tensor | None = None) -> torch.Tensor:
    """What a GPU and compilers get."""
    return positions.turns[None, :-1] if index is None else positions.turns[index]


@pytest.mark.parametrize(("width", "size"), [(64, 20), (32, 10), (104, 34), (6, 2), (8, 2)])
def test_pairs_turn_by_the_place_along_their_axis(width, size):
    positions = RotaryPositions(GRID, 2 * width, num_heads=2)
    heads = torch.randn(1, 60, 2, width, dtype=torch.float64)
    found = rotated(heads, positions.rotations())
    for place in ((0, 0, 0), (2, 1, 4), (1, 3, 2)):
        cell = (place[0] * 4 + place[1]) * 5 + place[2]
        before = torch.view_as_complex(heads[0, cell, 1].unflatten(0, (-1, 2))).tolist()
        after = torch.view_as_complex(found[0, cell, 1].unflatten(0, (-1, 2))).tolist()
        for pair, (a, b) in enumerate(zip(before, after, strict=True)):
            axis, number = divmod(pair, size // 2)
            angle = place[axis] * 10_000 ** (-number / (size / 2)) if axis < 3 else 0.0  # left over: not turned
            assert b == pytest.approx(a * cmath.exp(1j * angle), abs=1e-5)


@given(shift=st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 3)), seed=st.integers(0, 999))
def test_a_product_depends_on_the_distance_only(shift, seed):
    torch.manual_seed(seed)
    positions = RotaryPositions(GRID, 32, num_heads=1)
    cell = torch.arange(60).view(GRID)
    down, right, later = shift[1], shift[2], shift[0]
    pairs = torch.stack([cell[0, 1, 1], cell[1, 0, 0]])[None]
    moved = torch.stack([cell[later, 1 + down, 1 + right], cell[1 + later, down, right]])[None]
    heads = torch.randn(1, 2, 1, 32, dtype=torch.float64)
    products = []
    for index in (pairs, moved):
        query, key = rotated(heads, positions.rotations(index))[0, :, 0]
        products.append(query @ key)
    assert float(products[0]) == pytest.approx(float(products[1]), abs=1e-5)


def test_both_ways_of_computing_agree_and_keep_lengths():
    positions, heads = RotaryPositions(GRID, 64, num_heads=2), torch.randn(4, 6, 2, 32, requires_grad=True)
    index = torch.randint(-1, 60, (4, 6))
    fast, plain = rotated(heads, positions.rotations(index)), rotated(heads, table(positions, index))
    assert positions.rotations(index).is_complex()
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(fast.norm(dim=-1), heads.norm(dim=-1))
    direction = torch.randn_like(fast)
    for mine, theirs in zip(*(torch.autograd.grad(out, heads, direction) for out in (fast, plain)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_kept_tokens_stand_where_they_stood_and_padding_nowhere():
    positions, heads = RotaryPositions(GRID, 32, num_heads=1), torch.randn(2, 60, 1, 32)
    index = torch.tensor([[59, 0, 17], [3, -1, 30]])
    whole = rotated(heads, positions.rotations())
    rows = torch.arange(2)[:, None]
    some = rotated(heads[rows, index], positions.rotations(index))
    torch.testing.assert_close(some[0], whole[0, index[0]])
    torch.testing.assert_close(some[1, 1], heads[1, -1])
    for row in (0, 2):
        torch.testing.assert_close(some[1, row], whole[1, index[1, row]])


def test_angles_stay_exact_in_half_precision():
    """In bfloat16 an angle of 200 is known to half a turn only; positions must not depend on the type of tokens."""
    positions = RotaryPositions((257, 1, 1), 32, num_heads=1)
    heads = torch.randn(1, 257, 1, 32)
    exact = rotated(heads.to(torch.bfloat16).double(), positions.rotations())
    for rotations in (positions.rotations(), table(positions)):
        with torch.autocast("cpu", torch.bfloat16):
            found = rotated(heads.to(torch.bfloat16), rotations)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)


def test_the_released_tiling_turns_neighbours_by_two_rates():
    positions = RotaryPositions((7, 1, 1), 12, num_heads=1, released=True)  # four channels an axis, two rates
    heads = torch.randn(1, 7, 1, 12, dtype=torch.float64)
    found = rotated(heads, positions.rotations())[0, 6, 0]
    a, b, c, d = heads[0, 6, 0, :4]
    angle = 6 * torch.tensor([1.0, 10_000**-0.5], dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    expected = [a * cos[0] - b * sin[0], b * cos[1] + a * sin[1], c * cos[0] - d * sin[0], d * cos[1] + c * sin[1]]
    torch.testing.assert_close(found[:4], torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert abs(float(found.norm() - heads[0, 6, 0].norm())) > 1e-3  # no rotation


@pytest.mark.parametrize(("dim", "num_heads", "heads"), [(16, 4, "4"), (64, 5, "12.8"), (27, 3, "9")])
def test_heads_without_a_pair_an_axis_are_refused(dim, num_heads, heads):
    with pytest.raises(ValueError, match=f"heads of {heads}. Use another number of heads"):
        RotaryPositions(GRID, dim, num_heads=num_heads)
