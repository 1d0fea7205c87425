"""The results page: what is averaged, what is kept apart, what is refused; on real configurations."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from benchmarks import zero_shot_results
from benchmarks.zero_shot_results import METHODS, WINS, page
from benchmarks.zero_shot_runs import JUDGES, keep, make_rows, published, read_runs

CUBE = ("env.dataset=cube-single-play-v0",)


def metrics(scores: Mapping[str, float | None], metric: str = "success") -> dict[str, Any]:
    mean = sum(v or 0 for v in scores.values()) / len(scores)
    low_high = {f"{metric}_low": mean - 0.1, f"{metric}_high": mean + 0.1}
    return {**{f"{task}/{metric}": value for task, value in scores.items()}, metric: mean, "return": -1.0} | low_high


@functools.cache
def composed(*settings: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A resolved configuration, and the options chosen of its groups."""
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", list(settings), return_hydra_config=True)
    chosen = {str(k): v for k, v in cfg.hydra.runtime.choices.items() if not str(k).startswith("hydra") and v}
    config = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]), resolve=True)
    return config, chosen


def put(
    folder: Path,
    *settings: str,
    scores: Mapping[str, float | None],
    start: Mapping[str, float | None] | None = None,
    floor: Mapping[str, float | None] | None = None,
    is_finished: bool = True,
    summary: Mapping[str, Any] | None = None,
    metric: str = "success",
) -> Path:
    """A run's folder as the run leaves it, with these scores."""
    seed = next((int(one[5:]) for one in settings if one.startswith("seed=")), 0)
    config, choices = composed(*(one for one in settings if not one.startswith("seed=")))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "seed": seed, "run_dir": str(folder)}))
    history = [] if start is None else [{"step": 0, "metrics": metrics(start, metric)}]
    judge = next(name for name in JUDGES if name in config["eval"])
    evaluations: dict[str, Any] = {judge: [*history, {"step": config["steps"], "metrics": metrics(scores, metric)}]}
    if floor:
        evaluations["floor_random"] = [{"step": config["steps"], "metrics": metrics(floor, metric)}]
    content = {
        "command": "python -m worldmodels.run " + " ".join(settings),
        "choices": choices,
        "hardware": "cpu: a small one",
        "device": "cpu",
        "versions": {"torch": "2.13.0"},
        "evaluations": evaluations,
        "is_finished": is_finished,
    }
    (folder / "summary.json").write_text(json.dumps({**content, **(summary or {})}))
    return folder


def two(a: float, b: float | None) -> dict[str, float | None]:
    return {"task1": a, "task2": b}


def lines_of(text: str, start: str) -> list[list[str]]:
    return [
        [c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith(f"| {start}")
    ]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two agents with two seeds each on two data sets."""
    for seed in (0, 1):
        start, floor = two(0.1, 0.0), two(0.0, 0.3)
        mine = ("agent=td_jepa", f"seed={seed}")
        put(tmp_path / f"a{seed}", *mine, scores=two(0.2 + 0.2 * seed, 1.0), start=start, floor=floor)
        put(tmp_path / f"b{seed}", "agent=fb", f"seed={seed}", scores=two(0.2, 0.4))
        put(tmp_path / "x" / f"c{seed}", "agent=td_jepa", f"seed={seed}", *CUBE, scores=two(0.0, 0.1))
        put(tmp_path / "x" / f"d{seed}", "agent=fb", f"seed={seed}", *CUBE, scores=two(0.0, 0.1 * seed))
    return tmp_path


def test_the_page_averages_tasks_then_seeds_and_shows_controls_and_published_numbers(runs):
    text = page([runs])
    maze = text[text.index("## pointmaze") :]
    assert lines_of(maze, "TD-JEPA")[0] == ["TD-JEPA", "65.0 [60.0, 70.0]", "± 5.0", "2", "10,000", "small", ""]
    assert lines_of(maze, "TD-JEPA")[1] == ["TD-JEPA", "30", "100"]
    assert lines_of(maze, "untrained TD-JEPA")[0][:5] == ["untrained TD-JEPA", "5.0 [5.0, 5.0]", "± 0.0", "2", "0"]
    assert lines_of(maze, "random actions")[0][:4] == ["random actions", "15.0 [5.0, 25.0]", "", "-"]
    cube = text[text.index("## cube-single") : text.index("## pointmaze")]
    assert lines_of(cube, "FB")[0][-1] == "49.6 ± 3.8"
    assert "- Order here: TD-JEPA 5.0 > FB 2.5. Published: FB 49.6 > TD-JEPA 34.2. 0 of 1 pairs agree." in cube
    assert "Ran on cpu: a small one; torch 2.13.0" in cube


def test_the_summary_over_data_sets(runs):
    text = page([runs])
    head, *rows = text[text.index("## All data sets") :].split("\n\n")[2].splitlines()
    assert "cube-single-play-v0, state" in head
    cells = [cell.strip() for cell in rows[1].strip("|").split("|")]
    assert cells[0] == "TD-JEPA"
    assert cells[3].startswith("35.0 [")  # mean of 5 and 65
    assert cells[4].startswith("32.5 [")  # of 5, 5, 60, 70 the middle two
    # Cube: 5 against 0 and 5: won, tied = 3/4; maze: always won. Mean 7/8.
    assert lines_of(text, "FB | 0.")[0][:3] == ["FB", "0.88 [0.75, 1.00]", "2"]


def test_the_page_is_a_function_of_the_runs(runs):
    assert page([runs]) == page([runs / "x", runs])


def test_kept_runs_make_the_same_page_and_are_small(runs, tmp_path_factory):
    put(runs / "stopped", "agent=hilp", scores=two(0.5, 0.5), is_finished=False)
    put(runs / "one", "agent=td3", "task=task1", scores={"task1": 1.0})
    put(runs / "two", "agent=td3", "task=task2", scores={"task2": 1.0})
    kept = tmp_path_factory.mktemp("kept")
    made = keep(read_runs([runs]), kept)
    assert len(made) == len(set(made)) == 10
    assert {path.name for path in kept.rglob("*.*")} == {"config.yaml", "summary.json"}
    whole = page([runs])
    assert page([kept]) == whole[: whole.index("## Not finished")].rstrip() + "\n"


def test_runs_of_different_settings_are_not_mixed(runs):
    put(runs / "other", "agent=fb", "seed=2", "agent.discount=0.5", scores=two(1.0, 1.0))
    with pytest.raises(ValueError, match=r"fb on pointmaze.*2 configurations.*agent.discount \(0.96 \| 0.5\)"):
        page([runs])
    text = page([runs], is_apart=True)
    maze = text[text.index("## pointmaze") :]
    assert [row[:2] for row in lines_of(maze, "FB")[:2]] == [
        ["FB (agent.discount=0.5)", "100.0"],
        ["FB (agent.discount=0.96)", "30.0 [30.0, 30.0]"],
    ]


def test_where_and_how_a_run_ran_does_not_set_it_apart(runs):
    how = ["threads=1", "log_every=7", "eval.zero_shot.workers=2", "env.workers=3", "device=cpu", "compile=false"]
    put(runs / "other", "agent=fb", "seed=2", *how, scores=two(0.2, 0.4))
    assert "30.0 [30.0, 30.0]" in page([runs])


def test_other_lengths_are_other_rows_and_are_named(runs):
    put(runs / "long", "agent=fb", "seed=0", "steps=20000", scores=two(1.0, 1.0))
    text = page([runs])
    maze = text[text.index("## pointmaze") :]
    assert [row[0] for row in lines_of(maze, "FB")[:2]] == ["FB, 20,000", "FB, 10,000"]
    assert "Not the same for all methods" in maze
    assert "steps: 10000 | 20000" in maze


def test_the_same_run_twice_is_refused(runs):
    put(runs / "again", "agent=fb", "seed=1", scores=two(1.0, 1.0))
    with pytest.raises(ValueError, match=r"fb, seed 1, task1 is there twice: .*again, .*b1"):
        page([runs])


def test_unfinished_runs_are_listed_and_not_averaged(runs):
    put(runs / "half", "agent=fb", "seed=2", scores=two(1.0, 1.0), is_finished=False)
    saved = runs / "half" / "checkpoints" / "step_000004000"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    killed = put(runs / "killed", "agent=hilp", "seed=2", scores=two(1.0, 1.0))
    (killed / "summary.json").unlink()
    text = page([runs])
    rows = text[text.index("## Not finished") :]
    assert lines_of(rows, str(runs / "half")) == [
        [str(runs / "half"), "fb", "pointmaze-medium-navigate-v0", "2", "4,000 of 10,000"]
    ]
    assert lines_of(rows, str(killed))[0][-1] == "0 of 10,000"
    assert "HILP" not in text


def test_one_run_a_task_makes_one_row(tmp_path):
    """TD3 is trained on each task's reward alone."""
    put(tmp_path / "z", "agent=td_jepa", scores=two(0.0, 0.0))
    for seed, tasks in ((0, ("task1", "task2")), (1, ("task1",))):
        for task in tasks:
            put(
                tmp_path / f"{task}-{seed}",
                "agent=fb",
                f"seed={seed}",
                f"+task={task}",
                scores={task: 0.5 + 0.5 * seed},
            )
    text = page([tmp_path])
    rows = lines_of(text[text.index("## pointmaze") :], "FB")
    assert rows[0][:4] == ["FB", "50.0", "", "1"], "seed 1 lacks a task"
    assert rows[1] == ["FB", "75", "50"]


def test_returns_are_told_in_their_own_unit(tmp_path):
    """As on DMC, where no success is defined."""
    for seed in (0, 1):
        mine = ("agent=td_jepa", f"seed={seed}", "+env.domain=walker")
        put(tmp_path / str(seed), *mine, scores=two(500, 700 + 100 * seed), metric="return")
    text = page([tmp_path])
    assert lines_of(text[text.index("## walker, state") :], "TD-JEPA")[0][1:3] == ["625.0 [600.0, 650.0]", "± 25.0"]
    assert lines_of(text, "TD-JEPA | 625")[0][2].startswith("62.5 [")


def test_tasks_without_a_countable_episode_are_left_out(tmp_path):
    put(tmp_path / "a", "agent=td_jepa", scores=two(0.5, float("nan")))
    text = page([tmp_path])
    assert lines_of(text[text.index("## pointmaze") :], "TD-JEPA")[0][1] == "50.0"


def test_runs_of_earlier_versions_keep_their_place(tmp_path):
    """Summaries without choices; agents and scale are told by the command, and have new names."""
    folder = put(tmp_path / "a", "agent=fb", "scale=paper", scores=two(0.5, 0.5))
    summary = json.loads((folder / "summary.json").read_text())
    del summary["choices"], summary["hardware"]
    summary["command"] = "python -m worldmodels.run scale=paper agent=fb agent=sf_random 'run_dir=agent=x'"
    (folder / "summary.json").write_text(json.dumps(summary))
    (row,) = make_rows(read_runs([tmp_path]))
    assert (row.agent, row.scale) == ("sf", "paper")
    assert row.runs[0].hardware == "cpu"


def test_folders_without_runs_and_commands_without_finished_ones(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="holds no run of a zero-shot agent"):
        page([tmp_path])
    put(tmp_path / "a", "agent=td_jepa", scores=two(0.5, 0.5), is_finished=False)
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path), "--out", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit) as stop:
        zero_shot_results.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: none of 1 runs is finished\n"
    assert not (tmp_path / "page.md").exists()


def test_the_command_writes_the_page_with_remarks(runs, monkeypatch, capsys):
    (runs / "words.md").write_text("**FB loses.**\n")
    out = runs / "new" / "page.md"
    monkeypatch.setattr("sys.argv", ["x", str(runs), "--out", str(out), "--remarks", str(runs / "words.md")])
    zero_shot_results.main()
    text = out.read_text()
    assert text.index("## All data sets") < text.index("**FB loses.**") < text.index("## cube-single")
    assert "-m sweep=zero_shot/walker run_dir=runs/zero_shot/walker" in text


SUITES = {  # averages over data sets that the paper prints, for a check of what was typed in
    ("state", False): dict(laplacian=591.1, icvf=619.3, hilp=620.1, fb=648.2, byol_gamma=645.4, td_jepa=661.2),
    ("pixels", False): dict(laplacian=293.1, icvf=438.7, hilp=391.2, fb=456.2, byol_gamma=582.4, td_jepa=628.8),
    ("state", True): dict(laplacian=14.81, icvf=30.87, hilp=37.98, fb=39.04, byol_gamma=30.42, td_jepa=37.98),
    ("pixels", True): dict(laplacian=30.58, icvf=25.22, hilp=32.56, fb=39.89, byol_gamma=41.58, td_jepa=41.34),
}


@pytest.mark.parametrize(("suite", "averages"), SUITES.items())
def test_published_numbers_have_the_published_averages(suite, averages):
    known = {data: agents for data, agents in published().items() if (data[1], data[0].endswith("-v0")) == suite}
    assert len(known) == (9 if suite[1] else 4)
    for agent, average in averages.items():
        mean = sum(agents[agent][0] for agents in known.values()) / len(known)
        assert mean == pytest.approx(average, abs=0.11 if suite[1] else 0.06), agent
    assert {agent for agents in known.values() for agent in agents} | {"sf"} == set(METHODS)
    assert all(set(wins) <= set(METHODS) for wins in WINS.values())
