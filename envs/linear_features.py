"""Two views x, y of independent features, as their second moments: exact ones of a generative model, or of samples.

Full-batch training of linear networks needs nothing else, so the moments are the whole observation.

Source: Littwin et al., arXiv 2407.03475 (NeurIPS 2024), static and temporal models; docs/linear.md derives the moments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Composite, Unbounded

from worldmodels.core import Policy
from worldmodels.keys import MOMENTS, OBSERVATION


class Views(NamedTuple):
    """Per-feature moments of two views, float64 [d] each: E[x^2], E[xy], E[y^2]."""

    xx: Tensor
    yx: Tensor
    yy: Tensor

    @property
    def rho(self) -> Tensor:
        """Regression coefficient of y on x, "influence" [d]; the covariance is ``yx``."""
        return self.yx / self.xx


class Features(ABC):
    """A generative model of independent features."""

    @abstractmethod
    def views(self) -> Views:
        """Moments of the population."""

    @abstractmethod
    def draw(self, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """``num`` pairs x, y, float64 [num, d] each."""


class Spectrum(Features):
    """Gaussian views with covariance ``lam`` and influence ``rho``; y has the variance of x, or more where it must.

    Args:
        lam, rho: of each feature, positive and of equal number.
    """

    def __init__(self, lam: Sequence[float], rho: Sequence[float]) -> None:
        self.lam, self.rho = columns(lam=lam, rho=rho)
        if not bool((self.lam > 0).all() and (self.rho > 0).all()):
            raise ValueError(f"lam={list(lam)}, rho={list(rho)}: both must be positive")

    def views(self) -> Views:
        """E[x^2] = lam / rho; E[y^2] = max(E[x^2], lam rho), as correlations are at most 1."""
        variance = self.lam / self.rho
        return Views(variance, self.lam, torch.maximum(variance, self.lam * self.rho))

    def draw(self, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Jointly Gaussian."""
        xx, yx, yy = self.views()
        x = normal(num, len(xx), generator) * xx.sqrt()
        rest = (yy - yx.square() / xx).clamp_min(0)
        return x, x * self.rho + normal(num, len(xx), generator) * rest.sqrt()


class Static(Features):
    """One feature seen twice: x = f + n, y = f + n', var f = ``variance``, var n = var n' = ``noise``.

    lambda = variance, rho = variance / (variance + noise).
    """

    def __init__(self, variance: Sequence[float], noise: Sequence[float]) -> None:
        self.variance, self.noise = columns(variance=variance, noise=noise)

    def views(self) -> Views:
        """Moments of the population."""
        total = self.variance + self.noise
        return Views(total, self.variance, total)

    def draw(self, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Gaussian feature and noises."""
        dim = len(self.variance)
        feature = normal(num, dim, generator) * self.variance.sqrt()
        noises = [normal(num, dim, generator) * self.noise.sqrt() for _ in range(2)]
        return feature + noises[0], feature + noises[1]


class Masked(Features):
    """One feature, dropped independently in each view with probability 1 - ``keep``.

    lambda = keep_x keep_y variance, rho = keep_y for all features: masks alone make no feature more influential.
    """

    def __init__(self, variance: Sequence[float], *, keep_x: float, keep_y: float) -> None:
        (self.variance,) = columns(variance=variance)
        if not (0 < keep_x <= 1 and 0 < keep_y <= 1):
            raise ValueError(f"keep_x={keep_x}, keep_y={keep_y} must be probabilities above 0")
        self.keep_x, self.keep_y = keep_x, keep_y

    def views(self) -> Views:
        """Moments of the population."""
        return Views(
            self.keep_x * self.variance, self.keep_x * self.keep_y * self.variance, self.keep_y * self.variance
        )

    def draw(self, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Gaussian feature, Bernoulli masks."""
        dim = len(self.variance)
        feature = normal(num, dim, generator) * self.variance.sqrt()
        x, y = (torch.rand(num, dim, generator=generator) < keep for keep in (self.keep_x, self.keep_y))
        return feature * x, feature * y


class AR1(Features):
    """A feature with autocorrelation ``gamma`` a step, seen through noise ``lag`` steps apart.

    lambda = gamma^lag variance, rho = gamma^lag variance / (variance + noise): slow features are influential.
    """

    def __init__(
        self, gamma: Sequence[float], variance: Sequence[float], noise: Sequence[float], *, lag: int = 1
    ) -> None:
        self.gamma, self.variance, self.noise = columns(gamma=gamma, variance=variance, noise=noise)
        if not bool(((self.gamma > 0) & (self.gamma < 1)).all()) or lag < 1:
            raise ValueError(f"gamma={list(gamma)} must lie within (0, 1) and lag={lag} be at least 1")
        self.lag = lag

    def views(self) -> Views:
        """Moments of the stationary process."""
        total = self.variance + self.noise
        return Views(total, self.gamma**self.lag * self.variance, total)

    def draw(self, num: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Independent stationary pairs."""
        dim, decay = len(self.gamma), self.gamma**self.lag
        now = normal(num, dim, generator)
        later = decay * now + (1 - decay.square()).sqrt() * normal(num, dim, generator)
        seen = [f * self.variance.sqrt() + normal(num, dim, generator) * self.noise.sqrt() for f in (now, later)]
        return seen[0], seen[1]


class LinearFeatures:
    """Panels of features: the moments of each, again and again.

    Args:
        panels: models by name.
        chosen: names of those to train on, all with the same number d of features; None takes every panel.
        device: of the moments.
        samples: pairs each panel's moments are estimated from; None takes the population's.
        seed: of the samples.

    Raises:
        ValueError: if there is no panel, one is unknown, or they differ in d.
    """

    def __init__(
        self,
        *,
        panels: Mapping[str, Features],
        chosen: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        samples: int | None = None,
        seed: int = 0,
    ) -> None:
        chosen = list(panels if chosen is None else chosen)
        if unknown := [name for name in chosen if name not in panels]:
            raise ValueError(f"there are no panels {unknown} of linear features; there are {sorted(panels)}")
        self.panels, self.device = {name: panels[name] for name in chosen}, torch.device(device)
        dims = {name: len(panel.views().xx) for name, panel in self.panels.items()}
        if len(set(dims.values())) != 1:
            raise ValueError(f"panels of linear features need one number of features; they have {dims or 'none'}")
        generator = Generator().manual_seed(seed)
        found = [moments(panel, samples, generator) for panel in self.panels.values()]
        self._moments = torch.stack(found).to(self.device)  # [P, 3, d, d]
        self.spec = Composite(
            {OBSERVATION: Composite({MOMENTS: Unbounded(self._moments.shape, dtype=torch.float64, device=self.device)})}
        )

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """The moments, [1, 1, P, 3, d, d]: E[x x^T], E[y x^T], E[y y^T] of each panel.

        Raises:
            ValueError: if more than one "sample" or row is asked for: the moments are the whole distribution.
        """
        if (batch_size, window) != (1, 1):
            raise ValueError(
                f"batch_size={batch_size}, window={window}: moments are the whole data set; both must be 1"
            )
        return TensorDict({OBSERVATION: {MOMENTS: self._moments[None, None]}}, batch_size=[1])

    def attach(self, policy: Policy | None) -> None:
        """Fixed data needs no policy."""


def moments(panel: Features, samples: int | None, generator: Generator) -> Tensor:
    """E[x x^T], E[y x^T], E[y y^T]: float64 [3, d, d], of the population or of that many pairs."""
    if samples is None:
        return torch.stack([m.diag() for m in panel.views()])
    if samples < 2:
        raise ValueError(f"samples={samples}: moments need at least two pairs")
    x, y = panel.draw(samples, generator)
    return torch.stack([x.T @ x, y.T @ x, y.T @ y]) / samples


def normal(num: int, dim: int, generator: Generator) -> Tensor:
    """Standard normal, float64 [num, dim]."""
    return torch.randn(num, dim, generator=generator, dtype=torch.float64)


def columns(**values: Sequence[float]) -> list[Tensor]:
    """Each list as float64 [d].

    Raises:
        ValueError: if they are empty, differ in length, or hold a negative number.
    """
    found = {name: torch.tensor(list(value), dtype=torch.float64) for name, value in values.items()}
    lengths = {name: len(value) for name, value in found.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"linear features need one number a feature in each list; they have {lengths}")
    if any(bool((value < 0).any()) for value in found.values()):
        raise ValueError(f"{', '.join(values)} must not be negative")
    return list(found.values())
