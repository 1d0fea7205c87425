"""Each method's own losses against loops over members, samples and pairs, in float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from agents.fb import FB, measure_loss
from agents.hilp import HILP, temporal_value
from agents.sf import SuccessorFeatures
from agents.td_jepa import SymmetricTDJEPA
from worldmodels.nn.mlp import LatentMLP

pytestmark = pytest.mark.usefixtures("float64")
DISCOUNT = 0.9
RAW = partial(LatentMLP, dim=4, width=8, depth=2, is_normalized=False)


def prepared(agent, batch: TensorDict) -> TensorDict:
    return agent.prepare(agent.draw_noise(batch, Generator().manual_seed(0)))


def values(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def rows(agent, batch: TensorDict) -> tuple[Tensor, Tensor, np.ndarray]:
    """Encoded s and s', and the discount of each sample."""
    now, then = (agent.encoder(batch["observation"][:, t])["pooled"] for t in (0, 1))
    discount = [0.0 if ended else DISCOUNT for ended in batch["terminated"][:, 0].tolist()]
    return now, then, np.array(discount)


def bootstrapped(agent, batch: TensorDict, then: Tensor) -> tuple[Tensor, np.ndarray]:
    """phi^-(s') and mean_k F_k^-(phi^-(s'), z, a') with a' of the actor from its own noise."""
    latent = agent.state_target.module(then)
    action = agent.actor(then, batch["z"], batch["noise", "next_action"])
    members = values(agent.predictor_target.module(latent, batch["z"], action))
    return latent, sum(members) / len(members)


def regularizer(latent: np.ndarray) -> float:
    num = len(latent)
    pairs = [np.dot(latent[i], latent[j]) ** 2 for i in range(num) for j in range(num) if i != j]
    return 0.5 * np.mean(pairs) - np.mean([np.dot(row, row) for row in latent])


# --- symmetric TD-JEPA ----------------------------------------------------------------------------------------------
def test_symmetric_loss(kit):
    agent = kit.agent(SymmetricTDJEPA, state_net=None)
    batch = prepared(agent, kit.batch())
    now, then, discount = rows(agent, batch)
    next_latent, future = bootstrapped(agent, batch, then)
    target = values(next_latent) + discount[:, None] * future
    state = agent.state_net(now)
    prediction = values(agent.predictor(state, batch["z"], batch["action"][:, 0]))
    terms = [((prediction[k, i] - target[i]) ** 2).sum() for k in range(2) for i in range(kit.size)]
    losses = agent.representation_loss(batch)["loss"]
    assert losses["td_state"].item() == pytest.approx(np.mean(terms), rel=1e-9)
    assert losses["orthonormality_state"].item() == pytest.approx(regularizer(values(state)), rel=1e-9)
    assert not hasattr(agent, "task_net")
    with pytest.raises(ValueError, match="task_encoder must be null"):
        kit.agent(SymmetricTDJEPA, state_net=None, task_encoder=agent.encoder)
    with pytest.raises(ValueError, match="state_net must be null"):
        kit.agent(SymmetricTDJEPA)


# --- successor features ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pessimism", [0.0, 0.5])
def test_random_features_regression(kit, pessimism):
    agent = kit.agent(SuccessorFeatures, pessimism=pessimism)
    batch = prepared(agent, kit.batch())
    now, then, discount = rows(agent, batch)
    latent, future = bootstrapped(agent, batch, then)
    if pessimism:
        action = agent.actor(then, batch["z"], batch["noise", "next_action"])
        one, two = values(agent.predictor_target.module(latent, batch["z"], action))
        future = future - pessimism * abs(one - two)
    target = values(agent.task_net(then)) + discount[:, None] * future  # psi(s') of the online network
    prediction = values(agent.predictor(agent.state_net(now), batch["z"], batch["action"][:, 0]))
    expected = 0.5 * sum(np.mean((member - target) ** 2) for member in prediction)
    out = agent.representation_loss(batch)
    assert out["loss", "successor"].item() == pytest.approx(expected, rel=1e-9)
    out["loss", "successor"].backward()
    assert all(p.grad is None for p in agent.task_net.parameters())  # random features stay as they are
    assert {id(p) for g in agent.representation_groups().values() for p in g}.isdisjoint(
        {id(p) for p in agent.task_net.parameters()}
    )


# --- forward-backward -----------------------------------------------------------------------------------------------
def test_measure_loss_equals_a_loop_over_pairs():
    forward, backward, target = torch.randn(3, 5, 4), torch.randn(5, 4), torch.randn(5, 5)
    discount = torch.tensor([0.9, 0.0, 0.9, 0.9, 0.5])
    off, diagonal = [], []
    for k in range(3):
        for i in range(5):
            for j in range(5):
                residual = float(forward[k, i] @ backward[j]) - float(discount[i] * target[i, j])
                (diagonal if i == j else off).append(residual if i == j else residual**2)
    # K members: the sum over members of a mean is K times the mean over all.
    expected = 0.5 * 3 * np.mean(off) - 3 * np.mean(diagonal)
    assert measure_loss(forward, backward, target, discount).item() == pytest.approx(expected, rel=1e-10)


def test_forward_backward_losses(kit):
    agent = kit.agent(FB, is_goal_whitened=False)
    batch = prepared(agent, kit.batch())
    now, then, discount = rows(agent, batch)
    _, future = bootstrapped(agent, batch, then)
    target = future @ values(agent.task_target.module(then)).T
    backward = values(agent.task_net(then))
    forward = values(agent.predictor(agent.state_net(now), batch["z"], batch["action"][:, 0]))
    off, diagonal = 0.0, 0.0
    for member in forward:
        residual = member @ backward.T - discount[:, None] * target
        diagonal += np.mean(np.diag(residual))
        off += np.mean(residual[~np.eye(kit.size, dtype=bool)] ** 2)
    losses = agent.representation_loss(batch)["loss"]
    assert losses["measure"].item() == pytest.approx(0.5 * off - diagonal, rel=1e-9)
    assert losses["orthonormality_task"].item() == pytest.approx(regularizer(backward), rel=1e-9)


def test_forward_backward_infers_without_an_inverse(kit):
    agent = kit.agent(FB, is_goal_whitened=False)
    obs = TensorDict({"state": torch.randn(30, kit.obs)}, [30])
    reward = torch.rand(30)
    features = values(agent.embed(obs)["task"])
    mean = values(reward) @ features
    expected = 2 * mean / np.linalg.norm(mean)  # sqrt(4) = 2
    np.testing.assert_allclose(values(agent.infer_task(obs, reward=reward)), expected, rtol=1e-9)
    goal = agent.infer_task(obs, goal=obs[3])
    np.testing.assert_allclose(values(goal), features[3], rtol=1e-9)  # already of norm sqrt(d)


# --- HILP -----------------------------------------------------------------------------------------------------------
def test_temporal_value_is_minus_the_distance_and_safe_at_zero():
    state = torch.tensor([[3.0, 0.0], [1.0, 1.0]], requires_grad=True)
    goal = torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    value = temporal_value(state, goal)
    assert value.tolist() == pytest.approx([-5.0, -1e-3])
    value.sum().backward()
    torch.testing.assert_close(state.grad, torch.tensor([[-0.6, 0.8], [0.0, 0.0]]))


def test_hilbert_loss_equals_a_loop_over_samples(kit):
    agent = kit.agent(HILP, task_net=RAW, expectile=0.7, random_goal_ratio=0.5)
    batch = kit.batch()
    batch["future", "observation", "state"][0] = batch["observation", "state"][0, 0]  # sample 0 is at its goal
    futures = batch["future", "observation"].clone()
    batch = agent.draw_noise(batch, Generator().manual_seed(0))
    drawn = batch["noise", "goal"]
    drawn["is_random"][:2] = torch.tensor([False, True])
    batch = agent.prepare(batch)
    now, then, _ = rows(agent, batch)
    later = agent.encoder(futures)["pooled"]

    def value(net, state: Tensor, goal: Tensor) -> float:
        return -(float(max(np.sum((values(net(state[None])) - values(net(goal[None]))) ** 2), 1e-6)) ** 0.5)

    online, target = [agent.task_net, agent.second_net], [agent.task_target.module, agent.second_target.module]
    terms = []
    for i in range(kit.size):
        goal = then[int(drawn["index"][i])] if drawn["is_random"][i] else later[i]
        is_there = torch.equal(now[i], goal)
        reward, discount = (0.0, 0.0) if is_there else (-1.0, DISCOUNT)
        nexts = [value(net, then[i], goal) for net in target]
        advantage = reward + discount * min(nexts) - np.mean([value(net, now[i], goal) for net in target])
        weight = 0.3 if advantage < 0 else 0.7
        errors = [reward + discount * nexts[k] - value(online[k], now[i], goal) for k in range(2)]
        terms.append(weight * sum(error**2 for error in errors))
    assert torch.equal(now[0], later[0])
    loss = agent.feature_losses(batch, agent.transition(batch), now)["hilbert"]
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-9)
    loss.backward()
    for net in (agent.task_net, agent.second_net):
        assert all(p.grad.abs().sum() > 0 for p in net.parameters() if p.ndim == 2)


def test_hilp_centres_its_features_slowly(kit):
    agent = kit.agent(HILP, task_net=RAW, center_rate=0.25)
    batch = prepared(agent, kit.batch())
    now, *_ = rows(agent, batch)
    mean = agent.task_net(now).detach().mean(0)
    agent.representation_loss(batch)
    torch.testing.assert_close(agent.center, 0.25 * mean)
    torch.testing.assert_close(agent.task_features(now), agent.task_net(now) - agent.center)


def test_hilp_draws_its_own_goals_and_measures_true_distances(kit):
    agent = kit.agent(HILP, task_net=RAW, random_goal_ratio=0.25)
    batch = TensorDict({"action": torch.zeros(2000, 2, kit.act)}, batch_size=[2000])
    noise = agent.draw_noise(batch, Generator().manual_seed(0))["noise"]
    assert 0.2 < noise["goal", "is_random"].double().mean() < 0.3
    assert sorted(noise["goal", "index"].tolist()) == list(range(2000))
    assert not torch.equal(noise["goal", "index"], noise["goal_index"])
    with pytest.raises(ValueError, match="is_normalized=false"):
        kit.agent(HILP, task_net=partial(LatentMLP, dim=4, width=8, depth=1))
