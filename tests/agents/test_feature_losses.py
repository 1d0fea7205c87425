"""Losses of the methods that learn features beside a critic, against loops over samples, in float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from agents.byol import BYOL
from agents.byol_gamma import BYOLGamma
from agents.c_td_jepa import ContrastiveTDJEPA
from agents.fb import FB
from agents.icvf import ICVF, IntentMap
from agents.laplacian import Laplacian
from agents.rldp import RLDP
from envs.relabel import Futures
from envs.replay import TrajectoryStore
from perception.state import StateEncoder
from worldmodels.nn.mlp import LatentMLP
from worldmodels.predictors.dynamics import LatentDynamics

pytestmark = pytest.mark.usefixtures("float64")
DISCOUNT = 0.9
DYNAMICS = partial(LatentDynamics, width=8, depth=1, num_members=2)
INTENT_MAP = partial(IntentMap, width=8, depth=1, num_members=2)
WIDE = partial(LatentMLP, dim=4, width=8, depth=1)  # phi as wide as psi


def prepared(agent, batch: TensorDict) -> TensorDict:
    return agent.prepare(agent.draw_noise(batch, Generator().manual_seed(0)))


def values(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def encoded(agent, batch: TensorDict, row: int) -> Tensor:
    return agent.encoder(batch["observation"][:, row])["pooled"]


def losses_of(agent, batch: TensorDict) -> TensorDict:
    return agent.representation_loss(batch)["loss"]


def regularizer(latent: np.ndarray) -> float:
    num = len(latent)
    pairs = [np.dot(latent[i], latent[j]) ** 2 for i in range(num) for j in range(num) if i != j]
    return 0.5 * np.mean(pairs) - np.mean([np.dot(row, row) for row in latent])


def touched(agent) -> set[str]:
    return {name.split(".")[0] for name, p in agent.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


# --- Laplacian ------------------------------------------------------------------------------------------------------
def test_laplacian_smooths_both_ends_of_a_step(kit):
    agent = kit.agent(Laplacian)
    batch = prepared(agent, kit.batch())
    now, then = (values(agent.task_net(encoded(agent, batch, row))) for row in (0, 1))
    losses = losses_of(agent, batch)
    terms = [(now[i, j] - then[i, j]) ** 2 for i in range(kit.size) for j in range(kit.task_dim)]
    assert losses["smoothness"].item() == pytest.approx(np.mean(terms), rel=1e-9)
    assert losses["orthonormality_task"].item() == pytest.approx(regularizer(now), rel=1e-9)
    # The sheet's regulariser, mean_{i != j} (psi_i . psi_j)^2 - 2 mean |psi_i|^2, is twice this one.
    losses["smoothness"].backward()
    assert touched(agent) == {"task_net"}
    found = agent.task_net.layers[-1].bias.grad.clone()
    agent.zero_grad()
    pair = [agent.task_net(encoded(agent, batch, row)) for row in (0, 1)]
    (pair[0] - pair[1]).square().mean().backward()
    torch.testing.assert_close(found, agent.task_net.layers[-1].bias.grad)


# --- latent prediction ----------------------------------------------------------------------------------------------
def test_latent_dynamics_is_an_ensemble_of_its_members():
    net = DYNAMICS(4, 2)
    latent, action = torch.randn(5, 4), torch.randn(5, 2)
    whole = net(latent, action)
    each = net(torch.stack([latent, 2 * latent]), action)  # one latent a member
    assert whole.shape == each.shape == (2, 5, 4)
    torch.testing.assert_close(each[0], whole[0])
    torch.testing.assert_close(each[1], net(2 * latent, action)[1])
    rolled = net.rollout(latent, torch.stack([action, -action], 1))
    torch.testing.assert_close(rolled[0], whole)
    torch.testing.assert_close(rolled[1], net(whole, -action))


@pytest.mark.parametrize("kind", [BYOL, BYOLGamma])
def test_latent_prediction_of_the_next_or_a_future_state(kit, kind):
    agent = kit.agent(kind, dynamics=DYNAMICS)
    batch = prepared(agent, kit.batch())
    goal = encoded(agent, batch, 1) if kind is BYOL else agent.encoder(batch["future", "observation"])["pooled"]
    target = values(agent.task_target.module(goal))
    task = agent.task_net(encoded(agent, batch, 0))
    prediction = values(agent.dynamics(task, batch["action"][:, 0]))
    terms = [((prediction[k, i] - target[i]) ** 2).sum() for k in range(2) for i in range(kit.size)]
    losses = losses_of(agent, batch)
    assert losses["latent"].item() == pytest.approx(np.mean(terms), rel=1e-9)
    assert losses["orthonormality_task"].item() == pytest.approx(regularizer(values(task)), rel=1e-9)
    losses["latent"].backward()
    assert touched(agent) == {"task_net", "dynamics"}


def test_byol_gammas_future_is_of_the_same_trajectory_and_is_what_is_predicted(kit):
    """States carry the number of their trajectory; the target must carry that of its sample."""
    lengths = [7, 12, 30]
    state = torch.zeros(sum(lengths), kit.obs)
    state[:, 0] = torch.repeat_interleave(torch.arange(3.0), torch.tensor(lengths))
    state[:, 1] = torch.cat([torch.arange(float(length)) for length in lengths])
    ends = state[:, 1] + 1 == torch.tensor(lengths)[state[:, 0].long()]
    rows = {
        "observation": {"state": state},
        "action": torch.zeros(len(state), kit.act),
        "terminated": torch.zeros_like(ends),
    }

    class Data:
        spec, store = None, TrajectoryStore(TensorDict(rows, [len(state)]), ends)

    agent = kit.agent(BYOLGamma, dynamics=DYNAMICS, encoder=partial(StateEncoder, is_normalized=False))
    batch = Futures(Data(), discount=0.8).sample(200, agent.window, Generator().manual_seed(0))
    batch = prepared(agent, batch)
    now, later = batch["observation", "state"][:, 0], agent.predicted(batch, agent.transition(batch))
    assert torch.equal(later[:, 0], now[:, 0])
    assert (later[:, 1] > now[:, 1]).all()
    assert (later[:, 1] - now[:, 1]).max() > 3


# --- RLDP -----------------------------------------------------------------------------------------------------------
def windows(kit, rows: int) -> TensorDict:
    """Batches as the kit's, with more rows."""
    return TensorDict(
        {
            "observation": {"state": 3 * torch.randn(kit.size, rows, kit.obs)},
            "action": 2 * torch.rand(kit.size, rows, kit.act) - 1,
            "terminated": torch.zeros(kit.size, rows, dtype=torch.bool),
        },
        batch_size=[kit.size],
    )


def rldp(kit, horizon: int):
    torch.manual_seed(0)
    return kit.agent(RLDP, dynamics=DYNAMICS, horizon=horizon, is_goal_whitened=False)


@pytest.mark.parametrize("horizon", [1, 3])
def test_rldp_unrolls_latents_over_its_horizon(kit, horizon):
    agent = rldp(kit, horizon)
    assert agent.window == horizon + 1
    batch = prepared(agent, windows(kit, agent.window))
    task = agent.task_net(encoded(agent, batch, 0))
    terms = []
    for member in range(2):
        latent = task.expand(2, -1, -1)
        for t in range(horizon):
            latent = agent.dynamics(latent, batch["action"][:, t])
            target = values(agent.task_target.module(encoded(agent, batch, t + 1)))
            terms += [((values(latent)[member, i] - target[i]) ** 2).sum() for i in range(kit.size)]
    losses = losses_of(agent, batch)
    assert losses["latent"].item() == pytest.approx(np.mean(terms), rel=1e-9)
    assert losses["orthonormality_task"].item() == pytest.approx(regularizer(values(task)), rel=1e-9)


def test_rldps_measure_loss_is_fbs_and_leaves_b_alone(kit):
    agent = rldp(kit, 2)
    batch = prepared(agent, windows(kit, 3))
    losses = losses_of(agent, batch)
    twin = FB.representation_loss(agent, batch)["loss"]["measure"]
    assert losses["measure"].item() == pytest.approx(twin.item(), rel=1e-12)
    losses["measure"].backward()
    assert touched(agent) == {"state_net", "predictor"}
    agent.zero_grad()
    losses_of(agent, batch)["latent"].backward()
    assert touched(agent) == {"task_net", "dynamics"}


def test_rldps_horizon_changes_its_gradient_and_every_action_counts(kit):
    long, short = rldp(kit, 4), rldp(kit, 1)
    short.load_state_dict(long.state_dict())
    batch = prepared(long, windows(kit, 5))
    gradients = []
    for agent in (long, short):
        losses_of(agent, batch)["latent"].backward()
        gradients.append(agent.task_net.layers[0].weight.grad.flatten())
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) < 0.99
    action = batch["action"].clone().requires_grad_()
    losses_of(long, batch.clone().set("action", action))["latent"].backward()
    reach = action.grad.abs().sum((0, 2))
    assert (reach[:4] > 0).all()
    assert reach[4] == 0  # it leads out of the window
    with pytest.raises(ValueError, match="horizon=0"):
        rldp(kit, 0)


# --- contrastive TD-JEPA --------------------------------------------------------------------------------------------
def test_contrastive_loss_is_the_measure_with_phi_as_backward_map(kit):
    agent = kit.agent(ContrastiveTDJEPA, state_net=None, is_goal_whitened=False)
    batch = prepared(agent, kit.batch())
    now, then = encoded(agent, batch, 0), encoded(agent, batch, 1)
    latent = agent.state_target.module(then)
    action = agent.actor(then, batch["z"], batch["noise", "next_action"])
    future = values(agent.predictor_target.module(latent, batch["z"], action)).mean(0)
    state, arrived = agent.state_net(now), values(agent.state_net(then))
    forward = values(agent.predictor(state, batch["z"], batch["action"][:, 0]))
    ended = batch["terminated"][:, 0].tolist()
    off, diagonal = [], []
    for k in range(2):
        for i in range(kit.size):
            for j in range(kit.size):
                residual = forward[k, i] @ arrived[j]
                residual -= 0.0 if ended[i] else DISCOUNT * future[i] @ values(latent)[j]
                (diagonal if i == j else off).append(residual if i == j else residual**2)
    losses = losses_of(agent, batch)
    assert losses["measure"].item() == pytest.approx(np.mean(off) - 2 * np.mean(diagonal), rel=1e-9)  # K / 2 = 1
    assert losses["orthonormality_state"].item() == pytest.approx(regularizer(values(state)), rel=1e-9)


# --- ICVF -----------------------------------------------------------------------------------------------------------
def intents(kit, agent) -> TensorDict:
    batch = kit.batch()
    other = TensorDict({"state": 3 * torch.randn(kit.size, kit.obs)}, [kit.size])
    return prepared(agent, batch.set("intent", TensorDict({"observation": other}, [kit.size])))


def icvf(kit, **options):
    return kit.agent(ICVF, state_net=WIDE, intent_map=INTENT_MAP, **options)


def test_goals_and_intents_are_chosen_as_drawn(kit):
    agent = icvf(kit, current_goal_ratio=0.4)
    raw = kit.batch()
    raw["intent"] = TensorDict({"observation": {"state": torch.randn(kit.size, kit.obs)}}, [kit.size])
    drawn = agent.draw_noise(raw, Generator().manual_seed(3))
    noise, found, state = drawn["noise"], agent.prepare(drawn), raw["observation", "state"]
    sources = {"goal": raw["future", "observation", "state"], "intent": raw["intent", "observation", "state"]}
    chosen = {"goal": [], "intent": []}
    for name in ("intent", "goal"):
        for i in range(kit.size):
            pick = state[noise[name, "index"][i], 1] if noise[name, "is_random"][i] else sources[name][i]
            pick = state[i, 0] if noise[name, "is_current"][i] else pick
            pick = chosen["intent"][i] if name == "goal" and noise["is_intent"][i] else pick
            chosen[name].append(pick)
    assert torch.equal(found["intent", "observation", "state"], torch.stack(chosen["intent"]))
    assert torch.equal(found["future", "observation", "state"], torch.stack(chosen["goal"]))
    many = TensorDict({"action": torch.zeros(4000, 2, kit.act)}, [4000])
    share = icvf(kit).draw_noise(many, Generator().manual_seed(0))["noise"]
    assert share["goal", "is_current"].double().mean().item() == pytest.approx(0.2, abs=0.03)
    assert share["intent", "is_random"].double().mean().item() == pytest.approx(0.375, abs=0.03)
    assert share["is_intent"].double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_intention_loss_equals_a_loop_and_a_goal_ends_where_it_is_reached(kit):
    agent = icvf(kit, expectile=0.8, current_goal_ratio=0.5)
    batch = intents(kit, agent)
    state = batch["observation", "state"]
    for name, sample in (("future", 0), ("intent", 1)):  # one at its goal only, one at its intent only
        batch[name, "observation", "state"][:2] = torch.randn(2, kit.obs)
        batch[name, "observation", "state"][sample] = state[sample, 0]
    now, then = encoded(agent, batch, 0), encoded(agent, batch, 1)
    goal, intent = (agent.encoder(batch[name, "observation"])["pooled"] for name in ("future", "intent"))
    here_goal, here_intent = ((x == now).all(1).tolist() for x in (goal, intent))
    assert [here_goal[:2], here_intent[:2]] == [[True, False], [False, True]]

    def value(phi, psi, transition, s: Tensor, g: Tensor, w: Tensor) -> np.ndarray:
        """V of both members by plain matrix products."""
        state, at_goal, wanted = values(phi(s[None]))[0], values(psi(g[None]))[0], psi(w[None])
        out = []
        for k, gate in enumerate(values(transition.gate(wanted))[:, 0]):
            t = 2 * gate / np.linalg.norm(gate)  # sqrt(4) = 2
            inner, outer = values(transition.inner)[k], values(transition.outer)[k]
            out.append(float((t * (t * state @ inner @ outer)) @ at_goal))
        return np.array(out)

    online = (agent.state_net, agent.task_net, agent.intent_map)
    target = (agent.state_target.module, agent.task_target.module, agent.intent_target.module)
    terms = []
    for i in range(kit.size):
        s, s_next, g, w = now[i], then[i], goal[i], intent[i]
        wish = 0.0 if here_intent[i] else -1 + DISCOUNT * min(value(*target, s_next, w, w))
        advantage = wish - np.mean(value(*target, s, w, w))
        wanted = np.zeros(2) if here_goal[i] else -1 + DISCOUNT * value(*target, s_next, g, w)
        weight = 0.2 if advantage < 0 else 0.8
        terms.append(weight * ((wanted - value(*online, s, g, w)) ** 2).sum())
    losses = losses_of(agent, batch)
    assert losses["intention"].item() == pytest.approx(np.mean(terms), rel=1e-9)
    losses["intention"].backward()
    assert touched(agent) == {"state_net", "task_net", "intent_map"}


def test_state_encoder_has_one_optimizer_and_both_losses_reach_it(kit):
    agent = icvf(kit)
    batch = intents(kit, agent)
    phases = {phase.name: {id(p) for group in phase.params.values() for p in group} for phase in agent.phases()}
    mine = {id(p) for p in agent.state_net.parameters()}
    assert [name for name, ids in phases.items() if mine & ids] == ["representation"]
    for name in ("successor", "intention"):
        agent.zero_grad()
        losses_of(agent, batch)[name].backward()
        assert "state_net" in touched(agent)
    with pytest.raises(ValueError, match=r"one width, not 6 and 4; set agent.state_net.dim"):
        kit.agent(ICVF, intent_map=INTENT_MAP)
