"""What imitating policies share: units, and which rows count.

Observations are normalised by the encoder, actions here, both by statistics of the training data, fitted once when the
objective is built and saved with it. Rows that pad a window beyond its episode's end ("is_padded"), and rows whose
action is unknown ("has_action"), do not count in losses of actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from perception.normalize import FittedNorm
from worldmodels.core import USE_DEMONSTRATIONS, Encoder, Objective
from worldmodels.keys import ACTION, HAS_ACTION, IS_PADDED, OBSERVATION, POOLED
from worldmodels.losses import masked_l1

Factory = Callable[..., Any]


@runtime_checkable
class Fits(Protocol):
    """An encoder whose normalisation is fitted once."""

    def fit(self, statistics: TensorDict) -> None:
        """Take "mean" and "std" of the training data."""
        ...


class ImitationPolicy(Objective):
    """A policy that learns from demonstrations (abstract); a method adds its networks, phases and ``act``.

    Args:
        spec: one step; needs an observation and an action.
        encoder: perception, a factory ``encoder(spec)`` or a module shared with other objectives.
        is_normalized: whether actions are learned in units of their standard deviation.

    Raises:
        ValueError: if the spec has no action.
    """

    num_noise = 1

    def __init__(self, spec: Composite, *, encoder: Factory | Encoder, is_normalized: bool = True) -> None:
        super().__init__()
        if ACTION not in spec.keys():
            have = ", ".join(sorted(map(str, spec.keys())))
            raise ValueError(f"{type(self).__name__} imitates actions; the data have {have}. {USE_DEMONSTRATIONS}")
        self.encoder: Any = encoder if isinstance(encoder, nn.Module) else encoder(spec)
        self.action_dim = spec[ACTION].shape[-1]
        self.is_normalized, self.action_norm = is_normalized, FittedNorm(self.action_dim)

    def study(self, source: Any) -> None:
        """Fit what observations and actions are normalised by; what came trained keeps its own.

        Raises:
            ValueError: if the source does not tell its statistics.
        """
        if not hasattr(source, "statistics"):
            raise ValueError(
                f"{type(self).__name__} normalises by the training data's statistics, and {type(source).__name__} has "
                f"none (statistics()). {USE_DEMONSTRATIONS}"
            )
        statistics = source.statistics()
        if isinstance(self.encoder, Fits):
            self.encoder.fit(statistics)
        if self.is_normalized:
            self.action_norm.fit(statistics["mean", ACTION], statistics["std", ACTION])

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Move running statistics, of encoders that have some."""
        self.encoder.observe(batch[OBSERVATION][:, 0])
        return batch

    def action_errors(self, prediction: Tensor, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Mean |prediction - action| over known actions [B, T, A] and their entries, normalised and in their own units.

        ``prediction`` is normalised; the second has no gradient.
        """
        counts = known_actions(batch)
        loss = masked_l1(prediction, self.action_norm(batch[ACTION]), counts)
        with torch.no_grad():
            raw = masked_l1(self.action_norm.inverse(prediction.float()), batch[ACTION], counts)
        return loss, raw

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """Return "context" [B, C], the encoder's pooled latent."""
        return TensorDict({"context": self.encoder(obs)[POOLED]}, batch_size=obs.batch_size)


def valid_steps(batch: TensorDict) -> Tensor | None:
    """Which rows of windows are no padding, bool [B, T]; None where windows are never padded."""
    return ~batch[IS_PADDED] if IS_PADDED in batch.keys() else None


def known_actions(batch: TensorDict) -> Tensor:
    """Which actions [B, T, A] may be learned from, bool [B, T]."""
    valid = valid_steps(batch)
    counts = torch.ones_like(batch[ACTION][..., 0], dtype=torch.bool) if valid is None else valid
    return counts & batch[HAS_ACTION] if HAS_ACTION in batch.keys() else counts
