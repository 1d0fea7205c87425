"""Planners on costs whose minimum is known: they find it, never worsen, keep to the box, and treat problems apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from agents.planning.cem import CEM
from agents.planning.gradient import Gradient
from agents.planning.mppi import MPPI
from agents.planning.search import Planner

HORIZON, ACTION_DIM = 5, 2
MAKE: dict[str, Callable[..., Planner]] = {
    "cem": lambda **kwargs: CEM(num_elites=8, **{"num_samples": 64, **kwargs}),
    "mppi": lambda **kwargs: MPPI(temperature=0.1, **{"num_samples": 64, **kwargs}),
    "gradient": lambda **kwargs: Gradient(lr=0.1, **{"num_samples": 4, **kwargs}),
}
ROUNDS = {"cem": 8, "mppi": 8, "gradient": 40}
LEFT = {"cem": 0.25, "mppi": 0.6, "gradient": 0.1}  # of the first guess's cost; a mean of drawn plans is no minimum
BEST_KEEPERS = ("cem", "gradient")


def bowl(wanted: Tensor) -> Callable[[Tensor], Tensor]:
    """Convex: squared distance of plans [B, S, H, A] to ``wanted`` [B, H, A]."""
    return lambda actions: (actions - wanted[:, None]).square().sum((-1, -2))


def planned(name: str, wanted: Tensor, *, rounds: int, start: Tensor | None = None, seed: int = 0) -> Tensor:
    planner = MAKE[name](horizon=HORIZON, num_iterations=rounds, std=0.5)
    start = torch.zeros_like(wanted) if start is None else start
    return planner.plan(bowl(wanted), start, Generator().manual_seed(seed))


def cost_of(plan: Tensor, wanted: Tensor) -> Tensor:
    return bowl(wanted)(plan[:, None])[:, 0]


def goals(num: int, seed: int, scale: float = 0.8) -> Tensor:
    return scale * (2 * torch.rand(num, HORIZON, ACTION_DIM, generator=Generator().manual_seed(seed)) - 1)


@pytest.mark.parametrize("name", MAKE)
def test_finds_the_minimum_of_a_convex_cost(name):
    wanted = goals(3, seed=1)
    start = torch.zeros_like(wanted)
    found = planned(name, wanted, rounds=ROUNDS[name])
    assert found.shape == wanted.shape
    assert (cost_of(found, wanted) < LEFT[name] * cost_of(start, wanted)).all()


@pytest.mark.parametrize("name", BEST_KEEPERS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), rounds=st.integers(1, 5))
def test_cost_never_rises_with_iterations_nor_above_the_first_guess(name, seed, rounds):
    wanted, start = goals(2, seed), goals(2, seed + 1)
    fewer = planned(name, wanted, rounds=rounds, start=start, seed=seed)
    more = planned(name, wanted, rounds=rounds + 1, start=start, seed=seed)
    assert (cost_of(fewer, wanted) <= cost_of(start, wanted)).all()
    assert (cost_of(more, wanted) <= cost_of(fewer, wanted)).all()


@pytest.mark.parametrize("name", MAKE)
def test_keeps_to_the_box_when_the_minimum_lies_outside(name):
    wanted = torch.full((2, HORIZON, ACTION_DIM), 3.0)
    found = planned(name, wanted, rounds=ROUNDS[name])
    assert found.abs().max() <= 1
    assert found.mean() > 0.5


@pytest.mark.parametrize("name", MAKE)
def test_a_plan_does_not_depend_on_its_batch_mates(name):
    wanted = goals(4, seed=2)
    together = planned(name, wanted, rounds=3)
    alone = torch.cat([planned(name, wanted[i : i + 1], rounds=3) for i in range(4)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", MAKE)
def test_a_plan_is_a_function_of_the_generator(name):
    wanted = goals(2, seed=3)
    assert torch.equal(planned(name, wanted, rounds=2), planned(name, wanted, rounds=2))
    assert not torch.equal(planned(name, wanted, rounds=2), planned(name, wanted, rounds=2, seed=1))


def test_gradients_stop_at_the_plan_and_flow_without_grad_mode():
    weight = torch.nn.Parameter(torch.ones(()))
    wanted = goals(2, seed=4)
    planner = MAKE["gradient"](horizon=HORIZON, num_iterations=30)
    with torch.no_grad():
        found = planner.plan(lambda a: weight * bowl(wanted)(a), torch.zeros_like(wanted), Generator().manual_seed(0))
    assert (cost_of(found, wanted) < 0.1 * cost_of(torch.zeros_like(wanted), wanted)).all()
    assert weight.grad is None
    assert not found.requires_grad


def test_noise_has_the_spread_and_persistence_asked_for():
    def neighbours(persistence: float, chunk: int) -> tuple[Tensor, Tensor]:
        planner = CEM(horizon=6, num_samples=4001, num_iterations=1, num_elites=2, persistence=persistence,
                      action_chunk=chunk)  # fmt: skip
        mean = torch.zeros(1, 6, chunk * ACTION_DIM)
        drawn = planner.around(mean, 0.1, Generator().manual_seed(0))[0]  # [S, H, h A], far from the box's sides
        assert torch.equal(drawn[0], mean[0])
        steps = drawn[1:].unflatten(-1, (chunk, -1)).flatten(1, 2)  # [S - 1, H h, A]
        pairs = (steps[:, 1:] * steps[:, :-1]).mean((0, 2)) / 0.1**2
        return steps.std((0, 2)), pairs

    for persistence, chunk in ((0.0, 1), (0.8, 1), (0.8, 3)):
        spread, pairs = neighbours(persistence, chunk)
        torch.testing.assert_close(spread, torch.full_like(spread, 0.1), rtol=0.05, atol=0)
        torch.testing.assert_close(pairs, torch.full_like(pairs, persistence), rtol=0.05, atol=0.05)


def test_mppi_takes_the_best_plan_as_the_temperature_falls_and_any_scale_of_costs():
    wanted, start = goals(1, seed=5), torch.zeros(1, HORIZON, ACTION_DIM)
    cold = MPPI(temperature=1e-4, horizon=HORIZON, num_samples=64, num_iterations=1)
    actions = cold.around(start, cold.std, Generator().manual_seed(0))
    best = actions[0, bowl(wanted)(actions)[0].argmin()]
    torch.testing.assert_close(cold.plan(bowl(wanted), start, Generator().manual_seed(0))[0], best)
    warm = MPPI(temperature=0.5, horizon=HORIZON, num_samples=64, num_iterations=2)
    once, scaled = (
        warm.plan(lambda a, k=k: k * bowl(wanted)(a), start, Generator().manual_seed(0)) for k in (1.0, 1000.0)
    )
    torch.testing.assert_close(once, scaled)
    flat = warm.plan(lambda a: torch.ones(a.shape[:2]), start, Generator().manual_seed(0))
    assert torch.isfinite(flat).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MPPI(temperature=0, horizon=1, num_samples=2, num_iterations=1), "temperature=0"),
        (lambda: Gradient(lr=0, horizon=1, num_samples=2, num_iterations=1), "lr=0"),
        (lambda: CEM(num_elites=3, horizon=1, num_samples=2, num_iterations=1), "num_elites=3"),
        (lambda: CEM(num_elites=2, horizon=0, num_samples=2, num_iterations=1), "horizon=0"),
        (lambda: CEM(num_elites=2, horizon=1, num_samples=2, num_iterations=1, persistence=1), "persistence=1"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
