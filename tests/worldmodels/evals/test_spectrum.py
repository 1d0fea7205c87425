"""Features of two views: exact on known models, in any basis; and when they are learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from envs.linear_features import AR1, Features, Masked, Static
from envs.linear_features import Spectrum as Given
from worldmodels.evals.influence import examine
from worldmodels.evals.spectrum import Sampled, influence_spectrum, learning_times, ranks
from worldmodels.evals.views import Pairs
from worldmodels.linear_theory import critical_time

MODELS = {
    "static": Static([2.0, 1.0, 0.5, 0.25], [1.0, 0.3, 0.6, 0.01]),
    "masked": Masked([2.0, 1.0, 0.5, 0.25], keep_x=0.5, keep_y=0.3),  # every rho is the same
    "ar1": AR1([0.9, 0.5, 0.95, 0.7], [1.0, 3.0, 0.6, 0.5], [0.2, 0.2, 0.0, 0.1]),
    "equal": Given([1.0, 1.0, 1.0, 0.5], [0.8, 0.8, 0.4, 0.4]),
}


def moments(model: Features) -> tuple[Tensor, Tensor]:
    xx, yx, _ = model.views()
    return xx.diag(), yx.diag()


def rotation(dim: int, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q


def assert_is(found, model: Features) -> None:
    """The same features, whatever the order among equal lambda."""
    views = model.views()
    wanted = sorted(zip(views.yx.tolist(), views.rho.tolist(), views.xx.tolist(), strict=True), reverse=True)
    rows = zip(found.lam.tolist(), found.rho.tolist(), found.variance.tolist(), strict=True)
    rows = sorted(([round(value, 9) for value in row] for row in rows), reverse=True)
    np.testing.assert_allclose(np.array(rows), np.array(wanted), rtol=1e-7)


# --- the features -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_independent_features_are_found_exactly_in_any_orthogonal_basis(model, seed):
    xx, yx = moments(model)
    turn = torch.eye(4, dtype=torch.float64) if seed is None else rotation(4, seed)
    found = influence_spectrum(turn @ xx @ turn.T, turn @ yx @ turn.T)
    assert_is(found, model)
    assert found.num_dropped == 0
    assert found.asymmetry == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(found.patterns.norm(dim=0), torch.ones(4, dtype=torch.float64))
    assert bool((found.patterns.T @ turn).abs().max(1).values.ge(1 - 1e-9).all()) or model is MODELS["equal"]


@pytest.mark.parametrize("name", ["static", "ar1"])
def test_oblique_mixing_by_patterns_of_length_one_gives_the_moments_of_the_features(name):
    xx, yx = moments(MODELS[name])
    mixing = rotation(4) + 0.3 * rotation(4, 1)
    mixing = mixing / mixing.norm(dim=0)
    found = influence_spectrum(mixing @ xx @ mixing.T, mixing @ yx @ mixing.T)
    assert_is(found, MODELS[name])
    overlap = (found.patterns.T @ mixing).abs().max(1).values  # each pattern is a column
    torch.testing.assert_close(overlap, torch.ones(4, dtype=torch.float64))


def test_variance_and_covariance_are_divided_without_rest():
    x, y = torch.randn(200, 6).double(), torch.randn(200, 6).double()
    y = y + 0.5 * x
    xx, yx, yy = x.T @ x / 200, y.T @ x / 200, y.T @ y / 200
    for sampled in (None, Sampled(yy, 10_000), Sampled(yy, 200), Sampled(yy, 1)):  # whatever counts as equal
        found = influence_spectrum(xx, yx, sampled=sampled)
        torch.testing.assert_close(found.lam.sum(), yx.trace())
        torch.testing.assert_close(found.variance.sum(), xx.trace())
        torch.testing.assert_close(found.lam, found.rho * found.variance)
        torch.testing.assert_close(found.filters.T @ xx @ found.filters, torch.eye(6).double())
    assert found.asymmetry == pytest.approx(float((yx - yx.T).norm() / yx.norm()))
    principal = torch.linalg.eigvalsh(xx)  # everything is equal: principal components
    torch.testing.assert_close(found.variance.sort().values, principal)


def test_directions_without_variance_are_dropped_and_counted():
    model = MODELS["static"]
    xx, yx = moments(model)
    embed = torch.zeros(7, 4, dtype=torch.float64)
    embed[:4] = torch.eye(4)
    embed = rotation(7) @ embed  # four features in seven entries
    found = influence_spectrum(embed @ xx @ embed.T, embed @ yx @ embed.T)
    assert_is(found, model)
    assert found.num_dropped == 3
    twice = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 3]]  # a column given twice weighs twice
    found = influence_spectrum(twice @ xx @ twice.T, twice @ yx @ twice.T)
    assert found.num_dropped == 1
    assert sorted(found.lam.tolist()) == pytest.approx([0.5, 0.5, 1.0, 2.0])


def test_moments_that_are_none_are_refused():
    eye = torch.eye(3)
    with pytest.raises(ValueError, match=r"square and of one size; got \[3, 3\] and \[2, 2\]"):
        influence_spectrum(eye, torch.eye(2))
    with pytest.raises(ValueError, match="must be finite"):
        influence_spectrum(eye, eye * float("nan"))
    with pytest.raises(ValueError, match="does not vary"):
        influence_spectrum(0 * eye, eye)


@pytest.mark.parametrize("name", ["static", "masked", "ar1", "slow"])
def test_samples_come_close(name):
    slow = AR1([0.999, 0.99, 0.98, 0.96], [2.0, 0.5, 1.0, 0.25], [0.0] * 4)  # rho differ, by more than chance
    model, turn = {"slow": slow, **MODELS}[name], rotation(4)
    x, y = (side @ turn.T for side in model.draw(20_000, Generator().manual_seed(0)))
    found = examine(Pairs(x, y), None, []).spectrum
    order = model.views().yx.argsort(descending=True)
    np.testing.assert_allclose(found.lam, model.views().yx[order], rtol=0.12)
    np.testing.assert_allclose(found.rho, model.views().rho[order], rtol=0.08)


# --- learning times ----------------------------------------------------------------------------------------------
def test_times_are_the_closed_form_at_largest_lambda_one():
    lam, rho = np.array([4.0, 2.0, 3.0]), np.array([0.5, 0.9, 0.7])
    for loss in ("jepa", "mae"):
        expected = critical_time(loss, lam / 4, rho, depth=3, scale=0.2) / 3
        np.testing.assert_allclose(learning_times(loss, lam, rho, depth=3, scale=0.2), expected)


def test_what_is_never_learned_has_no_place():
    lam, rho = np.array([1.0, -0.5, 0.0, 0.5, 0.5, 0.9]), np.array([0.9, -0.2, 0.0, 0.2, 0.21, 0.9])
    times = learning_times("jepa", lam, rho, depth=4, scale=0.2)
    assert np.isfinite(times).tolist() == [True, False, False, False, False, True]  # rho = s; rho hardly above it
    assert ranks(times) == [1, None, None, None, None, 2]
    assert ranks(learning_times("mae", lam, rho, depth=4, scale=0.2)) == [1, None, None, 3, 4, 2]
    assert ranks(learning_times("jepa", -lam, -rho, depth=4, scale=0.2))[0] is None


def test_orders_of_the_two_objectives_invert_where_theory_says_so():
    rho = np.array([0.6, 0.69, 0.7935, 0.912525])
    times = {loss: learning_times(loss, 0.95 ** np.arange(4), rho, depth=4, scale=0.35) for loss in ("jepa", "mae")}
    assert {loss: ranks(t) for loss, t in times.items()} == {"jepa": [4, 3, 2, 1], "mae": [1, 2, 3, 4]}
