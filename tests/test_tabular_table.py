"""CatBoost as a model of the tabular table: it learns, its output is what the judge takes, its absence is one line."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Generator

from benchmarks import tabular_table


def test_absence_of_catboost_is_said_before_any_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "catboost", None)
    monkeypatch.setattr(sys, "argv", ["tabular_table", "--models", "catboost", "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit):
        tabular_table.main()
    assert "--models catboost needs CatBoost" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("num_classes", [0, 2, 3])
def test_catboost_learns_a_target(num_classes):
    pytest.importorskip("catboost", reason="needs pip install catboost")
    features = torch.rand(900, 4, generator=Generator().manual_seed(0))
    score = features[:, 0] + features[:, 1] ** 2
    target = (score * num_classes / 2).long().clamp_max(num_classes - 1) if num_classes else score
    x, y = features.split(300), target.split(300)
    predict = tabular_table.catboost_trees(x[:2], y[:2], num_classes=num_classes, seed=0)
    output = predict(x[2])
    if num_classes:
        assert output.shape == (300, num_classes)
        torch.testing.assert_close(output.exp().sum(1), torch.ones(300))
        assert float((output.argmax(1) == y[2]).float().mean()) > 0.9
    else:
        assert float((output - y[2]).square().mean() / y[2].var()) < 0.05
    torch.testing.assert_close(
        tabular_table.catboost_trees(x[:2], y[:2], num_classes=num_classes, seed=0)(x[2]), output
    )
