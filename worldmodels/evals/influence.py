"""Which features of the data would an objective learn first? The lambda/rho spectrum of its two views.

A feature is a direction in which the views are correlated (see ``spectrum.py``); lambda is its covariance between them,
rho its influence. Deep linear theory (``worldmodels.linear_theory``) says when a joint-embedding objective and when a
masked reconstruction learns it. On raw input that is about the data and the masks alone: it needs no training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import Objective
from worldmodels.evals.influence_picture import picture
from worldmodels.evals.results import device_of, judging, pack, parts_of
from worldmodels.evals.spectrum import Sampled, Spectrum, influence_spectrum, learning_times, ranks
from worldmodels.evals.views import RAW, Pairs, draw_views
from worldmodels.keys import MOMENTS, OBSERVATION

LOSSES = ("jepa", "mae")
_NAMED = 4  # raw entries that a feature is described by


class Finding(NamedTuple):
    """What was found in one input or representation."""

    spectrum: Spectrum
    chance: float  # largest rho of pairs that do not belong together; 0 for exact moments
    raw: Tensor | None  # [F, k] covariance of raw entries with each feature, of length 1
    names: Sequence[str]  # of raw entries [F]


class InfluenceSpectrum:
    """Features of the raw input and of every representation, their lambda and rho, and when each would be learned.

    The views are the objective's own (``core.TwoViews``), or two consecutive steps.

    Metrics of the input or of a representation X: "X/features", "X/dropped" (directions without variance),
    "X/asymmetry", "X/chance" (the largest rho of wrong pairs: less is noise), "X/above_chance"; and of its i-th feature
    by lambda "X.i/lambda", "/rho", "/variance", "/jepa_time", "/mae_time" (inf: never), "/jepa_rank", "/mae_rank"
    (absent: never). Shown are the features that come first in either order; the file "<X>.json" has all of them.

    Args:
        source: of the objective's data; also ``envs.linear_features``, whose moments are taken as they are.
        every: steps between two looks; 0 looks at the end only.
        num: pairs of views.
        shown: features in metrics and notes.
        depth, scale: of the deep linear encoder and its start that times are predicted for.
        is_standardized: whether raw columns are scaled to variance 1. Changes lambda, never rho.
        max_dim: wider inputs and representations are left out, with a note.
        seed: of the pairs.
        name: of this evaluator in logs and files.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        num: int = 8192,
        shown: int = 5,
        depth: int = 4,
        scale: float = 0.2,
        is_standardized: bool = True,
        max_dim: int = 1024,
        seed: int = 0,
        name: str = "influence",
    ) -> None:
        if num < 2 or shown < 1 or depth < 1 or not 0 < scale < 1:
            raise ValueError(
                f"{name} needs num={num} of at least 2, shown={shown} and depth={depth} of at least 1, "
                f"and scale={scale} between 0 and 1"
            )
        self.source, self.every, self.num, self.shown, self.name, self.seed = source, every, num, shown, name, seed
        self.depth, self.scale, self.is_standardized, self.max_dim = depth, scale, is_standardized, max_dim

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Look at the data and the representations.

        Raises:
            ValueError: if there are no two views.
        """
        metrics: dict[str, float] = {}
        files: dict[str, bytes] = {}
        notes = [
            f"features by falling lambda; learning times of a linear encoder of depth {self.depth} that starts at "
            f"{self.scale:g} a layer, data scaled so that the largest lambda is 1 (updates x step size)"
        ]
        with judging(objective):
            findings, remarks, warnings = self.look(objective)
        for title, found in findings.items():
            table = {loss: self._times(loss, found.spectrum) for loss in LOSSES}
            order = {loss: ranks(times) for loss, times in table.items()}
            shown = _first(order, self.shown)
            metrics |= _metrics(title, found, table, order, shown)
            notes += _describe(title, found, order, shown)
            stem = title.replace("/", "_")
            files[f"{stem}.png"] = picture(title, found.spectrum, order, found.chance, shown)
            files[f"{stem}.json"] = _everything(found, table, order)
        warnings = [f"step {step}: {warning}" for warning in warnings]
        return pack(metrics, files=files, warnings=warnings, notes=notes + remarks)

    def look(self, objective: Objective) -> tuple[dict[str, Finding], list[str], list[str]]:
        """All findings by name, notes, and warnings."""
        findings, notes, warnings = {}, [], []
        for prefix, (part, source) in parts_of(objective, self.source).items():
            found = self._look(part, source, prefix)
            findings, notes, warnings = findings | found[0], notes + found[1], warnings + found[2]
        return findings, notes, warnings

    def _look(self, objective: Objective, source: Any, prefix: str) -> tuple[dict[str, Finding], list[str], list[str]]:
        if (OBSERVATION, MOMENTS) in source.spec.keys(True):
            return self._of_moments(source, prefix), [], []
        generator = Generator(device_of(objective)).manual_seed(self.seed)
        options = {"is_standardized": self.is_standardized, "max_dim": self.max_dim}
        views = draw_views(objective, source, self.num, generator, **options)
        raw = views.pairs.get(RAW)
        findings, notes, warnings = {}, [prefix + note for note in views.notes], list(views.warnings)
        for name, pairs in views.pairs.items():
            if bool((pairs.x == 0).all()):
                warnings.append(f"{prefix}{name} is left out: it does not vary")
            else:
                findings[prefix + name] = examine(pairs, raw, views.names)
        if not findings and not warnings:
            raise ValueError(
                f"{self.name} has nothing to compare: {'; '.join(notes) or 'no input and no representation'}"
            )
        return findings, notes, warnings

    def _of_moments(self, source: Any, prefix: str) -> dict[str, Finding]:
        moments = source.sample(1, 1, Generator().manual_seed(self.seed))[OBSERVATION, MOMENTS][0, 0]  # [P, 3, d, d]
        findings = {}
        for panel, (xx, yx, _) in zip(source.panels, moments, strict=True):
            spectrum = influence_spectrum(xx, yx)
            names = [f"feature {i}" for i in range(len(xx))]
            findings[f"{prefix}{panel}"] = Finding(spectrum, 0.0, spectrum.patterns, names)
        return findings

    def _times(self, loss: Any, spectrum: Spectrum) -> np.ndarray:
        lam, rho = spectrum.lam.cpu().numpy(), spectrum.rho.cpu().numpy()
        return learning_times(loss, lam, rho, depth=self.depth, scale=self.scale)


def examine(pairs: Pairs, raw: Pairs | None, names: Sequence[str]) -> Finding:
    """The spectrum of sampled pairs, and how each feature shows in the raw entries of x.

    Chance is the largest |rho| when x and y of neighbouring draws, which are independent, are paired.
    """
    x, y = pairs
    xx, yx = x.T @ x / len(x), y.T @ x / len(x)
    spectrum = influence_spectrum(xx, yx, sampled=Sampled(y.T @ y / len(x), len(x)))
    wrong = influence_spectrum(xx, y.roll(1, 0).T @ x / len(x))
    shown = None
    if raw is not None:
        shown = raw.x.T @ (x @ spectrum.filters)  # [F, k]
        shown = shown / shown.norm(dim=0).clamp_min(torch.finfo(shown.dtype).tiny)
    return Finding(spectrum, float(wrong.rho.abs().max()), shown, names)


def _first(order: dict[str, list[int | None]], num: int) -> list[int]:
    """The ``num`` features that come first in either order, without those never learned; at least one."""
    places = zip(*order.values(), strict=True)
    best = [min((rank for rank in ranked if rank is not None), default=math.inf) for ranked in places]
    learned = [i for i, rank in enumerate(best) if rank < math.inf] or [0]
    return sorted(sorted(learned, key=lambda i: (best[i], i))[:num])


def _metrics(
    title: str,
    found: Finding,
    table: dict[str, np.ndarray],
    order: dict[str, list[int | None]],
    shown: Sequence[int],
) -> dict[str, float]:
    spectrum = found.spectrum
    metrics: dict[str, Any] = {
        f"{title}/features": len(spectrum.rho),
        f"{title}/dropped": spectrum.num_dropped,
        f"{title}/asymmetry": spectrum.asymmetry,
        f"{title}/chance": found.chance,
        f"{title}/above_chance": int((spectrum.rho > found.chance).sum()),
    }
    for i in shown:
        row = f"{title}.{i + 1}"
        metrics |= {f"{row}/lambda": float(spectrum.lam[i]), f"{row}/rho": float(spectrum.rho[i])}
        metrics[f"{row}/variance"] = float(spectrum.variance[i])
        metrics |= {f"{row}/{loss}_time": float(table[loss][i]) for loss in LOSSES}
        places = {loss: order[loss][i] for loss in LOSSES}
        metrics |= {f"{row}/{loss}_rank": place for loss, place in places.items() if place is not None}
    return {name: float(value) for name, value in metrics.items()}


def _describe(title: str, found: Finding, order: dict[str, list[int | None]], shown: Sequence[int]) -> list[str]:
    spectrum = found.spectrum
    above = int((spectrum.rho > found.chance).sum())
    angle = float(torch.linalg.cond(spectrum.patterns[:, shown]))
    dropped = f", {spectrum.num_dropped} directions without variance dropped" if spectrum.num_dropped else ""
    lines = [
        f"{title}: {len(spectrum.rho)} features{dropped}; rho of {above} is above chance ({found.chance:.2g}); "
        f"asymmetry {spectrum.asymmetry:.2g}; condition of the patterns below {angle:.3g} (at 1 the theory is exact)"
    ]
    for i in shown:
        jepa, mae = (f"{order[loss][i]}." if order[loss][i] else "never" for loss in LOSSES)
        line = f"{title}.{i + 1}: JEPA {jepa}, MAE {mae}; {_entries(found, i)}"
        lines.append(line + ("" if spectrum.rho[i] > found.chance else " (not above chance)"))
    return [" ".join(line.split()) for line in lines]


def _entries(found: Finding, index: int) -> str:
    """The raw entries that a feature shows in most, with their weights."""
    if found.raw is None or not found.names:
        return "no named entries"
    weights = found.raw[:, index]
    top = weights.abs().topk(min(_NAMED, len(weights))).indices.tolist()
    return ", ".join(f"{found.names[j]} {float(weights[j]):+.2f}" for j in top)


def _everything(found: Finding, table: dict[str, np.ndarray], order: dict[str, list[int | None]]) -> bytes:
    spectrum = found.spectrum
    content: dict[str, Any] = {
        "lambda": spectrum.lam.tolist(),
        "rho": spectrum.rho.tolist(),
        "variance": spectrum.variance.tolist(),
        **{f"{loss}_time": [t if math.isfinite(t) else None for t in table[loss].tolist()] for loss in LOSSES},
        **{f"{loss}_rank": order[loss] for loss in LOSSES},
        "dropped": spectrum.num_dropped,
        "asymmetry": spectrum.asymmetry,
        "chance": found.chance,
        "entries": list(found.names) if found.raw is not None else [],
        "weights": found.raw.T.tolist() if found.raw is not None else [],  # [k, F]
    }
    return json.dumps(content).encode()
