"""Play a trained policy on the tasks it was trained for: what ``zero_shot`` does, without inferring a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict import TensorDict

from worldmodels.core import Objective, Policy
from worldmodels.evals.results import device_of, judging
from worldmodels.evals.tasks import choose_tasks, goal_positions, play, result_of


class PolicyEvaluator:
    """Plays all episodes of the tasks at once; start states and noise are those ``ZeroShotEvaluator`` would use.

    Args:
        source: data with ``tasks``.
        every: steps between two evaluations; 0 evaluates at the end only.
        tasks: names; None takes all.
        episodes, seed, workers, max_steps, is_filmed: as in ``ZeroShotEvaluator``.
        name: of this evaluator in logs and files.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        tasks: Sequence[str] | None = None,
        episodes: int = 10,
        seed: int = 0,
        workers: int = 0,
        max_steps: int | None = None,
        is_filmed: bool = True,
        name: str = "policy",
    ) -> None:
        if episodes < 1:
            raise ValueError(f"episodes={episodes} must be at least 1")
        self.source, self.every, self.episodes, self.name = source, every, episodes, name
        self.seed, self.workers, self.max_steps, self.is_filmed = seed, workers, max_steps, is_filmed
        self.tasks = choose_tasks(source, tasks)

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Evaluate; returns what ``evals.tasks.score`` documents, with the evaluation list and pictures as media.

        Raises:
            ValueError: if the objective cannot act.
        """
        if not isinstance(objective, Policy):
            raise ValueError(f"{self.name} needs an agent with act; {type(objective).__name__} lacks it")
        with judging(objective):
            played, notes = play(
                objective,
                self.source,
                self.tasks,
                episodes=self.episodes,
                seed=self.seed,
                device=device_of(objective),
                workers=self.workers,
                max_steps=self.max_steps,
                is_filmed=self.is_filmed,
            )
            goals = goal_positions(self.source, self.tasks)
            return result_of(self.source, played, notes, seed=self.seed, goals=goals)
