"""Gradient descent on deep linear networks does what the theory says, to within a percent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import Generator

from envs.linear_features import AR1, LinearFeatures, Masked, Spectrum, Static
from tests.worldmodels.linear_tables import TABLES
from worldmodels import build
from worldmodels.evals.linear_dynamics import LinearDynamics
from worldmodels.evals.results import Evaluation, unpack
from worldmodels.objectives.linear import DeepLinear

# Experiments, and commands of docs/linear.md: the panels of each are trained at once. Depths 2 and 3 lie
# between those that are here.
RUNS = [
    ["experiment=linear/order_inversion"],
    ["experiment=linear/fast"],
    ["experiment=linear/deep"],
    ["experiment=linear/depth1"],
    ["experiment=linear/depth1", "env.panels=[conflict]", "objective.scale=0.1", "steps=600"],
    ["env.panels=[conflict]"],
    ["experiment=linear/depth5"],
]


def train(*overrides: str) -> tuple[Evaluation, DeepLinear]:
    """What ``python -m worldmodels.run objective=linear`` does, less the files."""
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", overrides=["objective=linear", *overrides])
    cpu = torch.device("cpu")
    source = build.build_source(cfg, cpu)
    objective = build.build_objective(cfg, source, cpu)
    learner = build.build_learner(cfg, objective, cpu)
    batch = source.sample(1, 1, Generator())
    for step in range(cfg.steps):
        learner.update(batch, step)
    return unpack(LinearDynamics(source=source)(objective, cfg.steps)), objective


def column(found: Evaluation, panel: str, loss: str, name: str) -> np.ndarray:
    return np.array([found.metrics[f"{panel}.{loss}.{i}/{name}"] for i in range(4)])


def orders(found: Evaluation) -> dict[str, str]:
    """The order measured, of each panel and loss."""
    return {note.partition(":")[0]: note.partition("order ")[2].partition(",")[0] for note in found.notes}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("overrides", RUNS, ids=" ".join)
def test_training_takes_as_long_as_the_theory_says(overrides):
    found, objective = train(*overrides)
    assert found.warnings == []
    num_tables = 0
    for name, order in orders(found).items():
        panel, loss = name.split(", ")
        assert np.all(column(found, panel, loss, "error") < 0.006)
        for table in TABLES:
            if (table.panel, table.depth, table.scale) == (panel, objective.depth, objective.scale):
                times, _ = table.times(loss)
                np.testing.assert_allclose(column(found, panel, loss, "measured"), times, rtol=0.006)
                assert order == table.order(loss)
                num_tables += 1
    assert num_tables >= 2
    encoder = objective.product().detach()
    gram = encoder.transpose(1, 2) @ encoder
    assert float((gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))).abs().max()) < 1e-10  # features never mixed
    layers = objective.layers.detach()
    balance = layers[:, 1:].transpose(2, 3) @ layers[:, 1:]
    balance = balance - layers[:, :-1] @ layers[:, :-1].transpose(2, 3)
    assert balance.numel() == 0 or float(balance.abs().max()) < 1e-10  # from an aligned start even by large steps


def test_features_of_the_configuration_are_those_of_the_tables():
    with initialize_config_module("conf", version_base="1.3"):
        features = compose("config", overrides=["objective=linear"]).env.features
    for table in TABLES:
        np.testing.assert_allclose(features[table.panel].lam, table.lam, rtol=1e-12)
        np.testing.assert_allclose(features[table.panel].rho, table.rho, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_models_of_features_and_a_spread_of_lambda_that_inverts_nothing():
    found, _ = train(
        "env.panels=[static,temporal]", "objective.scale=0.33", "objective.step_sizes=[0.8,0.015]", "steps=1250"
    )
    assert orders(found) == {
        "static, jepa": "0 1 2 3",
        "static, mae": "0 1 2 3",
        "temporal, jepa": "2 3 0 1",
        "temporal, mae": "0 1 2 3",
    }
    assert max(value for name, value in found.metrics.items() if name.endswith("/error")) < 0.006
    np.testing.assert_allclose(column(found, "static", "jepa", "predicted"), [682, 737, 818, 950], rtol=2e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_a_slow_teacher_takes_the_inversion_back():
    """An average over 50 units of time (step size / (1 - momentum)) does, one over 5 does not."""
    for momentum, order, least, most in ((0.8, "3 2 0 1", 1.01, 1.07), (0.98, "0 1 2 3", 1.1, 1.8)):
        found, _ = train(
            "env.panels=[conflict]", "objective.losses=[jepa]", "objective.step_sizes=[1.0]",
            f"objective.momentum={momentum}", "steps=1200",
        )  # fmt: skip
        assert orders(found) == {"conflict, jepa": order}
        delay = column(found, "conflict", "jepa", "measured") / column(found, "conflict", "jepa", "predicted")
        assert least < delay.min() < delay.max() < most


def test_what_cannot_be_measured_is_warned_about():
    found, _ = train("env.panels=[rho]", "objective.scale=0.45", "steps=20")
    assert any("feature 0 (lambda=1, rho=0.5) starts at scale^depth=0.041" in line for line in found.warnings)
    assert any("feature 3 (lambda=1, rho=1) is due at" in line for line in found.warnings)
    assert orders(found)["rho, jepa"] == "none"


def test_rows_are_kept_as_often_as_asked():
    _, often = train("env.panels=[fast]", "steps=7")
    _, seldom = train("env.panels=[fast]", "steps=7", "objective.record_every=3")
    torch.testing.assert_close(seldom.trajectory[:3], often.trajectory[:7:3])


def test_losses_and_gradients_are_those_of_samples():
    source = LinearFeatures(panels={"a": Static([1.0, 0.5], [0.3, 0.1])}, samples=64, seed=3)
    objective = DeepLinear(source.spec, depth=2, scale=0.4, step_sizes=[1.0, 1.0], updates=1)
    batch = objective.prepare(source.sample(1, 1, Generator()))
    objective.loss(batch)["loss", "linear"].backward()
    x, y = source.panels["a"].draw(64, Generator().manual_seed(3))
    for index, loss in enumerate(("jepa", "mae")):
        layers = objective.layers.detach()[index].clone().requires_grad_(True)
        top = objective.top.detach()[index].clone().requires_grad_(True)
        encode = layers[1] @ layers[0]
        target = (y @ encode.T).detach() if loss == "jepa" else y
        error = 0.5 * (x @ (top @ encode).T - target).square().sum(1).mean()
        error.backward()
        torch.testing.assert_close(objective.layers.grad[index], layers.grad)
        torch.testing.assert_close(objective.top.grad[index], top.grad)


def test_everything_is_on_the_device():
    source = LinearFeatures(panels={"a": Spectrum([1.0, 0.5], [0.5, 0.6])})
    objective = DeepLinear(source.spec, depth=2, scale=0.3, step_sizes=[1.0, 1.0], updates=1).to("meta")
    batch = objective.prepare(source.sample(1, 1, Generator()).to("meta"))
    objective.loss(batch)["loss", "linear"].backward()
    assert objective.layers.grad.is_meta


@pytest.mark.parametrize(
    ("features", "lam", "rho"),
    [
        (Static([2.0], [0.5]), 2.0, 0.8),
        (Masked([2.0], keep_x=0.5, keep_y=0.25), 0.25, 0.25),
        (AR1([0.9], [2.0], [0.5], lag=2), 1.62, 0.648),
        (Spectrum([0.4], [0.8]), 0.4, 0.8),
    ],
)
def test_samples_have_the_moments_of_the_population(features, lam, rho):
    views = features.views()
    assert float(views.yx) == pytest.approx(lam)
    assert float(views.rho) == pytest.approx(rho)
    x, y = features.draw(400_000, Generator().manual_seed(0))
    found = [(x * x).mean(), (x * y).mean(), (y * y).mean()]
    np.testing.assert_allclose(torch.stack(found), torch.cat(views), rtol=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spectrum([1.0], [0.5, 0.6]), "one number a feature"),
        (lambda: Spectrum([-1.0], [0.5]), "must not be negative"),
        (lambda: AR1([1.0], [1.0], [0.0]), "gamma"),
        (lambda: LinearFeatures(panels={}), "one number of features"),
        (lambda: LinearFeatures(panels={"a": Spectrum([1.0], [0.5])}, chosen=["b"]), r"no panels \['b'\]"),
        (lambda: LinearFeatures(panels={"a": Spectrum([1.0], [0.5])}).sample(2, 1, Generator()), "batch_size=2"),
        (lambda: train("objective.depth=0"), "depth=0"),
        (lambda: train("objective.momentum=1.0"), "momentum=1.0"),
    ],
)
def test_the_impossible_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
