"""Play a trained policy on the tasks it was trained for: what ``zero_shot`` does, without inferring a task."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDict

from worldmodels.core import Objective, Policy
from worldmodels.evals.results import device_of, judging
from worldmodels.evals.tasks import TaskEvaluator


class PolicyEvaluator(TaskEvaluator):
    """Plays the policy; start states and noise are those ``ZeroShotEvaluator`` would use.

    Args:
        **playing: see ``TaskEvaluator``.
    """

    def __init__(self, *, name: str = "policy", **playing: Any) -> None:
        super().__init__(name=name, **playing)

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Evaluate; see ``TaskEvaluator.result``.

        Raises:
            ValueError: if the objective cannot act.
        """
        if not isinstance(objective, Policy):
            raise ValueError(f"{self.name} needs an agent with act; {type(objective).__name__} lacks it")
        with judging(objective):
            return self.result(objective, device=device_of(objective))
