"""Policies towards goals, on the toy's own dynamics: planning arrives, and goes on from its last plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn

from agents.planning.cem import CEM
from agents.planning.costs import last_cosine, last_distance, mean_distance
from agents.planning.policies import InversePolicy, PlanningPolicy, RandomPolicy
from agents.planning.search import Cost, Planner
from envs.toy import Toy, move
from worldmodels.core import Dynamics, Policy
from worldmodels.evals.rollout import DecidesAhead

SPEC = Toy(trajectories=1, steps=1).spec


class TrueToy(nn.Module):
    """The toy itself as a model: its latent is the position."""

    def embed(self, obs: TensorDict) -> TensorDict:
        return TensorDict({"latent": obs["state"]}, obs.batch_size)

    def imagine(self, latent: Tensor, actions: Tensor) -> Tensor:
        state, reached = latent[:, None].expand(-1, actions.shape[1], -1), []
        for action in actions.unbind(2):
            state = move(state, action)
            reached.append(state)
        return torch.stack(reached, 2)

    def towards(self, latent: Tensor, goal: Tensor) -> Tensor:
        return (10 * (goal - latent)).clamp(-1, 1)


class Recorder(Planner):
    """Notes its first guesses; its n-th plan is n hundredths and the number of the step in thousandths."""

    def __init__(self) -> None:
        super().__init__(horizon=4, num_samples=2, num_iterations=1)
        self.guesses: list[Tensor] = []

    def plan(self, cost: Cost, start: Tensor, generator: Generator) -> Tensor:
        self.guesses.append(start)
        return 0.01 * len(self.guesses) + 0.001 * torch.arange(4.0)[:, None].expand_as(start)


def seen(place: Tensor, goal: Tensor) -> TensorDict:
    td = TensorDict({"observation": {"state": place}, "z": goal}, batch_size=[len(place)])
    return td.set("noise", TensorDict({"action": torch.zeros(len(place), 2)}, [len(place)]))


def cem(**changes: Any) -> CEM:
    return CEM(**{"horizon": 8, "num_samples": 64, "num_iterations": 4, "num_elites": 8, "persistence": 0.7, **changes})


@pytest.mark.parametrize(("cost", "tolerance"), [(mean_distance, 0.1), (last_distance, 0.35)])
def test_planning_through_true_dynamics_arrives(cost, tolerance):
    """A cost of the end alone lets it arrive later, and again later; it only comes nearer than 0.7."""
    policy = PlanningPolicy(SPEC, TrueToy(), planner=cem(), cost=cost, num_decided=2)
    place, goal = torch.tensor([[-0.5, 0.0], [0.3, 0.3]]), torch.tensor([[0.1, 0.4], [0.3, -0.4]])
    policy.begin(2)
    for _ in range(6):
        decided = policy.act(seen(place, policy.goal(TensorDict({"state": goal}, [2]))), explore=False)["action"]
        for action in decided.unflatten(-1, (2, 2)).unbind(1):
            place = move(place, action)
    assert (place - goal).norm(dim=-1).max() < tolerance


def test_policies_are_what_rollouts_and_others_expect():
    policies = [
        PlanningPolicy(SPEC, TrueToy(), planner=cem(), cost=last_distance),
        InversePolicy(SPEC, TrueToy()),
        RandomPolicy(SPEC, TrueToy()),
    ]
    assert isinstance(TrueToy(), Dynamics)
    for policy in policies:
        assert isinstance(policy, Policy)
        assert isinstance(policy, DecidesAhead)
        policy.begin(3)
        td = seen(torch.zeros(3, 2), torch.ones(3, 2))
        before = td.clone()
        assert policy.act(td, explore=False)["action"].shape == (3, 2)
        assert (td == before).all()


def test_the_last_plan_is_shifted_and_forgotten_at_a_new_beginning():
    planner = Recorder()
    policy = PlanningPolicy(SPEC, TrueToy(), planner=planner, cost=last_distance, num_decided=3)
    td = seen(torch.zeros(2, 2), torch.ones(2, 2))
    first = policy.act(td, explore=False)["action"]
    assert torch.equal(first[0], torch.tensor([0.01, 0.01, 0.011, 0.011, 0.012, 0.012]))
    policy.act(td, explore=False)
    policy.begin(2)
    policy.act(td, explore=False)
    assert (planner.guesses[0] == 0).all()
    assert (planner.guesses[1] == 0.013).all()  # one action is left, and repeated
    assert (planner.guesses[2] == 0).all()


def test_a_new_beginning_repeats_the_noise():
    policy = PlanningPolicy(SPEC, TrueToy(), planner=cem(), cost=last_distance, seed=3)
    td = seen(torch.zeros(1, 2), torch.ones(1, 2))
    policy.begin(1)
    once = policy.act(td, explore=False)["action"]
    policy.begin(1)
    assert torch.equal(policy.act(td, explore=False)["action"], once)


def test_random_actions_are_uniform():
    noise = torch.randn(20_000, 2, generator=Generator().manual_seed(0))
    td = seen(torch.zeros(20_000, 2), torch.zeros(20_000, 2)).set("noise", TensorDict({"action": noise}, [20_000]))
    action = RandomPolicy(SPEC, TrueToy()).act(td, explore=False)["action"]
    quantiles = torch.quantile(action, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(quantiles, torch.tensor([-0.8, 0.0, 0.8]), atol=0.02, rtol=0)


def test_costs_are_distances_of_the_end_and_of_the_whole():
    latents = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]]])  # [1, 2, 2, 2]
    goal = torch.zeros(1, 2)
    torch.testing.assert_close(last_distance(latents, goal), torch.tensor([[0.0, 2.0]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(mean_distance(latents, goal), torch.tensor([[2.5, 1.0]]), atol=1e-5, rtol=0)
    ahead = torch.tensor([[0.0, 5.0]])
    torch.testing.assert_close(last_cosine(latents, ahead)[0, 1], torch.tensor(0.0), atol=1e-5, rtol=0)
    assert last_cosine(-latents, ahead)[0, 1] > 1.9
    at_goal = torch.zeros(1, 1, 1, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(mean_distance(at_goal, goal).sum(), at_goal)
    assert torch.isfinite(slope).all()


def test_models_that_lack_something_are_refused():
    class Embedder(nn.Module):
        embed = TrueToy.embed

    with pytest.raises(ValueError, match="Linear has no embed"):
        RandomPolicy(SPEC, nn.Linear(1, 1))
    with pytest.raises(ValueError, match="needs a model with imagine; Embedder"):
        PlanningPolicy(SPEC, Embedder(), planner=cem(), cost=last_distance)
    with pytest.raises(ValueError, match="needs a model with towards; Embedder"):
        InversePolicy(SPEC, Embedder())
    with pytest.raises(ValueError, match="num_decided=9 must be within 1 and horizon=8"):
        PlanningPolicy(SPEC, TrueToy(), planner=cem(), cost=last_distance, num_decided=9)
    with pytest.raises(ValueError, match="representation=task: TrueToy embeds latent"):
        InversePolicy(SPEC, TrueToy(), representation="task").goal(TensorDict({"state": torch.zeros(1, 2)}, [1]))
