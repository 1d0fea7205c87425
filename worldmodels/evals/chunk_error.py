"""How far a policy's coming actions are from the demonstrator's, by how many steps ahead, on held-out demonstrations.

Open loop: the policy sees one row and says its chunk; nothing is played. It is what training minimises, on data that
were not trained on, so it shows overfitting and how far ahead a look is worth something. It does not show success: a
policy that is slightly off sees states that no demonstration has, and a demonstrator may have had several good ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import USE_DEMONSTRATIONS, Objective, Policy
from worldmodels.evals.line_picture import lines_picture
from worldmodels.evals.results import judging, pack
from worldmodels.evals.rollout import DecidesAhead
from worldmodels.keys import ACTION, HAS_ACTION, NOISE, OBSERVATION
from worldmodels.losses import masked_mean


@runtime_checkable
class LooksAhead(Protocol):
    """A policy that says a chunk of actions from one look."""

    def actions_ahead(self, td: TensorDict) -> Tensor:
        """Actions [N, n, A] of now and the n - 1 coming steps, in the data's units; ``td`` [N] is that of ``act``."""
        ...


class ChunkError:
    """Mean absolute error of actions, by steps ahead, where the demonstration still runs.

    Metrics, in units of the actions (half of their range): "<row>/error_<i>" of the action i steps ahead, 0 the next
    one, mean over rows and entries; "<row>/error", mean over all steps of all chunks. Rows: "policy", and controls from
    the data alone: "hold" repeats the last action (the mean one at an episode's start), "mean" is the mean of the
    training data, "zero" does nothing.

    A policy that decides a step at a time is shown the held-out episodes step by step, remembering what it would have
    done; it has "error_0" only.

    Args:
        source: of demonstrations: with ``split("test")``, ``store`` and ``statistics()``.
        every: steps between two looks; 0 looks at the end only.
        num: most rows that are looked from, evenly spaced; null takes all.
        at: steps ahead that are reported; those beyond the chunk are left out. The picture shows all.
        batch: rows at a time.
        seed: of the noise that policies may use.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source is another.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        num: int | None = 2000,
        at: Sequence[int] = (0, 4, 9, 14, 19, 24, 29),
        batch: int = 512,
        seed: int = 0,
        name: str = "chunk_error",
    ) -> None:
        self.source, self.test = source, held_out_demonstrations(source, name)
        self.every, self.at, self.batch, self.seed, self.name = every, tuple(at), batch, seed, name
        self.rows, self.mean = spaced(self.test.store.starts(1), num), source.statistics()["mean", ACTION]

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Measure.

        Raises:
            ValueError: if the objective cannot act, or is a policy that keeps several steps to itself.
        """
        generator = Generator().manual_seed(self.seed)
        with judging(objective):
            if isinstance(objective, LooksAhead):
                seen = (self.seen(rows, objective, generator) for rows in self.rows.split(self.batch))
                found = torch.cat([objective.actions_ahead(td) for td in seen])
            else:
                found = self.followed(objective, generator)
        truth, counts, before = self.demonstrated(found.shape[1])
        guesses = {
            "policy": found.to(truth).clamp(-1, 1),  # as they are played
            "hold": torch.where(before.isfinite(), before, self.mean)[:, None],
            "mean": self.mean,
            "zero": torch.zeros_like(self.mean),
        }
        errors = {name: (guess - truth).abs().mean(-1) for name, guess in guesses.items()}  # [N, n]
        curves = {name: error_by_step(error, counts) for name, error in errors.items()}
        metrics = {f"{row}/error_{i}": curve[i] for row, curve in curves.items() for i in self.at if i < len(curve)}
        if truth.shape[1] == 1:
            return pack(metrics)
        metrics |= {f"{row}/error": float(masked_mean(error.double(), counts)) for row, error in errors.items()}
        title, steps = f"error of actions, step {step}", range(truth.shape[1])
        picture = lines_picture(steps, curves, title=title, x="steps ahead", y="mean |error|")
        return pack(metrics, files={"chunk_error.png": picture})

    def seen(self, rows: Tensor, policy: Any, generator: Generator) -> TensorDict:
        """What a policy is given in rows [N] of the store."""
        observation, width = self.test.store.rows(rows)[OBSERVATION], self.source.spec[ACTION].shape[-1]
        noise = torch.randn(len(rows), getattr(policy, "num_noise", 1) * width, generator=generator)
        td = TensorDict({OBSERVATION: observation, NOISE: {ACTION: noise}}, [len(rows)])
        return td.to(observation.device)

    def followed(self, objective: Objective, generator: Generator) -> Tensor:
        """Next actions [N, 1, A] of a policy that sees all episodes side by side, step by step."""
        if not isinstance(objective, Policy) or getattr(objective, "num_decided", 1) != 1:
            raise ValueError(
                f"{self.name} needs a policy: act(td, explore) for one step, or actions_ahead(td) for several; "
                f"{type(objective).__name__} has neither"
            )
        store, found = self.test.store, []
        first, last = store.ends - store.lengths + 1, store.ends  # [M]
        if isinstance(objective, DecidesAhead):
            objective.begin(len(last))
        for step in range(int(store.lengths.max())):
            rows = torch.minimum(first + step, last).to(self.rows)
            found.append(objective.act(self.seen(rows, objective, generator), explore=False)[ACTION])
        actions = torch.stack(found, 1)  # [M, T, A]
        runs = torch.arange(actions.shape[1]) < store.lengths[:, None]
        return actions[runs.to(actions.device)][self.rows.long()][:, None]  # one a row, in the store's order

    def demonstrated(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [N, num, A], which count, bool [N, num], and those before [N, A]; NaN where an episode begins."""
        store, rows = self.test.store, self.rows
        last, index = store.last_rows(rows), rows[:, None] + torch.arange(num, device=rows.device, dtype=rows.dtype)
        counts, index = index <= last[:, None], torch.minimum(index, last[:, None])
        keys = [key for key in (ACTION, HAS_ACTION) if key in self.test.spec.keys()]
        found, before = store.rows(index, keys), (rows - 1).clamp(min=0)
        is_within = ((store.last_rows(before) == last) & (rows > 0))[:, None].to(store.device)
        counts = counts.to(store.device) & found.get(HAS_ACTION, torch.ones((), dtype=torch.bool, device=store.device))
        return found[ACTION], counts, torch.where(is_within, store.rows(before, [ACTION])[ACTION], torch.nan)


def error_by_step(error: Tensor, counts: Tensor) -> list[float]:
    """Mean over rows of errors [N, n] that count, bool [N, n]; NaN where none does."""
    return (torch.where(counts, error.double(), 0).sum(0) / counts.sum(0)).tolist()


def held_out_demonstrations(source: Any, name: str) -> Any:
    """The test part of a source of demonstrations; a ValueError in the words of evaluator ``name`` if it is another."""
    if lacks := [what for what in ("split", "store", "statistics") if not hasattr(source, what)]:
        raise ValueError(
            f"{name} needs demonstrations, some of them held out; {type(source).__name__} has no "
            f"{lacks[0]}. {USE_DEMONSTRATIONS}"
        )
    return source.split("test")


def spaced(rows: Tensor, num: int | None) -> Tensor:
    """``num`` of ``rows`` [N], evenly spaced from the first on; all of them if there are no more."""
    if num is None or len(rows) <= num:
        return rows
    return rows[torch.arange(num, device=rows.device) * len(rows) // num]
