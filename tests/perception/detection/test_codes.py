"""Box codes and directions: by hand, and there and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perception.detection.codes import decode, direction_bin, encode, face


def test_code_by_hand():
    anchor = torch.tensor([10.0, -2.0, -1.0, 3.0, 4.0, 2.0, 1.57], dtype=torch.float64)  # diagonal 5
    box = torch.tensor([12.5, -3.0, 0.0, 6.0, 2.0, 2.0, -0.43], dtype=torch.float64)
    expected = [0.5, -0.2, 0.5, math.log(2), -math.log(2), 0.0, -2.0]
    assert encode(box, anchor).tolist() == pytest.approx(expected)


def test_decoding_undoes_encoding_and_broadcasts():
    boxes, anchors = torch.randn(3, 5, 7, dtype=torch.float64), torch.randn(4, 1, 1, 7, dtype=torch.float64)
    boxes[..., 3:6], anchors[..., 3:6] = boxes[..., 3:6].exp(), anchors[..., 3:6].exp()
    codes = encode(boxes, anchors)
    assert codes.shape == (4, 3, 5, 7)
    torch.testing.assert_close(decode(codes, anchors), boxes.expand_as(codes))


def test_code_of_a_padding_box_is_finite():
    assert encode(torch.zeros(7), torch.tensor([1.0, 2, 3, 4, 5, 6, 0])).isfinite().all()


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        (0.0, 1),
        (0.785, 1),
        (0.786, 0),
        (3.1, 0),
        (3.926, 0),
        (3.928, 1),
        (-0.1, 1),
        (-3.1, 0),
        (0.78539 + 4 * math.pi, 0),
    ],
)
def test_bins_start_at_an_eighth_of_a_turn(heading, expected):
    assert direction_bin(torch.tensor(heading, dtype=torch.float64)).item() == expected


@given(heading=st.floats(-20, 20), turns=st.integers(-3, 3))
def test_bin_tells_half_turns_apart(heading, turns):
    true = torch.tensor(heading, dtype=torch.float64)
    found = face(true + turns * math.pi, direction_bin(true))
    assert math.cos(found.item() - heading) == pytest.approx(1.0, abs=1e-9)


def test_direction_stays_a_bin_where_rounding_reaches_the_end_of_the_circle():
    headings = torch.nextafter(torch.tensor([0.78539, 0.78539 + 2 * math.pi]), torch.tensor(-1.0))
    assert set(direction_bin(headings).tolist()) <= {0, 1}
