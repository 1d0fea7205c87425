"""Small agents on random data, in float64."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from agents.actors import GaussianActor
from perception.state import StateEncoder
from worldmodels.nn.mlp import LatentMLP
from worldmodels.predictors.successor import SuccessorPredictor
from worldmodels.targets import EMA

OBS, ACT, BATCH = 5, 2, 8
STATE_DIM, TASK_DIM = 6, 4


def make_agent(kind: Any, spec: Composite | None = None, **options: Any) -> Any:
    """An agent with small networks, targets that have moved away from the online networks, and a normaliser."""
    state = Unbounded((OBS,), dtype=torch.float64)
    spec = spec or Composite(observation=Composite(state=state), action=Bounded(-1, 1, (ACT,), dtype=torch.float64))
    choices = {
        "encoder": StateEncoder,
        "task_encoder": None,
        "state_net": partial(LatentMLP, dim=STATE_DIM, width=8, depth=1),
        "task_net": partial(LatentMLP, dim=TASK_DIM, width=8, depth=2),
        "predictor": partial(SuccessorPredictor, width=8, depth=1, num_members=2),
        "actor": partial(GaussianActor, width=8, depth=1),
        "target": partial(EMA, tau=0.1),
        "discount": 0.9,
    }
    agent = kind(spec, **{**choices, **options})
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return agent


def make_batch() -> TensorDict:
    """Random windows of two rows, some of which ended the task, with futures."""
    state = {"state": 3 * torch.randn(BATCH, 2, OBS)}
    batch = TensorDict(
        {
            "observation": state,
            "action": 2 * torch.rand(BATCH, 2, ACT) - 1,
            "terminated": torch.rand(BATCH, 2) < 0.3,
        },
        batch_size=[BATCH],
    )
    future = TensorDict({"state": 3 * torch.randn(BATCH, OBS)}, batch_size=[BATCH])
    return batch.set("future", TensorDict({"observation": future}, batch_size=[BATCH]))


@pytest.fixture
def kit() -> SimpleNamespace:
    """What the tests of this folder build on."""
    return SimpleNamespace(agent=make_agent, batch=make_batch, obs=OBS, act=ACT, size=BATCH, task_dim=TASK_DIM)
