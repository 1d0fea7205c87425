"""ACT-JEPA: both losses against explicit formulas, what they train, stages, and what is ACT's."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from agents.act import ACT
from agents.act_jepa import ACTJEPA
from perception.context import ContextEncoder, StateSequence
from perception.state import StateEncoder
from tests.reaching import Reaching
from worldmodels.learner import Learner
from worldmodels.predictors.chunk import ChunkDecoder
from worldmodels.targets import EMA

CHUNK, STEPS = 6, 10
ENCODER = partial(ContextEncoder, dim=8, depth=1, num_heads=2, hidden=8)
DECODER = partial(ChunkDecoder, depth=1, num_heads=2, hidden=8)
PREDICTOR = partial(ChunkDecoder, width=4, depth=1, num_heads=2, hidden=8)


@pytest.fixture(scope="module")
def source() -> Reaching:
    return Reaching(trajectories=20)


def make_agent(source: Any, kind: Any = ACTJEPA, **options: Any) -> Any:
    torch.manual_seed(0)
    choices: dict[str, Any] = {"encoder": ENCODER, "decoder": DECODER, "chunk": CHUNK}
    if kind is ACTJEPA:
        choices |= {"predictor": PREDICTOR, "target": partial(EMA, tau=0.1), "steps": STEPS}
    agent = kind(source.spec, **{**choices, **options})
    agent.study(source)
    return agent


def draw(source: Any, seed: int = 0) -> TensorDict:
    return source.sample(32, CHUNK, Generator().manual_seed(seed))


def train(agent: Any, source: Any, first: int, last: int, **weights: float) -> Learner:
    optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    learner = Learner(agent, optimizer=optimizer, weights=weights, max_grad_norm=1.0)
    for step in range(first, last):
        learner.update(draw(source, step), step)
    return learner


def test_the_observation_loss_is_the_distance_to_the_targets_latents(source: Reaching) -> None:
    agent, batch = make_agent(source), draw(source)
    with torch.no_grad():
        for parameter in agent.target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    valid, obs = ~batch["is_padded"], batch["observation"]
    twin, norm = copy.deepcopy(agent.target.module), agent.encoder.norms["state"]
    state = (obs["state"] - norm.mean) / norm.std
    goal = twin(state, obs["task_index"][:, 0], valid)
    first = TensorDict({name: leaf[:, 0] for name, leaf in obs.items()}, [32])
    prediction = agent.predictor(agent.encoder(first)["tokens"], valid)
    out = agent.joint_loss(batch)
    torch.testing.assert_close(out["loss", "observation"], (prediction - goal).abs()[valid].mean())
    action = agent.action_loss(batch)["loss", "action"]
    torch.testing.assert_close(out["loss", "action"], action)
    torch.testing.assert_close(agent.observation_loss(batch)["loss", "observation"], out["loss", "observation"])
    flat = goal[valid].detach()
    torch.testing.assert_close(out["stat", "target_std"], flat.std(0, correction=0).mean())
    of_mean = (flat - flat.mean(0)).abs().mean()
    torch.testing.assert_close(out["stat", "error_to_mean"], out["loss", "observation"].detach() / of_mean)
    of_copy = (goal - goal[:, :1]).abs()[valid].mean()
    torch.testing.assert_close(out["stat", "error_to_copy"], (out["loss", "observation"] / of_copy).detach())


def test_padding_changes_no_loss(source: Reaching) -> None:
    agent, batch = make_agent(source), draw(source)
    is_padded, state = batch["is_padded"][..., None], batch["observation", "state"]
    assert bool(is_padded.any())
    wild = batch.clone()
    wild["observation", "state"] = torch.where(is_padded, 5.0, state)
    wild["action"] = torch.where(is_padded, 5.0, batch["action"])
    for name in ("action", "observation"):
        torch.testing.assert_close(agent.joint_loss(wild)["loss", name], agent.joint_loss(batch)["loss", name])


def test_the_predictor_sees_no_actions_and_needs_none(source: Reaching) -> None:
    agent, batch = make_agent(source), draw(source)
    other = batch.copy().set("action", -batch["action"])
    loss = agent.joint_loss(batch)["loss", "observation"]
    assert agent.joint_loss(other)["loss", "observation"] == loss
    unknown = batch.copy().set("has_action", torch.zeros_like(batch["is_padded"]))
    out = agent.joint_loss(unknown)
    assert (out["loss", "action"], out["loss", "observation"]) == (0.0, loss)
    sum(out["loss"].values()).backward()
    assert agent.encoder.embed["state"].weight.grad.abs().sum() > 0
    assert agent.decoder.queries.grad.abs().sum() == 0


def test_targets_get_no_gradient_and_follow(source: Reaching) -> None:
    agent = make_agent(source)
    sum(agent.joint_loss(draw(source))["loss"].values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in agent.target.parameters())
    agent.zero_grad()
    before = [p.clone() for p in agent.target.parameters()]
    train(agent, source, 0, 1, action=1.0, observation=1.0)
    online = StateSequence(agent.encoder, CHUNK).parameters()
    pairs = zip(before, agent.target.parameters(), online, strict=True)
    for was, now, online in pairs:
        torch.testing.assert_close(now, was + 0.1 * (online.detach() - was))
    assert not agent.target.module.training


def test_only_states_are_targets(source: Reaching) -> None:
    agent, batch = make_agent(source), draw(source)
    other = batch.clone()
    other["observation", "environment_state"][:, 1:] = 3.0
    loss = agent.joint_loss(batch)["loss", "observation"]
    assert agent.joint_loss(other)["loss", "observation"] == loss
    other["observation", "state"][:, 1] = 3.0
    assert agent.joint_loss(other)["loss", "observation"] != loss


def test_without_weight_on_the_latents_it_is_act(source: Reaching) -> None:
    jepa, act = make_agent(source), make_agent(source, ACT)
    mine = act.state_dict().keys()
    act.load_state_dict({name: value for name, value in jepa.state_dict().items() if name in mine})
    train(jepa, source, 0, 4, action=1.0, observation=0.0)
    train(act, source, 0, 4, action=1.0)
    theirs = dict(jepa.named_parameters())
    for name, parameter in act.named_parameters():
        torch.testing.assert_close(parameter, theirs[name])


@pytest.mark.parametrize("is_encoder_trained", [True, False])
def test_two_stages_share_one_run(source: Reaching, is_encoder_trained: bool) -> None:
    agent = make_agent(source, pretrain_share=0.4, is_encoder_trained=is_encoder_trained)
    first, then = agent.phases()
    assert (first.name, first.span[:2], then.name, then.span[:2]) == ("pretraining", (0, 4), "policy", (4, 10))
    start = copy.deepcopy(agent)
    train(agent, source, 0, 4, action=1.0, observation=1.0)
    turn = copy.deepcopy(agent)
    assert differs(start.encoder, agent.encoder)
    assert differs(start.predictor, agent.predictor)
    assert not differs(start.decoder, agent.decoder)
    train(agent, source, 4, 8, action=1.0, observation=1.0)
    assert differs(turn.encoder, agent.encoder) == is_encoder_trained
    assert not differs(turn.predictor, agent.predictor)
    assert differs(turn.decoder, agent.decoder)


def test_a_frozen_encoder_gets_no_gradient(source: Reaching) -> None:
    agent = make_agent(source, ACT, is_encoder_trained=False)
    agent.action_loss(draw(source))["loss", "action"].backward()
    assert all(parameter.grad is None for parameter in agent.encoder.parameters())
    assert set(agent.phases()[0].params) == {"decoder", "decoder_vectors"}


def test_raw_targets_are_normalised_states(source: Reaching) -> None:
    agent, batch = make_agent(source, has_raw_targets=True), draw(source)
    norm, valid = agent.encoder.norms["state"], ~batch["is_padded"]
    prediction = agent.predictor(agent.context(batch), valid)
    assert prediction.shape[-1] == 2
    goal = (batch["observation", "state"] - norm.mean) / norm.std
    expected = (prediction - goal).abs()[valid].mean()
    torch.testing.assert_close(agent.joint_loss(batch)["loss", "observation"], expected)
    assert not any(isinstance(module, EMA) for module in agent.modules())
    assert set(agent.embed(batch["observation"][:, 0]).keys()) == {"context"}


def test_embeddings_are_the_pooled_context_and_the_target_of_the_present_state(source: Reaching) -> None:
    agent, obs = make_agent(source), draw(source)["observation"][:, 0]
    found = agent.embed(obs)
    torch.testing.assert_close(found["context"], agent.encoder(obs)["tokens"].mean(1))
    state = agent.encoder.norms["state"](obs["state"])[:, None]
    torch.testing.assert_close(found["target"], agent.target.module(state, obs["task_index"])[:, 0])


def test_settings_that_contradict_each_other_are_refused(source: Reaching) -> None:
    for options, message in (
        ({"encoder": StateEncoder}, "StateEncoder cannot. Use encoder=context"),
        ({"pretrain_share": 1}, "pretrain_share=1"),
        ({"is_encoder_trained": False}, "set agent.pretrain_share"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent(source, **options)


def differs(one: Any, other: Any) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
