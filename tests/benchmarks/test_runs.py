"""Cells of a table: in order, after what they start from, no more at once than asked for; and how numbers are told."""

from __future__ import annotations

import argparse
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import runs

NEEDS = {("d",): [("a",), ("c",)], ("b",): [("elsewhere",)]}


class Recorder:
    """A function of a cell that remembers what was running and done when it started; ``options`` says which cells end
    only after another has ended."""

    def __init__(self) -> None:
        self.lock, self.running, self.most = threading.Condition(), 0, 0
        self.done: list[str] = []
        self.before: dict[str, set[str]] = {}

    def __call__(self, name: str, options: dict[str, str]) -> str:
        with self.lock:
            self.running += 1
            self.most, self.before[name] = max(self.most, self.running), set(self.done)
            assert self.lock.wait_for(lambda: options.get(name, name) in (name, *self.done), timeout=60)
            self.running -= 1
            self.done.append(name)
            self.lock.notify_all()
        return name.upper()


@pytest.fixture
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_cells_wait_for_what_they_need_and_no_longer(jobs: int) -> None:
    record, cells = Recorder(), [(name,) for name in "abdce"]
    after = {} if jobs == 1 else {"b": "a", "c": "e"}
    found = runs.run_all(record, cells, after, jobs=jobs, needs=lambda cell: NEEDS.get(cell, []))
    assert list(found.items()) == [((name,), name.upper()) for name in "abdce"], "in the order asked for"
    assert {"a", "c"} <= record.before["d"]
    assert record.most <= jobs
    assert record.done == (list("abcde") if jobs == 1 else list("abecd")), "what can go first does"


@pytest.mark.usefixtures("_threads")
def test_what_stops_a_table_starts_no_further_cell() -> None:
    started = []

    def function(name: str, options: Any) -> None:
        started.append(name)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run_all(function, [("a",), ("b",), ("c",)], None, jobs=1)
    assert started == ["a"]


def test_only_runs_that_reached_their_last_step_are_finished(tmp_path: Path) -> None:
    assert runs.finished(tmp_path) is None
    for is_finished in (False, True):
        (tmp_path / "summary.json").write_text(json.dumps({"steps": 3, "is_finished": is_finished}))
        assert (runs.finished(tmp_path) is not None) == is_finished
    assert runs.summary_of(tmp_path, "no such setting") == {"steps": 3, "is_finished": True}


def test_a_failed_run_is_told_and_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.summary_of(tmp_path / "run", "env=toy", "steps=1") is None
    assert f"{tmp_path / 'run'} failed: ValueError: nothing to train" in capsys.readouterr().err


def test_numbers() -> None:
    assert runs.spread([0.5]) == "50"
    assert runs.spread([1.0, 3.0, 5.0], scale=1.0, digits=2) == "3.00 (2.00)"
    assert runs.mean_and_error([1.0, 3.0, 5.0], digits=2) == "3.00 (1.15)"
    assert runs.mean_and_error([], digits=2) == "-"
    assert runs.standard_error([1.0]) == 0.0


def test_a_command_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--finetune", "relabel={a: 1}", "--", "steps=3"])
    assert runs.command("table") == "Command: `python -m benchmarks.table --finetune 'relabel={a: 1}' -- steps=3`"


def test_arguments_of_every_table() -> None:
    parser = runs.table_parser("text", runs="here")
    options = parser.parse_args(["--seeds", "3", "4", "--", "steps=1", "seed=2"])
    assert vars(options) == vars(
        argparse.Namespace(seeds=[3, 4], jobs=1, runs=Path("runs/here"), out=None, settings=["steps=1", "seed=2"])
    )


def test_files_go_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.save_table("a", "| 1 |", out=tmp_path)
    runs.save_figure("a", b"png", out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a-{runs.today()}.md", "a.png"]
    assert capsys.readouterr().out == "| 1 |\n"
