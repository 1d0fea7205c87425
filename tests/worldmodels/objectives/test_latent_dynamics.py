"""The latent dynamics model: its losses by hand, what it imagines, and that a planner arrives with what it learned."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from agents.planning.cem import CEM
from agents.planning.costs import mean_distance
from agents.planning.policies import InversePolicy, PlanningPolicy, RandomPolicy
from envs.relabel import Futures
from envs.toy import Toy
from perception.state import StateEncoder
from worldmodels.core import Dynamics, Embeds
from worldmodels.evals.planning import PlanningEvaluator
from worldmodels.evals.results import unpack
from worldmodels.learner import Learner
from worldmodels.nn.mlp import LatentMLP
from worldmodels.objectives.latent_dynamics import LatentDynamicsModel
from worldmodels.predictors.dynamics import LatentDynamics
from worldmodels.targets import EMA
from worldmodels.trainer import batch_seed

STEPS, BATCH_SIZE, HORIZON, DIM = 300, 128, 4, 4


def model(source, *, horizon: int = HORIZON, members: int = 1) -> LatentDynamicsModel:
    torch.manual_seed(0)
    return LatentDynamicsModel(
        source.spec,
        encoder=StateEncoder,
        net=partial(LatentMLP, dim=DIM, width=64, depth=2, is_normalized=False),
        dynamics=partial(LatentDynamics, width=64, depth=1, num_members=members, is_residual=True),
        target=partial(EMA, tau=0.02),
        horizon=horizon,
        width=64,
        depth=2,
    )


@pytest.fixture
def source() -> Futures:
    return Futures(Toy(seed=0), discount=0.9)


def test_losses_are_those_of_the_equations(source):
    objective = model(source, horizon=3, members=2)
    batch = source.sample(5, objective.window, Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in objective.target.parameters():
            parameter.mul_(0.9)  # the target lags behind
        torch.nn.init.normal_(objective.dynamics.trunk.layers[-1].weight)  # at the start nothing moves
    losses = objective.loss(batch)["loss"]
    with torch.no_grad():
        seen = [objective.encoder(batch["observation"][:, t])["pooled"] for t in range(4)]
        latent, dynamics = [objective.net(x) for x in seen], objective.dynamics
        now, wrong = latent[0].expand(2, -1, -1), []
        for t in range(3):
            action = batch["action"][:, t].expand(2, -1, -1)
            moved = dynamics.embed_action(torch.cat([now, action], -1))
            now = now + dynamics.trunk(torch.cat([dynamics.embed_latent(now), moved], -1))
            wrong.append((now - objective.target(seen[t + 1])).square().mean())
        future = objective.embed(batch["future", "observation"])["latent"]
        guess = objective.inverse(torch.cat([latent[0], future], -1))
    torch.testing.assert_close(losses["prediction"], torch.stack(wrong).mean())
    torch.testing.assert_close(losses["inverse"], (guess - batch["action"][:, 0]).square().mean())
    every = torch.cat(latent)
    assert losses["variance"].item() == pytest.approx(torch.relu(1 - (every.var(0) + 1e-4).sqrt()).mean().item())
    covariance = torch.cov(every.T)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    torch.testing.assert_close(losses["covariance"], off_diagonal / DIM)


def test_imagines_each_sequence_as_one_rollout_would(source):
    objective = model(source, members=2)
    torch.nn.init.normal_(objective.dynamics.trunk.layers[-1].weight)  # at the start nothing moves
    latent, actions = torch.randn(3, DIM), torch.randn(3, 4, 5, 2)
    imagined = objective.imagine(latent, actions)
    assert imagined.shape == (3, 4, 5, DIM)
    alone = objective.dynamics.rollout(latent[1:2], actions[1, 2:3])  # [H, K, 1, D]
    torch.testing.assert_close(imagined[1, 2], alone.mean(1)[:, 0])
    assert isinstance(objective, Dynamics)
    assert isinstance(objective, Embeds)


def test_no_step_to_predict_is_refused(source):
    with pytest.raises(ValueError, match=r"objective.horizon=0"):
        model(source, horizon=0)


@pytest.mark.usefixtures("unchecked")
def test_a_planner_arrives_with_what_was_learned_where_chance_does_not(source):
    objective = model(source)
    optimizer = partial(torch.optim.Adam, lr=2e-3, fused=True)
    weights = {"prediction": 1.0, "variance": 1.0, "covariance": 0.04, "inverse": 1.0}
    learner = Learner(objective, optimizer=optimizer, weights=weights)
    for step in range(STEPS):
        generator = Generator().manual_seed(batch_seed(0, step, 0))
        learner.update(source.sample(BATCH_SIZE, objective.window, generator), step)
    assert learner.metrics()["stat/error_over_still"] < 0.5

    planner = CEM(horizon=8, num_samples=32, num_iterations=3, num_elites=6, std=0.7, persistence=0.7)
    policies = {
        "cem": partial(PlanningPolicy, planner=planner, cost=mean_distance, num_decided=4),
        "inverse": InversePolicy,
        "random": RandomPolicy,
    }
    evaluator = PlanningEvaluator(source=source, every=0, policies=policies, episodes=3, near_steps=12, is_filmed=False)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    evaluation = unpack(evaluator(objective, 0))
    found = evaluation.metrics
    assert found["cem/success"] > found["random/success"] + 0.3
    assert found["near/cem/success"] > found["near/random/success"]
    assert found["cem/seconds_a_plan"] > found["random/seconds_a_plan"] > 0
    assert {"cem_episodes.json", "cem_maze_task1.png", "inverse_maze_task5.png"} <= evaluation.files.keys()
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    again = unpack(evaluator(objective, 0)).metrics
    assert all(value == again[name] for name, value in found.items() if "seconds" not in name)


def test_near_goals_need_positions(source):
    class NoMaze(Toy):
        def __init__(self) -> None:
            super().__init__(trajectories=2)
            self.tasks.maze = lambda: None

    policies = {"random": RandomPolicy}
    with pytest.raises(ValueError, match=r"NoMaze has no maze here: use eval.planning.near_steps=0"):
        PlanningEvaluator(source=NoMaze(), every=0, policies=policies, near_steps=5)
    with pytest.raises(ValueError, match="policies is empty"):
        PlanningEvaluator(source=source, every=0, policies={})
    with pytest.raises(ValueError, match="near_patience=0"):
        PlanningEvaluator(source=source, every=0, policies=policies, near_patience=0)


def test_a_judged_episode_is_as_long_as_its_way_to_the_near_goal(source):
    """Random policy, goals that nobody leaves: those of zero steps are solved at the start and do not count."""
    evaluator = PlanningEvaluator(
        source=source, every=0, policies={"random": RandomPolicy}, episodes=3, near_steps=1, is_filmed=False
    )
    evaluation = unpack(evaluator(model(source), 0))
    assert torch.isnan(torch.tensor(evaluation.metrics["near/random/success"]))
    assert sum("near goals" in note for note in evaluation.notes) == 5


def test_future_rows_are_what_the_inverse_model_sees(source):
    objective = model(source)
    batch = source.sample(4, objective.window, Generator().manual_seed(1))
    other = batch.copy().set("future", TensorDict({"observation": {"state": torch.zeros(4, 2)}}, [4]))
    one, two = (objective.loss(b)["loss"] for b in (batch, other))
    assert one["inverse"] != two["inverse"]
    assert one["prediction"] == two["prediction"]
