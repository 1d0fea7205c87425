"""Policies that go for a goal's latent: by planning, by inverse dynamics without search, or not at all.

They are drop-in: ``act`` wants "observation" and, as "z", what ``goal`` gives for the observation to be reached. All
their state is a plan per row; ``begin`` forgets it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Composite

from agents.planning.search import Planner
from worldmodels.core import Dynamics, Embeds
from worldmodels.keys import ACTION, NOISE, OBSERVATION, TASK


@runtime_checkable
class InverseDynamics(Protocol):
    """Knows which action leads from here towards a goal."""

    def towards(self, latent: Tensor, goal: Tensor) -> Tensor:
        """Actions [B, A] from latents [B, D] towards those of goals [B, D]."""
        ...


class GoalPolicy:
    """A policy towards goals in the latent space of ``model``.

    Args:
        spec: one step of the source; tells the size of an action.
        model: embeds observations.
        representation: which of its embeddings the dynamics are about.

    Raises:
        ValueError: if ``model`` embeds nothing.
    """

    num_decided = num_noise = 1

    def __init__(self, spec: Composite, model: Any, *, representation: str = "latent") -> None:
        if not isinstance(model, Embeds):
            raise ValueError(f"goals are sought in latents, but {type(model).__name__} has no embed")
        self.model, self.representation = model, representation
        self.action_dim = spec[ACTION].shape[-1]

    def begin(self, num: int) -> None:
        """Be told that ``num`` episodes begin."""

    def goal(self, obs: TensorDict) -> Tensor:
        """What "z" has to be [B, D] for observations to be reached [B].

        Raises:
            ValueError: if the model has no such representation.
        """
        found = self.model.embed(obs)
        if self.representation not in found.keys():
            raise ValueError(
                f"representation={self.representation}: {type(self.model).__name__} embeds {', '.join(found.keys())}"
            )
        return found[self.representation]


class PlanningPolicy(GoalPolicy):
    """Plans, plays the first ``num_decided`` actions, and plans again, beginning with what is left of the last plan.

    Args:
        spec, model: see ``GoalPolicy``; the model needs ``imagine``.
        planner: searches.
        cost: of imagined latents [B, S, H, D] for goals [B, D]: see ``agents.planning.costs``.
        num_decided: m, actions played before it plans again, at most the planner's horizon.
        seed: of the planner's noise.
        representation: see ``GoalPolicy``.

    Raises:
        ValueError: if the model predicts nothing, or a plan is shorter than what is played of it.
    """

    def __init__(
        self,
        spec: Composite,
        model: Any,
        *,
        planner: Planner,
        cost: Callable[[Tensor, Tensor], Tensor],
        num_decided: int = 1,
        seed: int = 0,
        representation: str = "latent",
    ) -> None:
        super().__init__(spec, model, representation=representation)
        if not isinstance(model, Dynamics):
            raise ValueError(f"planning needs a model with imagine; {type(model).__name__} has none")
        if not 1 <= num_decided <= planner.horizon:
            raise ValueError(f"num_decided={num_decided} must be within 1 and horizon={planner.horizon}")
        self.planner, self.cost, self.num_decided, self.seed = planner, cost, num_decided, seed
        self._generator = Generator()
        self.begin(0)

    def begin(self, num: int) -> None:
        """Forget the last plan; the noise begins anew."""
        self._plan: Tensor | None = None
        self._generator.manual_seed(self.seed)

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        """Return "action" [B, m A], m steps joined; ``explore`` changes nothing."""
        latent, goal = self.goal(td[OBSERVATION]), td[TASK]  # [B, D]

        def cost(actions: Tensor) -> Tensor:
            return self.cost(self.model.imagine(latent, actions), goal)  # [B, S]

        self._plan = self.planner.plan(cost, self._guess(latent), self._generator)  # [B, H, A]
        return TensorDict({ACTION: self._plan[:, : self.num_decided].flatten(1)}, batch_size=td.batch_size)

    def _guess(self, latent: Tensor) -> Tensor:
        """What is left of the last plan, its last action repeated; zeros at first."""
        if self._plan is None:
            return latent.new_zeros(len(latent), self.planner.horizon, self.action_dim)
        rest = self._plan[:, self.num_decided :]
        return torch.cat([rest, self._plan[:, -1:].expand(-1, self.num_decided, -1)], 1)


class InversePolicy(GoalPolicy):
    """The control without search: asks the model which action leads towards the goal.

    Raises:
        ValueError: if the model cannot tell.
    """

    def __init__(self, spec: Composite, model: Any, *, representation: str = "latent") -> None:
        super().__init__(spec, model, representation=representation)
        if not isinstance(model, InverseDynamics):
            raise ValueError(f"the control without search needs a model with towards; {type(model).__name__} has none")

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        """Return "action" [B, A]."""
        action = self.model.towards(self.goal(td[OBSERVATION]), td[TASK])
        return TensorDict({ACTION: action}, batch_size=td.batch_size)


class RandomPolicy(GoalPolicy):
    """The floor: uniform actions, made of the normal "noise" it is given."""

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        """Return "action" [B, A]."""
        return TensorDict({ACTION: 2 * torch.special.ndtr(td[NOISE, ACTION]) - 1}, batch_size=td.batch_size)
