"""Whole runs on env=dmc, and what every zero-shot agent is on it by default."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from envs.dmc_collect import random_episode
from envs.dmc_domains import DOMAINS
from envs.dmc_envs import DMCEnv
from envs.exorl_files import write_episode
from tests.commands import launch
from tests.systems import IMITATION

CONF = Path(__file__).resolve().parent.parent / "conf"
SIZED = sorted(path.stem.removesuffix("_dmc") for path in (CONF / "agent_env").glob("*_dmc.yaml"))
EXPERIMENTS = {"pointmass": "point_mass_maze", "walker": "walker", "cheetah": "cheetah", "quadruped": "quadruped"}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.fixture(scope="module")
def exorl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of every domain, as if RND's."""
    root = tmp_path_factory.mktemp("exorl")
    for facts in DOMAINS.values():
        env = DMCEnv(facts, facts.tasks[0])
        for index in range(2):
            write_episode(root / facts.name / "rnd" / "buffer", index, random_episode(env, seed=0, index=index))
    return root


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return launch(*arguments, "threads=1", "eval.zero_shot.is_filmed=false")


def test_every_agent_has_settings_for_dmc() -> None:
    imitate = {name.removeprefix("agent=") for name in IMITATION}  # demonstrations, which DMC has not
    assert sorted({path.stem for path in (CONF / "agent").glob("*.yaml")} - imitate) == SIZED


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("agent", [name for name in SIZED if name not in ("adapt", "td3", "rnd")])
def test_agents_are_dmcs_by_default(agent: str, scale: str) -> None:
    cfg = composed(f"agent={agent}", "env=dmc", f"scale={scale}")
    assert cfg.agent.actor._target_ == "agents.actors.GaussianActor"
    assert cfg.encoder._target_ == "perception.state.StateEncoder"
    assert (cfg.agent.discount, cfg.agent.actor_sees_latent, cfg.env.action_chunk) == (0.98, True, 1)
    assert (cfg.agent.task_net.depth, cfg.agent.predictor.depth) == (2, 1)
    assert cfg.agent.state_net is None or cfg.agent.state_net.depth == 0  # symmetric agents have none
    assert (cfg.keep_best, cfg.eval.zero_shot.reward_shift) == ("zero_shot/return", 0.0)
    assert not {"distillation", "flow_matching"} & set(cfg.weights)
    if scale == "paper":
        assert (cfg.agent.predictor.width, cfg.batch_size, cfg.steps) == (1024, 1024, 3_000_000)
        assert (cfg.agent.target.tau, cfg.optim.lr) == (0.001, 1e-4)


def test_other_data_keep_their_defaults() -> None:
    cfg = composed("agent=td_jepa")
    assert cfg.agent.actor._target_ == "agents.actors.FlowActor"
    assert cfg.encoder._target_ == "perception.fourier.FourierStateEncoder"
    assert (cfg.keep_best, cfg.eval.zero_shot.reward_shift, cfg.env.action_chunk) == ("zero_shot/success", 1.0, 10)
    assert composed("objective=latent_prediction", "env=dmc").agent is None
    assert composed("agent=td_jepa", "env=dmc", "actor=flow").agent.actor._target_ == "agents.actors.FlowActor"


@pytest.mark.parametrize(("name", "domain"), EXPERIMENTS.items())
def test_published_settings(name: str, domain: str) -> None:
    cfg = composed(f"experiment=td_jepa/{name}")
    assert cfg.env.domain == domain
    assert cfg.encoder.is_normalized is False
    assert cfg.agent.state_net.dim == 256
    assert (cfg.agent.discount, cfg.agent.is_goal_whitened) == (0.99 if name == "pointmass" else 0.98, False)
    assert (cfg.weights.orthonormality_state, cfg.batch_size, cfg.env.max_episodes) == (0.1, 1024, 5000)
    assert ("actor" in cfg.param_groups) == (name == "pointmass")
    assert composed(f"experiment=td_jepa/visual-{name}").env.observation == "pixels"


def test_a_run_leaves_returns_and_no_success(exorl: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    short = ["eval.zero_shot.episodes=2", "eval.zero_shot.max_steps=20", "batch_size=32", "steps=4", "eval_every=4"]
    floors = ["+eval=floors", "eval.floor_idle=null", "eval.floor_random.episodes=2", "+eval.floor_random.max_steps=20"]
    done = run("agent=td_jepa", "env=dmc", f"env.data_dir={exorl}", *short, *floors, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    assert "2 episodes, 2,000 transitions" in done.stderr
    assert "return" in done.stdout + done.stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    metrics = summary["evaluations"]["zero_shot"][-1]["metrics"]
    assert {f"{task}/return" for task in DOMAINS["point_mass_maze"].tasks} <= set(metrics)
    assert not any("success" in name for name in metrics)
    assert metrics["length"] == 20
    assert json.loads((run_dir / "source.json").read_text())["domain"] == "point_mass_maze"
    page = (run_dir / "report.html").read_text()
    assert "zero_shot return" in page
    assert "<h2>Return</h2>" in page
    assert "point_mass_maze" in page
    state = next(run_dir.glob("checkpoints/step_000000004/*.json"))
    assert state.exists()
    assert len(list((run_dir / "media/zero_shot/00000004").glob("maze_*.png"))) == 8


@pytest.mark.slow
def test_published_settings_run(exorl: Path, tmp_path: Path) -> None:
    name = domain = "quadruped"
    short = ["eval.zero_shot.episodes=1", "eval.zero_shot.max_steps=5", "eval.zero_shot.num_labelled=500"]
    size = ["steps=1", "batch_size=16", f"env.data_dir={exorl}", f"run_dir={tmp_path / 'run'}"]
    done = run(f"experiment=td_jepa/{name}", *size, *short)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    wanted = {f"{task}/return" for task in DOMAINS[domain].tasks}
    assert wanted <= set(summary["evaluations"]["zero_shot"][-1]["metrics"])


def test_an_explorer_leaves_episodes_and_their_coverage(tmp_path: Path) -> None:
    """From nothing; a run of another agent then takes them."""
    size = ["relabel.num_envs=2", "relabel.first_transitions=1990", "batch_size=16", "relabel.capacity=4000"]
    arguments = ["agent=rnd", "env=dmc", f"env.data_dir={tmp_path}", *size, f"run_dir={tmp_path / 'run'}", "threads=1"]
    done = launch(*arguments, "steps=3")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "point_mass_maze" / "rnd" / "buffer"
    assert sorted(path.name for path in folder.glob("*.npz")) == [f"episode_00000{i}_1000.npz" for i in range(2)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    first, last = (block["metrics"] for block in summary["evaluations"]["coverage"][-2:])
    assert (first["explorer/episodes"], last["explorer/episodes"]) == (0, 2)
    assert 0 < last["explorer/share"] < 1
    assert 0 < last["random/share"] < 1
    assert "data:image/png" in (tmp_path / "run" / "report.html").read_text()
    again = launch(*arguments, "steps=1", f"run_dir={tmp_path / 'other'}")
    assert again.returncode == 2
    assert "holds episodes already" in again.stderr
    assert "Traceback" not in again.stderr


def test_errors_are_one_line(exorl: Path) -> None:
    wrong = ["env.domain=walker", "eval.zero_shot.tasks=[reach_top_left]"]
    done = run("agent=td_jepa", "env=dmc", f"env.data_dir={exorl}", *wrong)
    assert done.returncode == 2
    assert "it belongs to point_mass_maze" in done.stderr
    assert "Traceback" not in done.stderr
