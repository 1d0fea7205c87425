"""Sweeps: which runs a command makes and where, what stops them, and what a second command takes up again."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.commands import Command, launch
from worldmodels.sweep import Job, is_sweep, make_jobs, quoted, sweep

CONF = Path(__file__).resolve().parents[2] / "conf"
TOY = ["env=toy", "threads=1", "batch_size=8", "eval_every=0", "logger=csv", "eval.zero_shot.episodes=1"]


def jobs_of(*arguments: str, root: str = "r", named: set[str] | None = None) -> list[Job]:
    return make_jobs(OverridesParser.create().parse_overrides(list(arguments)), root, named=named)


def test_a_flag_makes_a_sweep():
    assert is_sweep(["agent=fb", "-m"])
    assert is_sweep(["--multirun"])
    assert not is_sweep(["agent=fb", "seed=-1"])


def test_every_combination_is_a_run_in_a_folder_named_by_what_was_listed():
    found = jobs_of("steps=3", "seed=0,1", "agent=fb,hilp")
    assert [job.name for job in found] == [
        "agent-fb/seed-0", "agent-hilp/seed-0", "agent-fb/seed-1", "agent-hilp/seed-1",
    ]  # fmt: skip
    assert found[1].overrides == ["steps=3", "seed=0", "agent=hilp", "run_dir=r/agent-hilp/seed-0"]


def test_names_do_not_depend_on_the_order_of_arguments():
    one, other = jobs_of("seed=0,1", "agent=fb,hilp"), jobs_of("agent=fb,hilp", "seed=0,1")
    assert {job.name for job in one} == {job.name for job in other}


def test_a_later_argument_replaces_an_earlier_one_and_lists_may_hold_lists():
    assert jobs_of("seed=0,1", "seed=5", named={"seed"}) == [Job("seed-5", ["seed=5", "run_dir=r/seed-5"])]
    found = jobs_of("eval=[a,b]", "+param_groups.task_net.lr=1e-4,1e-5", "experiment=td_jepa/a,td_jepa/b")
    assert [job.name for job in found] == [
        f"experiment-td_jepa_{name}/param_groups.task_net.lr-{lr}" for lr in ("0.0001", "1e-05") for name in "ab"
    ]
    assert all("eval=[a,b]" in job.overrides for job in found)


def test_a_folder_of_any_name_goes_through_hydras_grammar():
    for name in ("runs/a", "it's a=b, c", "/tmp/x y"):
        assert OverridesParser.create().parse_override(f"run_dir={quoted(name)}").value() == name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["agent=td_jepa,fbx"], "did you mean fb?"),
        (["agent=td_jepa,fb", "batchsize=3"], "batch_size"),
        (["agent=td_jepa,fb", "hydra/launcher=jobli"], "hydra/launcher/jobli"),
        (["agent=td_jepa,fb", "resume=true"], "resume=true needs run_dir"),
        (["agent=td_jepa,fb", "run_dir=a,b"], "run_dir is one folder"),
        (["agent=td_jepa", "optim.lr=interval(0,1)"], "an interval has no list of values"),
        (["agent=td_jepa", "optim.lr=1e-3,0.001"], "two runs of the sweep would be optim.lr-0.001"),
        (["agent=td_jepa,fb", "--cfg", "job"], "--cfg does not go with -m"),
        (["agent=td_jepa,fb", "a=="], "Error parsing override"),
        (["sweep=grid/td_jepa"], "did you mean grid/td_jepa_dmc?"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        sweep([*arguments, "env=toy", "steps=1", "-m"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert expected in error[0]
    assert not list(tmp_path.iterdir())


def test_a_missing_launcher_names_the_extra(monkeypatch, capsys):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code = "import sys; sys.modules['hydra_plugins'] = None\nfrom worldmodels.sweep import sweep\nsweep(sys.argv[1:])"
    command = [sys.executable, "-c", code, "-m", "agent=td_jepa", "hydra/launcher=joblib"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "pip install 'worldmodels[sweep]'" in done.stderr


def test_a_single_run_is_no_place_for_a_sweep(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("steps: 1")
    with pytest.raises(SystemExit):
        sweep(["-m", "agent=td_jepa,fb", f"run_dir={tmp_path}"])
    assert "holds a single run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failed_run_costs_no_other_and_a_second_command_takes_up_what_is_left(tmp_path, capsys):
    """Also: arguments that only exist with an agent go with a list of agents, which Hydra's own multirun refuses."""
    command = ["-m", "agent=choice(fb)", "agent.discount=0.9", *TOY, "log_every=1", f"run_dir={tmp_path}", "steps=3"]
    assert sweep([*command, "optim.lr=1e-3,1e30"]) == 2
    said = capsys.readouterr()
    assert f"{tmp_path}: 1 of 2 runs are finished" in said.out
    assert "  agent-fb/optim.lr-1e+30: refused" in said.out
    assert "agent-fb/optim.lr-1e+30: error: stopped at step" in said.err
    run_dir = tmp_path / "agent-fb" / "optim.lr-0.001"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["choices"]["agent"] == "fb"
    assert "run agent=fb agent.discount=0.9 env=toy" in summary["command"]
    assert shlex.split(summary["command"])[-1] == f"run_dir={run_dir}"

    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert sweep([*command, "optim.lr=1e-3,1e30", "resume=true"]) == 2
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_signal_saves_every_run_and_starts_no_other(launcher, tmp_path):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    arguments = [*TOY, "agent=fb", "seed=0,1,2", "checkpoint_every=10", f"run_dir={tmp_path}"]
    arguments += [f"hydra/launcher={launcher}", *(["hydra.launcher.n_jobs=2"] if launcher == "joblib" else [])]
    process = Command("worldmodels.run", "-m", *arguments, "steps=1000000")
    at_once = 2 if launcher == "joblib" else 1
    while process.poll() is None and len(list(tmp_path.glob("*/checkpoints/step_*/model.safetensors"))) < at_once:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, error
    assert f"{tmp_path}: 0 of 3 runs are finished" in out
    summaries = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")}
    assert len(summaries) == at_once
    assert all(not s["is_finished"] and s["steps"] > 0 for s in summaries.values())


def sweeps() -> list[str]:
    return sorted(path.relative_to(CONF / "sweep").with_suffix("").as_posix() for path in CONF.glob("sweep/**/*.yaml"))


@pytest.mark.parametrize("name", [name for name in sweeps() if name.startswith("grid/")])
def test_every_grid_is_that_of_the_sheet(name, tmp_path, monkeypatch):
    """Six configurations on DMC, four on OGBench; each trains."""
    import worldmodels.sweep as module

    made: list[Job] = []
    monkeypatch.setattr(module, "_launch", lambda launcher, jobs: made.extend(jobs) or [0] * len(jobs))
    agent = name.split("/")[1].rsplit("_", 1)[0]
    assert sweep(["-m", f"sweep={name}", f"agent={agent}", *TOY, "steps=1", f"run_dir={tmp_path}"]) == 0
    assert len(made) == (6 if name.endswith("dmc") else 4)


def test_every_sweep_of_the_comparison_composes(tmp_path, monkeypatch):
    """For the methods and sources there are: others come from other files of the same names."""
    import worldmodels.sweep as module

    made: dict[str, int] = {}
    monkeypatch.setattr(module, "_launch", lambda launcher, jobs: made.update({name: len(jobs)}) or [0] * len(jobs))
    agents = {path.stem for path in CONF.glob("agent/*.yaml")}
    has_dmc = (CONF / "env" / "dmc.yaml").is_file()
    for name in sweeps():
        is_dmc = name.endswith(("point_mass_maze", "walker"))
        if name.startswith("zero_shot/") and (has_dmc or not is_dmc):
            sweep(["-m", f"sweep={name}", "agent=td_jepa,fb,hilp", "seed=0", f"run_dir={tmp_path}"])
        elif name.startswith("oracle/") and "td3" in agents and (has_dmc or not is_dmc):
            sweep(["-m", f"sweep={name}", "seed=0", f"run_dir={tmp_path}"])
    assert made["zero_shot/pointmaze-medium"] == made["zero_shot/cube-single"] == 3
    assert os.listdir(tmp_path) == []


def test_a_sweep_needs_its_flag():
    done = launch("sweep=grid/fb_dmc", "agent=fb", "steps=1")
    assert done.returncode == 2
    assert "add -m" in done.stderr
