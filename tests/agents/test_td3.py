"""TD3's losses against loops over critics and samples, in float64; acting; what it needs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Bounded, Composite, Unbounded

from agents.actors import FlowActor, GaussianActor
from agents.td3 import TD3, Critic
from perception.state import StateEncoder
from worldmodels.targets import EMA

pytestmark = pytest.mark.usefixtures("float64")
DISCOUNT = 0.9
GAUSSIAN = partial(GaussianActor, width=8, depth=1)
FLOW = partial(FlowActor, width=8, depth=1, field_width=8, field_depth=1)


def make(kit, **options) -> TD3:
    state, action = Unbounded((kit.obs,), dtype=torch.float64), Bounded(-1, 1, (kit.act,), dtype=torch.float64)
    choices = {
        "encoder": StateEncoder,
        "critic": partial(Critic, width=8, depth=2),
        "actor": GAUSSIAN,
        "target": partial(EMA, tau=0.1),
        "discount": DISCOUNT,
    }
    spec = Composite(observation=Composite(state=state), action=action, reward=Unbounded(()))
    agent = TD3(spec, **{**choices, **options})
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return agent


def drawn(agent: TD3, batch: TensorDict) -> TensorDict:
    batch = batch.set("reward", torch.randn(batch.batch_size[0], 2))
    return agent.prepare(agent.draw_noise(batch, Generator().manual_seed(0)))


@pytest.mark.parametrize(("pessimism", "reduce"), [(0.5, min), (0.0, lambda *q: sum(q) / len(q))])
@pytest.mark.parametrize("actor", [GAUSSIAN, FLOW])
def test_critic_loss_equals_a_loop_over_critics_and_samples(kit, pessimism, reduce, actor):
    agent = make(kit, pessimism=pessimism, actor=actor)
    batch = drawn(agent, kit.batch())
    now, then = (agent.encoder(batch["observation"][:, t])["pooled"] for t in (0, 1))
    one, terms = torch.ones(1, 1), []
    assert 0 < int(batch["terminated"][:, 0].sum()) < kit.size
    for i in range(kit.size):
        action = agent.actor(then[i][None], one, batch["noise", "next_action"][i][None])
        future = reduce(*agent.target.module(then[i][None], action)[:, 0].tolist())
        ended = bool(batch["terminated"][i, 0])
        target = float(batch["reward"][i, 0]) + (0.0 if ended else DISCOUNT * future)
        terms += [(q - target) ** 2 for q in agent.critic(now[i][None], batch["action"][i, :1])[:, 0].tolist()]
    out = agent.critic_loss(batch)
    assert out["loss", "critic"].item() == pytest.approx(np.mean(terms), rel=1e-9)
    out["loss", "critic"].backward()
    assert all(p.grad is None for p in [*agent.actor.parameters(), *agent.target.parameters()])


@pytest.mark.parametrize("actor", [GAUSSIAN, FLOW])
def test_actor_climbs_the_mean_of_the_critics(kit, actor):
    agent = make(kit, actor=actor)
    batch = drawn(agent, kit.batch())
    x = agent.encoder(batch["observation"][:, 0])["pooled"]
    action = agent.actor(x, torch.ones(kit.size, 1), batch["noise", "action"])
    value = agent.critic(x, action).detach()
    scale = float(value.abs().mean()) if actor is FLOW else 1.0
    losses = agent.actor_loss(batch)["loss"]
    assert losses["value"].item() == pytest.approx(-float(value.mean()) / scale, rel=1e-9)
    assert set(losses.keys()) == ({"value", "distillation", "flow_matching"} if actor is FLOW else {"value"})
    losses["value"].backward()
    assert all(p.grad is None for p in agent.critic.parameters())


def test_layer_norm_is_a_choice(kit):
    plain, normed = (make(kit, critic=partial(Critic, width=8, depth=2, is_normalized=n)) for n in (False, True))
    assert not any("Norm" in type(m).__name__ for m in plain.critic.modules())
    assert sum("Norm" in type(m).__name__ for m in normed.critic.modules()) == 2
    x, action = torch.randn(4, kit.obs), torch.randn(4, kit.act)
    hidden = normed.critic.layers.layers[:3](torch.cat([x, action], -1))  # [K, B, 8], behind the first norm
    first = torch.relu(normed.critic.layers.layers[0](torch.cat([x, action], -1)))
    norm = normed.critic.layers.layers[2]
    expected = (first - first.mean(-1, keepdim=True)) / (first.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(hidden, expected * norm.weight + norm.bias)
    assert normed.critic(x, action).shape == (2, 4)


def test_it_acts_best_or_explores(kit):
    agent, obs = make(kit), kit.batch()[:, 0].select("observation")
    noisy = obs.copy().set("noise", TensorDict({"action": torch.randn(kit.size, kit.act)}, [kit.size]))
    best = agent.act(noisy, explore=False)["action"]
    assert torch.equal(best, agent.act(obs, explore=False)["action"])  # the mean needs no noise
    assert not torch.equal(best, agent.act(noisy, explore=True)["action"])
    assert best.abs().max() <= 1


def test_data_without_a_reward_are_refused(kit):
    spec = Composite(observation=Composite(state=Unbounded((kit.obs,))), action=Bounded(-1, 1, (kit.act,)))
    with pytest.raises(ValueError, match=r"TD3 needs reward in the data, which have action, observation\. Use env="):
        TD3(spec, encoder=StateEncoder, critic=Critic, actor=GAUSSIAN, target=EMA, discount=0.9)
