"""Adaptation begins as the zero-shot agent, and goes on as TD3 with the value T_phi . w."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Generator

from agents.adapt import Adaptation
from tests.systems import composed, finished_run
from worldmodels import build, checkpoint
from worldmodels.core import Policy, ZeroShot
from worldmodels.evals.policy import PolicyEvaluator
from worldmodels.evals.zero_shot import ZeroShotEvaluator
from worldmodels.learner import Learner
from worldmodels.pretrained import agent as trained_agent
from worldmodels.session import run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setting():
    cfg = composed("agent=adapt", "task=task2")
    return cfg, build.build_source(cfg, CPU)


def adaptation(setting, **options) -> Adaptation:
    """An adaptation of the finished run whose targets have moved away from the online networks."""
    _, source = setting
    start = partial(trained_agent, run_dir=finished_run(torch.float32))
    agent = Adaptation(source.spec, start=start, task="task2", **options)
    agent.study(source)
    with torch.no_grad():
        for parameter in agent.agent.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return agent


def drawn(agent: Adaptation, source) -> torch.Tensor:
    generator = Generator().manual_seed(0)
    return agent.prepare(agent.draw_noise(source.sample(12, 2, generator), generator))


def test_the_first_evaluation_is_the_zero_shot_agents(setting):
    """Same weights, same z, same episodes, same noise: the same numbers, to the last bit."""
    _, source = setting
    zero_shot = trained_agent(source.spec, run_dir=finished_run(torch.float32))
    cfg = composed("agent=adapt", "task=task2")
    adapted = build.build_objective(cfg, source, CPU)
    judge = ZeroShotEvaluator(source=source, every=0, episodes=12)
    (mine, theirs) = (
        PolicyEvaluator(source=source, every=0, tasks=["task2"], episodes=12)(adapted, 0),
        judge(zero_shot, 0),
    )
    for name in ("success", "return", "return_low", "return_high", "success_low"):
        assert mine[f"task2/{name}"].item() == theirs[f"task2/{name}"].item(), name
    assert torch.equal(adapted.z, judge.infer_tasks(zero_shot)["task2"])
    other = PolicyEvaluator(source=source, every=0, tasks=["task3"], episodes=12)(adapted, 0)  # z is of task 2
    assert other["task3/return"].item() != theirs["task3/return"].item()
    assert isinstance(adapted, Policy)
    assert not isinstance(adapted, ZeroShot)


def test_critic_loss_equals_a_loop(setting):
    _, source = setting
    agent = adaptation(setting)
    batch = drawn(agent, source)
    inner, terms = agent.agent, []
    now, then = (inner.encoder(batch["observation"][:, t])["pooled"] for t in (0, 1))
    z, w = agent.z[None], agent.readout
    for i in range(12):
        latent = inner.state_target.module(then[i][None])
        action = inner.actor(then[i][None], z, batch["noise", "next_action"][i][None])
        future = inner.predictor_target.module(latent, z, action)[:, 0].mean(0) @ w
        target = (batch["reward"][i, 0] + inner.discount * future).detach()
        members = inner.predictor(inner.state_net(now[i][None]), z, batch["action"][i, :1])[:, 0].detach()
        terms += [float(member @ w - target) ** 2 for member in members]
    assert agent.critic_loss(batch)["loss", "critic"].item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert set(batch["reward"][:, 0].tolist()) <= {0.0, 1.0}


def test_values_begin_at_the_published_or_the_true_scale(setting):
    _, source = setting
    published, fitted = adaptation(setting), adaptation(setting, scale="regression")
    assert published.readout.square().sum().item() == pytest.approx(1.0, rel=1e-5)  # the largest reward
    assert published.z.square().sum().item() == pytest.approx(published.agent.task_dim, rel=1e-4)
    assert torch.equal(published.z, fitted.z)
    start = trained_agent(source.spec, run_dir=finished_run(torch.float32))
    labelled = source.labelled(10_000, Generator().manual_seed(0))
    reward = (source.tasks.reward("task2", labelled) + 1).double()
    psi = start.embed(labelled["observation"])["task"].double()

    def error(w: torch.Tensor) -> float:
        return float((psi @ w.double() - reward).square().mean())

    best = error(fitted.readout)
    assert best < min(error(0.98 * fitted.readout), error(1.02 * fitted.readout), error(published.readout))


@pytest.mark.parametrize("is_encoder_trained", [True, False])
def test_the_encoder_learns_on_or_stays(setting, is_encoder_trained):
    cfg, source = setting
    agent = adaptation(setting, is_encoder_trained=is_encoder_trained)
    optimizer = partial(torch.optim.Adam, lr=1e-3, fused=True)
    learner = Learner(agent, optimizer=optimizer, weights=build.to_dict(cfg.weights))
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    generator = Generator().manual_seed(0)
    learner.update(agent.draw_noise(source.sample(16, 2, generator), generator), 0)
    moved = {name for name, tensor in agent.state_dict().items() if not torch.equal(tensor, before[name])}
    parts = {name.split(".")[1] for name in moved if not name.split(".")[1].endswith("_target")}
    assert parts == {"predictor", "actor"} | (
        {"state_net"} if is_encoder_trained else set()
    )  # no psi, no z, no statistics


def test_bad_starts_are_refused(setting, tmp_path):
    _, source = setting
    make = partial(Adaptation, source.spec, task="task2")
    with pytest.raises(ValueError, match=r"Give agent\.start\.run_dir=RUN_DIR"):
        make(start=partial(trained_agent, run_dir=None))
    with pytest.raises(FileNotFoundError, match="holds no run"):
        make(start=partial(trained_agent, run_dir=str(tmp_path)))
    run_dir = finished_run(torch.float32)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7; it has 0"):
        make(start=partial(trained_agent, run_dir=run_dir, checkpoint_step=7))
    with pytest.raises(ValueError, match="leave encoder=null"):
        make(encoder=lambda spec: None, start=partial(trained_agent, run_dir=run_dir))
    with pytest.raises(ValueError, match="scale=big: use max_reward or regression"):
        make(start=partial(trained_agent, run_dir=run_dir), scale="big")
    steps = build.build_source(composed("agent=adapt", "env.action_chunk=1"), CPU)
    with pytest.raises(
        ValueError, match=r"trained with another action than these data have: its env.action_chunk was 10"
    ):
        Adaptation(steps.spec, task="task2", start=partial(trained_agent, run_dir=run_dir))
    with pytest.raises(ValueError, match="Adaptation needs reward in the data"):
        Adaptation(source.source.source.spec, task="task2", start=partial(trained_agent, run_dir=run_dir))
    unpaid = build.build_source(composed("agent=adapt", "task=task2", "reward_shift=0"), CPU)
    with pytest.raises(ValueError, match="rewards of task2 give values no scale"):
        make(start=partial(trained_agent, run_dir=run_dir), reward_shift=0).study(unpaid)
    with pytest.raises(ValueError, match="only zero-shot agents can be adapted; the run trained Linear"):
        make(start=lambda spec: torch.nn.Linear(1, 1))


def test_a_run_with_something_else_beside_the_agent_is_refused(setting, tmp_path):
    _, source = setting
    shutil.copytree(finished_run(torch.float32), tmp_path / "run")
    path = Path(tmp_path, "run", "config.yaml")
    path.write_text(path.read_text().replace("objective: null", "objective: {_target_: x}"))
    with pytest.raises(ValueError, match="must have trained an agent, and nothing else"):
        trained_agent(source.spec, run_dir=str(tmp_path / "run"))
    assert checkpoint.load_source(tmp_path / "run" / "checkpoints" / "step_000000000") == {}


def test_a_resumed_run_ends_in_the_same_weights(tmp_path):
    """Through the one loop, with its checkpoints: ring, counts and simulators come back."""
    ended = []
    for name, stops in (("whole", (6,)), ("parts", (3, 6))):
        for steps in stops:
            small = [f"steps={steps}", f"run_dir={tmp_path / name}", "resume=true", "logger=csv", "threads=1"]
            cfg = composed("agent=adapt", *small, "eval.policy.episodes=1", "relabel.parts.online.num_envs=2")
            assert run(cfg, command="") == 0
        path = checkpoint.path_of(tmp_path / name / "checkpoints", 6)
        ended.append(load_file(path / "model.safetensors") | checkpoint.load_source(path))
    assert ended[0].keys() == ended[1].keys()
    assert {"online/number", "readout"} < set(ended[0])
    for name, tensor in ended[0].items():
        assert torch.equal(tensor, ended[1][name]), name
