"""Evaluators of imitation against what is known of straight ways to goals: errors of actions, probes of what comes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor, nn

from agents.act import ACT
from agents.bc import BC
from perception.context import ContextEncoder, FlatState
from tests.reaching import Reaching
from tests.systems import CONF, IMITATION, composed, fixed_source
from worldmodels import build
from worldmodels.core import Evaluator, Objective, Phase
from worldmodels.evals.chunk_error import ChunkError, error_by_step, spaced
from worldmodels.evals.results import unpack
from worldmodels.evals.state_ahead import StateAhead, scores
from worldmodels.predictors.chunk import ChunkDecoder

CHUNK = 6
SMALL = {"depth": 1, "num_heads": 2, "hidden": 8}


@pytest.fixture(scope="module")
def source() -> Reaching:
    return Reaching(trajectories=40)


class Quiet(Objective):
    """Trains nothing."""

    window = CHUNK

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def phases(self) -> tuple[Phase, ...]:
        return ()


class Expert(Quiet):
    """Knows the demonstrator's rule, also beyond a demonstration's end; it is off by ``error`` from step 1 on."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = error

    def actions_ahead(self, td: TensorDict) -> Tensor:
        assert not self.training
        actions, state = [], td["observation", "state"]
        for step in range(CHUNK):
            action = rule(state, td["observation", "environment_state"])
            actions.append(off_by(action, self.error * (step > 0)))
            state = (state + 0.1 * action).clamp(-1, 1)
        return torch.stack(actions, 1)


class Follower(Quiet):
    """Decides a step at a time; counts what it sees of each episode, and is off by a tenth more at every step."""

    num_decided = num_noise = 1

    def begin(self, num: int) -> None:
        self.num, self.seen = num, 0

    def act(self, td: TensorDict, explore: bool = False) -> TensorDict:
        assert len(td) == self.num
        action = rule(td["observation", "state"], td["observation", "environment_state"])
        action = off_by(action, min(0.1 * self.seen, 1.0))
        self.seen += 1
        return TensorDict({"action": action}, td.batch_size)


def rule(state: Tensor, goal: Tensor) -> Tensor:
    return ((goal - state) / 0.1).clamp(-1, 1)


def off_by(action: Tensor, error: float) -> Tensor:
    """Towards zero and beyond, so that it stays within [-1, 1]."""
    return action + torch.where(action > 0, -error, error)


def episodes(source: Any) -> list[TensorDict]:
    """Rows of each demonstration."""
    store = source.store
    return list(store.rows(store.starts(1)).split(store.lengths.tolist()))


def test_errors_of_actions_are_those_of_explicit_loops(source):
    found = unpack(ChunkError(source=source, every=0, num=None, at=(0, 2, CHUNK))(Expert(0.25), 0))
    mean = torch.cat([rows["action"] for rows in episodes(source)]).mean(0)
    guesses: dict[str, list[list[Tensor]]] = {name: [[] for _ in range(CHUNK)] for name in ("hold", "mean", "zero")}
    for rows in episodes(source.split("test")):
        action = rows["action"]
        for t in range(len(action)):
            for i in range(min(CHUNK, len(action) - t)):
                for name, guess in (("hold", action[t - 1] if t else mean), ("mean", mean), ("zero", 0 * mean)):
                    guesses[name][i].append((guess - action[t + i]).abs().mean())
    for name, steps in guesses.items():
        for i in (0, 2):
            assert found.metrics[f"{name}/error_{i}"] == pytest.approx(float(torch.stack(steps[i]).mean()), rel=1e-5)
        whole = torch.stack([error for step in steps for error in step]).mean()
        assert found.metrics[f"{name}/error"] == pytest.approx(float(whole), rel=1e-5)
    assert found.metrics["policy/error_0"] == pytest.approx(0, abs=1e-5)
    assert found.metrics["policy/error_2"] == pytest.approx(0.25, abs=1e-4)
    assert not any(key.endswith(f"_{CHUNK}") for key in found.metrics), "there is no such step in the chunk"
    assert found.files["chunk_error.png"].startswith(b"\x89PNG")


def test_a_policy_that_remembers_is_shown_whole_episodes_step_by_step(source):
    evaluator = ChunkError(source=source, every=0, num=7)
    found = unpack(evaluator(Follower(), 0))
    rows = episodes(source.split("test"))
    off = torch.cat([torch.arange(len(episode)) for episode in rows])  # steps since each row's episode began
    error = (0.1 * off).clamp(max=1)[evaluator.rows.long()]
    assert found.metrics["policy/error_0"] == pytest.approx(float(error.mean()), abs=1e-4)
    assert "policy/error" not in found.metrics
    assert not found.files


def test_rows_without_known_actions_do_not_count():
    error, counts = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[True, False], [True, False]])
    found = error_by_step(error, counts)
    assert found[0] == 2.0
    assert found[1] != found[1]


def test_rows_are_spaced_evenly():
    assert spaced(torch.arange(10), 4).tolist() == [0, 2, 5, 7]
    assert spaced(torch.arange(3), 4).tolist() == [0, 1, 2]


# --- probes ----------------------------------------------------------------------------------------------------------
class Seer(Quiet):
    """Its representations: where the body will be in two steps, and noise."""

    def embed(self, obs: TensorDict) -> TensorDict:
        assert not self.training
        state = obs["state"]
        for _ in range(2):
            state = (state + 0.1 * rule(state, obs["environment_state"])).clamp(-1, 1)
        return TensorDict({"future": state, "noise": torch.randn(len(state), 2)}, obs.batch_size)


def probe(source: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return unpack(StateAhead(source=source, every=0, **{"ahead": (0, 2, 1000), **options})(Seer(), 0))


def test_what_a_representation_knows_is_found_and_nothing_else(source):
    found = probe(source)
    metrics = found.metrics
    assert metrics["future/state/r2_2"] == pytest.approx(1, abs=1e-3)
    assert metrics["future/state/rmse_2"] < 0.01
    assert metrics["future/state/r2_0"] < 0.999
    assert metrics["noise/state/r2_2"] < 0.1
    for row in ("raw", "persistence", "extrapolation"):
        assert metrics[f"{row}/state/r2_0"] == pytest.approx(1, abs=1e-4)
        assert metrics[f"{row}/environment_state/rmse_2"] < 1e-3, "goals stay where they are"
    assert metrics["raw/environment_state/r2_0"] != metrics["raw/environment_state/r2_0"], "a task has one goal"
    assert found.notes == ["no episodes go on for 1000 steps: left out"]
    assert {"state.png", "environment_state.png"} <= found.files.keys()


def test_guesses_without_a_network_are_those_of_explicit_loops(source):
    metrics = probe(source).metrics
    held, moved, truth, task = [], [], [], []
    for rows in episodes(source.split("test")):
        state = rows["observation", "state"]
        for t in range(len(state) - 2):
            before = state[max(t - 1, 0)]
            held.append(state[t])
            moved.append(state[t] + 2 * (state[t] - before))
            truth.append(state[t + 2])
            task.append(rows["observation", "task_index"][t])
    target, unit = torch.stack(truth), source.statistics()["std", "state"]
    for row, guess in (("persistence", held), ("extrapolation", moved)):
        error = torch.stack(guess) - target
        assert metrics[f"{row}/state/rmse_2"] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-4)
        r2, _ = scores(torch.stack(guess), target, torch.stack(task), unit)
        assert metrics[f"{row}/state/r2_2"] == pytest.approx(r2, rel=1e-4)
    assert metrics["extrapolation/state/rmse_2"] < metrics["persistence/state/rmse_2"]


def test_r2_is_of_the_variance_within_tasks_in_units_of_the_data():
    target, task = torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([3, 3, 5, 5])
    assert scores(target, target, task, torch.ones(1)) == (1.0, 0.0)
    means = torch.tensor([[1.0], [1.0], [11.0], [11.0]])
    assert scores(means, target, task, torch.ones(1)) == (0.0, 1.0)
    wide, unit = torch.cat([target, 100 * target], 1), torch.tensor([1.0, 100.0])
    half = torch.cat([target, 100 * means], 1)
    assert scores(half, wide, task, unit)[0] == pytest.approx(0.5)


def test_probes_are_fitted_on_training_episodes_alone(source):
    """The test part is another source's: what is fitted stays, what is judged does not."""

    class Elsewhere:
        spec, store = source.spec, source.store
        statistics = source.statistics

        def split(self, part: str) -> Reaching:
            return Reaching(trajectories=40, seed=7).split(part)

    fitted = []
    for data in (source, Elsewhere()):
        evaluator = StateAhead(source=data, every=0, ahead=(0, 2))
        predict = evaluator.fit(
            [part.obs["state"] for part in evaluator.parts[:2]],
            [part.obs["environment_state"] for part in evaluator.parts[:2]],
        )
        fitted.append((predict(torch.ones(1, 2)), evaluator.controls()))
    assert torch.equal(fitted[0][0], fitted[1][0])
    assert fitted[0][1]["persistence/state/rmse_2"] != fitted[1][1]["persistence/state/rmse_2"]


# --- both ------------------------------------------------------------------------------------------------------------
def agents(source: Any) -> list[Any]:
    torch.manual_seed(0)
    encoder = partial(ContextEncoder, dim=8, **SMALL)
    act = ACT(source.spec, encoder=encoder, decoder=partial(ChunkDecoder, **SMALL), chunk=CHUNK)
    bc = BC(source.spec, encoder=FlatState, history=3, network={"dim": 8, **SMALL})
    for agent in (act, bc):
        agent.study(source)
    return [act, bc]


@pytest.mark.parametrize("name", ["chunk_error", "state_ahead"])
def test_evaluators_are_built_as_configured_repeat_themselves_and_leave_no_trace(name, source, monkeypatch):
    monkeypatch.setattr(f"worldmodels.evals.{name}.lines_picture", lambda *args, **options: b"drawn elsewhere")
    cfg = OmegaConf.create({"eval_every": 50, "eval": OmegaConf.load(CONF / "eval" / f"{name}.yaml")})
    evaluator = instantiate(cfg.eval[name])(source=source)
    assert isinstance(evaluator, Evaluator)
    assert (evaluator.name, evaluator.every) == (name, 50)
    for agent in agents(source):
        before = torch.get_rng_state()
        weights = {key: value.clone() for key, value in agent.state_dict().items()}
        found = [unpack(evaluator(agent, 0)).metrics for _ in range(2)]
        assert found[0]
        assert found[1] == pytest.approx(found[0], nan_ok=True)
        assert torch.equal(before, torch.get_rng_state())
        assert agent.training
        assert all(torch.equal(agent.state_dict()[key], value) for key, value in weights.items())


def test_what_cannot_be_judged_is_refused(source):
    class Rows:
        spec = source.spec

    with pytest.raises(ValueError, match=r"chunk_error needs demonstrations.*Rows has no split.*env=metaworld"):
        ChunkError(source=Rows(), every=0)
    with pytest.raises(ValueError, match=r"state_ahead needs demonstrations"):
        StateAhead(source=Rows(), every=0)
    with pytest.raises(ValueError, match=r"ahead=\[-1\] are steps from now on"):
        StateAhead(source=source, every=0, ahead=[-1])
    with pytest.raises(ValueError, match=r"4 training demonstrations are too few, 5 are needed"):
        StateAhead(source=Reaching(trajectories=4), every=0)
    with pytest.raises(ValueError, match=r"chunk_error needs a policy"):
        ChunkError(source=source, every=0)(Quiet(), 0)
    with pytest.raises(ValueError, match=r"state_ahead needs an objective with embed"):
        StateAhead(source=source, every=0)(Quiet(), 0)


@pytest.mark.parametrize("agent", sorted(IMITATION))
def test_every_imitating_agent_is_judged_as_configured(agent, monkeypatch):
    for name in ("chunk_error", "state_ahead"):
        monkeypatch.setattr(f"worldmodels.evals.{name}.lines_picture", lambda *args, **options: b"drawn elsewhere")
    cfg = composed(agent, "encoder.dim=8" if agent != "agent=bc" else "agent.network.dim=8")
    cfg.eval.policy.update({"tasks": ["task1"], "episodes": 2, "max_steps": 3, "is_filmed": False})
    source = fixed_source(cfg)
    objective = build.build_objective(cfg, source, torch.device("cpu"))
    found = {e.name: unpack(e(objective, 0)).metrics for e in build.build_evaluators(cfg, source)}
    assert found.keys() == {"policy", "collapse", "held_out", "chunk_error", "state_ahead"}
    assert {"context/state/r2_1", "raw/state/rmse_5"} <= found["state_ahead"].keys()
    assert found["chunk_error"]["policy/error_0"] > 0
    told = found["chunk_error"].keys() & {f"policy/error_{ahead}" for ahead in (0, 14, 29)}
    assert len(told) == {"agent=bc": 1, "agent=diffusion_policy": 2}.get(agent, 3)
