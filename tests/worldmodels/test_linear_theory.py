"""The closed forms against independent tables and against an integrator that knows nothing of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.worldmodels.linear_tables import INVERSION_DEPTHS, RATIOS, TABLES
from worldmodels.linear_theory import (
    critical_time,
    fixed_point,
    grows,
    integrated_critical_time,
    small_start,
    time_to_reach,
    trajectory,
)

LOSSES = pytest.mark.parametrize("loss", ["jepa", "mae"])


@LOSSES
@pytest.mark.parametrize("table", TABLES, ids=str)
def test_tables(table, loss):
    options = {"depth": table.depth, "scale": table.scale}
    expected, rounding = table.times(loss)
    exact = critical_time(loss, table.lam, table.rho, **options)
    assert np.all(np.abs(exact / table.depth - expected) <= rounding * (1 + 1e-9))
    for i in range(4):
        found = integrated_critical_time(loss, float(table.lam[i]), float(table.rho[i]), **options)
        assert found == pytest.approx(float(exact[i]), rel=1e-5)


@pytest.mark.parametrize("table", [t for t in TABLES if t.panel in {"conflict", "fast", "mid", "deep"}], ids=str)
def test_only_jepa_inverts_and_only_deep_encoders(table):
    assert table.order("mae") == "0 1 2 3"
    inverted = "3 2 0 1" if table.panel == "conflict" else "3 2 1 0"
    assert table.order("jepa") == ("0 1 2 3" if table.panel == "conflict" and table.depth < 4 else inverted)


@pytest.mark.parametrize(("depth", "eps", "jepa", "first_order", "mae"), RATIOS)
def test_equal_lambda(depth, eps, jepa, first_order, mae):
    scale = eps ** (1 / depth)
    for loss, printed in (("jepa", jepa), ("mae", mae)):
        slow, fast = critical_time(loss, 1.0, [0.5, 1.0], depth=depth, scale=scale)
        assert slow / fast == pytest.approx(float(printed), abs=5e-4)
    if first_order is not None:
        assert 1 + (2 * depth - 1) / (2 * depth - 2) * scale == pytest.approx(float(first_order), abs=5e-4)


@pytest.mark.parametrize(("one", "other", "eps", "depth"), INVERSION_DEPTHS)
def test_depth_from_which_a_pair_is_inverted(one, other, eps, depth):
    lam, rho = np.array([one, other]).T
    for tried in range(2, depth + 1):
        scale = eps ** (1 / tried)
        first, second = critical_time("jepa", lam, rho, depth=tried, scale=scale)
        assert (second < first) == (tried == depth)
        assert np.diff(critical_time("mae", lam, rho, depth=tried, scale=scale)) > 0


@LOSSES
@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("eps", [1e-2, 1e-4])
@pytest.mark.parametrize("rho", [0.6, 0.9])
def test_exact_times_agree_with_an_integrator(loss, depth, eps, rho):
    scale = eps ** (1 / depth)
    options = {"depth": depth, "scale": scale, "fraction": 0.9}
    if not grows(loss, rho, **options):
        pytest.skip("no critical time")
    exact = critical_time(loss, 0.8, rho, **options)
    assert integrated_critical_time(loss, 0.8, rho, **options) == pytest.approx(float(exact), rel=1e-5)


@LOSSES
def test_trajectory_passes_where_the_closed_form_says(loss):
    lam, rho = np.array([1.0, 0.5]), np.array([0.5, 1.0])
    levels = 0.7 * fixed_point(loss, rho, 3)
    times = time_to_reach(loss, levels, lam, rho, depth=3, scale=0.2)
    for i, time in enumerate(times):
        found = trajectory(loss, lam, rho, [0.0, time], depth=3, scale=0.2)
        assert found[i, 0] == pytest.approx(0.2**3)
        assert found[i, 1] == pytest.approx(levels[i], rel=1e-6)


@LOSSES
def test_features_end_at_their_fixed_points_from_below_and_above(loss):
    rho = np.array([0.2, 0.7])
    for scale in (0.1, 0.95):
        end = trajectory(loss, 1.0, rho, [0.0, 1e9], depth=3, scale=scale)[:, -1]
        np.testing.assert_allclose(end, fixed_point(loss, rho, 3), rtol=1e-6)


@pytest.mark.parametrize(("loss", "rtol"), [("jepa", 2e-3), ("mae", 5e-3)])
def test_divergent_part_is_all_that_is_left_for_a_small_start(loss, rtol):
    options = {"depth": 2, "scale": 1e-3}
    exact = critical_time(loss, [1.0, 0.5], [0.5, 1.0], **options)
    np.testing.assert_allclose(small_start(loss, [1.0, 0.5], [0.5, 1.0], **options), exact, rtol=rtol)


@pytest.mark.parametrize(
    ("depth", "scale", "excess"), [(2, 0.2, 0.24), (3, 0.3, 0.50), (4, 0.35, 0.68), (5, 0.4, 1.58)]
)
def test_divergent_part_is_far_off_where_inversion_happens(depth, scale, excess):
    exact = critical_time("jepa", 1.0, 0.5, depth=depth, scale=scale)
    assert small_start("jepa", 1.0, 0.5, depth=depth, scale=scale) / exact - 1 == pytest.approx(excess, abs=0.005)


def test_a_feature_grows_from_below_its_fixed_point():
    assert grows("jepa", [0.3, 0.4], depth=4, scale=0.35).tolist() == [False, True]  # scale < rho
    assert grows("mae", 0.3, depth=4, scale=0.35)
    assert not grows("jepa", 0.4, depth=4, scale=0.35, fraction=0.5)


def test_weights_that_are_never_met_are_refused():
    with pytest.raises(
        ValueError, match=r"rho=0.3 goes from scale\^depth=0.01501 to 0.0081 and never grows to 0.00405"
    ):
        critical_time("jepa", [1.0, 1.0], [0.9, 0.3], depth=4, scale=0.35)  # the feature shrinks: scale > rho
    with pytest.raises(ValueError, match=r"never grows to 0\.0128"):
        critical_time("jepa", 1.0, 0.4, depth=4, scale=0.35)  # it starts above the half of its fixed point
    with pytest.raises(ValueError, match="never grows"):
        time_to_reach("mae", 0.7, 1.0, 0.4, depth=2, scale=0.9)  # shrinks through 0.7
    with pytest.raises(ValueError, match="fraction=1"):
        critical_time("jepa", 1.0, 0.5, depth=2, scale=0.1, fraction=1.0)
    with pytest.raises(ValueError, match="lambda=-1"):
        critical_time("mae", -1.0, 0.5, depth=2, scale=0.1)
    with pytest.raises(ValueError, match="must be finite"):
        trajectory("jepa", 1.0, 0.5, [0.0, float("nan")], depth=2, scale=0.1)
