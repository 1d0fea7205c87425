"""On a small tabular MDP the learned TD-JEPA predictors approach the true successor features.

The policy is fixed, so the truth is a linear system; the features are whatever the agent has learned by then.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded

from agents.actors import GaussianActor
from agents.td_jepa import TDJEPA
from perception.state import StateEncoder
from worldmodels.nn.mlp import LatentMLP
from worldmodels.predictors.successor import SuccessorPredictor
from worldmodels.schedules import WarmupCosine
from worldmodels.targets import EMA

pytestmark = pytest.mark.usefixtures("unchecked")

STATES, DISCOUNT, UPDATES, SLIP = 6, 0.8, 500, 0.25
TOLERANCE = 0.02
POLICY = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, -1.0])  # an action a state, of -1 (left) and 1 (right)


class FixedActor(GaussianActor):
    """The policy above, whatever the task."""

    def forward(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        return (x @ POLICY)[:, None]


def arrival(state: int, action: int) -> int:
    return min(max(state + action, 0), STATES - 1)


def transitions() -> TensorDict:
    """Every state and action four times: an action fails, and does the opposite, once in four."""
    assert SLIP == 0.25
    rows = [(s, a, arrival(s, -a if slips else a)) for s in range(STATES) for a in (-1, 1) for slips in (1, 0, 0, 0)]
    now, action, then = (torch.tensor(column) for column in zip(*rows, strict=True))
    one_hot = torch.eye(STATES)
    observation = {"state": torch.stack([one_hot[now], one_hot[then]], 1)}
    acted = action.float()[:, None, None].expand(-1, 2, 1)
    ended = torch.zeros(len(rows), 2, dtype=torch.bool)
    return TensorDict({"observation": observation, "action": acted, "terminated": ended}, [len(rows)])


def true_successors(features: Tensor) -> Tensor:
    """E[sum_t gamma^t features(s_{t+1}) | s, a, then POLICY], [S, 2, D], by solving the linear system."""
    step = torch.zeros(2, STATES, STATES)
    for index, action in enumerate((-1, 1)):
        for state in range(STATES):
            step[index, state, arrival(state, action)] += 1 - SLIP
            step[index, state, arrival(state, -action)] += SLIP
    followed = step[(POLICY > 0).long(), torch.arange(STATES)]  # [S, S]
    under_policy = torch.linalg.solve(torch.eye(STATES) - DISCOUNT * followed, followed @ features)
    return (step @ (features + DISCOUNT * under_policy)).transpose(0, 1)


def test_predictors_approach_the_true_successor_features():
    torch.manual_seed(0)
    net = partial(LatentMLP, width=32, depth=1)
    predictor = partial(SuccessorPredictor, width=64, depth=1, num_members=2)
    spec = Composite(observation=Composite(state=Unbounded((STATES,))), action=Bounded(-1, 1, (1,)))
    agent = TDJEPA(
        spec,
        encoder=partial(StateEncoder, is_normalized=False),
        task_encoder=None,
        state_net=partial(net, dim=5),
        task_net=partial(net, dim=4),
        predictor=predictor,
        task_predictor=predictor,
        actor=partial(FixedActor, width=8, depth=1),
        target=partial(EMA, tau=0.05),
        discount=DISCOUNT,
    )
    batch = transitions()
    z = torch.ones(len(batch), 4)
    fixed = agent.draw_noise(batch, torch.Generator().manual_seed(0)).set("z", z)
    groups = [p for group in agent.representation_groups().values() for p in group]
    optimizer = torch.optim.Adam(groups, lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, WarmupCosine(UPDATES))
    targets = [module for module in agent.modules() if isinstance(module, EMA)]

    def errors() -> dict[str, float]:
        """Relative errors of T_phi and T_psi over all states and actions, against the features they have now."""
        states = torch.eye(STATES)
        found = {}
        with torch.no_grad():
            phi, psi = agent.state_net(states), agent.task_net(states)
            for name, net, own, other in (
                ("state", agent.predictor, phi, psi),
                ("task", agent.task_predictor, psi, phi),
            ):
                truth = true_successors(other)
                each = [net(own, z[:STATES], torch.full((STATES, 1), float(a))).mean(0) for a in (-1, 1)]
                found[name] = float((torch.stack(each, 1) - truth).norm() / truth.norm())
        return found

    untrained = errors()
    for step in range(UPDATES):
        sum(agent.representation_loss(fixed)["loss"].values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        for target in targets:
            target.update(step)
    trained = errors()
    print(f"relative errors: untrained {untrained}, trained {trained}")
    assert min(untrained.values()) > 0.5
    assert max(trained.values()) < TOLERANCE
    latents = agent.task_net(torch.eye(STATES))
    assert torch.linalg.svdvals(latents).min() > 0.1  # and the features have not collapsed
