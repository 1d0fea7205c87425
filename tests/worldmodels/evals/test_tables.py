"""Evaluators of tables: probes, scores of labels, relevance of columns."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from perception.tabular import FlatTable
from worldmodels.core import Objective
from worldmodels.evals.probes import LinearProbe, classification_metrics, fit_probe, judged
from worldmodels.evals.relevance import ColumnRelevance, boosted_trees, spearman
from worldmodels.evals.results import unpack

pytest.importorskip("sklearn", reason="needs the tabular extra: pip install 'worldmodels[tabular]'")
pytest.importorskip("xgboost", reason="needs the tabular extra: pip install 'worldmodels[tabular]'")


def table(task: str, num: int = 600):
    """Column "useful" decides the label, "useless" does not, and neither does the category "noise"."""
    import pandas as pd

    from envs.tables import Tables

    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"useful": draw.normal(size=num), "useless": draw.normal(size=num)})
    frame["noise"] = draw.choice(["a", "b"], size=num)
    value = 3 * frame.useful + 0.1 * draw.normal(size=num)
    frame["label"] = value if task == "regression" else np.where(value > 0, "high", "low")
    return Tables(path=frame, target="label", scale="standard")


class Columns(Objective):
    """Representations that are some of the input."""

    window = 1

    def phases(self):
        return ()

    def embed(self, obs: TensorDict) -> TensorDict:
        return TensorDict({"row": obs["numerical"], "useless": obs["numerical"][:, 1:]}, batch_size=obs.batch_size)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_probe_finds_what_is_there_and_nothing_else(task):
    found = unpack(LinearProbe(source=table(task), every=0, raw=FlatTable)(Columns(), 0)).metrics
    if task == "regression":
        assert found["row/rmse"] == pytest.approx(0.1, rel=0.2)  # the noise
        assert found["raw/rmse"] == pytest.approx(0.1, rel=0.2)
        assert found["useless/rmse"] > 2.5
    else:
        assert found["row/accuracy"] > 0.93
        assert found["useless/accuracy"] < 0.65
        assert found["raw/macro_f1"] > 0.93


def test_probe_is_scikit_learns_ridge_and_logistic_regression():
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    torch.manual_seed(0)
    x = torch.randn(400, 5) * torch.tensor([1.0, 10, 0.1, 1, 3]) + 2
    y = x @ torch.tensor([1.0, 0.1, 5, 0, -1]) + 0.5 * torch.randn(400)
    scaled = StandardScaler().fit_transform(x.numpy()) * np.sqrt(399 / 400)  # torch divides by N - 1
    predict = fit_probe((x, x), (y, y), num_classes=0, penalties=[0.1])
    np.testing.assert_allclose(predict(x), Ridge(alpha=40).fit(scaled, y).predict(scaled), rtol=1e-4, atol=1e-4)
    label = (y > 1).long() + (y > 3).long()
    logits = fit_probe((x, x), (label, label), num_classes=3, penalties=[0.01])(x)
    theirs = LogisticRegression(C=1 / (0.01 * 400), max_iter=1000, tol=1e-8).fit(scaled, label)
    np.testing.assert_allclose(logits.softmax(-1), theirs.predict_proba(scaled), atol=2e-3)


def test_metrics_are_scikit_learns():
    from sklearn.metrics import accuracy_score, f1_score

    torch.manual_seed(0)
    a, b = torch.randint(0, 4, (2, 100))
    found = classification_metrics(a, b, 6)  # two classes never occur
    assert found["accuracy"] == pytest.approx(accuracy_score(b, a))
    assert found["macro_f1"] == pytest.approx(f1_score(b, a, average="macro"))
    assert judged(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]), num_classes=0) == {"rmse": pytest.approx(2**0.5)}


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_relevance_is_what_shuffling_a_column_costs(task):
    source = table(task)
    evaluator = functools.partial(ColumnRelevance, source=source, raw=FlatTable)
    found = unpack(evaluator()(Columns(), 0)).metrics
    for name in ("row", "raw", "trees"):
        assert found[f"{name}/useful"] > 0.5
        assert abs(found[f"{name}/useless"]) < 0.1
        assert abs(found[f"{name}/noise"]) < 0.1
    assert found["row/noise"] == 0  # is not in the representation
    if task == "regression":  # shuffling doubles the variance that is explained
        assert found["raw/useful"] == pytest.approx(2.0, rel=0.2)
    with pytest.raises(ValueError, match="env=tables"):
        ColumnRelevance(source=object(), raw=FlatTable)


def test_rank_correlation():
    assert spearman(torch.tensor([1.0, 5.0, 2.0]), torch.tensor([10.0, 90.0, 20.0])) == pytest.approx(1.0)
    assert spearman(torch.tensor([1.0, 5.0, 2.0]), -torch.tensor([10.0, 90.0, 20.0])) == pytest.approx(-1.0)
    # trees use many a column not at all: (0, 0, 1) against (0, 1, 2) has ranks (1.5, 1.5, 3) and (1, 2, 3)
    assert spearman(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 2.0])) == pytest.approx(0.75**0.5)


def test_trees_learn():
    torch.manual_seed(0)
    x = torch.rand(500, 2)
    y = (x[:, 0] > 0.5).long()
    predict = boosted_trees((x[:400], x[400:]), (y[:400], y[400:]), num_classes=2, seed=0)
    assert (predict(x).argmax(-1) == y).float().mean() > 0.98
