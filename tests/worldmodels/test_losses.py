"""Shared losses against loops written from their formulas, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodels.losses import (
    cosine_distance,
    decorrelation,
    deviation_hinge,
    expectile,
    nt_xent,
    orthonormality,
)


@pytest.fixture
def _float64(monkeypatch):
    """Losses leave bfloat16 autocast with ``.float()``; here they stay in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


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


@pytest.mark.usefixtures("_float64")
def test_cosine_distance_by_hand_and_in_a_loop():
    # (3, 4) and (4, 3): cosine 24 / 25; (1, 0) and (0, 2): 0.
    prediction, goal = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    assert cosine_distance(prediction, goal).item() == pytest.approx(1 - 12 / 25, rel=1e-12)
    first, second = doubles(5, 3).numpy(), doubles(5, 3).numpy()
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(first, second, strict=True)]
    found = cosine_distance(torch.from_numpy(first), torch.from_numpy(second))
    assert found.item() == pytest.approx(1 - np.mean(cosines), rel=1e-12)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_a_loop_over_rows(temperature):
    first, second = doubles(5, 3), doubles(5, 3)
    rows = torch.cat([first, second]).numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    terms = []
    for i in range(10):
        scores = {j: np.exp(rows[i] @ rows[j] / temperature) for j in range(10) if j != i}
        terms.append(-np.log(scores[(i + 5) % 10] / sum(scores.values())))
    assert nt_xent(first, second, temperature=temperature).item() == pytest.approx(np.mean(terms), rel=1e-12)


@pytest.mark.usefixtures("_float64")
def test_nt_xent_of_equal_rows_is_that_of_a_guess_and_needs_other_pairs():
    # all cosines are 1: each of the 2 B - 1 = 7 others is as likely
    same = torch.ones(4, 3, dtype=torch.float64)
    assert nt_xent(same, same, temperature=0.5).item() == pytest.approx(np.log(7), rel=1e-12)
    with pytest.raises(ValueError, match="at least 2; got 1"):
        nt_xent(doubles(1, 3), doubles(1, 3), temperature=0.5)


@pytest.mark.usefixtures("_float64")
def test_terms_of_vicreg_equal_numpy():
    latent = 0.7 * doubles(6, 4)
    std = np.sqrt(latent.numpy().var(0, ddof=1) + 1e-4)
    assert deviation_hinge(latent).item() == pytest.approx(np.maximum(0, 1 - std).mean(), rel=1e-12)
    assert 0 < deviation_hinge(latent).item() < 1
    assert deviation_hinge(100 * latent).item() == 0
    covariance = np.cov(latent.numpy().T)
    off_diagonal = sum(covariance[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
    assert decorrelation(latent).item() == pytest.approx(off_diagonal / 4, rel=1e-12)
    for term in (deviation_hinge, decorrelation):
        with pytest.raises(ValueError, match="at least 2; got 1"):
            term(latent[:1])


def test_hinge_of_dead_dimensions_has_a_finite_gradient():
    latent = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(deviation_hinge(latent), latent)
    assert bool(torch.isfinite(gradient).all())
