"""How well vectors can be read off features: a regressor in closed form, a trained one, and the score R2.

A regressor is called with features and targets of a training and a validation part and returns what maps features
[M, D] to targets [M, K].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from worldmodels.evals.probes import fit_probe, moments

Regressor = Callable[[Sequence[Tensor], Sequence[Tensor]], Callable[[Tensor], Tensor]]


class RidgeRegressor:
    """Linear least squares in closed form, its penalty chosen on the validation part.

    Args:
        penalties: to be tried, relative to the number of training rows.
    """

    def __init__(self, *, penalties: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)) -> None:
        self.penalties = tuple(penalties)

    def __call__(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        """Fit on the first part, choose on the second."""
        return fit_probe(features[:2], targets[:2], num_classes=0, penalties=self.penalties)


class MLPRegressor:
    """ReLU network trained by Adam on the squared error, for so many steps; the best on validation rows is kept.

    Inputs and outputs are standardised by the training part. Initialised and shuffled from a generator of its own, so
    that equal features give equal results.

    Args:
        width, depth: of its hidden layers; none is a linear map.
        steps: of Adam.
        batch_size: rows a step; all of them if there are fewer.
        lr: learning rate.
        num_looks: times that the validation error is measured.
        seed: of weights and batches.

    Source: that of seq-JEPA (arXiv 2505.03176) for rotations, crops and jitter has width 1024 and depth 2, for colour,
    blur and positions depth 0; Adam's defaults are its own. Differs: a budget of steps instead of 300 or 50 epochs, and
    the choice on validation rows.
    """

    def __init__(
        self,
        *,
        width: int = 256,
        depth: int = 2,
        steps: int = 1000,
        batch_size: int = 256,
        lr: float = 1e-3,
        num_looks: int = 10,
        seed: int = 0,
    ) -> None:
        if min(width, depth + 1, steps, batch_size, num_looks) < 1:
            raise ValueError(
                f"an MLP regressor needs sizes of at least 1, a depth of at least 0; got width={width}, depth={depth}, "
                f"steps={steps}, batch_size={batch_size}, num_looks={num_looks}"
            )
        self.width, self.depth, self.steps, self.batch_size = width, depth, steps, batch_size
        self.lr, self.num_looks, self.seed = lr, min(num_looks, steps), seed

    def __call__(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        """Train on the first part, keep the weights that are best on the second.

        Raises:
            ValueError: if the error is never finite: the features have diverged.
        """
        mean, scale = moments(features[0])
        centre, unit = moments(targets[0])
        x, x_val = ((part - mean) / scale for part in features[:2])
        y, y_val = ((part - centre) / unit for part in targets[:2])
        generator = Generator(x.device).manual_seed(self.seed)
        weights = self.start(x.shape[1], y.shape[1], generator)
        optimizer = torch.optim.Adam(weights, lr=self.lr)
        least, best = torch.full((), torch.inf, device=x.device), [weight.detach().clone() for weight in weights]
        for step in range(1, self.steps + 1):
            rows = torch.randint(len(x), (min(self.batch_size, len(x)),), generator=generator, device=x.device)
            with torch.enable_grad():
                loss = (network(x[rows], weights) - y[rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            if step * self.num_looks // self.steps > (step - 1) * self.num_looks // self.steps:
                with torch.no_grad():
                    error = (network(x_val, weights) - y_val).square().mean()
                    is_better = error < least
                    least = torch.where(is_better, error, least)
                    best = [torch.where(is_better, new, old) for new, old in zip(weights, best, strict=True)]
        if not bool(least.isfinite()):
            raise ValueError("a regressor of features that are not finite: the representation has diverged")
        known = torch.where(unit.isfinite(), unit, 0.0)  # a constant target is its mean
        return lambda rows: network((rows - mean) / scale, best) * known + centre

    def start(self, num_inputs: int, num_outputs: int, generator: Generator) -> list[Tensor]:
        """Weights [in, out] and biases [out] in turn, uniform within 1 / sqrt(in) as PyTorch's linear layers."""
        sizes, weights = [num_inputs, *[self.width] * self.depth, num_outputs], []
        for wide, narrow in itertools.pairwise(sizes):
            for shape in ((wide, narrow), (narrow,)):
                bound = 1 / math.sqrt(wide)
                weight = torch.empty(shape, device=generator.device).uniform_(-bound, bound, generator=generator)
                weights.append(weight.requires_grad_(True))
        return weights


def network(rows: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Linear layers with a ReLU between each two; ``weights`` as ``MLPRegressor.start`` gives them."""
    for i in range(0, len(weights), 2):
        rows = rows @ weights[i] + weights[i + 1]
        rows = F.relu(rows) if i + 2 < len(weights) else rows
    return rows


def r2_scores(predicted: Tensor, target: Tensor) -> Tensor:
    """Coefficient of determination of each output [K]; NaN where the target [N, K] does not vary, so none exists."""
    predicted, target = predicted.double(), target.double()
    residual = (target - predicted).square().sum(0)
    total = (target - target.mean(0)).square().sum(0)
    is_constant = (total / len(target)).sqrt() <= 1e-6 * (1 + target.mean(0).abs())
    return torch.where(is_constant, torch.nan, 1 - residual / total)


def r2_metrics(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """Mean R2 over outputs that vary, "r2", and that of each of these, "r2_0", "r2_1", and so on."""
    found = {f"r2_{i}": score for i, score in enumerate(r2_scores(predicted, target).tolist()) if not math.isnan(score)}
    return {"r2": sum(found.values()) / len(found) if found else math.nan} | found
