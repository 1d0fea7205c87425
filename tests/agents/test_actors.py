"""Actors against their formulas, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from agents.actors import FlowActor, GaussianActor

pytestmark = pytest.mark.usefixtures("float64")
OBS, TASK, ACT, BATCH = 4, 3, 2, 6


def gaussian(**options) -> GaussianActor:
    return GaussianActor(OBS, TASK, ACT, width=8, depth=1, **options)


def flow(**options) -> FlowActor:
    return FlowActor(OBS, TASK, ACT, width=8, depth=1, field_width=7, field_depth=2, **options)


@pytest.fixture
def inputs():
    return torch.randn(BATCH, OBS), torch.randn(BATCH, TASK), torch.randn(BATCH, ACT)


def test_gaussian_adds_clipped_noise_to_the_mean(inputs):
    x, z, noise = inputs
    actor = gaussian(std=0.2, clip=0.3)
    mean = actor.mean(x, z)
    assert mean.abs().max() < 0.7  # so that the clamp at 1 plays no part here
    noise[0, 0], noise[1, 0] = 5.0, -5.0  # 0.2 * 5 = 1 is clipped to 0.3
    expected = mean.detach().numpy() + np.clip(0.2 * noise.numpy(), -0.3, 0.3)
    np.testing.assert_allclose(actor(x, z, noise).detach().numpy(), expected, rtol=1e-12)
    assert torch.equal(actor.best(x, z, noise), mean)
    assert actor.behavior_losses(x, mean, mean, TensorDict({}, batch_size=[BATCH])) == {}
    assert actor.draw_noise(noise, Generator()) == {}


def test_gaussian_clamp_passes_gradients_straight_through(inputs):
    x, z, _ = inputs
    actor = gaussian(std=1.0, clip=2.0)
    noise = torch.full((BATCH, ACT), 2.0)  # the mean plus 2 is beyond 1 everywhere
    action = actor(x, z, noise)
    torch.testing.assert_close(action, torch.full_like(action, 1 - 1e-6))
    found = torch.autograd.grad(action.sum(), list(actor.parameters()))
    expected = torch.autograd.grad(actor.mean(x, z).sum(), list(actor.parameters()))
    assert sum(gradient.abs().sum() for gradient in expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("make", [gaussian, flow], ids=["gaussian", "flow"])
def test_actions_are_a_function_of_inputs_and_noise(make, inputs):
    x, z, noise = inputs
    actor = make()
    first = actor(x, z, noise)
    torch.manual_seed(1)  # the global generator plays no part
    assert torch.equal(actor(x, z, noise), first)
    assert first.abs().max() <= 1
    for changed in ((x + 1, z, noise), (x, z + 1, noise), (x, z, -noise)):
        assert not torch.allclose(actor(*changed), first)
    torch.testing.assert_close(actor(x[2:3], z[2:3], noise[2:3]), first[2:3])


@pytest.mark.parametrize("num_flow_steps", [1, 10])
def test_flow_is_euler_integration_of_the_field(num_flow_steps, inputs):
    x, _, noise = inputs
    actor = flow(num_flow_steps=num_flow_steps)
    with torch.no_grad():
        actor.field.layers[-1].weight.mul_(4)  # far enough that some flows leave [-1, 1]
    action = noise.clone()
    for step in range(num_flow_steps):
        for i in range(BATCH):
            row = torch.cat([x[i], action[i], torch.tensor([step / num_flow_steps])])
            action[i] = action[i] + actor.field(row[None])[0].detach() / num_flow_steps
    found = actor.flow(x, noise)
    torch.testing.assert_close(found, action.clamp(-1, 1))
    assert action.abs().max() > 1 >= found.abs().max()
    assert not found.requires_grad


def test_flow_losses_equal_their_formulas(inputs):
    x, z, noise = inputs
    actor = flow()
    action = 2 * torch.rand(BATCH, ACT) - 1
    drawn = actor.draw_noise(action, Generator().manual_seed(0))
    assert drawn["flow_start"].shape == (BATCH, ACT)
    assert drawn["flow_time"].shape == (BATCH, 1)
    assert 0 <= drawn["flow_time"].min() < drawn["flow_time"].max() < 1
    proposed = actor(x, z, noise).detach()
    losses = actor.behavior_losses(x, proposed, action, TensorDict({**drawn, "action": noise}, batch_size=[BATCH]))
    matching = distillation = 0.0
    ends = actor.flow(x, noise)
    for i in range(BATCH):
        start, time = drawn["flow_start"][i], drawn["flow_time"][i]
        point = start + time * (action[i] - start)
        velocity = actor.field(torch.cat([x[i], point, time])[None])[0].detach()
        matching += float(((velocity - (action[i] - start)) ** 2).sum())
        distillation += float(((proposed[i] - ends[i]) ** 2).sum())
    assert losses["flow_matching"].item() == pytest.approx(matching / (BATCH * ACT), rel=1e-10)
    assert losses["distillation"].item() == pytest.approx(distillation / (BATCH * ACT), rel=1e-10)


def test_flow_losses_train_the_field_and_the_actor_apart(inputs):
    x, z, noise = inputs
    actor = flow()
    groups = actor.groups()
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in actor.parameters()}
    drawn = actor.draw_noise(noise, Generator().manual_seed(0))
    terms = TensorDict({**drawn, "action": noise}, batch_size=[BATCH])
    for name, own in (("flow_matching", "vector_field"), ("distillation", "actor")):
        actor.zero_grad()
        actor.behavior_losses(x, actor(x, z, noise), noise, terms)[name].backward()
        trained = {id(p) for p in actor.parameters() if p.grad is not None}
        assert trained == {id(p) for p in groups[own]}


def test_flow_judged_takes_the_noise_it_is_given(inputs):
    x, z, noise = inputs
    actor = flow()
    assert torch.equal(actor.best(x, z, noise), actor(x, z, noise))
    assert actor.scales_value
    assert not gaussian().scales_value
