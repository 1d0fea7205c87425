"""How well the influence spectrum predicts learning times where features are mixed obliquely (docs/linear.md).

    python -m benchmarks.oblique_features

x = A f with four independent features. Gradient descent on the population's moments; the measured time of a feature is
when |W a|, a its pattern, is half of its last value. Rows: condition of A; columns: mean |log(predicted / measured)|
for lambda by patterns of length 1 (what the spectrum does) and by filters of length 1 (what it could have done).
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
from torch import Generator, Tensor

from worldmodels.evals.spectrum import influence_spectrum, learning_times

DEPTH, SCALE = 3, 0.3
LAM, RHO = torch.tensor([1.0, 0.8, 0.6, 0.45]).double(), torch.tensor([0.9, 0.8, 0.95, 0.7]).double()
OBLIQUE = (0.0, 0.1, 0.2, 0.4)  # size of the random part of A
SEEDS = (0, 1)
STEPS: dict[Literal["jepa", "mae"], tuple[float, int]] = {"jepa": (0.05, 24_000), "mae": (0.01, 6_000)}
EVERY = 10  # updates between two looks


def product(matrices: list[Tensor]) -> Tensor:
    """The last times ... times the first; the identity of none."""
    return reduce(lambda below, above: above @ below, matrices, torch.eye(len(LAM)).double())


def measure(loss: Literal["jepa", "mae"], xx: Tensor, yx: Tensor, patterns: Tensor, generator: Generator) -> Tensor:
    """Times [k] at which |W a_i| passes half of its last value, by gradient descent from the aligned start."""
    rate, steps = STEPS[loss]
    layers = [SCALE * orthogonal(generator) for _ in range(DEPTH)]
    top = SCALE * (torch.eye(len(LAM)).double() if loss == "jepa" else product([w / SCALE for w in layers]).T)
    seen = []
    for step in range(steps):
        encoder = product(layers)
        if step % EVERY == 0:
            seen.append((encoder @ patterns).norm(dim=0))
        error = top @ encoder @ xx - (encoder @ yx if loss == "jepa" else yx)
        signal = top.T @ error
        slopes = [product(layers[i + 1 :]).T @ signal @ product(layers[:i]).T for i in range(DEPTH)]
        top = top - rate * error @ encoder.T
        layers = [w - rate * slope for w, slope in zip(layers, slopes, strict=True)]
    curves = torch.stack(seen)
    return (curves >= curves[-1] / 2).double().argmax(0) * EVERY * rate


def orthogonal(generator: Generator) -> Tensor:
    """A random one."""
    return torch.linalg.qr(torch.randn(len(LAM), len(LAM), generator=generator).double()).Q


def main() -> None:
    """Print the table."""
    print("condition  loss  patterns  filters")
    for size in OBLIQUE:
        for seed in SEEDS:
            generator = Generator().manual_seed(seed)
            noise = torch.randn(len(LAM), len(LAM), generator=generator).double()
            mixing = orthogonal(generator) @ (torch.eye(len(LAM)).double() + size * noise)
            mixing = mixing / mixing.norm(dim=0)
            xx, yx = mixing @ (LAM / RHO).diag() @ mixing.T, mixing @ LAM.diag() @ mixing.T
            found = influence_spectrum(xx, yx)
            by_filter = (
                found.rho * (found.filters.T @ xx @ found.filters).diagonal() / found.filters.norm(dim=0).square()
            )
            for loss in STEPS:
                measured = measure(loss, xx, yx, found.patterns, generator)
                errors = []
                for lam in (found.lam, by_filter):
                    times = learning_times(loss, lam.numpy(), found.rho.numpy(), depth=DEPTH, scale=SCALE)
                    errors.append(float((torch.from_numpy(times) / lam.max() / measured).log().abs().mean()))
                print(f"{torch.linalg.cond(mixing):9.2f}  {loss:4s}  {errors[0]:8.3f}  {errors[1]:7.3f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
