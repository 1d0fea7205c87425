"""Classification by nearest neighbours: the classes of the most similar training pictures vote. Nothing is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodels.evals.probes import LabelProbe, classification_metrics

MOST_PRODUCTS = 2**24  # similarities held at a time: 64 MiB


class NearestNeighbours(LabelProbe):
    """Weighted k nearest neighbours by cosine.

    A neighbour of cosine s votes for its class with weight exp(s / temperature). Metrics: "<representation>/accuracy"
    and "/macro_f1" on test rows, "/val_accuracy" on validation rows. The untrained network is the row of step 0.

    Args:
        k: neighbours that vote; all training rows if there are fewer.
        temperature: of the votes.
        options: see ``LabelProbe``.

    Raises:
        ValueError: if the source has no labelled parts or no classes.

    Source: Wu et al., CVPR 2018 (arXiv 1805.01978), section 3.4, whose temperature 0.07 this is; k = 20 as Caron et
    al., DINO (arXiv 2104.14294), found best, instead of 200.
    """

    def __init__(self, *, k: int = 20, temperature: float = 0.07, name: str = "knn", **options: Any) -> None:
        super().__init__(name=name, **options)
        if not self.source.num_classes:
            raise ValueError(
                f"{name} votes for classes, and {type(self.source).__name__} has none here. Without labels switch off "
                f"what asks for them: eval.{name}=null eval.probe=null; labels that are numbers are for eval.probe"
            )
        if k < 1 or not temperature > 0:
            raise ValueError(f"{name}: k={k} must be at least 1 and temperature={temperature} above 0")
        self.k, self.temperature = k, temperature

    def judge(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, float]:
        """Neighbours from the first part, judged on the second and the third."""
        num_classes = self.source.num_classes
        options = {"k": self.k, "temperature": self.temperature, "num_classes": num_classes}
        val, test = (votes(features[0], targets[0], rows, **options).argmax(-1) for rows in features[1:])
        found = classification_metrics(test, targets[2], num_classes)
        return found | {"val_accuracy": classification_metrics(val, targets[1], num_classes)["accuracy"]}


def votes(features: Tensor, target: Tensor, queries: Tensor, *, k: int, temperature: float, num_classes: int) -> Tensor:
    """Votes [M, C] of the k rows of ``features`` [N, D] nearest to each of ``queries`` [M, D] by cosine.

    Args:
        features, target: labelled rows, classes int64 [N]; queries: to be classified.
        k, temperature: see ``NearestNeighbours``. The largest vote a neighbour can give is 1.
    """
    cosine, index = nearest(features, queries, k)
    weight = ((cosine - 1) / temperature).exp()
    return torch.zeros(len(queries), num_classes, device=queries.device).scatter_add_(1, target[index], weight)


def weighted_means(features: Tensor, target: Tensor, queries: Tensor, *, k: int, temperature: float) -> Tensor:
    """Mean [M] of the numbers ``target`` [N] of the k nearest rows, weighted as ``votes`` are."""
    cosine, index = nearest(features, queries, k)
    return ((cosine / temperature).softmax(1) * target[index]).sum(1)


def nearest(features: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and indices int64 [M, k] of the k rows of ``features`` [N, D] nearest to ``queries`` [M, D], best first.

    If there are fewer rows than k, all of them.
    """
    bank, queries = F.normalize(features.float(), dim=-1), F.normalize(queries.float(), dim=-1)
    k, size = min(k, len(bank)), max(1, MOST_PRODUCTS // len(bank))
    found = [(rows @ bank.T).topk(k) for rows in queries.split(size)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])
