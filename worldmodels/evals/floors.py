"""Policies that know nothing, played through the same rollout: every success rate stands beside one of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDict

from worldmodels.core import Objective
from worldmodels.evals.results import judging
from worldmodels.evals.tasks import TaskEvaluator
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


class FloorEvaluator(TaskEvaluator):
    """Evaluator of a policy that does not learn. Plays once and returns the same result from then on.

    Args:
        every: as in ``TaskEvaluator``.
        policy: "random" or "idle".
        name: in logs and files; None makes "floor_random" or "floor_idle".
        **playing: see ``TaskEvaluator``; to be chosen as for the evaluator that this stands beside. Nothing is filmed.
    """

    def __init__(
        self,
        *,
        every: int = 0,
        policy: Literal["random", "idle"] = "random",
        name: str | None = None,
        **playing: Any,
    ) -> None:
        policies = {"random": RandomPolicy(), "idle": IdlePolicy()}
        if policy not in policies:
            raise ValueError(f"policy={policy}: floors are {' and '.join(policies)}")
        super().__init__(every=every, name=name or f"floor_{policy}", is_filmed=False, **playing)
        self.policy = policies[policy]
        self._result: TensorDict | None = None

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Play the floor; ``objective`` is only kept from being disturbed."""
        if self._result is None:
            with judging(objective):
                self._result = self.result(self.policy, device=torch.device("cpu"), is_drawn=False)
        return self._result
