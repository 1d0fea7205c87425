"""How well an objective predicts labels, on the parts of a source that it did not train on."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodels.core import Objective
from worldmodels.evals.probes import CHUNK, classification_metrics
from worldmodels.evals.results import judging, pack


@runtime_checkable
class Predicts(Protocol):
    """Predicts a label."""

    def predict(self, obs: TensorDict) -> Tensor:
        """Probabilities [B, C] of the classes, or the label [B] in its unit."""
        ...


class LabelScore:
    """Accuracy and macro-F1, or RMSE in the label's unit, on val and test.

    "score", to keep the best by, is val accuracy or minus val RMSE.

    Args:
        source: with ``part(name)``, ``task`` and ``num_classes``.
        every: steps between two looks; 0 looks at the end only.
        name: of this evaluator in logs and files.
    """

    def __init__(self, *, source: Any, every: int, name: str = "labels") -> None:
        if not hasattr(source, "part"):
            raise ValueError(f"{name} needs labelled parts; {type(source).__name__} has none. Use env=tables")
        self.source, self.every, self.name = source, every, name

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Predict all rows of val and test."""
        if not isinstance(objective, Predicts):
            raise ValueError(
                f"{self.name} needs an objective that predicts labels; {type(objective).__name__} does not"
            )
        metrics: dict[str, float] = {}
        with judging(objective):
            for name in ("val", "test"):
                part = self.source.part(name)
                predicted = torch.cat([objective.predict(rows) for rows in part.obs.split(CHUNK)])
                if self.source.task == "classification":
                    found = classification_metrics(predicted.argmax(-1), part.target, self.source.num_classes)
                else:
                    found = {"rmse": float((predicted - part.target).square().mean().sqrt())}
                metrics |= {f"{name}/{key}": value for key, value in found.items()}
        metrics["score"] = metrics.get("val/accuracy", -metrics.get("val/rmse", 0.0))
        return pack(metrics)
