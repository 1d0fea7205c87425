import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from worldmodels.evaluate import Options, evaluate, find_checkpoint, main, parse, parse_goal
from worldmodels.session import run

SMALL = ["agent.state_net.width=32", "agent.task_net.width=32", "agent.predictor.width=32", "agent.actor.width=32"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run: three real updates of TD-JEPA on the toy."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    overrides = ["agent=td_jepa", "env=toy", "steps=3", "batch_size=16", "logger=csv", f"run_dir={folder}", *SMALL]
    overrides += ["~eval.zero_shot", "threads=1", "device=cpu"]
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    assert run(cfg, command="test") == 0
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "evaluations" not in path.parts}


def test_task_goal_and_reward(run_dir, capsys):
    before = contents(run_dir)
    for question in ("task=task3", "goal=[0.5, -0.5]", "reward=exp(-norm(xy - [0.5, 0.5]))", "seed=1"):
        folder = evaluate(parse([f"run_dir={run_dir}", "device=cpu", "episodes=3", "num_labelled=200", question]))
        printed = capsys.readouterr().out
        assert str(folder) in printed
        assert "mean" in printed
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["checkpoint"] == "step_000000003"
        assert summary["metrics"]["return"] is not None
        assert ("success" in summary["metrics"]) == (not question.startswith("reward"))
        assert (folder / "episodes.json").exists()
        assert list(folder.glob("maze_*.png"))
    names = sorted(path.name for path in (run_dir / "evaluations").iterdir())
    assert names[:3] == ["all_tasks", "goal_0.5_-0.5", "reward_exp_-norm_xy_-_0.5_0.5_b02308ef"]
    assert contents(run_dir) == before  # nothing of the training is touched


def test_the_answer_is_repeatable(run_dir):
    options = parse([f"run_dir={run_dir}", "device=cpu", "episodes=2", "num_labelled=100", "task=task1"])
    first = (evaluate(options) / "episodes.json").read_bytes()
    torch.manual_seed(123)
    assert (evaluate(options) / "episodes.json").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run_dir=RUN", "demonstration=/nowhere/a.npz"], "demonstration=/nowhere/a.npz does not exist"),
        (["run_dir=RUN", "demonstration=a.npz", "sharpness=10"], "sharpness weighs rewards; demonstration has none"),
        (["run_dir=RUN", "sharpness=hot"], "sharpness=hot: a whole number of at least 0"),
        (["task=task3"], "run_dir is missing"),
        (["run_dir=/nowhere/x"], "run_dir=/nowhere/x does not exist"),
        (["run_dir=RUN", "taks=task3"], "there is no key taks; did you mean task?"),
        (["run_dir=RUN", "task3"], "'task3' is not key=value"),
        (["run_dir=RUN", "task=task1", "task=task2"], "task is given twice"),
        (
            ["run_dir=RUN", "task=task1", "goal=[1]"],
            "task and goal are given; ask for one of task, reward, goal and demonstration",
        ),
        (["run_dir=RUN", "task=tsk3"], "did you mean task3?"),
        (["run_dir=RUN", "reward=exp(-norm(xy)"], "expected ')'"),
        (["run_dir=RUN", "reward=qpso[0]"], "unknown name 'qpso', did you mean 'qpos'?"),
        (["run_dir=RUN", "goal=[1.0]"], "needs 2 numbers"),
        (["run_dir=RUN", "goal=here"], 'a list of numbers is needed, such as goal="[12.0, 16.0]"'),
        (["run_dir=RUN", "episodes=0"], "episodes=0: a whole number of at least 1 is needed"),
        (["run_dir=RUN", "checkpoint=7"], "checkpoint=7: there is newest, best, and step 3"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run_dir, capsys, arguments, message):
    before = contents(run_dir)
    with pytest.raises(SystemExit) as leaving:
        main([argument.replace("RUN", str(run_dir)) for argument in arguments])
    error = capsys.readouterr().err
    assert leaving.value.code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert contents(run_dir) == before


def test_a_demonstration_is_asked_of_methods_that_can_infer_from_it(run_dir, tmp_path, capsys):
    shown = tmp_path / "shown.npz"
    np.savez(shown, state=np.full((4, 2), 0.5))
    with pytest.raises(SystemExit) as leaving:
        main([f"run_dir={run_dir}", "device=cpu", "num_labelled=50", f"demonstration={shown}"])
    assert leaving.value.code == 2
    assert "TDJEPA infers no task from a demonstration" in capsys.readouterr().err
    folder = tmp_path / "fb"
    overrides = ["agent=fb", "env=toy", "steps=2", "batch_size=16", "logger=csv", f"run_dir={folder}", *SMALL]
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", overrides=[*overrides, "~eval.zero_shot", "threads=1", "device=cpu"])
    assert run(cfg, command="test") == 0
    asked = [f"run_dir={folder}", "device=cpu", "episodes=2", "num_labelled=50", f"demonstration={shown}"]
    summary = json.loads((evaluate(parse(asked)) / "summary.json").read_text())
    assert summary["options"]["demonstration"] == str(shown)
    assert summary["metrics"]["return"] < 0
    assert "success" not in summary["metrics"]


def test_a_run_without_checkpoint(run_dir, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    with pytest.raises(SystemExit):
        main([f"run_dir={tmp_path}"])
    assert "has no checkpoint yet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([f"run_dir={tmp_path.parent}"])
    assert "holds no run" in capsys.readouterr().err


def test_checkpoints_by_name(run_dir):
    assert find_checkpoint(run_dir, "3") == find_checkpoint(run_dir, "newest")
    with pytest.raises(ValueError, match="marked no best checkpoint"):
        find_checkpoint(run_dir, "best")


def test_goals_and_names():
    assert parse_goal("[12.0, 16]") == [12.0, 16.0]
    for text in ("[]", "[1, true]", "[NaN]", "12", "[[1]]"):
        with pytest.raises(ValueError, match="a list of numbers is needed"):
            parse_goal(text)
    names = {Options(run_dir="a", reward=text).name for text in ("qpos[0] * 2", "qpos[0] / 2", "qpos[0] + 2")}
    assert len(names) == 3
    assert all(name.replace("_", "").replace(".", "").replace("-", "").isalnum() for name in names)


def test_help_needs_no_torch():
    code = "import sys; sys.argv[1:] = ['--help']; import worldmodels.evaluate as e; "
    code += (
        "\ntry: e.main(['--help'])\nexcept SystemExit as end: assert end.code == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "python -m worldmodels.evaluate run_dir=runs/a task=task3" in done.stdout
