"""Imitating agents reach goals in the toy box as their demonstrator does; before training they do not."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator

from agents.act import ACT
from agents.act_jepa import ACTJEPA
from agents.bc import BC
from perception.context import ContextEncoder, FlatState
from tests.reaching import Reaching
from worldmodels.evals.policy import PolicyEvaluator
from worldmodels.learner import Learner
from worldmodels.predictors.chunk import ChunkDecoder
from worldmodels.targets import EMA
from worldmodels.trainer import batch_seed

pytestmark = pytest.mark.usefixtures("unchecked")

STEPS, BATCH_SIZE, MARGIN = 150, 32, 0.4
ENCODER = partial(ContextEncoder, dim=32, depth=1, num_heads=2, hidden=64)
DECODER = partial(ChunkDecoder, depth=1, num_heads=2, hidden=64)
CHUNKS = {"encoder": ENCODER, "decoder": DECODER, "chunk": 10}
JEPA = {"predictor": partial(DECODER, width=16), "target": partial(EMA, tau=0.02), "steps": STEPS}
AGENTS: dict[str, Any] = {
    "act": partial(ACT, **CHUNKS, num_executed=5),
    "act_jepa": partial(ACTJEPA, **CHUNKS, **JEPA, ensemble=0.01),
    "bc": partial(BC, encoder=FlatState, history=5, network={"dim": 32, "depth": 1, "num_heads": 2, "hidden": 64}),
}


@pytest.mark.parametrize("name", AGENTS)
def test_reaches_goals_as_it_was_shown(name: str) -> None:
    source = Reaching(trajectories=60)
    torch.manual_seed(0)
    agent = AGENTS[name](source.spec)
    agent.study(source)
    optimizer = partial(torch.optim.AdamW, lr=2e-3)
    weights = {"action": 1.0} | ({"observation": 1.0} if name == "act_jepa" else {})
    learner = Learner(agent, optimizer=optimizer, weights=weights)
    judge = PolicyEvaluator(source=source, every=0, episodes=8, is_filmed=False)
    judge.result = partial(judge.result, is_drawn=False)
    untrained = judge(agent, 0)["success"].item()
    for step in range(STEPS):
        learner.update(source.sample(BATCH_SIZE, agent.window, Generator().manual_seed(batch_seed(0, step, 0))), step)
    trained = judge(agent, STEPS)["success"].item()
    print(f"{name}: trained {trained:.2f}, untrained {untrained:.2f}")
    assert trained > untrained + MARGIN
    assert trained >= 0.9
