"""Violation of expectation: is a model more surprised by what cannot happen than by what can?

Source: pairs of a possible and an impossible clip as in IntPhys (Riochet et al., arXiv 1803.07616); prediction error in
latent space as the surprise, as for V-JEPA and SALT (sheet salt_video, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodels.core import Objective
from worldmodels.evals.results import device_of, judging, pack
from worldmodels.keys import PIXELS

TIE = 1e-6  # relative: surprises that differ by less are equal, as rounding makes them


@runtime_checkable
class Expects(Protocol):
    """Predicts hidden tokens of a clip from visible ones."""

    def prediction_error(self, obs: TensorDict, context: Tensor, targets: Tensor) -> Tensor:
        """Error float32 [B, K'] of every hidden token, 0 at padding.

        Args:
            obs: batch size [B]; "pixels" uint8 [B, T, 3, H, W].
            context: int64 [B, K], tokens that are seen; targets: int64 [B, 1, K'], those to be predicted.
        """
        ...


class Surprise:
    """Share of pairs whose impossible clip surprises more than its possible twin.

    The first t steps of a clip are seen, the next s predicted, for several t; the error is the mean over predicted
    tokens. Metrics: "<kind>/accuracy", by the greatest error over all t; "<kind>/accuracy_mean", by the mean error;
    "accuracy" and "accuracy_mean", the means over kinds. Chance is 0.5, and equal twins count half.

    Errors of each t are divided by their mean over all clips of the kind, possible and impossible ones alike: otherwise
    the greatest one would nearly always be that of the shortest context, where twins do not differ yet.

    Args:
        source: with ``pairs(num, kind)``, of part "test" if it has parts.
        every: steps between two looks; 0 looks at the end only.
        kinds: of impossible events, those of the source.
        num: pairs of each kind.
        contexts: shares of the clip that are seen; rounded to steps of the encoder's grid, each number of steps once.
        horizon: share of the clip that is predicted, likewise; at least one step.
        chunk: pairs at a time; twins are always in the same batch.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no pairs, cannot make those of a kind, or settings make no sense.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        kinds: Sequence[str],
        num: int = 100,
        contexts: Sequence[int | float] = (0.25, 0.5, 0.75),
        horizon: int | float = 0.25,
        chunk: int = 16,
        name: str = "surprise",
    ) -> None:
        if not hasattr(source, "pairs"):
            raise ValueError(
                f"{name} needs clips with impossible twins; {type(source).__name__} has no pairs(num, kind). "
                "Use env=moving_scenes"
            )
        if not kinds or not contexts or num < 1 or chunk < 1:
            raise ValueError(
                f"{name}: kinds={list(kinds)} and contexts={list(contexts)} must not be empty, num={num} and "
                f"chunk={chunk} at least 1"
            )
        if not all(0 < share < 1 for share in (*contexts, horizon)):
            raise ValueError(f"{name}: contexts={list(contexts)} and horizon={horizon} are shares within (0, 1)")
        self.source = source.split("test") if hasattr(source, "split") else source
        self.every, self.name, self.kinds, self.num, self.chunk = every, name, tuple(kinds), num, chunk
        self.contexts, self.horizon = tuple(contexts), horizon
        for kind in self.kinds:
            self.source.pairs(1, kind)  # what cannot happen in these clips is said now, not when training is over

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Compare twins."""
        grid = getattr(getattr(objective, "encoder", None), "grid", ())
        if not isinstance(objective, Expects) or len(grid) != 3:
            raise ValueError(
                f"{self.name} needs an objective with prediction_error(obs, context, targets) on a grid (T, H, W); "
                f"{type(objective).__name__} has none. Use objective=v_jepa or =salt"
            )
        device = device_of(objective)
        masks = [(seen.to(device), asked.to(device)) for seen, asked in self.masks(grid)]
        metrics: dict[str, float] = {}
        with judging(objective):
            for kind in self.kinds:
                pairs = self.source.pairs(self.num, kind)
                errors = self.errors(objective, pairs.possible.to(device), pairs.impossible.to(device), masks)
                metrics |= {f"{kind}/{key}": value for key, value in preferred(errors).items()}
        for key in ("accuracy", "accuracy_mean"):
            metrics[key] = sum(metrics[f"{kind}/{key}"] for kind in self.kinds) / len(self.kinds)
        return pack(metrics)

    def masks(self, grid: tuple[int, int, int]) -> list[tuple[Tensor, Tensor]]:
        """For every t the tokens that are seen and those that are predicted, int64 [t H W] and [s H W].

        Raises:
            ValueError: if clips have a single step.
        """
        steps, area = grid[0], grid[1] * grid[2]
        if steps < 2:
            raise ValueError(f"{self.name}: a grid of {grid} has one step, and nothing follows it. Use longer clips")
        ahead = min(max(1, round(self.horizon * steps)), steps - 1)
        seen = sorted({min(max(1, round(share * steps)), steps - ahead) for share in self.contexts})
        return [(torch.arange(t * area), torch.arange(t * area, (t + ahead) * area)) for t in seen]

    def errors(
        self, objective: Expects, possible: TensorDict, impossible: TensorDict, masks: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Mean error of clips and of their twins for every t, float64 [2, N, t]."""
        found = []
        for twins in zip(possible.split(self.chunk), impossible.split(self.chunk), strict=True):
            obs = TensorDict({PIXELS: torch.cat([twin[PIXELS] for twin in twins])}, [2 * len(twins[0])])
            columns = []
            for seen, asked in masks:
                context, targets = seen.expand(len(obs), -1), asked.expand(len(obs), 1, -1)
                columns.append(objective.prediction_error(obs, context, targets).double().mean(1))
            found.append(torch.stack(columns, 1).unflatten(0, (2, -1)))  # [2, n, t]
        return torch.cat(found, 1)


def preferred(errors: Tensor) -> dict[str, float]:
    """How often the second of two clips surprises more, by the greatest and by the mean error of [2, N, t].

    Raises:
        ValueError: for errors that are not finite.
    """
    if not bool(errors.isfinite().all()):
        raise ValueError("prediction errors that are not finite: the predictor has diverged")
    relative = errors / errors.mean((0, 1)).clamp_min(torch.finfo(errors.dtype).tiny)
    found = {}
    for key, surprise in (("accuracy", relative.amax(-1)), ("accuracy_mean", relative.mean(-1))):
        possible, impossible = surprise
        is_equal = (impossible - possible).abs() <= TIE * impossible.maximum(possible)
        wins = torch.where(is_equal, 0.5, (impossible > possible).double())
        found[key] = float(wins.mean())
    return found
