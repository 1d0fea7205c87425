"""Is the representation still alive? In a JEPA the loss cannot tell: a constant latent predicts itself perfectly."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import Embeds, Objective, Source
from worldmodels.evals.results import device_of, judging, pack, parts_of
from worldmodels.keys import OBSERVATION


class CollapseMonitor:
    """Rank and spread of every representation an objective offers through ``embed``, on one fixed batch.

    For each entry: "rankme" (effective rank, 1 to D), "std_mean" and "std_min" over the dimensions (latent units), and
    "uniformity", which is 0 if all states share one direction and about -4 if directions are spread evenly.

    Args:
        source: where the batch comes from; the same states at every evaluation.
        every: steps between two looks; 0 looks at the end only.
        num: states to embed; more than D, or the rank is bounded by it.
        seed: of the batch.
        min_rank_fraction: warn when RankMe is below this share of D.
        min_relative_std: warn when the mean standard deviation is below this share of the latents' root mean square,
            i.e. when nearly all of the latent is the same for all states.
        name: of this evaluator in logs and files.
    """

    def __init__(
        self,
        *,
        source: Source,
        every: int,
        num: int = 1024,
        seed: int = 0,
        min_rank_fraction: float = 0.1,
        min_relative_std: float = 0.05,
        name: str = "collapse",
    ) -> None:
        self.source, self.every, self.num, self.seed, self.name = source, every, num, seed, name
        self.min_rank_fraction, self.min_relative_std = min_rank_fraction, min_relative_std

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Look at the representation.

        Raises:
            ValueError: if the objective has no ``embed``.
        """
        generator = Generator(device_of(objective)).manual_seed(self.seed)
        metrics, warnings, embeds = {}, [], False
        with judging(objective):
            for prefix, (part, source) in parts_of(objective, self.source).items():
                if not isinstance(part, Embeds):
                    continue
                embeds = True
                num_rows = getattr(part, "num_rows", 1)  # of an observation: a clip has several
                rows = source.sample(self.num, num_rows, generator)[OBSERVATION]
                observation = rows[:, 0] if num_rows == 1 else rows
                for name, latent in part.embed(observation).items():
                    values = spread(latent.flatten(1))
                    metrics |= {f"{prefix}{name}/{key}": value for key, value in values.items() if key != "rms"}
                    warnings += self._warnings(f"{prefix}{name}", latent.flatten(1).shape[1], values)
        if not embeds:
            raise ValueError(f"{self.name} needs an objective with embed(obs); {type(objective).__name__} has none")
        return pack(metrics, warnings=[f"step {step}: {warning}" for warning in warnings])

    def _warnings(self, name: str, dim: int, values: dict[str, float]) -> list[str]:
        warnings, least = [], self.min_rank_fraction * min(dim, self.num)
        if not values["rankme"] >= least:
            warnings.append(
                f"{name} is collapsing: its effective rank is {values['rankme']:.1f} of {dim} "
                f"(warned below {least:.1f}). Raise the weight of its regulariser or the target's momentum"
            )
        if not values["std_mean"] > self.min_relative_std * values["rms"]:
            warnings.append(
                f"{name} hardly depends on the state: mean standard deviation {values['std_mean']:.2g} "
                f"at a root mean square of {values['rms']:.2g}"
            )
        return warnings


def spread(latent: Tensor) -> dict[str, float]:
    """RankMe, mean and least standard deviation over dimensions, and root mean square, of latents [N, D].

    RankMe is exp(entropy of the singular values divided by their sum), of the uncentred matrix; 0 for all-zero latents,
    NaN for latents that are not finite.

    Source: Garrido et al., RankMe, ICML 2023, eq. 1. Differs: no epsilon, 0 log 0 is 0.
    """
    latent = latent.double()
    std = latent.std(0)
    values = {"std_mean": float(std.mean()), "std_min": float(std.min()), "rms": float(latent.square().mean().sqrt())}
    if not bool(torch.isfinite(latent).all()):
        return {"rankme": float("nan"), **values}
    singular = torch.linalg.svdvals(latent)
    total = singular.sum()
    share = singular / total.clamp_min(torch.finfo(torch.float64).tiny)
    rank = torch.special.entr(share).sum().exp() if total > 0 else total
    return {"rankme": float(rank), "uniformity": uniformity(latent), **values}


def uniformity(latent: Tensor) -> float:
    """Logarithm of the mean of exp(-2 |u - v|^2) over pairs of different rows' directions u, v; latents [N, D].

    Source: Wang and Isola, ICML 2020, eq. 4 with t = 2.
    """
    unit = torch.nn.functional.normalize(latent, dim=1)
    closeness = (4 * (unit @ unit.T - 1)).exp()  # |u - v|^2 = 2 - 2 u v
    num = len(latent)
    return float(((closeness.sum() - closeness.diagonal().sum()) / (num * (num - 1))).log())
