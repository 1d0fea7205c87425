"""What representations of views know: the class, from one view or several, and how views were made.

Accuracy grows with views for any encoder whose latents are averaged, and an untrained network reads transformations
well: the mean over the same views, raw pixels and step 0 stand beside every number (sheet seq_jepa, section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite

from worldmodels.core import Encoder, Objective, Views
from worldmodels.evals.probes import classification_metrics, fit_probe
from worldmodels.evals.regression import Regressor, r2_metrics
from worldmodels.evals.results import device_of, judging, pack
from worldmodels.evals.view_sequences import (
    PARTS,
    Aggregates,
    ViewSequences,
    first_views,
    labels_of,
    latents,
    single_views,
)
from worldmodels.keys import POOLED


class ViewProbe:
    """Top-1 of single views, of means and of aggregates of several; R2 of relative and absolute transformations.

    Metrics, all on test sequences:

    * "view/accuracy" of the first view's latent; "aggregate_M/accuracy", where the objective has ``aggregate``, of M
      views, and "aggregate_M_no_actions/accuracy", the same with the actions between them embedded as zeros;
      "mean_M/accuracy", the mean latent of the same M views; "raw/accuracy", one view's pixels; "majority/accuracy",
      the commonest class. None of them where no class of test occurs in training, as when labels are objects and parts
      have different ones.
    * "relative/r2" of the action that leads from view 1 to 2, from both latents side by side; "absolute/r2" of how the
      first view was made from its latent; "raw_relative/r2" and "raw_absolute/r2" from pixels. Each is the mean over
      outputs that vary, and "relative/r2_0", ... are single outputs.

    A sequence has one view more than the longest aggregate, so that views 1 to M are made as in training, where the
    last view is the predicted one and may be made otherwise. If all M are 1, views 1 and 2 differ in this way.

    Args:
        source: with ``split(name)`` and ``num_classes`` (``envs.images``, ``envs.rendered_objects``).
        every: steps between two probes; 0 probes at the end only.
        views: factory of the sequences, ``views(spec, num_views=...)``.
        raw: factory of an encoder without weights, the control.
        regressor: of transformations, see ``evals.regression``.
        lengths: views aggregated, M; they may exceed those of training.
        entry: of what the objective's ``embed`` gives, the latent of a view.
        num_train, num_test: sequences to fit on, and to choose and to judge on.
        batch_size: sequences at a time.
        penalties: of the classifier, see ``LinearProbe``.
        seed: of the sequences.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no splits or no classes, or the views cannot be compared.

    Source: seq-JEPA (arXiv 2505.03176), sheet section 1.6. Differs: the classifier is fitted to convergence, its
    penalty chosen on validation sequences.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        views: Callable[..., Views] | None,
        raw: Callable[[Composite], Encoder],
        regressor: Regressor,
        lengths: Sequence[int] = (1, 3, 5),
        entry: str = "view",
        num_train: int = 2000,
        num_test: int = 1000,
        batch_size: int = 64,
        penalties: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        seed: int = 0,
        name: str = "view_probe",
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"{name}: lengths={list(lengths)} must be lengths of at least 1")
        if not getattr(source, "num_classes", 0):
            raise ValueError(
                f"{name} needs classes, and {type(source).__name__} has none here: put each class into a folder of its "
                f"own, or set eval.{name}=null"
            )
        self.lengths = tuple(sorted(set(lengths)))
        sizes = {"num_train": num_train, "num_test": num_test, "batch_size": batch_size}
        self.sequences = ViewSequences(source, views, num=self.lengths[-1] + 1, seed=seed, name=name, **sizes)
        self.every, self.name, self.regressor, self.entry = every, name, regressor, entry
        self.num_classes, self.penalties = source.num_classes, tuple(penalties)
        self.flat = raw(self.sequences.views.spec)
        self._controls: dict[str, float] | None = None

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Embed the sequences and probe them."""
        device = device_of(objective)
        with judging(objective):
            rows = [self.sequences.read(part, device, lambda b: self.represent(objective, b)) for part in PARTS]
            metrics: dict[str, float] = {}
            for key in sorted(rows[0]):
                if key.partition("_")[0] in ("view", "mean", "aggregate"):
                    metrics |= self.accuracy(rows, key)
            metrics |= self.regress(rows, "pair", "relative") | self.regress(rows, "view", "absolute")
            if self._controls is None:
                self._controls = self.controls(device)
        return pack(metrics | self._controls)

    def represent(self, objective: Objective, batch: TensorDict) -> dict[str, Tensor]:
        """Representations and targets of a batch of sequences."""
        latent = latents(objective, batch, self.entry, self.name)  # [B, V, D]
        found = {"view": latent[:, 0], "pair": latent[:, :2].flatten(1), **self.targets(batch)}
        for num in self.lengths:
            if num > 1:
                found[f"mean_{num}"] = latent[:, :num].mean(1)
            if isinstance(objective, Aggregates):
                seen = first_views(batch, num, latent)
                found[f"aggregate_{num}"] = objective.aggregate(seen).float()
                if num > 1:
                    found[f"aggregate_{num}_no_actions"] = objective.aggregate(seen, has_actions=False).float()
        return found

    def targets(self, batch: TensorDict) -> dict[str, Tensor]:
        """What is to be read: the class [B], the way from view 1 to 2 and the first view's transformation [B, A]."""
        relative, absolute = self.sequences.between(batch, 0, 1), self.sequences.absolute(batch, 0)
        return {"label": labels_of(batch), "relative": relative, "absolute": absolute}

    def controls(self, device: torch.device) -> dict[str, float]:
        """The same from raw pixels, and the commonest class; the same at every evaluation."""

        def represent(batch: TensorDict) -> dict[str, Tensor]:
            pixels = self.flat(single_views(first_views(batch, 2)))[POOLED].unflatten(0, (-1, 2))  # [B, 2, F]
            return {"view": pixels[:, 0], "pair": pixels.flatten(1), **self.targets(batch)}

        rows = [self.sequences.read(part, device, represent) for part in PARTS]
        commonest = rows[0]["label"].bincount(minlength=self.num_classes).argmax()
        found = {key.replace("view", "raw"): value for key, value in self.accuracy(rows, "view").items()}
        if found:
            found["majority/accuracy"] = float((rows[2]["label"] == commonest).double().mean())
        relative, absolute = self.regress(rows, "pair", "relative"), self.regress(rows, "view", "absolute")
        return found | {f"raw_{key}": value for key, value in (relative | absolute).items()}

    def accuracy(self, rows: Sequence[dict[str, Tensor]], key: str) -> dict[str, float]:
        """Top-1 of a linear classifier on a representation: fitted on train, chosen on val, judged on test."""
        features, labels = [row[key] for row in rows], [row["label"] for row in rows]
        if not bool(torch.isin(labels[2], labels[0]).any()):  # other objects, and labels are objects
            return {}
        predict = fit_probe(features[:2], labels[:2], num_classes=self.num_classes, penalties=self.penalties)
        found = classification_metrics(predict(features[2]).argmax(-1), labels[2], self.num_classes)
        return {f"{key}/accuracy": found["accuracy"]}

    def regress(self, rows: Sequence[dict[str, Tensor]], key: str, target: str) -> dict[str, float]:
        """R2 of a target from a representation."""
        predict = self.regressor([row[key] for row in rows[:2]], [row[target] for row in rows[:2]])
        found = r2_metrics(predict(rows[2][key]), rows[2][target])
        return {f"{target}/{name}": value for name, value in found.items()}
