"""How well an objective predicts labels, on the parts of a source that it did not train on."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from tensordict import TensorDict
from torch import Tensor

from worldmodels.core import Objective
from worldmodels.evals.probes import judged
from worldmodels.evals.results import in_chunks, judging, pack, require_parts


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
        source: with ``part(name)`` and ``num_classes``, 0 for regression.
        every: steps between two looks; 0 looks at the end only.
        name: of this evaluator in logs and files.
    """

    def __init__(self, *, source: Any, every: int, name: str = "labels") -> None:
        require_parts(source, name)
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
                predicted = in_chunks(objective.predict, part.obs)
                found = judged(predicted, part.target, num_classes=self.source.num_classes)
                metrics |= {f"{name}/{key}": value for key, value in found.items()}
        metrics["score"] = metrics.get("val/accuracy", -metrics.get("val/rmse", 0.0))
        return pack(metrics)
