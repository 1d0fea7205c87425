"""Quaternions against scipy's rotations, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldmodels.geometry import rotations

ANGLE = st.floats(-2 * math.pi, 2 * math.pi)
ANGLES = st.tuples(ANGLE, ANGLE, ANGLE)


def scipy_of(angles) -> Rotation:
    return Rotation.from_euler("xyz", angles)


def same(ours: torch.Tensor, theirs: Rotation) -> None:
    """As rotations: up to a common sign."""
    expected = torch.from_numpy(theirs.as_quat())
    sign = torch.sign((ours * expected).sum(-1, keepdim=True))
    torch.testing.assert_close(ours * sign, expected, rtol=0, atol=1e-12)


@given(ANGLES, ANGLES)
def test_euler_angles_products_and_inverses_are_those_of_scipy(first, second):
    a, b = (rotations.from_euler_xyz(torch.tensor(x, dtype=torch.float64)) for x in (first, second))
    same(a, scipy_of(first))
    same(rotations.compose(b, a), scipy_of(second) * scipy_of(first))
    same(rotations.inverse(a), scipy_of(first).inv())
    step = rotations.between(a, b)
    same(step, scipy_of(first).inv() * scipy_of(second))
    assert step[3] >= 0
    same(rotations.compose(a, step), scipy_of(second))


def test_points_turn_as_in_scipy_and_batches_are_rows():
    rng = np.random.default_rng(0)
    angles, points = rng.uniform(-3, 3, (20, 3)), rng.normal(size=(20, 3))
    quaternion = rotations.from_euler_xyz(torch.from_numpy(angles))
    turned = rotations.apply(quaternion, torch.from_numpy(points))
    np.testing.assert_allclose(turned.numpy(), scipy_of(angles).apply(points), atol=1e-12)
    torch.testing.assert_close(quaternion[7], rotations.from_euler_xyz(torch.from_numpy(angles[7])))


def test_one_sign_stands_for_a_rotation():
    quaternion = torch.nn.functional.normalize(torch.randn(100, 4), dim=-1)
    assert (rotations.canonical(quaternion)[:, 3] >= 0).all()
    torch.testing.assert_close(rotations.canonical(-quaternion), rotations.canonical(quaternion))
    half_turns = torch.tensor([[-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, -1.0, 0]])
    torch.testing.assert_close(rotations.canonical(half_turns), -half_turns)
    assert torch.equal(rotations.canonical(-half_turns), -half_turns)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"Euler angles are \[..., 3\].*\[2, 7\]"):
        rotations.from_euler_xyz(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"float \[..., 4\].*int64 \[4\]"):
        rotations.inverse(torch.zeros(4, dtype=torch.int64))
