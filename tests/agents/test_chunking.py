"""Chunks of actions: what counts in a loss, and how a chunk is played."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Bounded, Composite, Unbounded

from agents.act import ACT
from agents.chunking import TemporalEnsemble
from envs.mixture import Mixture
from envs.toy import Toy
from perception.context import ContextEncoder
from perception.state import StateEncoder
from tests.reaching import Reaching
from worldmodels.evals.rollout import DecidesAhead, rollout
from worldmodels.evals.tasks import play
from worldmodels.losses import masked_l1
from worldmodels.objectives.joint import Joint
from worldmodels.predictors.chunk import ChunkDecoder

CHUNK = 6
ENCODER = partial(ContextEncoder, dim=8, depth=1, num_heads=2, hidden=8)
DECODER = partial(ChunkDecoder, depth=1, num_heads=2, hidden=8)


@pytest.fixture(scope="module")
def source() -> Reaching:
    return Reaching(trajectories=20)


def make_agent(source: Any, **options: Any) -> ACT:
    torch.manual_seed(0)
    choices = {"encoder": ENCODER, "decoder": DECODER, "chunk": CHUNK}
    agent = ACT(source.spec, **{**choices, **options})
    agent.study(source)
    return agent


def draw(source: Any, size: int = 32) -> TensorDict:
    return source.sample(size, CHUNK, Generator().manual_seed(0))


# --- losses -----------------------------------------------------------------------------------------------------------
def test_the_mean_is_over_entries_that_count() -> None:
    prediction, goal = torch.tensor([[[1.0, 2.0], [5.0, 5.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 9.0]]])
    assert masked_l1(prediction, goal, torch.tensor([[True, False]])) == 1.5
    assert masked_l1(prediction, goal, torch.tensor([[True, True]])) == 3.0
    assert masked_l1(prediction, goal, torch.tensor([[False, False]])) == 0.0


def test_a_masked_step_gives_no_gradient_even_where_it_is_no_number() -> None:
    prediction = torch.zeros(1, 2, 3, requires_grad=True)
    goal = torch.tensor([[[1.0, 1.0, 1.0], [float("nan")] * 3]])
    masked_l1(prediction, goal, torch.tensor([[True, False]])).backward()
    assert prediction.grad is not None
    assert prediction.grad[0, 0].tolist() == pytest.approx([-1 / 3] * 3)
    assert prediction.grad[0, 1].tolist() == [0.0] * 3


def test_padding_and_unknown_actions_count_in_no_loss(source: Reaching) -> None:
    agent, batch = make_agent(source), draw(source)
    is_padded = batch["is_padded"]
    assert 0.1 < is_padded.float().mean() < 0.9
    loss = agent.action_loss(batch)["loss", "action"]
    prediction = agent.decoder(agent.encoder(batch["observation"][:, 0])["tokens"], ~is_padded)
    norm = agent.action_norm
    error = (prediction - (batch["action"] - norm.mean) / norm.std).abs()
    torch.testing.assert_close(loss, error[~is_padded].mean())
    wild = torch.where(is_padded[..., None], torch.full_like(batch["action"], 7.0), batch["action"])
    torch.testing.assert_close(agent.action_loss(batch.copy().set("action", wild))["loss", "action"], loss)
    has_action = torch.arange(32)[:, None].expand(-1, CHUNK) < 5
    torch.testing.assert_close(
        agent.action_loss(batch.copy().set("has_action", has_action))["loss", "action"],
        error[~is_padded & has_action].mean(),
    )
    unknown = batch.copy().set("has_action", torch.zeros_like(has_action))
    assert agent.action_loss(unknown)["loss", "action"] == 0.0


def test_the_logged_error_is_in_the_units_of_actions(source: Reaching) -> None:
    agent, batch = make_agent(source), draw(source)
    valid = ~batch["is_padded"]
    prediction = agent.decoder(agent.encoder(batch["observation"][:, 0])["tokens"], valid)
    raw = prediction * agent.action_norm.std + agent.action_norm.mean
    expected = (raw - batch["action"]).abs()[valid].mean()
    torch.testing.assert_close(agent.action_loss(batch)["stat", "action_error"], expected)


def test_windows_without_padding_count_as_a_whole() -> None:
    toy, leaves = Toy(trajectories=3, steps=20), ("state", "action")
    same = {"mean": {name: torch.zeros(2) for name in leaves}, "std": {name: torch.ones(2) for name in leaves}}
    toy.statistics = lambda: TensorDict(same)
    agent, batch = make_agent(toy), draw(toy)
    error = (agent.decoder(agent.encoder(batch["observation"][:, 0])["tokens"]) - batch["action"]).abs()
    torch.testing.assert_close(agent.action_loss(batch)["loss", "action"], error.mean())


# --- playing ----------------------------------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([0.0, 0.01, 0.7]))
def test_an_ensemble_averages_all_opinions_about_now(num: int, calls: int, decay: float) -> None:
    chunks = torch.randn(calls, 2, num, 3, dtype=torch.float64, generator=Generator().manual_seed(num))
    ensemble = TemporalEnsemble(decay)
    for _ in range(2):  # the second time after forgetting the first
        ensemble.begin()
        for now in range(calls):
            about = [chunks[then, :, now - then] for then in range(max(0, now - num + 1), now + 1)]  # oldest first
            weight = torch.exp(-decay * torch.arange(len(about)))
            expected = sum(w * opinion for w, opinion in zip(weight, about, strict=True)) / weight.sum()
            torch.testing.assert_close(ensemble(chunks[now]), expected)


def test_an_ensemble_of_other_episodes_must_begin_anew() -> None:
    ensemble = TemporalEnsemble(0.01)
    ensemble(torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match=r"begin\(num\) first"):
        ensemble(torch.zeros(4, 3, 1))


class Spy:
    """A policy that notes what it is asked and answers with what it was built on."""

    def __init__(self, agent: ACT) -> None:
        self.agent, self.num_decided, self.num_noise = agent, agent.num_decided, agent.num_noise
        self.calls, self.begun = [], []

    def begin(self, num: int) -> None:
        self.begun.append(num)
        self.agent.begin(num)

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        self.calls.append(td["observation"].clone())
        return self.agent.act(td, explore)


@pytest.mark.parametrize(("options", "num"), [({}, CHUNK), ({"num_executed": 2}, 2), ({"ensemble": 0.01}, 1)])
def test_a_rollout_asks_when_the_chunk_is_played(source: Reaching, options: dict, num: int) -> None:
    agent = make_agent(source, **options).eval()
    assert isinstance(agent, DecidesAhead)
    assert agent.num_decided == num
    spy = Spy(agent)
    envs = {name: source.tasks.make(name, num_envs=3, seed=0) for name in ("task1", "task3")}
    noise = partial(torch.zeros, 6, 2)
    played = rollout(envs, spy, noise=noise, device=torch.device("cpu"), max_steps=13)
    longest = max(int(episodes.lengths.max()) for episodes in played.values())
    assert longest == 13
    assert len(spy.calls) == -(-longest // num)
    assert spy.begun == [6]
    assert spy.calls[0]["task_index"].tolist() == [0, 0, 0, 2, 2, 2]


def test_actions_come_in_their_own_units_within_the_box(source: Reaching) -> None:
    agent, td = make_agent(source, num_executed=4).eval(), draw(source).select("observation")
    td = TensorDict({"observation": td["observation"][:, 0]}, [32])
    with torch.no_grad():
        chunk = agent.decoder(agent.encoder(td["observation"])["tokens"])
        chunk = (chunk * agent.action_norm.std + agent.action_norm.mean)[:, :4].flatten(1)
    torch.testing.assert_close(agent.act(td, False)["action"], chunk.clamp(-1, 1))
    with torch.no_grad():
        agent.action_norm.std.mul_(50)
    action = agent.act(td, False)["action"]
    assert action.abs().max() == 1.0
    assert action.shape == (32, 8)


def test_evaluation_is_repeatable_with_memory(source: Reaching) -> None:
    agent = make_agent(source, ensemble=0.01).eval()
    options = {"episodes": 3, "seed": 0, "device": torch.device("cpu"), "max_steps": 12}
    (first, _), (second, _) = (play(agent, source, ["task1", "task3"], **options) for _ in range(2))
    for task in ("task1", "task3"):
        torch.testing.assert_close(first[task].paths, second[task].paths, rtol=0, atol=0, equal_nan=True)


def test_a_chunk_policy_trains_and_plays_beside_another_objective(source: Reaching) -> None:
    mixture, policy = Mixture({"agent": source}), partial(ACT, decoder=DECODER, chunk=CHUNK)
    blind, looking = (
        Joint(mixture.spec, encoder=ENCODER, objectives={"agent": partial(policy, **options)})
        for options in ({"num_executed": 2}, {"ensemble": 0.01})
    )
    for joint in (blind, looking):
        joint.study(mixture)
        assert bool(joint.objectives["agent"].action_norm.is_fitted)
        assert isinstance(joint, DecidesAhead)
    assert (blind.num_decided, looking.num_decided, blind.num_noise) == (2, 1, 1)
    td = TensorDict({"observation": draw(source)["observation"][:, 0]}, [32])
    looking.act(td)
    looking.begin(4)  # else the ensemble would refuse another number of episodes
    assert looking.act(td[:4])["action"].shape == (4, 2)


# --- bad input --------------------------------------------------------------------------------------------------------
def test_settings_that_contradict_each_other_are_refused(source: Reaching) -> None:
    for options, message in (
        ({"num_executed": 0}, "num_executed=0: of 6 actions of a chunk, 1 to 6"),
        ({"num_executed": 7}, "num_executed=7"),
        ({"num_executed": 2, "ensemble": 0.01}, "looks at every step"),
        ({"ensemble": -1}, "ensemble=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent(source, **options)
    spec = Composite(observation=Composite(state=Unbounded((2,))))
    with pytest.raises(ValueError, match="ACT imitates actions; the data have observation"):
        ACT(spec, encoder=ENCODER, decoder=DECODER, chunk=2)


def test_data_that_do_not_tell_their_statistics_are_refused() -> None:
    class Silent:
        spec = Composite(observation=Composite(state=Unbounded((2,))), action=Bounded(-1, 1, (2,)))

    with pytest.raises(ValueError, match=r"Silent has none \(statistics\(\)\). Use env=metaworld"):
        make_agent(Silent())


def test_another_encoder_serves_with_its_own_normalisation(source: Reaching) -> None:
    agent = make_agent(source, encoder=StateEncoder, decoder=partial(DECODER, width=8))
    batch = agent.prepare(draw(source))
    assert agent.encoder.norm.count == 1
    assert agent.action_loss(batch)["loss", "action"].isfinite()


def test_a_trained_agent_keeps_its_statistics(source: Reaching) -> None:
    agent = make_agent(source)
    mean = agent.encoder.norms["state"].mean.clone()
    agent.study(Reaching(trajectories=5, seed=3))
    assert torch.equal(agent.encoder.norms["state"].mean, mean)
    raw = make_agent(source, is_normalized=False)
    assert torch.equal(raw.action_norm.std, torch.ones(2))
