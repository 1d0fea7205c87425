"""The label-efficiency table: which runs it asks for, and that its numbers are theirs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from benchmarks import label_efficiency
from benchmarks.label_efficiency import Cell, Result
from worldmodels import build

CLASSES = ("Car", "Pedestrian", "Cyclist")


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        seeds=[0, 1],
        fractions=[0.05, 1.0],
        inits=["scratch", "ad_l_jepa"],
        runs=tmp_path / "runs",
        jobs=1,
        settings=["env.frames=40", "env.label_fraction=0.7", "threads=2"],
        pretrain=["steps=7"],
        finetune=["steps=9"],
    )


def _write(cell: Cell, options: argparse.Namespace, ap: tuple[float, ...], **config: Any) -> None:
    """A finished run as the session leaves it."""
    folder = label_efficiency.folder_of(cell, options)
    folder.mkdir(parents=True)
    blocks = []
    for step, shift in ((5, 50.0), (9, 0.0)):  # the last evaluation counts
        values = dict(zip(CLASSES, ap, strict=True))
        metrics = {f"{name}/3d/moderate": value + shift for name, value in values.items()}
        metrics |= {f"{name}/bev/moderate": value + shift + 3 for name, value in values.items()}
        metrics |= {f"{name}/3d/hard": 1.0 for name in CLASSES} | {"score": 0.5}
        metrics |= {f"{name}/3d/moderate_of_truth": 90.0 for name in CLASSES}
        blocks.append({"step": step, "metrics": metrics})
    summary = {"steps": 9, "is_finished": True, "device": "cpu", "threads": 1, "evaluations": {"detection": blocks}}
    (folder / "summary.json").write_text(json.dumps(summary | {"versions": {"python": "3", "torch": "2"}}))
    env = {"val_frames": 10, "label_fraction": cell.fraction or 1, "source": {"label_fraction": cell.fraction or 1}}
    config = {
        "steps": 9,
        "batch_size": 2,
        "env": env,
        "seed": cell.seed,
        "init": cell.init,
        "run_dir": str(folder),
    } | config
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (folder / build.SOURCE_FILE).write_text(json.dumps({"frames": {"train": int(40 * (cell.fraction or 1))}}))


def _results(options: argparse.Namespace) -> dict[Cell, Result]:
    cells = label_efficiency.cells_of(options)
    return {cell: found for cell in cells if (found := label_efficiency.result_of(cell, options))}


def test_a_seed_and_a_fraction_are_whole_before_the_next(options: argparse.Namespace) -> None:
    first = [(0, "ad_l_jepa", None), (0, "scratch", 0.05), (0, "ad_l_jepa", 0.05)]
    first += [(0, "scratch", 1.0), (0, "ad_l_jepa", 1.0)]
    cells = label_efficiency.cells_of(options)
    assert cells == [Cell(*cell) for cell in first] + [Cell(1, *cell[1:]) for cell in first]
    for cell in cells:
        needed = label_efficiency.pretraining_of(*cell)
        assert needed == (
            [Cell(cell.seed, "ad_l_jepa", None)] if (cell.init, bool(cell.fraction)) == ("ad_l_jepa", True) else []
        )


def test_runs_are_those_the_table_is_about(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[Path, Any] = {}

    def remember(folder: Path, *settings: str) -> None:
        with initialize_config_module("conf", version_base="1.3"):
            asked[folder.relative_to(options.runs)] = compose("config", list(settings))

    monkeypatch.setattr(label_efficiency, "summary_of", remember)
    label_efficiency.train(1, "ad_l_jepa", 0.05, options)
    assert not asked, "not before its pre-training run is finished"
    _write(Cell(1, "ad_l_jepa", None), options, (0.0, 0.0, 0.0))
    for cell in label_efficiency.cells_of(argparse.Namespace(**{**vars(options), "seeds": [1]})):
        label_efficiency.train(*cell, options)
    assert list(map(str, asked)) == [
        f"seed1/{name}" for name in ("ad_l_jepa", "scratch-0.05", "ad_l_jepa-0.05", "scratch-1", "ad_l_jepa-1")
    ]
    before, *detection = asked.values()
    assert (before.env.source.label_fraction, before.steps, before.init) == (1, 7, None), "all scans, no labels"
    assert before.relabel is None
    folder = str(options.runs / "seed1/ad_l_jepa")
    assert [(cfg.env.source.label_fraction, cfg.init) for cfg in detection] == [
        (0.05, None),
        (0.05, folder),
        (1, None),
        (1, folder),
    ]
    assert {cfg.steps for cfg in detection} == {9}, "as many updates whatever the fraction"
    for cfg in asked.values():
        assert (cfg.seed, cfg.env.source.frames, cfg.threads, cfg.resume) == (1, 40, 2, True)
        assert cfg.keep_best is None


def test_the_table_holds_the_last_evaluation_of_the_runs_there_are(options: argparse.Namespace) -> None:
    for seed in (0, 1):
        _write(Cell(seed, "ad_l_jepa", None), options, (0.0, 0.0, 0.0), steps=5)
        _write(Cell(seed, "scratch", 0.05), options, (10.0 + 2 * seed, 20.0, 30.0))
    _write(Cell(1, "ad_l_jepa", 0.05), options, (15.0, 20.0, 31.0))
    results = _results(options)
    label_efficiency.check_alike(results)
    lines = label_efficiency.render(results, options).splitlines()
    assert lines[-4:] == [
        "| 5 % | 2 | from scratch | 11.0 (1.0) | 20.0 (0.0) | 30.0 (0.0) | 20.3 (0.3) | - | 23.3 (0.3) | 2 |",
        "| 5 % | 2 | AD-L-JEPA | 15.0 | 20.0 | 31.0 | 22.0 | 1.3 | 25.0 | 1 |",  # against seed 1: 20.67
        "| 100 % | - | from scratch | - | - | - | - | - | - | 0 |",
        "| 100 % | - | AD-L-JEPA | - | - | - | - | - | - | 0 |",
    ]
    text = "\n".join(lines)
    assert "5 of 10 runs are finished" in text
    assert "The truth itself scores Car 90.0, Pedestrian 90.0, Cyclist 90.0, mean 90.0" in text
    assert "9 updates of 2 scans on all 40 training frames, without labels" in text
    results[Cell(0, "ad_l_jepa", None)].config.relabel = {"counts": {"Car": 20}}
    assert "training frames, with labelled objects pasted in" in label_efficiency.render(results, options)
    assert label_efficiency.picture(results, options).startswith(b"\x89PNG")


def test_runs_of_another_table_are_refused(options: argparse.Namespace) -> None:
    _write(Cell(0, "scratch", 0.05), options, (1.0, 2.0, 3.0))
    _write(Cell(0, "scratch", 1.0), options, (1.0, 2.0, 3.0), steps=10)
    with pytest.raises(SystemExit, match=r"seed0/scratch-0.05 and .*seed0/scratch-1 differ in steps"):
        label_efficiency.check_alike(_results(options))
