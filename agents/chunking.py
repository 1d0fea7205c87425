"""How chunks of actions are predicted and played.

A window has n rows, which is a chunk: the observation in its first row is seen, the actions of all are imitated. A
chunk is played open loop, ``num_executed`` of its actions before the policy is asked again (receding horizon), or it
is asked at every step and all that it ever said about the present is averaged (temporal ensembling).

Sources: Zhao et al. 2023 (ACT, arXiv 2304.13705) for both; sheet act_jepa, sections 1.5 and 3.1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite

from agents.imitation import ImitationPolicy
from worldmodels.keys import ACTION


class TemporalEnsemble:
    """Averages what successive chunks say about the same step, for a batch of episodes that run side by side.

    The i-th opinion about a step, i = 0 the oldest, weighs exp(-decay i): sums and weights of the coming n steps are
    all that is kept.

    Args:
        decay: at least 0, where all weigh alike.
    """

    def __init__(self, decay: int | float) -> None:
        if decay < 0:
            raise ValueError(f"agent.ensemble={decay}: opinions weigh exp(-ensemble i); it is at least 0")
        self.ratio = math.exp(-decay)
        self._sums: Tensor | None = None  # [N, n, A], of weighted opinions about the coming steps
        self._weights: Tensor | None = None  # [n], sums of their weights

    def begin(self) -> None:
        """Forget all opinions."""
        self._sums = self._weights = None

    def __call__(self, chunk: Tensor) -> Tensor:
        """Hear the opinion ``chunk`` [N, n, A] about now and the steps to come; the action [N, A] for now.

        Raises:
            ValueError: if another number of episodes runs than before.
        """
        if self._sums is None or self._weights is None:
            self._sums, self._weights = torch.zeros_like(chunk), chunk.new_zeros(chunk.shape[1])
        if self._sums.shape != chunk.shape:
            raise ValueError(
                f"an ensemble of chunks {list(self._sums.shape)} was given one of {list(chunk.shape)}; begin(num) first"
            )
        # A step with c opinions has the sum of weights w = 1 + r + ... + r^(c - 1), so the next one's, r^c, is:
        weight = 1 - (1 - self.ratio) * self._weights  # [n]
        sums, weights = self._sums + weight[:, None] * chunk, self._weights + weight
        self._sums = torch.cat([sums[:, 1:], torch.zeros_like(sums[:, :1])], 1)
        self._weights = torch.cat([weights[1:], torch.zeros_like(weights[:1])])
        return sums[:, 0] / weights[0]


class ChunkPolicy(ImitationPolicy):
    """A policy that decides n actions at a time (abstract); a method adds its networks, phases and ``predict``.

    Args:
        spec: one step.
        chunk: n, actions of a chunk, and rows of a window.
        num_executed: of them, how many are played before the policy looks again; None: all.
        ensemble: decay of temporal ensembling, 0.01 in ACT; None: off. The policy then looks at every step.
        **options: see ``ImitationPolicy``.

    Raises:
        ValueError: if settings make no sense.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        chunk: int,
        num_executed: int | None = None,
        ensemble: int | float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        if num_executed is not None and not 1 <= num_executed <= chunk:
            raise ValueError(
                f"agent.num_executed={num_executed}: of {chunk} actions of a chunk, 1 to {chunk} are played"
            )
        if ensemble is not None and num_executed not in (None, 1):
            raise ValueError(
                f"agent.num_executed={num_executed}: with agent.ensemble={ensemble} the policy looks at every step; "
                "leave agent.num_executed=null"
            )
        self.chunk = self.window = chunk
        self.ensemble = None if ensemble is None else TemporalEnsemble(ensemble)
        self.num_decided = 1 if ensemble is not None else num_executed or chunk

    @abstractmethod
    def predict(self, td: TensorDict) -> Tensor:
        """Normalised actions [N, n, A] for "observation" in ``td`` [N]; without gradient."""

    def begin(self, num: int) -> None:
        """Forget what was kept between calls of ``act``: ``num`` episodes begin."""
        if self.ensemble is not None:
            self.ensemble.begin()

    @torch.no_grad()
    def actions_ahead(self, td: TensorDict) -> Tensor:
        """Actions [N, n, A] of the coming n steps, in their own units, not cut off yet."""
        return self.action_norm.inverse(self.predict(td).float())

    @torch.no_grad()
    def act(self, td: TensorDict, explore: bool = False) -> TensorDict:
        """Return "action" [N, m A], the next m = ``num_decided`` actions joined, within [-1, 1]."""
        chunk = self.actions_ahead(td)
        if self.ensemble is not None:
            action = self.ensemble(chunk)
        else:
            action = chunk[:, : self.num_decided].flatten(1)
        return TensorDict({ACTION: action.clamp(-1, 1)}, batch_size=td.batch_size)
