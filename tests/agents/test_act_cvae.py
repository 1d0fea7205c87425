"""The original ACT: both losses against explicit formulas, what the style sees, and that acting needs none."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator
from torch.distributions import Normal, kl_divergence

from agents.act_cvae import ACTCVAE, StyleEncoder
from perception.context import ContextEncoder
from perception.state import StateEncoder
from tests.reaching import Reaching
from worldmodels.predictors.chunk import ChunkDecoder

CHUNK = 6
ENCODER = partial(ContextEncoder, dim=8, depth=1, num_heads=2, hidden=8)
DECODER = partial(ChunkDecoder, depth=1, num_heads=2, hidden=8)
STYLE = partial(StyleEncoder, dim=8, depth=1, num_heads=2, hidden=8)


@pytest.fixture(scope="module")
def source() -> Reaching:
    return Reaching(trajectories=20)


def make_agent(source: Any, **options: Any) -> ACTCVAE:
    torch.manual_seed(0)
    choices: dict[str, Any] = {"encoder": ENCODER, "decoder": DECODER, "style": STYLE, "chunk": CHUNK, "style_dim": 3}
    agent = ACTCVAE(source.spec, **{**choices, **options})
    agent.study(source)
    return agent


def draw(source: Any, agent: ACTCVAE) -> TensorDict:
    generator = Generator().manual_seed(0)
    return agent.draw_noise(source.sample(32, CHUNK, generator), generator)


def test_the_losses_are_the_error_and_the_divergence_of_styles(source: Reaching) -> None:
    agent = make_agent(source)
    batch = draw(source, agent)
    valid, obs = ~batch["is_padded"], batch["observation"][:, 0]
    state, action = agent.encoder.norms["state"](obs["state"]), agent.action_norm(batch["action"])
    mean, log_variance = agent.style(state, action, valid)
    std = log_variance.exp().sqrt()
    style = mean + std * batch["noise", "style"]
    tokens = torch.cat([agent.embed_style(style)[:, None], agent.encoder.embedded(obs)], 1)
    prediction = agent.decoder(agent.encoder.blocks(tokens), valid)
    out = agent.loss(batch)
    torch.testing.assert_close(out["loss", "action"], (prediction - action).abs()[valid].mean())
    divergence = kl_divergence(Normal(mean, std), Normal(torch.zeros(3), torch.ones(3))).sum(-1).mean()
    torch.testing.assert_close(out["loss", "divergence"], divergence)


def test_the_style_reads_known_actions_only(source: Reaching) -> None:
    agent = make_agent(source)
    batch = draw(source, agent)
    wild = torch.where(batch["is_padded"][..., None], torch.full_like(batch["action"], 5.0), batch["action"])
    for name in ("action", "divergence"):
        other = agent.loss(batch.copy().set("action", wild))["loss", name]
        torch.testing.assert_close(other, agent.loss(batch)["loss", name])
    unknown = batch.copy().set("has_action", torch.zeros_like(batch["is_padded"]))
    assert agent.loss(unknown)["loss", "divergence"] == 0.0
    reversed_ways = batch.copy().set("action", batch["action"].flip(1))
    assert agent.loss(reversed_ways)["loss", "divergence"] != agent.loss(batch)["loss", "divergence"]


def test_acting_needs_no_style(source: Reaching) -> None:
    agent, obs = make_agent(source).eval(), source.sample(4, 1, Generator().manual_seed(0))["observation"][:, 0]
    tokens = agent.styled(obs, torch.zeros(4, 3))
    expected = agent.action_norm.inverse(agent.decoder(tokens)).flatten(1).clamp(-1, 1)
    torch.testing.assert_close(agent.act(TensorDict({"observation": obs}, [4]))["action"], expected)
    torch.testing.assert_close(agent.embed(obs)["context"], tokens.mean(1))


def test_a_frozen_encoder_hands_gradients_on_to_the_style(source: Reaching) -> None:
    agent = make_agent(source, is_encoder_trained=False)
    agent.loss(draw(source, agent))["loss", "action"].backward()
    assert all(parameter.grad is None for parameter in agent.encoder.parameters())
    assert agent.embed_style.weight.grad.abs().sum() > 0
    assert agent.style.embed_action.weight.grad.abs().sum() > 0


def test_an_encoder_without_room_for_a_style_is_refused(source: Reaching) -> None:
    with pytest.raises(ValueError, match="StateEncoder takes none"):
        make_agent(source, encoder=StateEncoder)
