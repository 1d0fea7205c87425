"""Task inference against closed forms: on a known chain the value of the inferred task is the true one.

The features are complete (as many as states), so every reward is linear in them and the theory is exact: successor
features F = (I - gamma P)^-1 P Psi for methods that regress, F B^T diag(rho) = (I - gamma P)^-1 P for the others.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from agents.byol import BYOL
from agents.byol_gamma import BYOLGamma
from agents.c_td_jepa import ContrastiveTDJEPA
from agents.fb import FB
from agents.hilp import HILP
from agents.icvf import ICVF, IntentMap
from agents.laplacian import Laplacian
from agents.rldp import RLDP
from agents.sf import SuccessorFeatures
from agents.td_jepa import TDJEPA, SymmetricTDJEPA
from agents.zero_shot import average, regress
from perception.state import StateEncoder
from worldmodels.nn.mlp import LatentMLP
from worldmodels.predictors.dynamics import LatentDynamics
from worldmodels.predictors.successor import SuccessorPredictor

pytestmark = pytest.mark.usefixtures("float64")
STATES, DISCOUNT = 6, 0.8
PREDICTOR = partial(SuccessorPredictor, width=8, depth=1, num_members=2)
DYNAMICS = {"dynamics": partial(LatentDynamics, width=8, depth=1, num_members=2)}
TABLE = partial(LatentMLP, dim=STATES, width=0, depth=0, is_normalized=False)  # psi = W e_s + b: any value a state
ALONE = {"state_net": None}
REGRESSING = {
    TDJEPA: {"task_predictor": PREDICTOR},
    SymmetricTDJEPA: ALONE,
    SuccessorFeatures: {},
    Laplacian: {},
    BYOL: DYNAMICS,
    BYOLGamma: DYNAMICS,
    HILP: {},
    ICVF: {"state_net": TABLE, "intent_map": partial(IntentMap, width=8, depth=1, num_members=2)},
}
AVERAGING = {FB: {}, RLDP: DYNAMICS, ContrastiveTDJEPA: ALONE}
NAMED = {"ids": lambda kind: kind.__name__}


def chain(kit, kind, options):
    """An agent on one-hot states of a chain, with unnormalised and complete features."""
    state = Unbounded((STATES,), dtype=torch.float64)
    action = Bounded(-1, 1, (1,), dtype=torch.float64)
    spec = Composite(observation=Composite(state=state), action=action)
    raw = partial(StateEncoder, is_normalized=False)
    return kit.agent(kind, spec, encoder=raw, task_net=TABLE, **options)


def visited() -> tuple[TensorDict, np.ndarray]:
    """Labelled states, state i of the chain i + 1 times, and their distribution rho."""
    index = torch.repeat_interleave(torch.arange(STATES), torch.arange(1, STATES + 1))
    rho = np.arange(1, STATES + 1) / len(index)
    return TensorDict({"state": torch.eye(STATES)[index]}, [len(index)]), rho


def measure() -> np.ndarray:
    """(I - gamma P)^-1 P of a policy that mostly goes right, stays at the end, and sometimes slips back."""
    transition = np.zeros((STATES, STATES))
    for i in range(STATES):
        transition[i, min(i + 1, STATES - 1)] += 0.8
        transition[i, max(i - 1, 0)] += 0.2
    return np.linalg.solve(np.eye(STATES) - DISCOUNT * transition, transition)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("state", range(STATES))
@pytest.mark.parametrize("kind", REGRESSING, **NAMED)
def test_regressed_tasks_have_the_true_value(kit, kind, state):
    agent = chain(kit, kind, REGRESSING[kind])
    obs, _ = visited()
    reward = np.eye(STATES)[state] - 0.3 * np.arange(STATES) / STATES
    z = agent.infer_task(obs, reward=obs["state"] @ torch.from_numpy(reward)).numpy()
    psi = agent.embed(TensorDict({"state": torch.eye(STATES)}, [STATES]))["task"].numpy()
    successor = measure() @ psi
    assert cosine(successor @ z, measure() @ reward) == pytest.approx(1, abs=1e-9)
    scale = np.linalg.norm(np.linalg.solve(psi, reward)) / STATES**0.5  # z has norm sqrt(d)
    np.testing.assert_allclose(successor @ z * scale, measure() @ reward, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("state", range(STATES))
@pytest.mark.parametrize("kind", AVERAGING, **NAMED)
def test_averaged_tasks_have_the_true_value(kit, kind, state):
    agent = chain(kit, kind, AVERAGING[kind])
    obs, rho = visited()
    reward = np.eye(STATES)[state] - 0.3 * np.arange(STATES) / STATES
    labels = obs["state"] @ torch.from_numpy(reward)
    z = agent.infer_task(obs, reward=labels).numpy()
    backward = agent.embed(TensorDict({"state": torch.eye(STATES)}, [STATES]))["task"].numpy()
    forward = (measure() / rho) @ np.linalg.inv(backward).T  # F B^T diag(rho) = M
    assert cosine(forward @ z, measure() @ reward) == pytest.approx(1, abs=1e-9)
    wrong = regress(agent.embed(obs)["task"], labels).numpy()
    assert cosine(forward @ wrong, measure() @ reward) < 1 - 1e-6  # the other rule is not this theory's


@pytest.mark.parametrize("kind", AVERAGING, **NAMED)
def test_a_goal_has_the_value_of_being_there(kit, kind):
    agent = chain(kit, kind, AVERAGING[kind])
    obs, rho = visited()
    states = TensorDict({"state": torch.eye(STATES)}, [STATES])
    backward = agent.embed(states)["task"].numpy()
    forward = (measure() / rho) @ np.linalg.inv(backward).T
    for goal in range(STATES):
        z = agent.infer_task(obs, goal=states[goal]).numpy()
        assert cosine(forward @ z, measure()[:, goal]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in REGRESSING if kind is not HILP], **NAMED)
def test_a_regressed_goal_has_the_value_of_being_there(kit, kind):
    """psi^T E[psi psi^T]^-1 psi(g) is 1 / rho(g) at g and 0 elsewhere, if features are complete."""
    agent = chain(kit, kind, REGRESSING[kind])
    obs, _ = visited()
    states = TensorDict({"state": torch.eye(STATES)}, [STATES])
    successor = measure() @ agent.embed(states)["task"].numpy()
    for goal in range(STATES):
        z = agent.infer_task(obs, goal=states[goal]).numpy()
        assert cosine(successor @ z, measure()[:, goal]) == pytest.approx(1, abs=1e-9)


def test_hilp_steers_to_a_goal_from_wherever_it_is(kit):
    agent = chain(kit, HILP, {})
    agent.center.normal_()
    states = TensorDict({"state": torch.eye(STATES)}, [STATES])
    rule = agent.infer_task(visited()[0], goal=states[4])
    embedded = agent.task_net(states["state"]).detach().numpy()
    away = np.delete(embedded[4] - embedded, 4, axis=0)
    found = np.delete(rule(states).numpy(), 4, axis=0)
    expected = STATES**0.5 * away / np.linalg.norm(away, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", AVERAGING, **NAMED)
def test_a_demonstration_is_the_reward_of_being_where_it_was(kit, kind):
    agent = chain(kit, kind, AVERAGING[kind])
    obs, rho = visited()
    shown = TensorDict({"state": torch.eye(STATES)[[1, 2, 2, 3]]}, [4])
    counts = np.array([0, 1, 2, 1, 0, 0])
    z = agent.infer_task(obs, demonstration=shown)
    reward = torch.from_numpy(counts / rho)[obs["state"].argmax(1)]  # dense in what the data visit seldom
    torch.testing.assert_close(z, agent.infer_task(obs, reward=reward))
    assert z.norm().item() == pytest.approx(STATES**0.5)


@pytest.mark.parametrize("kind", REGRESSING, **NAMED)
def test_methods_without_a_measure_refuse_demonstrations(kit, kind):
    agent = chain(kit, kind, REGRESSING[kind])
    obs, _ = visited()
    with pytest.raises(ValueError, match=rf"{kind.__name__} infers no task from a demonstration; .* agent=fb, rldp or"):
        agent.infer_task(obs, demonstration=obs)


def test_weights_count_states(kit):
    features, reward = torch.randn(30, 4), torch.rand(30)
    times = torch.randint(1, 5, (30,))
    for rule in (regress, average):
        repeated = rule(features.repeat_interleave(times, 0), reward.repeat_interleave(times))
        torch.testing.assert_close(rule(features, reward, times.double()), repeated)
        assert not torch.allclose(rule(features, reward), repeated, rtol=1e-3)
    agent = chain(kit, FB, {})
    obs, _ = visited()
    with pytest.raises(ValueError, match="weighs rewards only"):
        agent.infer_task(obs, goal=obs[0], weight=torch.ones(len(obs)))
