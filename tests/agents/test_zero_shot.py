"""The scaffold: task vectors, normaliser, actor phase, inference and acting, in float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Composite, Unbounded

from agents.actors import FlowActor
from agents.sf import SuccessorFeatures
from agents.td_jepa import TDJEPA, SymmetricTDJEPA
from agents.zero_shot import average, regress
from worldmodels.predictors.successor import SuccessorPredictor

pytestmark = pytest.mark.usefixtures("float64")
PREDICTOR = partial(SuccessorPredictor, width=8, depth=1, num_members=2)
FLOW = partial(FlowActor, width=8, depth=1, field_width=8, field_depth=1)


def drawn(agent, batch, seed: int = 0) -> TensorDict:
    return agent.draw_noise(batch, Generator().manual_seed(seed))


def normed(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(rows.shape[-1]) * rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# --- task vectors in training ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("is_goal_whitened", [True, False])
def test_tasks_are_directions_or_permuted_goals_as_the_mask_says(kit, is_goal_whitened):
    agent = kit.agent(SuccessorFeatures, is_goal_whitened=is_goal_whitened)
    root = torch.randn(kit.task_dim, kit.task_dim)
    agent.second_moment.copy_(root @ root.T + torch.eye(kit.task_dim))
    batch = drawn(agent, kit.batch())
    noise = batch["noise"]
    found = agent.prepare(batch)["z"].numpy()

    features = agent.task_net(agent.encoder(batch["observation"][:, 1])["pooled"]).detach().numpy()
    inverse = np.linalg.inv(agent.second_moment.numpy() + 1e-6 * np.eye(kit.task_dim))
    assert 0 < int(noise["is_goal"].sum()) < kit.size
    for i in range(kit.size):
        goal = features[int(noise["goal_index"][i])]
        goal = inverse @ goal if is_goal_whitened else goal
        expected = goal if noise["is_goal"][i] else noise["task"][i].numpy()
        np.testing.assert_allclose(found[i], normed(expected), rtol=1e-8)
        assert np.linalg.norm(found[i]) == pytest.approx(np.sqrt(kit.task_dim))
    assert sorted(noise["goal_index"].tolist()) == list(range(kit.size))
    assert noise["goal_index"].tolist() != list(range(kit.size))  # other samples' next states


@pytest.mark.parametrize(("goal_ratio", "low", "high"), [(0.0, 0, 0), (0.5, 0.4, 0.6), (1.0, 1, 1)])
def test_share_of_goals_is_the_ratio(kit, goal_ratio, low, high):
    agent = kit.agent(SuccessorFeatures, goal_ratio=goal_ratio)
    batch = TensorDict({"action": torch.zeros(1000, 2, kit.act)}, batch_size=[1000])
    assert low <= drawn(agent, batch)["noise", "is_goal"].double().mean() <= high


def test_noise_is_a_function_of_the_generator_and_the_batch_is_left_alone(kit):
    agent = kit.agent(SuccessorFeatures, actor=FLOW)
    batch = kit.batch()
    before = batch.clone()
    one, same, other = drawn(agent, batch, 0), drawn(agent, batch, 0), drawn(agent, batch, 1)
    assert (one["noise"] == same["noise"]).all()
    assert not torch.equal(one["noise", "task"], other["noise", "task"])
    assert not torch.equal(one["noise", "action"], one["noise", "next_action"])
    given = one.clone()
    agent.prepare(one)
    assert (one == given).all()
    assert set(one.keys()) == set(given.keys())
    assert (batch == before).all()
    assert set(batch.keys()) == set(before.keys())


def test_prepare_moves_the_normaliser_once_with_each_row_of_the_window(kit):
    agent = kit.agent(SuccessorFeatures)
    batch = drawn(agent, kit.batch())
    agent.prepare(batch)
    rows = batch["observation", "state"].reshape(-1, kit.obs).numpy()
    np.testing.assert_allclose(agent.encoder.norm.mean.numpy(), rows.mean(0), rtol=1e-10)
    np.testing.assert_allclose(agent.encoder.norm.var.numpy(), rows.var(0), rtol=1e-10)
    assert agent.encoder.norm.count == 2


def test_second_moment_is_an_uncentred_average(kit):
    agent = kit.agent(SuccessorFeatures)
    features = torch.randn(9, kit.task_dim)
    agent.track_second_moment(features)
    rows = features.numpy()
    expected = 0.995 * np.eye(kit.task_dim) + 0.005 * sum(np.outer(row, row) for row in rows) / 9
    np.testing.assert_allclose(agent.second_moment.numpy(), expected, rtol=1e-12)


def test_symmetric_tasks_are_state_latents(kit):
    agent = kit.agent(SymmetricTDJEPA, state_net=None, goal_ratio=1.0, is_goal_whitened=False)
    batch = drawn(agent, kit.batch())
    found = agent.prepare(batch)["z"]
    latent = agent.state_net(agent.encoder(batch["observation"][:, 1])["pooled"])
    torch.testing.assert_close(found, latent[batch["noise", "goal_index"]])  # already of norm sqrt(d)


# --- transition and actor phase -------------------------------------------------------------------------------------
def test_transition_reads_rows_and_ends_discounts(kit):
    agent = kit.agent(SuccessorFeatures)
    batch = agent.prepare(drawn(agent, kit.batch()))
    step = agent.transition(batch)
    torch.testing.assert_close(step.x, agent.encoder(batch["observation"][:, 0])["pooled"])
    torch.testing.assert_close(step.next_x, agent.encoder(batch["observation"][:, 1])["pooled"])
    assert torch.equal(step.action, batch["action"][:, 0])
    ended = batch["terminated"][:, 0]
    assert 0 < int(ended.sum()) < kit.size
    assert torch.equal(step.discount, torch.where(ended, 0.0, 0.9))


def test_both_phases_see_the_tasks_of_prepare(kit, monkeypatch):
    agent = kit.agent(SuccessorFeatures)
    batch = agent.prepare(drawn(agent, kit.batch()))
    seen = []
    forward = SuccessorPredictor.forward
    monkeypatch.setattr(SuccessorPredictor, "forward", lambda net, x, z, a: seen.append(z) or forward(net, x, z, a))
    for phase in agent.phases():
        phase.loss(batch)
    assert len(seen) == 3  # target and online critic, then the actor's critic
    assert all(torch.equal(z, batch["z"]) for z in seen)


@pytest.mark.parametrize("actor_sees_latent", [True, False])
@pytest.mark.parametrize("is_flow", [True, False])
def test_actor_climbs_the_value_of_its_task(kit, actor_sees_latent, is_flow):
    options = {"actor": FLOW} if is_flow else {}
    agent = kit.agent(TDJEPA, task_predictor=PREDICTOR, actor_sees_latent=actor_sees_latent, **options)
    batch = agent.prepare(drawn(agent, kit.batch()))
    x = agent.encoder(batch["observation"][:, 0])["pooled"]
    latent = agent.state_net(x).detach()
    action = agent.actor(latent if actor_sees_latent else x, batch["z"], batch["noise", "action"])
    members = agent.predictor(latent, batch["z"], action).detach()  # [K, B, d]
    values = [float(members[k, i] @ batch["z"][i]) for k in range(2) for i in range(kit.size)]
    scale = np.mean(np.abs(values)) if is_flow else 1.0
    out = agent.actor_loss(batch)
    assert out["loss", "value"].item() == pytest.approx(-np.mean(values) / scale, rel=1e-9)
    assert out["stat", "q"].item() == pytest.approx(np.mean(values), rel=1e-9)
    assert out["stat", "action_abs"].item() == pytest.approx(action.abs().mean().item())
    assert set(out["loss"].keys()) == ({"value", "flow_matching", "distillation"} if is_flow else {"value"})


def test_actor_phase_differentiates_the_value_with_respect_to_actions_only(kit):
    agent = kit.agent(SuccessorFeatures)
    batch = agent.prepare(drawn(agent, kit.batch()))
    agent.actor_loss(batch)["loss", "value"].backward()
    trained = {name.split(".")[0] for name, p in agent.named_parameters() if p.grad is not None}
    assert trained == {"actor"}
    gradient = agent.actor.trunk.layers[-1].bias.grad.clone()
    bias, step = agent.actor.trunk.layers[-1].bias.data, 1e-6
    losses = []
    for sign in (1, -1):  # a finite difference in the first output bias
        bias[0] += sign * step
        losses.append(agent.actor_loss(batch)["loss", "value"].item())
        bias[0] -= sign * step
    assert gradient[0].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)


# --- capabilities ---------------------------------------------------------------------------------------------------
def test_acting_is_a_function_of_observation_task_and_noise(kit):
    agent = kit.agent(SuccessorFeatures, actor=FLOW)
    td = TensorDict({"observation": {"state": torch.randn(3, kit.obs)}, "z": torch.randn(3, kit.task_dim)}, [3])
    noisy = td.copy().set("noise", TensorDict({"action": torch.randn(3, kit.act)}, [3]))
    first = agent.act(noisy, explore=False)["action"]
    torch.manual_seed(1)
    assert torch.equal(agent.act(noisy, explore=False)["action"], first)
    assert set(td.keys()) == {"observation", "z"}  # a new TensorDict came back
    zero = td.copy().set("noise", TensorDict({"action": torch.zeros(3, kit.act)}, [3]))
    assert torch.equal(agent.act(td, explore=False)["action"], agent.act(zero, explore=False)["action"])
    assert not torch.equal(agent.act(td, explore=False)["action"], first)


def test_exploring_adds_noise_to_the_gaussian_mean(kit):
    agent = kit.agent(SuccessorFeatures)
    td = TensorDict({"observation": {"state": torch.randn(3, kit.obs)}, "z": torch.randn(3, kit.task_dim)}, [3])
    td["noise"] = TensorDict({"action": torch.ones(3, kit.act)}, [3])
    mean = agent.actor.mean(agent.encoder(td["observation"])["pooled"], td["z"])
    torch.testing.assert_close(agent.act(td, explore=False)["action"], mean)
    torch.testing.assert_close(agent.act(td, explore=True)["action"], (mean + 0.2).clamp(max=1 - 1e-6))


def test_embed_gives_both_representations(kit):
    agent = kit.agent(TDJEPA, task_predictor=PREDICTOR)
    obs = kit.batch()["observation"][:, 0]
    found, x = agent.embed(obs), agent.encoder(obs)["pooled"]
    torch.testing.assert_close(found["state"], agent.state_net(x))
    torch.testing.assert_close(found["task"], agent.task_net(x))


def test_reward_is_inferred_by_least_squares_on_the_task_features(kit):
    agent = kit.agent(TDJEPA, task_predictor=PREDICTOR)
    obs = TensorDict({"state": torch.randn(50, kit.obs)}, [50])
    reward = torch.rand(50)
    psi = agent.embed(obs)["task"].numpy()
    solution = np.linalg.lstsq(psi, reward.numpy(), rcond=None)[0]
    np.testing.assert_allclose(agent.infer_task(obs, reward=reward).numpy(), normed(solution), rtol=1e-8)


def test_goal_is_inferred_by_the_inverse_second_moment(kit):
    agent = kit.agent(TDJEPA, task_predictor=PREDICTOR)
    obs = TensorDict({"state": torch.randn(50, kit.obs)}, [50])
    goal = TensorDict({"state": torch.randn(kit.obs)}, [])
    psi = agent.embed(obs)["task"].numpy()
    target = agent.embed(goal.unsqueeze(0))["task"][0].numpy()
    expected = normed(np.linalg.solve(psi.T @ psi / 50, target))
    np.testing.assert_allclose(agent.infer_task(obs, goal=goal).numpy(), expected, rtol=1e-8)


def test_a_task_is_a_reward_or_a_goal(kit):
    agent = kit.agent(SuccessorFeatures)
    obs = TensorDict({"state": torch.randn(5, kit.obs)}, [5])
    with pytest.raises(ValueError, match="one of a reward, a goal and a demonstration"):
        agent.infer_task(obs)
    with pytest.raises(ValueError, match="one of a reward, a goal and a demonstration"):
        agent.infer_task(obs, reward=torch.zeros(5), goal=obs[0])


# --- the two inference rules ----------------------------------------------------------------------------------------
def test_regress_finds_the_task_that_made_the_reward():
    features, z = torch.randn(40, 4), torch.randn(4)
    np.testing.assert_allclose(regress(features, features @ z).numpy(), normed(z.numpy()), rtol=1e-9)


def test_regress_takes_the_shortest_solution_of_features_without_full_rank():
    features = torch.randn(40, 3) @ torch.randn(3, 6)  # rank 3 of 6
    reward = torch.rand(40)
    expected = normed(np.linalg.lstsq(features.numpy(), reward.numpy(), rcond=1e-8)[0])
    np.testing.assert_allclose(regress(features, reward).numpy(), expected, rtol=1e-6)


def test_the_reward_shift_changes_the_task():
    """-1 and 0 without intercept ask to be nowhere; 0 and 1 ask for the goal (sheet td_jepa, section 2)."""
    side = torch.linspace(-1, 1, 40)
    features = torch.stack([torch.ones(40), side], -1)
    reward = (side > 0.8).double() - 1
    assert regress(features, reward)[1] > 0
    assert torch.nn.functional.cosine_similarity(regress(features, reward), regress(features, reward + 1), 0) < 0
    assert regress(features, reward)[0] < 0 < regress(features, reward + 1)[0]


def test_average_weighs_rows_by_reward_without_an_inverse():
    features, reward = torch.randn(40, 4), torch.rand(40)
    expected = normed(sum(float(r) * row for r, row in zip(reward, features.numpy(), strict=True)))
    np.testing.assert_allclose(average(features, reward).numpy(), expected, rtol=1e-9)
    assert not np.allclose(regress(features, reward).numpy(), expected, rtol=0.05)


def test_an_agent_needs_actions(kit):
    spec = Composite(observation=Composite(state=Unbounded((3,))))
    with pytest.raises(ValueError, match="SuccessorFeatures needs an action in the spec; this source has observation"):
        kit.agent(SuccessorFeatures, spec=spec)
