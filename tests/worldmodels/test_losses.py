"""Shared losses against loops written from their formulas, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodels.losses import expectile, orthonormality


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_orthonormality_of_rows_computed_by_hand():
    # Rows (3, 4) and (1, 2): their product is 11, so 1/2 (121 + 121) / 2 - (25 + 5) / 2.
    rows = torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
    assert orthonormality(rows).item() == 60.5 - 15.0


def test_orthonormality_equals_a_loop_over_pairs():
    latent = doubles(7, 3)
    rows = latent.numpy()
    pairs = [np.dot(rows[i], rows[j]) ** 2 for i in range(7) for j in range(7) if i != j]
    lengths = [np.dot(row, row) for row in rows]
    assert orthonormality(latent).item() == pytest.approx(0.5 * np.mean(pairs) - np.mean(lengths), rel=1e-12)


def test_orthonormality_pushes_equal_rows_apart_and_leaves_orthogonal_ones():
    # The gradient of e_1 is (e_1 . e_2) e_2 - e_1, for a batch of two.
    latent = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(orthonormality(latent), latent)
    torch.testing.assert_close(gradient[0], torch.tensor([1.0, 1.0]).double() - torch.tensor([1.0, 0.0]).double())
    with pytest.raises(ValueError, match="at least 2; got 1"):
        orthonormality(doubles(1, 3))


def test_expectile_weighs_by_the_sign_of_the_advantage():
    error = torch.tensor([2.0, 2.0, -3.0, -3.0], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 0.0, -0.1], dtype=torch.float64)  # zero counts as positive
    expected = torch.tensor([0.9 * 4, 0.1 * 4, 0.9 * 9, 0.1 * 9], dtype=torch.float64)
    torch.testing.assert_close(expectile(error, 0.9, advantage), expected)
    torch.testing.assert_close(expectile(error, 0.5, advantage), error.square() / 2)
    torch.testing.assert_close(expectile(error, torch.tensor(0.9).double(), advantage), expected, rtol=1e-6, atol=0)
