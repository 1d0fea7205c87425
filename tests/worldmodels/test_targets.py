"""Targets follow as they promise and never let a gradient through."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from worldmodels.core import Target
from worldmodels.schedules import Linear
from worldmodels.targets import EMA, Frozen, StopGradient, frozen


def network() -> nn.Sequential:
    """Parameters, float and integer buffers, and a layer that depends on the mode."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def shake(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def values(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@settings(max_examples=20)
@given(tau=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_ema_equals_the_formula_for_each_parameter(tau, seed):
    torch.manual_seed(seed)
    online = network()
    target = EMA(online, tau)
    shake(online)
    before, after = values(target), values(online)
    target.update(0)
    for found, old, new in zip(target.parameters(), before, after, strict=True):
        torch.testing.assert_close(found, (1 - tau) * old + tau * new, rtol=1e-12, atol=1e-12)


def test_ema_copies_at_one_and_keeps_at_zero_and_always_copies_buffers():
    online = network()
    copies, keeps = EMA(online, 1.0), EMA(online, 0.0)
    kept = values(keeps)
    shake(online)
    online(torch.randn(5, 3).double())  # moves the running mean and the counter of the norm
    for target in (copies, keeps):
        target.update(0)
        for mine, theirs in zip(target.buffers(), online.buffers(), strict=True):
            assert torch.equal(mine, theirs)
    assert all(torch.equal(a, b) for a, b in zip(copies.parameters(), online.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(keeps.parameters(), kept, strict=True))


def test_ema_follows_a_schedule_of_the_step():
    online = nn.Linear(1, 1, bias=False)
    target = EMA(online, Linear(0.0, 1.0, 4))
    old, new = 0.0, 8.0
    target.module.weight.data.fill_(old)
    online.weight.data.fill_(new)
    target.update(1)
    assert target.module.weight.item() == 2.0  # tau = 1/4
    assert not target.is_static
    assert EMA(online, 0.5).is_static
    with pytest.raises(ValueError, match=r"within \[0, 1\]; got 1.5"):
        EMA(online, 1.5)


@pytest.mark.parametrize("make", [lambda net: EMA(net, 0.1), Frozen, StopGradient], ids=["ema", "frozen", "stop"])
def test_no_target_passes_a_gradient_or_registers_the_online_module(make):
    online = network().eval()
    target: Target = make(online)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    out = target(x)
    assert not out.requires_grad
    torch.testing.assert_close(out, online(x).detach())  # no update yet: the same function
    assert not any(p.requires_grad for p in target.parameters())
    assert not {id(p) for p in online.parameters()} & {id(p) for p in target.parameters()}


@pytest.mark.parametrize("make", [lambda net: EMA(net, 0.1), Frozen], ids=["ema", "frozen"])
def test_copies_stay_in_evaluation_mode(make):
    holder = nn.Module()
    holder.online = network()
    holder.target = make(holder.online)
    holder.train()
    assert holder.online.training
    assert not any(module.training for module in holder.target.modules())
    x = torch.randn(5, 3).double()
    assert torch.equal(holder.target(x), holder.target(x))  # no dropout


def test_frozen_never_moves_and_can_hold_other_weights():
    online, other = network(), network()
    target, loaded = Frozen(online), Frozen(online, copy.deepcopy(other.state_dict()))
    before = values(target)
    shake(online)
    target.update(0)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), other.parameters(), strict=True))


def test_stop_gradient_is_the_online_module_at_once():
    online = nn.Linear(3, 2)
    target = StopGradient(online)
    assert list(target.parameters()) == []
    shake(online)
    x = torch.randn(4, 3)
    assert torch.equal(target(x), online(x))


def test_frozen_call_gives_gradients_to_inputs_only():
    net = nn.Linear(3, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    out = frozen(net, x)
    torch.testing.assert_close(out, net(x))
    out.sum().backward()
    torch.testing.assert_close(x.grad, net.weight.detach().sum(0).expand(4, 3))
    assert net.weight.grad is None
    assert net.bias.grad is None
    assert all(p.requires_grad for p in net.parameters())


def test_a_moving_average_restarts_as_a_copy():
    online = network()
    target = EMA(online, 0.5)
    shake(online)
    target.restart()
    for mine, theirs in zip(target.module.state_dict().values(), online.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
