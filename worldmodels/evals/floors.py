"""Policies that know nothing, played through the same rollout: every success rate stands beside one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict

from worldmodels.core import Objective
from worldmodels.evals.results import judging
from worldmodels.evals.tasks import choose_tasks, play, result_of
from worldmodels.keys import ACTION, NOISE


class RandomPolicy:
    """Uniform actions in [-1, 1], from the normal noise that every policy is given."""

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        """Return "action" [B, A]."""
        uniform = torch.special.ndtr(td[NOISE, ACTION]) * 2 - 1
        return TensorDict({ACTION: uniform}, td.batch_size)


class IdlePolicy:
    """Action zero."""

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        """Return "action" [B, A]."""
        return TensorDict({ACTION: torch.zeros_like(td[NOISE, ACTION])}, td.batch_size)


class FloorEvaluator:
    """Evaluator of a policy that does not learn. Plays once and returns the same result from then on.

    Args:
        source: data with ``tasks``.
        every: steps between two evaluations; 0 evaluates at the end only.
        policy: "random" or "idle".
        episodes, seed, workers, tasks, max_steps: as in ``ZeroShotEvaluator``, and to be chosen equal to them.
        name: in logs and files; None makes "floor_random" or "floor_idle".
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int = 0,
        policy: Literal["random", "idle"] = "random",
        episodes: int = 10,
        seed: int = 0,
        workers: int = 0,
        tasks: Sequence[str] | None = None,
        max_steps: int | None = None,
        name: str | None = None,
    ) -> None:
        policies = {"random": RandomPolicy(), "idle": IdlePolicy()}
        if policy not in policies:
            raise ValueError(f"policy={policy}: floors are {' and '.join(policies)}")
        self.source, self.every, self.policy, self.episodes = source, every, policies[policy], episodes
        self.seed, self.workers, self.max_steps = seed, workers, max_steps
        self.name = name or f"floor_{policy}"
        self.tasks = choose_tasks(source, tasks)
        self._result: TensorDict | None = None

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Play the floor; ``objective`` is only kept from being disturbed."""
        if self._result is None:
            with judging(objective):
                played, notes = play(
                    self.policy,
                    self.source,
                    self.tasks,
                    episodes=self.episodes,
                    seed=self.seed,
                    device=torch.device("cpu"),
                    workers=self.workers,
                    max_steps=self.max_steps,
                )
                self._result = result_of(self.source, played, notes, seed=self.seed, goals=None)
        return self._result
