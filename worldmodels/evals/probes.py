"""Linear probes: how much of a label can be read off a frozen representation by a linear map.

Fitted to convergence on training rows, its strength of regularisation chosen on validation rows, judged on test rows.
The raw input stands beside it as a control, and so does the untrained network: the trainer evaluates at step 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Embeds, Encoder, Objective
from worldmodels.evals.results import CHUNK, in_chunks, judging, once_a_round, pack, require_parts
from worldmodels.keys import POOLED


class LabelProbe(ABC):
    """How well labels can be told from every representation an objective offers (abstract); a probe says how.

    "raw" stands beside them as a control, the input itself: a table's categories one-hot, a picture's pixels.

    Args:
        source: with ``part(name)`` of "train", "val", "test", ``task`` and ``num_classes`` (see ``envs.tables``).
        every: steps between two looks; 0 looks at the end only.
        raw: factory of an encoder without weights, the control.
        num: most rows of each part, the same random ones every time; null takes all of them.
        chunk: rows encoded at a time.
        seed: of the rows that ``num`` leaves.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no labelled parts.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        raw: Callable[[Composite], Encoder],
        num: int | None = None,
        chunk: int = CHUNK,
        seed: int = 0,
        name: str,
    ) -> None:
        require_parts(source, name)
        self.source, self.every, self.name, self.flat = source, every, name, raw(source.spec)
        self.num, self.chunk, self.seed = num, chunk, seed
        self._raw: dict[str, float] | None = None

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Judge all representations now."""
        rows, targets, embedded = embedded_parts(
            objective, self.source, num=self.num, chunk=self.chunk, seed=self.seed, name=self.name
        )
        metrics: dict[str, float] = {}
        for name in sorted(map(str, embedded[0].keys())):
            found = self.judge([part[name] for part in embedded], targets)
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
        if self._raw is None:
            self._raw = self.judge([self.flat(obs)[POOLED] for obs in rows], targets)
        return pack(metrics | {f"raw/{key}": value for key, value in self._raw.items()})

    @abstractmethod
    def judge(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, float]:
        """Metrics of features [N, D] and targets [N] of the three parts; the last one is judged."""


class LinearProbe(LabelProbe):
    """Ridge regression or multinomial logistic regression.

    Metrics: "<representation>/rmse" in the target's unit, or "<representation>/accuracy" and "/macro_f1".

    Args:
        penalties: tried on validation rows; relative to the number of training rows.
        options: see ``LabelProbe``.
    """

    def __init__(
        self, *, penalties: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2), name: str = "probe", **options: Any
    ) -> None:
        super().__init__(name=name, **options)
        self.penalties = tuple(penalties)

    def judge(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, float]:
        """Fit on the first part, choose on the second, judge on the third."""
        predict = fit_probe(features[:2], targets[:2], num_classes=self.source.num_classes, penalties=self.penalties)
        return judged(predict(features[2]), targets[2], num_classes=self.source.num_classes)


def embedded_parts(
    objective: Objective, source: Any, *, num: int | None, chunk: int, seed: int, name: str
) -> tuple[list[TensorDict], list[Tensor], list[TensorDict]]:
    """Observations, targets and representations of the labelled parts "train", "val", "test"; encoded once a round.

    Args:
        num: most rows of each part; chunk: rows encoded at a time; seed: of the rows that ``num`` leaves.
        name: the evaluator that asks.

    Raises:
        ValueError: if the objective has no representations.
    """
    if not isinstance(objective, Embeds):
        raise ValueError(f"{name} needs an objective with embed(obs); {type(objective).__name__} has none")

    def embedded() -> tuple[list[TensorDict], list[Tensor], list[TensorDict]]:
        parts = [some_rows(source.part(part), num, seed) for part in ("train", "val", "test")]
        with judging(objective):
            latents = [in_chunks(objective.embed, obs, chunk) for obs, _ in parts]
        return [obs for obs, _ in parts], [target for _, target in parts], latents

    return once_a_round((embedded_parts, id(objective), id(source), num, chunk, seed), embedded)


def some_rows(part: Any, num: int | None, seed: int) -> tuple[TensorDict, Tensor]:
    """Observations and target of a labelled part: all rows or, if there are more, ``num`` that ``seed`` chose."""
    if num is None or len(part.target) <= num:
        return part.obs, part.target
    index = torch.randperm(len(part.target), generator=Generator().manual_seed(seed))[:num].to(part.target.device)
    return part.obs[index], part.target[index]


def fit_probe(
    features: Sequence[Tensor], targets: Sequence[Tensor], *, num_classes: int, penalties: Sequence[float]
) -> Callable[[Tensor], Tensor]:
    """Fit on the first part [N, D], choose the penalty on the second.

    Args:
        features, targets: of both parts; num_classes: 0 for regression, of numbers [N] or vectors [N, K].
        penalties: see ``LinearProbe``.

    Returns:
        What maps features [M, D] to the target [M] or [M, K] in its unit, or to logits [M, C].
    """
    mean, scale = moments(features[0])
    train, val = ((part - mean) / scale for part in features)
    train, val = F.pad(train, (0, 1), value=1.0), F.pad(val, (0, 1), value=1.0)  # a column of ones: the intercept
    best, chosen, start = float("inf"), None, None
    for penalty in sorted(penalties, reverse=True):
        if num_classes:
            weights = start = logistic(train, targets[0], penalty, num_classes, start)
            loss = float(F.cross_entropy(val @ weights, targets[1]))
        else:
            weights = ridge(train, targets[0], penalty)
            loss = float((val @ weights - targets[1]).square().mean())
        if loss < best:
            best, chosen = loss, weights
    if chosen is None:
        raise ValueError("a probe of features that are not finite: the representation has diverged")
    found = chosen
    return lambda rows: F.pad((rows - mean) / scale, (0, 1), value=1.0) @ found


def judged(output: Tensor, target: Tensor, *, num_classes: int) -> dict[str, float]:
    """Metrics of a probe's output."""
    if num_classes:
        return classification_metrics(output.argmax(-1), target, num_classes)
    return {"rmse": float((output - target).square().mean().sqrt())}


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of each column of [N, D]; infinite for constant ones: they become zero."""
    mean, std = features.mean(0), features.std(0)
    return mean, torch.where(std > 1e-6 * std.max().clamp_min(1e-12), std, torch.inf)


def ridge(features: Tensor, target: Tensor, penalty: float) -> Tensor:
    """Least squares with ``penalty`` N |w|^2, the intercept (last column) free: [D + 1], or [D + 1, K] of vectors."""
    x, y = features.double(), target.double()
    gram = x.T @ x / len(x)
    free = torch.full((x.shape[1],), penalty, dtype=torch.float64, device=x.device)
    free[-1] = 0.0
    return torch.linalg.solve(gram + free.diag(), x.T @ y / len(x)).float()


def logistic(features: Tensor, target: Tensor, penalty: float, num_classes: int, start: Tensor | None) -> Tensor:
    """Multinomial logistic regression with ``penalty`` |W|^2 / 2, by L-BFGS from ``start``: [D + 1, C]."""
    weights = torch.zeros(features.shape[1], num_classes, device=features.device) if start is None else start.clone()
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weights, target) + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


def confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """How often each class (row) was taken for each (column): float64 [C, C]."""
    counts = torch.zeros(num_classes, num_classes, device=target.device, dtype=torch.float64)
    return counts.index_put_((target, predicted), counts.new_ones(()), accumulate=True)


def classification_metrics(predicted: Tensor, target: Tensor, num_classes: int) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur in target or prediction."""
    counts = confusion(predicted, target, num_classes)
    hits, occurring = counts.diagonal(), counts.sum(0) + counts.sum(1)
    f1 = (2 * hits / occurring.clamp_min(1))[occurring > 0].mean()
    return {"accuracy": float(hits.sum() / counts.sum()), "macro_f1": float(f1)}
