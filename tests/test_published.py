"""The published settings of a data set hold for every method, not for one."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import Generator

from tests.systems import CONF, composed
from worldmodels import build
from worldmodels.nn.mlp import LatentMLP, Passthrough

CPU = torch.device("cpu")
SMALL = {path.stem.removesuffix("_small"): path.read_text() for path in (CONF / "scale/agent").glob("*_small.yaml")}
AGENTS = sorted(name for name, text in SMALL.items() if "base/zero_shot_small" in text)
TINY = ["agent.task_net.width=16", "agent.predictor.width=16", "agent.actor.width=16"]


def built(*overrides: str):
    cfg = composed(*overrides, *TINY, batch_size=8)
    cfg.env = composed("env=toy", "agent=sf", "scale=paper").env  # the data set's settings, on data always there
    source = build.build_source(cfg, CPU)
    return cfg, source, build.build_objective(cfg, source, CPU)


@pytest.mark.parametrize("data", ["pointmass", "cube-single-play"])
@pytest.mark.parametrize("agent", AGENTS)
def test_published_settings_train_every_method(agent, data):
    cfg, source, objective = built(f"agent={agent}", f"experiment=td_jepa/{data}")
    learner = build.build_learner(cfg, objective, CPU)
    generator = Generator().manual_seed(0)
    batch = source.sample(8, objective.window, generator)
    for transform in build.build_transforms(cfg, objective):
        batch = transform(batch, generator)
    learner.update(batch, 0)  # raises where a loss has no weight or a weight no loss
    assert all(abs(value) < float("inf") for value in learner.metrics().values())
    if data == "pointmass":  # the data set's own values win
        assert cfg.agent.discount == 0.99
        assert cfg.param_groups.actor.lr == 1e-6


def test_weights_on_a_suite_are_the_methods_own():
    def of(agent: str, data: str):
        return OmegaConf.to_container(composed(f"agent={agent}", f"experiment=td_jepa/{data}"), resolve=True)

    assert of("fb", "walker")["weights"]["orthonormality_task"] == 1.0
    assert of("fb", "antmaze-medium-navigate")["weights"]["orthonormality_task"] == 100.0
    assert of("td_jepa", "walker")["weights"]["orthonormality_task"] == 0.1
    whitened = {name: of(name, "walker")["agent"]["is_goal_whitened"] for name in ("td_jepa", "hilp", "fb")}
    assert whitened == {"td_jepa": False, "hilp": True, "fb": False}
    assert [of("byol_gamma", data)["relabel"]["discount"] for data in ("walker", "scene-play")] == [0.98, 0.99]
    assert [of("icvf", data)["agent"]["state_net"]["dim"] for data in ("walker", "scene-play")] == [50, 50]
    pictures = {name: of(name, "visual-walker")["agent"]["task_encoder"] for name in ("td_jepa", "td_jepa_sym")}
    assert pictures["td_jepa"]["_target_"] == "perception.pixels.PixelEncoder"
    assert pictures["td_jepa_sym"] is None


@pytest.mark.parametrize("agent", ["fb", "hilp", "laplacian", "td_jepa"])
def test_state_encoder_is_a_choice(agent):
    *_, none = built(f"agent={agent}", "state_net=none")
    assert isinstance(none.state_net, Passthrough)
    assert none.state_net.dim == none.encoder.dim
    assert none.critic_groups()["state_net"] == []
    *_, shallow = built(f"agent={agent}", "state_net=shallow")
    assert [type(layer) for layer in shallow.state_net.layers] == [torch.nn.Linear]
    assert shallow.state_net.dim == 256
    assert shallow.state_net.is_normalized
    *_, deep = built(f"agent={agent}", "state_net=deep")
    assert isinstance(deep.state_net, LatentMLP)
    widths = [[p.shape[0] for p in net.parameters()] for net in (deep.state_net, deep.task_net)]
    assert widths[0] == widths[1]  # the task encoder's layout


def test_an_agent_without_a_state_encoder_trains_and_says_where_it_cannot():
    cfg, source, objective = built("agent=fb", "state_net=none")
    learner = build.build_learner(cfg, objective, CPU)
    generator = Generator().manual_seed(0)
    learner.update(objective.draw_noise(source.sample(8, 2, generator), generator), 0)
    with pytest.raises(ValueError, match=r"state_net=none keeps the width of its input, \d+; this agent needs 50"):
        built("agent=icvf", "state_net=none")
