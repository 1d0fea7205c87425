"""RND's reward by hand, in float64; what it refuses; and that what was seen often pays less."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator, nn
from torchrl.data import Bounded, Composite, Unbounded

from agents.actors import GaussianActor
from agents.rnd import RND
from agents.td3 import Critic
from perception.state import StateEncoder
from worldmodels.learner import Learner
from worldmodels.nn.mlp import MLP
from worldmodels.targets import EMA

OBS, ACT, SIZE = 3, 2, 8


def make(width: int = 8, **options: Any) -> RND:
    spec = Composite(
        observation=Composite(state=Unbounded((OBS,), dtype=torch.get_default_dtype())),
        action=Bounded(-1, 1, (ACT,), dtype=torch.get_default_dtype()),
    )
    choices = {
        "encoder": StateEncoder,
        "net": partial(MLP, out_dim=4, width=width, depth=1),
        "critic": partial(Critic, width=width, depth=1),
        "actor": partial(GaussianActor, width=width, depth=1),
        "target": partial(EMA, tau=0.1),
        "discount": 0.9,
    }
    return RND(options.pop("spec", spec), **{**choices, **options})


def windows(state: torch.Tensor) -> TensorDict:
    """Windows of two rows with these states [B, 2, S]."""
    num = state.shape[0]
    parts = {"observation": {"state": state}, "action": torch.rand(num, 2, ACT) * 2 - 1}
    return TensorDict({**parts, "terminated": torch.zeros(num, 2, dtype=torch.bool)}, batch_size=[num])


@torch.no_grad()
def answer(net: Any, x: torch.Tensor) -> list[float]:
    """What an MLP with one hidden layer says of one state [S]."""
    first, _, last = net.layers
    return (last.weight @ (first.weight @ x + first.bias).clamp(min=0) + last.bias).tolist()


@pytest.mark.usefixtures("float64")
def test_reward_is_the_error_over_its_running_deviation():
    agent, momentum, clip = make(momentum=0.3, clip=1.5), 0.3, 1.5
    mean, var, count = torch.zeros(OBS), torch.ones(OBS), 0
    spread, middle = torch.ones(()), torch.zeros(())
    for update in range(5):
        batch = windows(2 + 3 * torch.randn(SIZE, 2, OBS))
        found = agent.prepare(agent.agent.draw_noise(batch, Generator().manual_seed(update)))
        for row in (0, 1):
            count, x = count + 1, batch["observation", "state"][:, row]
            rate = max(1 / count, 0.01)
            moved = x.mean(0) - mean
            var = (1 - rate) * var + rate * x.var(0, correction=0) + rate * (1 - rate) * moved**2
            mean = mean + rate * moved
        x = ((batch["observation", "state"][:, 1] - mean) / (var + 1e-5).sqrt()).clamp(-clip, clip)
        errors = []
        for one in x:
            answers = [answer(net, one) for net in (agent.random.module, agent.predictor)]
            errors.append(sum((a - b) ** 2 for a, b in zip(*answers, strict=True)) / 4)
        error, rate = torch.tensor(errors), max(1 / (update + 1), momentum)
        moved = error.mean() - middle
        spread = (1 - rate) * spread + rate * error.var(correction=0) + rate * (1 - rate) * moved**2
        middle = middle + rate * moved
        torch.testing.assert_close(found["reward"][:, 0], error / spread.sqrt(), rtol=1e-9, atol=0)
        assert "reward" not in batch.keys()
        loss = agent.predictor_loss(found)["loss", "novelty"]
        assert loss.item() == pytest.approx(float(error.mean()), rel=1e-9)
    loss.backward()
    assert all(p.grad is not None for p in agent.predictor.parameters())
    assert not any(p.requires_grad for p in agent.random.parameters())


def test_what_was_seen_often_pays_less():
    """States in one corner of a box again and again, the opposite one never: novelty tells them apart."""
    torch.manual_seed(0)
    net = partial(MLP, out_dim=16, width=64, depth=2)
    agent = make(encoder=partial(StateEncoder, is_normalized=False), net=net)  # both halves are alike at first
    weights = {"novelty": 1.0, "critic": 1.0, "value": 1.0}
    learner = Learner(agent, optimizer=partial(torch.optim.Adam, lr=1e-3), weights=weights)
    known, new = (TensorDict({"state": torch.rand(256, OBS) + shift}, [256]) for shift in (0.0, -1.0))
    fixed = [p.clone() for p in agent.random.parameters()]

    def batch() -> TensorDict:
        return agent.agent.draw_noise(windows(torch.rand(128, 2, OBS)), Generator().manual_seed(0))

    def ratio() -> float:
        with torch.no_grad():
            return float(agent.novelty(known).mean() / agent.novelty(new).mean())

    before = ratio()
    for step in range(150):
        learner.update(batch(), step)
    after = ratio()
    print(f"novelty of known over new states: {before:.3f} before, {after:.3f} after 150 updates")
    assert 0.5 < before < 2
    assert after < 0.2
    assert all(torch.equal(p, q) for p, q in zip(agent.random.parameters(), fixed, strict=True))


def test_what_it_cannot_work_with_is_refused():
    spec = Composite(
        observation=Composite(state=Unbounded((OBS,))), action=Bounded(-1, 1, (ACT,)), reward=Unbounded(())
    )
    with pytest.raises(ValueError, match="rewards itself, but these data have a reward"):
        make(spec=spec)

    class Learned(StateEncoder):
        def __init__(self, spec: Composite) -> None:
            super().__init__(spec)
            self.layer = nn.Linear(OBS, OBS)

    with pytest.raises(ValueError, match="needs an encoder without weights"):
        make(encoder=Learned)
