"""What a frozen representation knows of the scene and the body, now and some steps ahead, on held-out demonstrations.

What is seen k steps later in the same demonstration is regressed on a representation of one observation. What comes is
the demonstrator's doing, so this asks how much of its behaviour is in the representation, too. Coming states are close
to what ACT-JEPA is trained to predict; the scene ("environment_state") is not. Controls say what is easy.

Source: the state predictor of ACT-JEPA (arXiv 2501.14622; sheet act_jepa, section 1.7). Differs: a linear probe in
closed form, fitted on training episodes and judged on held-out ones (released: a transformer, judged on the batches
that it is trained on), every method is shown the present observation alone, and controls stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F

from worldmodels.core import Embeds, Objective
from worldmodels.evals.chunk_error import held_out_demonstrations, spaced
from worldmodels.evals.line_picture import lines_picture
from worldmodels.evals.regression import RidgeRegressor
from worldmodels.evals.results import in_chunks, judging, pack
from worldmodels.keys import OBSERVATION, TASK_INDEX

VALIDATION_EVERY = 5  # of so many training episodes, one chooses the penalty


class Part(NamedTuple):
    """Rows of demonstrations."""

    obs: TensorDict  # [N]
    before: TensorDict  # [N], a step earlier; an episode's first row stands in for what was before it
    task: Tensor  # int64 [N]
    is_there: dict[int, Tensor]  # {k: bool [N]}, whether the episode goes on for k steps
    later: dict[int, TensorDict]  # {k: what is seen then in those rows that are there}


class StateAhead:
    """Ridge regression from every representation of ``embed`` to each vector of an observation, k steps later.

    Metrics, "<row>/<entry>/<score>_<k>" with entries such as "environment_state" and "state":

    * "rmse": root of the mean squared error over rows and numbers, in the data's units.
    * "r2": share explained of the variance around the task's own mean, all numbers together, each divided by its
      standard deviation in the training data. What differs between tasks only counts for nothing; where nothing varies
      within a task it is NaN.

    Rows: the representations; "raw", the same ridge on the observation itself and the task; "persistence", all stays as
    it is; "extrapolation", all moves on as in the last step. The untrained network is the row of step 0.

    Args:
        source: of demonstrations: with ``split("test")``, ``store`` and ``statistics()``.
        every: steps between two probes; 0 probes at the end only.
        ahead: steps k. Episodes that end earlier do not count.
        num_train, num_test: most rows of each part, evenly spaced.
        penalties: tried on a fifth of the training episodes; relative to the number of rows.
        seed: of which these are.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source is another, or a number negative.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        ahead: Sequence[int] = (0, 1, 5, 15, 30),
        num_train: int = 4096,
        num_test: int = 2048,
        penalties: Sequence[int | float] = (1e-6, 1e-4, 1e-2, 1.0),
        seed: int = 0,
        name: str = "state_ahead",
    ) -> None:
        if not ahead or min(ahead) < 0:
            raise ValueError(f"{name}: ahead={list(ahead)} are steps from now on, 0 or more")
        self.source, self.every, self.name, self.ahead = source, every, name, tuple(sorted(set(ahead)))
        test, self.units = held_out_demonstrations(source, name), source.statistics()["std"]
        self.fit = RidgeRegressor(penalties=tuple(map(float, penalties)))
        self.entries = [
            str(key)
            for key, entry in source.spec[OBSERVATION].items()
            if entry.dtype.is_floating_point and len(entry.shape) == 1
        ]
        rows = spaced(source.store.starts(1), num_train)
        ends = source.store.ends.to(rows)
        if len(ends) < VALIDATION_EVERY:
            raise ValueError(
                f"{name}: {len(ends)} training demonstrations are too few, {VALIDATION_EVERY} are needed: a larger "
                f"env.demonstrations, or leave it out with ~eval.{name}"
            )
        chosen = torch.randperm(len(ends), generator=Generator().manual_seed(seed))[: len(ends) // VALIDATION_EVERY]
        is_val = torch.isin(torch.searchsorted(ends, rows), chosen.to(rows.device))
        kept = (rows[~is_val], rows[is_val])
        self.parts = [self.read(source.store, part) for part in kept]
        self.parts.append(self.read(test.store, spaced(test.store.starts(1), num_test)))
        self.known = [k for k in self.ahead if all(int(part.is_there[k].sum()) > 1 for part in self.parts)]
        self._controls: dict[str, float] | None = None

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Probe now.

        Raises:
            ValueError: if the objective has no representations.
        """
        if not isinstance(objective, Embeds):
            raise ValueError(f"{self.name} needs an objective with embed(obs); {type(objective).__name__} has none")
        with judging(objective):
            found = [in_chunks(objective.embed, part.obs) for part in self.parts]
            if self._controls is None:
                self._controls = self.controls()
            metrics: dict[str, float] = {}
            for name in map(str, found[0].keys()):
                metrics |= self.probe(name, [latents[name].flatten(1).float() for latents in found])
        metrics |= self._controls
        files = {f"{entry}.png": self.picture(entry, metrics, step) for entry in self.entries}
        short = [k for k in self.ahead if k not in self.known]
        return pack(metrics, files=files, notes=[f"no episodes go on for {k} steps: left out" for k in short])

    def read(self, store: Any, rows: Tensor) -> Part:
        """Rows [N] of a store, with what comes before and after them."""
        keys, last = [(OBSERVATION, entry) for entry in self.entries], store.last_rows(rows)
        earlier = (rows - 1).clamp(min=0)
        earlier = torch.where(store.last_rows(earlier) == last, earlier, rows)
        obs, is_there = store.rows(rows)[OBSERVATION], {k: last - rows >= k for k in self.ahead}
        later = {k: store.rows((rows + k)[there], keys)[OBSERVATION] for k, there in is_there.items()}
        task = obs.get(TASK_INDEX, torch.zeros(len(rows), dtype=torch.int64, device=store.device))
        there = {k: mask.to(store.device) for k, mask in is_there.items()}
        return Part(obs, store.rows(earlier, keys)[OBSERVATION], task, there, later)

    def probe(self, row: str, features: Sequence[Tensor]) -> dict[str, float]:
        """Scores of ``features`` [N, D] of the three parts: fitted, chosen, judged."""
        metrics = {}
        for k in self.known:
            x = [values[part.is_there[k]] for values, part in zip(features, self.parts, strict=True)]
            for entry in self.entries:
                predict = self.fit(x[:2], [part.later[k][entry] for part in self.parts[:2]])
                metrics |= self.judged(row, entry, k, predict(x[2]))
        return metrics

    def controls(self) -> dict[str, float]:
        """Scores of what needs no network."""
        metrics, test = self.probe("raw", [self.raw(part) for part in self.parts]), self.parts[2]
        for k in self.known:
            for entry in self.entries:
                now, before = (obs[entry][test.is_there[k]] for obs in (test.obs, test.before))
                metrics |= self.judged("persistence", entry, k, now)
                metrics |= self.judged("extrapolation", entry, k, now + k * (now - before))
        return metrics

    def raw(self, part: Part) -> Tensor:
        """The observation itself [N, D], its task one-hot."""
        columns = [part.obs[entry] for entry in self.entries]
        if TASK_INDEX in part.obs.keys():
            columns.append(F.one_hot(part.task, self.source.spec[OBSERVATION, TASK_INDEX].n).float())
        return torch.cat(columns, 1)

    def judged(self, row: str, entry: str, k: int, predicted: Tensor) -> dict[str, float]:
        """Metrics of what is predicted [M, X] for the test rows that go on for k steps."""
        test = self.parts[2]
        r2, rmse = scores(predicted, test.later[k][entry], test.task[test.is_there[k]], self.units[entry])
        return {f"{row}/{entry}/r2_{k}": r2, f"{row}/{entry}/rmse_{k}": rmse}

    def picture(self, entry: str, metrics: dict[str, float], step: int) -> bytes:
        """R2 of every row over steps ahead."""
        rows = dict.fromkeys(name.split(f"/{entry}/")[0] for name in metrics if f"/{entry}/" in name)
        curves = {row: [metrics[f"{row}/{entry}/r2_{k}"] for k in self.known] for row in rows}
        title = f"{entry.replace('_', ' ')} from frozen features, step {step}" + ("" if step else " (untrained)")
        return lines_picture(self.known, curves, title=title, x="steps ahead", y="R2 within tasks")


def scores(predicted: Tensor, target: Tensor, task: Tensor, unit: Tensor) -> tuple[float, float]:
    """R2 within tasks, and root mean squared error.

    Args:
        predicted, target: [M, X]; task: int64 [M]; unit: [X], by which numbers are divided for R2.
    """
    predicted, target, unit = predicted.double(), target.double(), unit.double()
    kinds, group = task.unique(return_inverse=True)
    sums = target.new_zeros(len(kinds), target.shape[1]).index_add(0, group, target)
    means = sums / torch.bincount(group, minlength=len(kinds))[:, None]
    error, spread = (target - predicted) / unit, (target - means[group]) / unit
    varies = float(spread.square().mean()) > 1e-8  # float32 data that never change are equal only up to rounding
    r2 = 1 - float(error.square().sum() / spread.square().sum()) if varies else float("nan")
    return r2, float((target - predicted).square().mean().sqrt())
