"""Whole runs as a user starts them: a first run, an interrupted one, several processes, bad input."""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.commands import Command, launch
from worldmodels.files import sole_writer

SMALL = ["env=toy", "threads=1", "batch_size=32", "eval.zero_shot.episodes=2", "logger=csv"]


def weights(run_dir: Path, step: int) -> dict:
    return load_file(run_dir / "checkpoints" / f"step_{step:09d}" / "model.safetensors")


def assert_same_weights(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].equal(other[name]), name


@pytest.fixture(scope="module")
def maze_data(tmp_path_factory) -> Path:
    """A really collected, small pointmaze."""
    folder = tmp_path_factory.mktemp("ogbench")
    done = launch(
        "dataset=pointmaze-medium-navigate-v0", "transitions=6000", "workers=1", f"data_dir={folder}",
        module="envs.collect",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """An uninterrupted run of 40 steps on the toy."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    done = launch("agent=td_jepa", *SMALL, "steps=40", f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


def test_main_job_on_ogbench_leaves_summary_and_report(maze_data, tmp_path):
    run_dir = tmp_path / "a"
    done = launch(
        "agent=td_jepa", f"env.data_dir={maze_data}", "steps=20", "threads=1", "batch_size=32",
        "eval.zero_shot.episodes=1", "eval.zero_shot.max_steps=30", f"run_dir={run_dir}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 20
    assert summary["updates_per_second"] > 0
    assert summary["peak_memory_bytes"]["process"] > 0
    assert "python -m worldmodels.run agent=td_jepa" in summary["command"]
    assert {"seeds", "versions", "device", "evaluations"} <= summary.keys()
    assert "task5/success" in summary["evaluations"]["zero_shot"][-1]["metrics"]
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert (run_dir / "metrics.csv").is_file()


def test_kill_9_and_resume_end_in_the_same_weights(finished, tmp_path):
    run_dir = tmp_path / "killed"
    command = ["agent=td_jepa", *SMALL, "steps=40", "checkpoint_every=3", f"run_dir={run_dir}"]
    process = Command("worldmodels.run", *command)
    while process.poll() is None and not list(run_dir.glob("checkpoints/step_*")):
        time.sleep(0.01)
    time.sleep(random.SystemRandom().uniform(0, 0.5))  # a random step, a random moment within it
    process.kill()
    process.communicate()
    with sole_writer(run_dir):
        refused = launch(*command, "resume=true")
    assert refused.returncode != 0
    assert f"another process is writing to {run_dir}" in refused.stderr
    done = launch(*command, "resume=true")
    assert done.returncode == 0, done.stderr
    assert_same_weights(weights(run_dir, 40), weights(finished, 40))
    assert evaluated(run_dir) == evaluated(finished)  # also those from before it was killed


def evaluated(run_dir: Path) -> dict[str, list[int]]:
    """At which steps every evaluator was heard, as the summary says."""
    found = json.loads((run_dir / "summary.json").read_text())["evaluations"]
    return {name: [block["step"] for block in blocks] for name, blocks in found.items()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(number, finished, tmp_path):
    run_dir = tmp_path / "stopped"
    command = ["agent=td_jepa", *SMALL, "steps=100000", "eval_every=0", "checkpoint_every=1", f"run_dir={run_dir}"]
    process = Command("worldmodels.run", *command)
    while process.poll() is None and not list(run_dir.glob("checkpoints/step_*")):
        time.sleep(0.01)
    process.send_signal(number)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 128 + number, error
    assert "resume=true" in out
    assert json.loads((run_dir / "summary.json").read_text())["is_finished"] is False


def test_two_processes_train_the_same_weights(maze_data, tmp_path):
    run_dir = tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["agent=td_jepa", f"env.data_dir={maze_data}", "steps=10", "batch_size=32", "device=cpu", "threads=1"]
    arguments += ["eval.zero_shot.episodes=1", "eval.zero_shot.max_steps=10", f"run_dir={run_dir}"]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [group | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]  # what torchrun says to each process
    commands = [Command("worldmodels.run", *arguments, environment=environment) for environment in ranks]
    for command in commands:
        _, error = command.communicate()
        assert command.returncode == 0, error
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["steps"] == 10


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    run_dir = tmp_path / "nan"
    clocks = ["steps=60", "checkpoint_every=1", "log_every=1"]
    done = launch("agent=td_jepa", *SMALL, *clocks, "optim.lr=1e30", f"run_dir={run_dir}")
    assert done.returncode != 0
    assert "loss/" in done.stderr.splitlines()[-1]
    assert "checkpoint" in done.stderr.splitlines()[-1]
    for path in run_dir.glob("checkpoints/step_*/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["agent=td_jepa", "env=toy", "batchsize=3"], "batch_size"),
        (["agent=td_jepa", "env=toy", "eval=null"], "eval=null"),
        (["objective=seq_jepa", "views=saccades", "views.size=64"], "no config key views.size; did you mean views?"),
        (["agent=td_jpa", "env=toy"], "td_jepa"),
        (["env=toy"], "agent="),
        (["agent=td_jepa", "env.dataset=pointmaze-medum-navigate-v0"], "pointmaze-medium-navigate-v0"),
        (["agent=td_jepa", "env.dataset=antmaze-medium-navigate-v0", "env.download=false"], "medium-navigate-v0.npz"),
        (["agent=td_jepa", "env=toy", "encoder=pixels"], "encoder=state"),
        (["agent=td_jepa", "env=toy", "device=cuda"], "device=cpu"),
        (["agent=td_jepa", "env=toy", "weights.extra=1"], "extra"),
        (["agent=td_jepa", "env=toy", "+weights.extra=1"], "extra"),
        (["agent=td_jepa", "env=toy", "precision=fp8"], "precision"),
        (["agent=td_jepa", "env=toy", "batch_size=0"], "batch_size=0: at least one sample"),
        (["objective=i_jepa", "env.dataset=digits", "encoder=resnet18"], "scale=paper"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(arguments, expected, tmp_path):
    run_dir = tmp_path / "bad"
    done = launch(*arguments, f"run_dir={run_dir}", "steps=1" if "agent=" in arguments[0] else "seed=0")
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert expected in last
    assert "Traceback" not in done.stderr
    assert not list(run_dir.glob("checkpoints/*"))


def test_a_folder_with_another_run_is_left_alone(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    again = launch("agent=td_jepa", *SMALL, "steps=40", f"run_dir={finished}")
    other = launch("agent=fb", *SMALL, "steps=40", f"run_dir={finished}", "resume=true")
    assert again.returncode != 0
    assert "resume=true" in again.stderr
    assert other.returncode != 0
    assert "another experiment" in other.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
