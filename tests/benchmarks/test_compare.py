"""Comparisons: which runs they ask for, and that their numbers are those of the runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from matplotlib.axes import Axes
from omegaconf import DictConfig

from benchmarks import compare
from benchmarks.compare import Column, Comparison, Line, Row

NAMES = sorted(path.stem for path in compare.FOLDER.glob("*.yaml"))


def summary(first: dict[str, float], last: dict[str, float]) -> dict[str, Any]:
    """A finished run as the session leaves it."""
    blocks = [{"step": 0, "metrics": first}, {"step": 9, "metrics": last}]
    made = {"steps": 9, "is_finished": True, "device": "cpu", "threads": 1, "seconds": 120.0}
    return made | {"evaluations": {"probe": blocks}}


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        comparison="mine", seeds=[0, 1], runs=tmp_path / "runs", jobs=1, settings=["env.path=data"]
    )


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        title="Ours and theirs",
        settings=["steps=9"],
        runs={"ours": ["objective=i_jepa"], "theirs": ["objective=dmt_jepa"]},
        columns={"probe": Column(metric="probe/picture/accuracy"), "rank": Column(metric="probe/rank", scale=1)},
        rows={
            "pixels": Row(run="ours", of={"picture": "raw"}),
            "untrained": Row(run="ours", is_untrained=True),
            "ours": Row(run="ours"),
            "ours less theirs": Row(run="ours", minus="theirs"),
        },
        picture={
            "x": {"title": "x", "values": [1, 2]},
            "y": "y",
            "lines": {"ours": Line(run="ours", metric="probe/at_{}")},
        },
    )


@pytest.fixture
def summaries() -> dict[tuple[str, int], dict[str, Any]]:
    control = {"raw/accuracy": 0.1, "at_1": 0.5, "at_2": 0.25}
    return {
        ("ours", 0): summary({"picture/accuracy": 0.2}, {"picture/accuracy": 0.5, "rank": 3.0, **control}),
        ("ours", 1): summary({"picture/accuracy": 0.4}, {"picture/accuracy": 0.7, "rank": 5.0, **control}),
        ("theirs", 0): summary({}, {"picture/accuracy": 0.45}),
    }


def test_rows_are_means_of_seeds_and_differences_those_of_equal_seeds(comparison, summaries, options, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare", "mine"])
    lines = compare.render(comparison, summaries, options).splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    assert rows["pixels"] == "| pixels | 10.0 (0.0) | - | 2 |"
    assert rows["untrained"] == "| untrained | 30.0 (10.0) | - | 2 |"
    assert rows["ours"] == "| ours | 60.0 (10.0) | 4.0 (1.0) | 2 |"
    assert rows["ours less theirs"] == "| ours less theirs | 5.0 | - | 1 |", "seed 1 of theirs is not there"
    assert any("3 of 4 runs are finished, of 9 updates and 2 minutes" in line for line in lines)
    assert any("steps=9 env.path=data" in line for line in lines)
    assert compare.picture(comparison, summaries, options.seeds).startswith(b"\x89PNG")


def test_a_row_may_show_another_evaluator_and_a_line_another_run_for_each_x(comparison, summaries, monkeypatch):
    summaries["ours", 0]["evaluations"]["floor"] = summaries["theirs", 0]["evaluations"]["probe"]
    row, column = Row(run="ours", of={"probe": "floor"}), comparison.columns["probe"]
    assert compare.values(row, column, summaries, [0, 1]) == [0.45]
    drawn, runs = {"x": {"title": "x", "values": [1, 2]}, "y": "y"}, {("at_1", 0): 0.25, ("at_2", 0): 0.5}
    cells = {cell: summary({}, {"rank": value}) for cell, value in runs.items()}
    shown, errorbar = [], Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda *args, **options: shown.append(args[1:]) or errorbar(*args, **options))
    lines = {"lines": {"ours": Line(run="at_{}", metric="probe/rank")}}
    assert compare.picture(replace(comparison, picture=drawn | lines), cells, [0]).startswith(b"\x89PNG")
    assert shown == [((1, 2), (0.25, 0.5), (0.0, 0.0))]


def test_what_was_first_seen_later_is_not_called_untrained(summaries):
    late = summaries["ours", 0]
    late["evaluations"]["probe"] = late["evaluations"]["probe"][1:]
    with pytest.raises(ValueError, match="probe was first run at step 9, not before training"):
        compare.number(late, "probe/rank", is_untrained=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_run_composes_with_the_evaluations_that_are_shown(name, options, monkeypatch):
    comparison, asked = compare.load(name), {}
    monkeypatch.setattr(compare, "summary_of", lambda folder, *settings: asked.setdefault(folder.name, settings))
    options.comparison, options.settings = name, [comparison.needs] if comparison.needs else []
    shown = {column.metric.partition("/")[0] for column in comparison.columns.values() if "/" in column.metric}
    for run in comparison.runs:
        compare.train(run, 3, options)
        cfg = composed(asked[run])
        assert (cfg.seed, cfg.threads, cfg.resume) == (3, 1, True)
        drawn = comparison.picture or {"lines": {}, "x": {"values": ()}}
        at, lines = drawn["x"]["values"], drawn["lines"].values()
        needed = {line.metric.partition("/")[0] for line in lines if run in [line.run.format(x) for x in at]}
        assert needed <= cfg.eval.keys()
        assert shown & cfg.eval.keys()
        if any(row.is_untrained for row in comparison.rows.values() if row.run == run):
            assert all(cfg.eval[name].every > 0 for name in shown & cfg.eval.keys()), "looks before training, too"
    assert shown <= composed(asked[next(iter(comparison.runs))]).eval.keys()


def composed(settings: Sequence[str]) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", list(settings))


def test_rows_of_runs_that_are_not_there_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "FOLDER", tmp_path)
    content = {"title": "", "settings": [], "runs": {"a": []}, "columns": {}, "rows": {"x": {"run": "a", "minus": "b"}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"mine.yaml shows b, which is none of its runs: a"):
        compare.load("mine")


def test_a_comparison_without_the_data_that_it_needs_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare", "--of", "camvid"])
    with pytest.raises(SystemExit):
        compare.main()
    assert "camvid needs env.path=camvid_240x180.tar after --" in capsys.readouterr().err


def test_settings_come_after_two_dashes(tmp_path, monkeypatch, capsys):
    own = [
        "--of",
        "camvid",
        "--seeds",
        "0",
        "1",
        "--runs",
        str(tmp_path),
        "--only-render",
        "--",
        "env.path=a",
        "steps=3",
    ]
    monkeypatch.setattr("sys.argv", ["compare", *own])
    with pytest.raises(SystemExit, match=f"error: no run in {tmp_path} is finished"):
        compare.main()
