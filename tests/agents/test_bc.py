"""Behaviour cloning: the causal sequence, its loss, and a memory that gives what training saw."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from agents.bc import BC
from perception.context import FlatState
from tests.reaching import Reaching
from worldmodels.evals.rollout import DecidesAhead

HISTORY = 4
NETWORK = {"dim": 8, "depth": 2, "num_heads": 2, "hidden": 8}


@pytest.fixture(scope="module")
def source() -> Reaching:
    return Reaching(trajectories=20)


def make_agent(source: Any, **options: Any) -> BC:
    torch.manual_seed(0)
    agent = BC(source.spec, **{"encoder": FlatState, "history": HISTORY, "network": NETWORK, **options})
    agent.study(source)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return agent.eval()


def draw(source: Any, window: int = HISTORY) -> TensorDict:
    return source.sample(32, window, Generator().manual_seed(0))


def features(agent: BC, batch: TensorDict) -> torch.Tensor:
    norms, obs = agent.encoder.norms, batch["observation"]
    return torch.cat([norms[name](obs[name]) for name in ("state", "environment_state")], -1)  # [B, T, X]


def test_an_observation_is_both_states_joined(source: Reaching) -> None:
    agent, batch = make_agent(source), draw(source)
    first = features(agent, batch)[:, 0]
    torch.testing.assert_close(agent.encoder(batch["observation"][:, 0])["pooled"], first)
    assert agent.encoder.dim == 4


def test_tokens_alternate_behind_the_task(source: Reaching) -> None:
    agent, batch = make_agent(source), draw(source)
    net, x, action = agent.network, features(agent, batch), agent.action_norm(batch["action"])
    task = batch["observation", "task_index"][:, 0]
    tokens = [net.embed_task(task)]
    for step in range(HISTORY):
        tokens.append(net.embed_observation(x[:, step]) + net.place[step])
        tokens.append(net.embed_action(action[:, step]) + net.place[step])
    whole = torch.stack(tokens[:-1], 1)  # [B, 2 h, dim]: nobody sees the last action
    is_before = torch.ones(1, 2 * HISTORY, 2 * HISTORY, dtype=torch.bool).tril()
    expected = net.blocks(whole, is_before)[:, 1::2]
    torch.testing.assert_close(net(x, action[:, :-1], task), expected)


def test_an_action_depends_on_nothing_that_comes_later(source: Reaching) -> None:
    agent, batch = make_agent(source), draw(source)
    x, action, task = features(agent, batch), agent.action_norm(batch["action"]), torch.zeros(32, dtype=torch.int64)
    whole = agent.network(x, action[:, :-1], task)
    for step in range(HISTORY):
        part = agent.network(x[:, : step + 1], action[:, :step], task)
        torch.testing.assert_close(part[:, step], whole[:, step])


def test_the_loss_is_the_mean_square_of_known_actions(source: Reaching) -> None:
    agent, batch = make_agent(source), draw(source)
    goal, task = agent.action_norm(batch["action"]), batch["observation", "task_index"][:, 0]
    prediction = agent.network.outward(agent.network(features(agent, batch), goal[:, :-1], task))
    counts = ~batch["is_padded"]
    out = agent.loss(batch)
    torch.testing.assert_close(out["loss", "action"], (prediction - goal).square()[counts].mean())
    raw = (agent.action_norm.inverse(prediction) - batch["action"]).abs()[counts].mean()
    torch.testing.assert_close(out["stat", "action_error"], raw.detach())
    counts = counts & (torch.arange(32)[:, None] < 7)
    known = (torch.arange(32)[:, None] < 7).expand(-1, HISTORY)
    loss = agent.loss(batch.copy().set("has_action", known))["loss", "action"]
    torch.testing.assert_close(loss, (prediction - goal).square()[counts].mean())


def test_acting_step_by_step_is_the_sequence_of_training(source: Reaching) -> None:
    """Whatever was done, in windows of the last steps: before, at and beyond a full history."""
    agent = make_agent(source)
    assert isinstance(agent, DecidesAhead)
    assert agent.num_decided == 1
    batch = draw(source, 7)
    x, task = features(agent, batch), batch["observation", "task_index"][:, 0]
    for _ in range(2):  # the second time after forgetting the first
        agent.begin(32)
        done: list[torch.Tensor] = []
        for step in range(7):
            obs = TensorDict({name: leaf[:, step] for name, leaf in batch["observation"].items()}, [32])
            action = agent.act(TensorDict({"observation": obs}, [32]), False)["action"]
            first = max(0, step + 1 - HISTORY)
            past = [agent.action_norm(one) for one in done[first:]]
            past = torch.stack(past, 1) if past else torch.zeros(32, 0, 2)
            latent = agent.network(x[:, first : step + 1], past, task)[:, -1]
            expected = agent.action_norm.inverse(agent.network.outward(latent)).clamp(-1, 1)
            torch.testing.assert_close(action, expected)
            done.append(action)


def test_other_episodes_must_begin_anew(source: Reaching) -> None:
    agent, obs = make_agent(source), draw(source)["observation"][:, 0]
    agent.act(TensorDict({"observation": obs}, [32]))
    with pytest.raises(ValueError, match=r"32 episodes run, 4 observations came; begin\(num\) first"):
        agent.act(TensorDict({"observation": obs[:4]}, [4]))


def test_a_history_has_a_step(source: Reaching) -> None:
    with pytest.raises(ValueError, match="history=0"):
        make_agent(source, history=0)
    alone = make_agent(source, history=1)
    batch = draw(source, 1)
    assert alone.loss(batch)["loss", "action"].isfinite()
    embedded = partial(alone.embed, batch["observation"][:, 0])
    assert embedded()["context"].shape == (32, 8)
