"""The loop on the toy source: clocks, checkpoints, evaluators that leave training alone, signals."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from envs.toy import Toy
from perception.state import StateEncoder
from worldmodels import checkpoint
from worldmodels.evals.collapse import CollapseMonitor
from worldmodels.learner import Learner
from worldmodels.nn.mlp import LatentMLP
from worldmodels.objectives.latent_prediction import LatentPrediction
from worldmodels.targets import EMA
from worldmodels.trainer import Trainer, batch_seed

WEIGHTS = {"prediction": 1.0, "orthonormality_latent": 0.1}


class Judge:
    """Gives the scores it was told to, and does to randomness what an evaluator must not count on being harmless."""

    def __init__(self, scores: dict[int, float], *, every: int, name: str = "judge") -> None:
        self.scores, self.every, self.name, self.seen = scores, every, name, []

    def __call__(self, objective, step) -> TensorDict:
        self.seen.append(step)
        random.random(), np.random.rand(3), torch.rand(5)
        scores = {"score": torch.tensor(self.scores.get(step, 0.0), dtype=torch.float64)}
        return TensorDict(scores).set("media", TensorDict({"picture": torch.zeros(3, dtype=torch.uint8)}))


class Run:
    """A trainer of one-step latent prediction with a record of what it told."""

    def __init__(
        self, folder: Path, *, evaluators=(), transforms=(), steps: int = 12, source: Toy | None = None, **options
    ) -> None:
        torch.manual_seed(0)
        source = source or Toy(trajectories=5, steps=20)
        net = partial(LatentMLP, dim=4, width=8, depth=1)
        objective = LatentPrediction(
            source.spec, encoder=StateEncoder, net=net, target=partial(EMA, tau=0.1), width=8, depth=1
        )
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.evaluations: list[tuple[str, int]] = []
        choices = {"log_every": 0, "checkpoint_every": 0, "batch_size": 8, "seed": 0, **options}
        self.trainer = Trainer(
            source=source,
            objective=objective,
            learner=Learner(objective, optimizer=partial(torch.optim.Adam, lr=1e-2), weights=WEIGHTS),
            transforms=transforms,
            evaluators=evaluators,
            run_dir=folder,
            steps=steps,
            device=torch.device("cpu"),
            log=lambda step, values: self.logged.append((step, dict(values))),
            on_evaluation=lambda name, step, result: self.evaluations.append((name, step)),
            state={"config": {"a": 1}},
            **choices,
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: t.clone() for name, t in checkpoint.model_tensors(self.trainer.objective).items()}


class Forewarned(Toy):
    """Is told of batches in advance."""

    ahead = 2

    def __init__(self) -> None:
        super().__init__(trajectories=5, steps=20)
        self.told: list[tuple[int, int, list[int]]] = []
        self.drawn: list[int] = []

    def announce(self, batch_size: int, window: int, seeds: Sequence[int]) -> None:
        self.told.append((batch_size, window, list(seeds)))

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        self.drawn.append(generator.initial_seed())
        return super().sample(batch_size, window, generator)


def test_a_source_that_reads_ahead_is_told_the_seeds_of_the_next_batches(tmp_path):
    source = Forewarned()
    run, plain = Run(tmp_path / "a", source=source, steps=5), Run(tmp_path / "b", steps=5)
    run.trainer.fit()
    plain.trainer.fit()
    seeds = [batch_seed(0, step, 0) for step in range(5)]
    assert source.drawn == seeds
    assert source.told == [(8, 2, seeds[step : step + 3]) for step in range(5)]  # none after the last step
    assert all(torch.equal(weight, plain.weights()[name]) for name, weight in run.weights().items())


def test_clocks_fire_when_due_and_at_the_end(tmp_path):
    often, final = Judge({}, every=5), Judge({}, every=0, name="final")
    run = Run(tmp_path, evaluators=(often, final), log_every=4, checkpoint_every=3)
    assert run.trainer.fit() == 0
    assert often.seen == [0, 5, 10, 12]
    assert final.seen == [12]  # 0 evaluates at the end only
    assert run.evaluations == [("judge", s) for s in (0, 5, 10, 12)] + [("final", 12)]
    losses = [step for step, values in run.logged if "loss/prediction" in values]
    assert losses == [3, 4, 5, 6, 8, 9, 10, 12]  # whenever anything is due, so that a checkpoint is known to be finite
    assert all(values["time/updates_per_second"] > 0 for step, values in run.logged if "loss/prediction" in values)
    assert (5, {"judge/score": 0.0}) in run.logged  # media are not logged
    assert checkpoint.steps(run.trainer.checkpoints) == [12]


def test_newest_and_best_checkpoints_are_kept(tmp_path):
    judge = Judge({2: 0.5, 4: float("nan"), 6: 0.9, 8: 0.9, 10: 0.1, 0: 7.0}, every=2)
    run = Run(tmp_path, evaluators=(judge,), keep_best="judge/score")
    run.trainer.fit()
    # The untrained agent (step 0) has no checkpoint; of two equally good ones the later counts.
    assert run.trainer.best == (0.9, 8)
    assert checkpoint.steps(run.trainer.checkpoints) == [8, 12]
    state = checkpoint.read_state(checkpoint.path_of(run.trainer.checkpoints, 12))
    assert state == {"config": {"a": 1}, "best": [0.9, 8], "judged": ["judge"], "step": 12}


def test_an_evaluation_without_a_score_is_never_the_best(tmp_path):
    judge = Judge({4: float("nan"), 8: -3.0, 12: float("nan")}, every=4)
    run = Run(tmp_path, evaluators=(judge,), keep_best="judge/score")
    run.trainer.fit()
    assert run.trainer.best == (-3.0, 8)


class Broken(Judge):
    """Fails whenever something was trained."""

    def __call__(self, objective, step) -> TensorDict:
        if step:
            raise KeyError("no such task")
        return super().__call__(objective, step)


@pytest.mark.parametrize("every", [5, 0])  # on the way, at the end
def test_a_fault_in_an_evaluator_costs_neither_the_training_nor_an_evaluation(tmp_path, every):
    heard, scores = Judge({}, every=every, name="heard"), {5: 3.0, 12: 2.0}
    run = Run(tmp_path, evaluators=(heard, Broken({}, every=every)), keep_best="judge/score")
    with pytest.raises(KeyError, match="no such task"):
        run.trainer.fit()
    (done,) = checkpoint.steps(run.trainer.checkpoints)
    assert done == (every or 12)
    state = checkpoint.read_state(checkpoint.path_of(run.trainer.checkpoints, done))
    assert state["judged"] == ["heard"]
    mended = Judge(scores, every=every)
    again = Run(tmp_path, evaluators=(heard, mended), keep_best="judge/score", start_step=done, judged=state["judged"])
    assert again.trainer.fit() == 0
    assert mended.seen == {5: [5, 10, 12], 0: [12]}[every]
    assert heard.seen == {5: [0, 5, 10, 12], 0: [12]}[every]
    assert again.trainer.best == (scores[done], done)
    assert checkpoint.read_state(checkpoint.path_of(again.trainer.checkpoints, 12))["judged"] == ["heard", "judge"]


def test_evaluators_change_nothing_in_training(tmp_path):
    alone = Run(tmp_path / "alone")
    monitor = CollapseMonitor(source=Toy(trajectories=5, steps=20), every=2, num=32)
    watched = Run(tmp_path / "watched", evaluators=(Judge({}, every=1), monitor), log_every=1, checkpoint_every=1)
    alone.trainer.fit()
    watched.trainer.fit()
    assert len(watched.evaluations) > 12
    one, other = alone.weights(), watched.weights()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_batch_is_a_function_of_seed_and_step(tmp_path):
    def shuffled(batch: TensorDict, generator: Generator) -> TensorDict:
        return batch.copy().set("drawn", torch.rand(len(batch), generator=generator))

    run = Run(tmp_path, transforms=(shuffled,))
    first, generator = run.trainer._batch(3, Generator()), Generator()
    run.trainer._batch(7, generator)
    torch.rand(3)
    again = run.trainer._batch(3, generator)
    assert (first == again).all()
    assert not torch.equal(first["drawn"], run.trainer._batch(4, generator)["drawn"])
    other = Run(tmp_path, transforms=(shuffled,), seed=1)
    assert not torch.equal(first["drawn"], other.trainer._batch(3, generator)["drawn"])


def test_batch_seeds_differ_over_seed_step_and_rank():
    seeds = {batch_seed(s, t, r) for s in (*range(12), 2**40) for t in (*range(300), 10**9) for r in range(8)}
    assert len(seeds) == 13 * 301 * 8
    assert 0 <= min(seeds) < max(seeds) < 2**63  # what a Generator takes
    assert batch_seed(3, 5, 1) == batch_seed(3, 5, 1)
    Generator().manual_seed(max(seeds))


def test_a_signal_saves_the_step_it_came_in_and_the_old_handler_returns(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    calls = []

    def interrupts(batch: TensorDict, generator: Generator) -> TensorDict:
        calls.append(len(calls))
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    run = Run(tmp_path, transforms=(interrupts,))
    assert run.trainer.fit() == 128 + signal.SIGTERM
    assert len(calls) == 5
    assert checkpoint.steps(run.trainer.checkpoints) == [5]
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = Run(tmp_path / "other", start_step=5)
    path = checkpoint.path_of(run.trainer.checkpoints, 5)
    checkpoint.load_model(path, resumed.trainer.objective)
    resumed.trainer.learner.load_optimizer_tensors(checkpoint.load_optimizer(path))
    assert resumed.trainer.fit() == 0
    whole = Run(tmp_path / "whole")
    whole.trainer.fit()
    one, other = resumed.weights(), whole.weights()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_nan_stops_before_anything_is_saved(tmp_path):
    def poisoned(batch: TensorDict, generator: Generator) -> TensorDict:
        poisoned.calls += 1
        return batch.copy().set("action", batch["action"] * (float("nan") if poisoned.calls == 8 else 1.0))

    poisoned.calls = 0
    run = Run(tmp_path, transforms=(poisoned,), checkpoint_every=4)
    message = "stopped at step 8: loss/prediction is nan; the last good checkpoint is step 4 in"
    with pytest.raises(FloatingPointError, match=message):
        run.trainer.fit()
    assert checkpoint.steps(run.trainer.checkpoints) == [4]
    poisoned.calls = 7
    with pytest.raises(FloatingPointError, match="no checkpoint was written yet"):
        Run(tmp_path / "new", transforms=(poisoned,), checkpoint_every=4).trainer.fit()


def test_state_of_a_checkpoint_is_plain_json(tmp_path):
    run = Run(tmp_path, steps=2)
    run.trainer.fit()
    text = (checkpoint.path_of(run.trainer.checkpoints, 2) / "state.json").read_text()
    assert json.loads(text)["step"] == 2
