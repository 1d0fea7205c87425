"""From a configuration to parts."""

from __future__ import annotations

import functools

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from envs.mixture import Mixture
from envs.relabel import Futures
from envs.toy import Toy
from perception.pixels import RandomShift
from worldmodels import build
from worldmodels.checkpoint import model_tensors
from worldmodels.objectives.joint import Joint

CPU = torch.device("cpu")
SMALL = [f"agent.{part}.width=16" for part in ("state_net", "task_net", "predictor", "actor")]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", overrides=["env=toy", "batch_size=16", *overrides])


def test_device_is_what_was_asked_or_what_there_is():
    assert build.choose_device("cpu") == CPU
    assert build.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device=cuda:1 was asked for, but torch .* sees no GPU; use device=cpu"):
            build.choose_device("cuda:1")


def test_fast_products_are_kept_only_at_the_accuracy_of_fp32():
    before = torch.get_float32_matmul_precision()
    try:
        was_found = build.use_fast_matmul(CPU)
        assert torch.get_float32_matmul_precision() == ("medium" if was_found else "highest")
        a, b = torch.randn(300, 300), torch.randn(300, 300)
        exact = a.double() @ b.double()
        assert ((a @ b).double() - exact).norm() / exact.norm() < 2e-6  # bfloat16 would be off by 3e-3
    finally:
        torch.set_float32_matmul_precision(before)


def test_source_is_wrapped_as_the_agent_asks():
    assert type(build.build_source(composed("agent=td_jepa"), CPU)) is Toy
    futures = build.build_source(composed("agent=hilp"), CPU)
    assert type(futures) is Futures
    assert type(futures.source) is Toy
    both = build.build_source(composed("agent=td_jepa", "objective=latent_prediction"), CPU)
    assert type(both) is Mixture
    assert list(both.sources) == ["agent", "objective"]


def test_initial_weights_depend_on_the_seed_alone():
    cfg = composed("agent=td_jepa", *SMALL)
    source = build.build_source(cfg, CPU)
    one = build.build_objective(cfg, source, CPU)
    torch.rand(17)
    two = build.build_objective(cfg, source, CPU)
    cfg.seed = 1
    other = build.build_objective(cfg, source, CPU)
    pairs = zip(*(model_tensors(o).values() for o in (one, two, other)), strict=True)
    same = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in pairs]
    assert all(is_same for is_same, _ in same)
    assert not all(is_same for _, is_same in same)
    assert build.num_parameters(one) == sum(
        p.numel() for phase in one.phases() for g in phase.params.values() for p in g
    )


def test_agent_and_objective_together_are_joint():
    cfg = composed("agent=td_jepa", "objective=latent_prediction", *SMALL)
    objective = build.build_objective(cfg, build.build_source(cfg, CPU), CPU)
    assert isinstance(objective, Joint)
    assert list(objective.parts) == ["agent", "objective"]


def test_learner_takes_rates_and_groups_from_the_configuration():
    cfg = composed("agent=td_jepa", "actor=flow", *SMALL, "optim.lr=0.002", "param_groups.vector_field.lr=0.005")
    objective = build.build_objective(cfg, build.build_source(cfg, CPU), CPU)
    learner = build.build_learner(cfg, objective, CPU)
    rates = {
        name: group["lr"]
        for runner in learner.runners
        for name, group in zip(runner.phase.params, runner.optimizer.param_groups, strict=False)
    }
    assert rates["actor"] == 0.002
    assert rates["vector_field"] == 0.005
    assert learner.weights == OmegaConf.to_container(cfg.weights)
    assert not learner.is_captured
    cfg.cuda_graph = True
    with pytest.raises(ValueError, match="cuda_graph=true needs a GPU; this run is on cpu"):
        build.build_learner(cfg, objective, CPU)


def test_one_cycle_moves_rate_and_momentum_against_each_other():
    cfg = composed("objective=latent_prediction", "optim=adamw_onecycle", "optim.lr=0.003", "steps=10")
    source = build.build_source(cfg, CPU)
    objective = build.build_objective(cfg, source, CPU)
    learner = build.build_learner(cfg, objective, CPU)
    group, *_ = learner.runners[0].optimizer.param_groups
    assert (group["weight_decay"], learner.max_grad_norm) == (0.01, 10)
    batch = source.sample(16, objective.window, torch.Generator().manual_seed(0))
    for step, rate, momentum in ((0, 3e-4, 0.95), (4, 3e-3, 0.85), (10, 3e-8, 0.95)):
        learner.update(batch, step)
        assert group["lr"] == pytest.approx(rate)
        assert group["betas"] == pytest.approx((momentum, 0.99))


def test_capturable_optimizers_have_their_rates_in_tensors():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 0.5}]
    optimizer = build.capturable(functools.partial(torch.optim.Adam, lr=0.1), 0.1, CPU, groups)
    found = [group["lr"] for group in optimizer.param_groups]
    assert all(isinstance(lr, torch.Tensor) for lr in found)
    assert [lr.item() for lr in found] == pytest.approx([0.1, 0.5])
    assert all(group["capturable"] for group in optimizer.param_groups)
    assert "lr" not in groups[0]  # the caller's groups stay as they were


def test_transforms_run_before_those_of_the_objective():
    cfg = composed("agent=td_jepa", "+transforms.shift={_target_: perception.pixels.RandomShift, pad: 1}", *SMALL)
    objective = build.build_objective(cfg, build.build_source(cfg, CPU), CPU)
    first, second = build.build_transforms(cfg, objective)
    assert isinstance(first, RandomShift)
    assert first.pad == 1
    assert second == objective.draw_noise


def test_evaluators_can_be_switched_off_one_by_one():
    cfg = composed("agent=td_jepa", "eval.collapse=null", "eval.zero_shot.episodes=3")
    (evaluator,) = build.build_evaluators(cfg, build.build_source(cfg, CPU))
    assert evaluator.name == "zero_shot"
    assert evaluator.episodes == 3


def test_differences_are_dotted_names():
    mine = {"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": 1}}
    saved = {"a": {"b": 1, "c": 5}, "d": 3, "e": 4, "g": 0}
    assert build.differences(mine, saved) == ["a.c", "e", "g"]
    assert build.differences(mine, mine) == []


def test_configuration_of_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: there is no .*config.yaml"):
        build.load_config(tmp_path)
    cfg = composed("agent=td_jepa")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    assert build.differences(build.to_dict(cfg), build.to_dict(build.load_config(tmp_path))) == []
