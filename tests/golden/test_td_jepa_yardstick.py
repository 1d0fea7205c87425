"""TD-JEPA against the independent straightforward implementation in benchmarks/, number by number in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from agents.actors import FlowActor
from agents.td_jepa import TDJEPA
from benchmarks.td_jepa_yardstick import TDJEPAYardstick, YardstickConfig, copy_network, make_yardstick
from perception.state import StateEncoder
from worldmodels.learner import Learner
from worldmodels.nn.mlp import LatentMLP
from worldmodels.predictors.successor import SuccessorPredictor
from worldmodels.targets import EMA

OBS, ACT, BATCH, UPDATES = 7, 3, 16, 4
CONFIG = YardstickConfig(
    state_dim=6,
    task_dim=5,
    encoder_width=16,
    encoder_depth=3,
    predictor_width=12,
    predictor_depth=2,
    actor_width=14,
    actor_depth=2,
    field_width=10,
    field_depth=3,
    lr=1e-3,
    lr_field=3e-3,
    weight_state=0.7,
    weight_task=1.3,
    discount=0.97,
)
WEIGHTS = {"td_state": 1.0, "td_task": 1.0, "value": 1.0, "flow_matching": 1.0, "distillation": CONFIG.bc_weight}
WEIGHTS |= {"orthonormality_state": CONFIG.weight_state, "orthonormality_task": CONFIG.weight_task}


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
    """Everything in float64, also where code leaves bfloat16 autocast with ``.float()``."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _agent() -> TDJEPA:
    state = Unbounded((OBS,), dtype=torch.float64)
    action = Bounded(-1, 1, (ACT,), dtype=torch.float64)
    spec = Composite(observation=Composite(state=state), action=action)
    c = CONFIG
    predictor = partial(SuccessorPredictor, width=c.predictor_width, depth=c.predictor_depth, num_members=c.num_members)
    actor = partial(
        FlowActor, width=c.actor_width, depth=c.actor_depth, field_width=c.field_width, field_depth=c.field_depth
    )
    return TDJEPA(
        spec,
        encoder=partial(StateEncoder, is_normalized=False),
        task_encoder=None,
        state_net=partial(LatentMLP, dim=c.state_dim, width=c.encoder_width, depth=c.encoder_depth),
        task_net=partial(LatentMLP, dim=c.task_dim, width=c.encoder_width, depth=c.encoder_depth),
        predictor=predictor,
        task_predictor=predictor,
        actor=actor,
        target=partial(EMA, tau=c.tau),
        discount=c.discount,
    )


def _pairs(agent: TDJEPA, yardstick: TDJEPAYardstick) -> list[tuple]:
    """(ours, theirs) of every network."""
    pairs = [
        (agent.state_net, yardstick.phi),
        (agent.task_net, yardstick.psi),
        (agent.predictor, yardstick.predictor_phi),
        (agent.task_predictor, yardstick.predictor_psi),
        (agent.actor.field, yardstick.vector_field),
        (agent.state_target, yardstick.phi_target),
        (agent.task_target, yardstick.psi_target),
        (agent.predictor_target, yardstick.predictor_phi_target),
        (agent.task_predictor_target, yardstick.predictor_psi_target),
    ]
    parts = ("embed_task", "embed_obs", "trunk")
    return pairs + [(getattr(agent.actor, part), getattr(yardstick.actor, part)) for part in parts]


def test_losses_and_weights_equal_the_yardstick() -> None:
    agent = _agent()
    yardstick = make_yardstick(OBS, ACT, CONFIG)
    for ours, theirs in _pairs(agent, yardstick):
        copy_network(ours, theirs)
    learner = Learner(
        agent,
        optimizer=partial(torch.optim.Adam, lr=CONFIG.lr),
        weights=WEIGHTS,
        groups={"vector_field": {"lr": CONFIG.lr_field}},
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(UPDATES):
        obs = torch.randn(BATCH, 2, OBS, generator=generator)
        batch = TensorDict(
            {
                "observation": {"state": obs},
                "action": 2 * torch.rand(BATCH, 2, ACT, generator=generator) - 1,
                "terminated": torch.rand(BATCH, 2, generator=generator) < 0.2,
            },
            batch_size=[BATCH],
        )
        batch = agent.draw_noise(batch, generator)
        plain = {
            "observation": obs[:, 0],
            "next_observation": obs[:, 1],
            "action": batch["action"][:, 0],
            "terminated": batch["terminated"][:, 0],
        }
        expected = yardstick.update(plain, noise=batch["noise"].to_dict())
        learner.update(batch, step)
        got = {name: value for name, value in learner.metrics().items() if name.startswith("loss/")}
        assert got == pytest.approx({f"loss/{k}": float(v) for k, v in expected.items()}, rel=1e-9, abs=1e-9), step

    rebuilt = make_yardstick(OBS, ACT, CONFIG)
    for (ours, theirs), (_, into) in zip(_pairs(agent, yardstick), _pairs(agent, rebuilt), strict=True):
        copy_network(ours, into)
        for p, q in zip(theirs.parameters(), into.parameters(), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(agent.second_moment, yardstick.second_moment, rtol=1e-9, atol=1e-9)
