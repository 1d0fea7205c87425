"""How much of every label of a clip can be read off frozen tokens: attentive, linear and nearest-neighbour probes.

Averaging the tokens hides what single ones know: an attentive probe is worth 16 to 17 points on Kinetics and
Something-Something (V-JEPA; sheet salt_video, section 2). Probes are chosen on validation clips and judged on others,
where the published protocol reports the best of 20 on the clips that it was chosen by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodels.core import Objective
from worldmodels.evals.attentive_probe import AttentiveProbe
from worldmodels.evals.clip_tokens import CLIPS, Tokens, clip_grid, encoded, encoded_pixels, require_clips
from worldmodels.evals.knn import nearest, votes, weighted_means
from worldmodels.evals.probes import fit_probe
from worldmodels.evals.regression import r2_scores
from worldmodels.evals.results import device_of, judging, pack

PARTS = ("train", "val", "test")
RANKS = (1, 5)  # of retrieval


class Clips(NamedTuple):
    """A labelled part as a representation has it."""

    tokens: Tokens
    labels: dict[str, Tensor]  # [N] each: int64 classes, -1 where there is none; float32, NaN where there is none


class ClipProbe:
    """Probes of all labels on every representation that ``embed_tokens`` gives, on the same clips every time.

    Metrics of test clips, "<representation>/<label>/<what>". Scores are accuracy for classes and R2 for numbers:

    * "attentive", by the setting that is best on validation clips, with "attentive_val", its score there, and the
      choice, "attentive_lr" and "attentive_weight_decay".
    * "linear", on the mean token: logistic or ridge regression, its penalty chosen by the validation loss; and
      "linear_val".
    * "knn", on the mean token: the nearest training clips vote by cosine, see ``knn.NearestNeighbours``.
    * "recall_1", "recall_5", of classes: share of clips whose nearest 1 or 5 training clips have one of their class.

    The representation "raw" is the control: the pixels of the encoder's cuboids. "chance/<label>" is what the commonest
    training class reaches ("accuracy"), and recalls of random clips. The untrained network is the row of step 0. Labels
    that a part has no clips of are left out and noted.

    Args:
        source: with ``part(name, num)`` and ``label_classes``.
        every: steps between two probes; 0 probes at the end only.
        num_train, num_val, num_test: clips of each part.
        attentive: what trains attentive probes.
        penalties: of linear probes, see ``LinearProbe``.
        k, temperature: of nearest neighbours.
        raw_side: side that a cuboid's pixels are averaged down to for "raw"; null leaves that row out.
        labels: to be probed; null takes all.
        chunk: clips encoded at a time.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no labelled clips, or settings make no sense.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        num_train: int = 2000,
        num_val: int = 500,
        num_test: int = 1000,
        attentive: AttentiveProbe | None = None,
        penalties: Sequence[int | float] = (1e-4, 1e-3, 1e-2, 1e-1),
        k: int = 20,
        temperature: int | float = 0.07,
        raw_side: int | None = 4,
        labels: Sequence[str] | None = None,
        chunk: int = CLIPS,
        name: str = "clip_probe",
    ) -> None:
        require_clips(source, name)
        if min(num_train, num_val, num_test) < 2 or k < 1 or temperature <= 0 or (raw_side or 1) < 1:
            raise ValueError(
                f"{name}: num_train={num_train}, num_val={num_val}, num_test={num_test} must be at least 2, k={k} and "
                f"raw_side={raw_side} at least 1, temperature={temperature} above 0"
            )
        self.source, self.every, self.name, self.chunk = source, every, name, chunk
        self.num = dict(zip(PARTS, (num_train, num_val, num_test), strict=True))
        self.attentive, self.penalties = attentive or AttentiveProbe(), tuple(map(float, penalties))
        self.k, self.temperature, self.raw_side, self.labels = k, float(temperature), raw_side, labels
        self._controls: dict[str, float] | None = None
        self._notes: list[str] = []

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Probe now."""
        grid = clip_grid(objective, self.name)
        is_first, device = self._controls is None, device_of(objective)
        found: dict[str, list[Clips]] = {}
        with judging(objective):
            for part in PARTS:
                obs, target = self.source.part(part, self.num[part])
                labels = {str(name): label.to(device) for name, label in target.items()}
                rows = encoded(objective, obs, self.chunk)
                if is_first and self.raw_side is not None:
                    rows["raw"] = encoded_pixels(objective, obs, grid, side=self.raw_side, chunk=self.chunk)
                for name, tokens in rows.items():
                    found.setdefault(name, []).append(Clips(tokens, labels))
                del obs, rows
            num_classes = self._probed(next(iter(found.values())))
            metrics = {
                f"{name}/{key}": value
                for name, parts in found.items()
                for key, value in self.probe(parts, num_classes).items()
            }
        if self._controls is None:
            self._controls = {key: value for key, value in metrics.items() if key.startswith("raw/")}
            self._controls |= chance(next(iter(found.values())), num_classes)
        return pack(metrics | self._controls, notes=self._notes)

    def _probed(self, parts: Sequence[Clips]) -> dict[str, int]:
        """Labels that every part has, and how many classes; 0 for numbers.

        Raises:
            ValueError: for a label that does not exist, or if no label is left.
        """
        have = parts[0].labels
        if unknown := sorted(set(self.labels or ()) - set(have)):
            raise ValueError(f"{self.name}: labels={unknown}: the clips have {', '.join(sorted(have))}")
        wanted = sorted(have if self.labels is None else set(self.labels))
        is_there = {name: all(bool(is_known(part.labels[name]).any()) for part in parts) for name in wanted}
        self._notes = [f"no clip of a part has the label {name}: left out" for name in wanted if not is_there[name]]
        if not any(is_there.values()):
            raise ValueError(f"{self.name}: none of {wanted} is in every part of {type(self.source).__name__}")
        classes: Mapping[str, Sequence[str]] = self.source.label_classes
        return {name: 0 if have[name].is_floating_point() else len(classes[name]) for name in wanted if is_there[name]}

    def probe(self, parts: Sequence[Clips], num_classes: Mapping[str, int]) -> dict[str, float]:
        """All scores of one representation: parts are "train", "val" and "test"."""
        fitted = self.attentive(
            [part.tokens.normalized for part in parts[:2]], [part.labels for part in parts[:2]], num_classes
        )
        answers, metrics = fitted.predict(parts[2].tokens.normalized), {}
        for name, num in num_classes.items():
            known = [is_known(part.labels[name]) for part in parts]
            features = [part.tokens.mean[rows] for part, rows in zip(parts, known, strict=True)]
            targets = [part.labels[name][rows] for part, rows in zip(parts, known, strict=True)]
            linear = fit_probe(features[:2], targets[:2], num_classes=num, penalties=self.penalties)
            found = {
                "attentive": score(answers[name][known[2]], targets[2]),
                "attentive_val": fitted.score[name],
                "attentive_lr": fitted.lr[name],
                "attentive_weight_decay": fitted.weight_decay[name],
                "linear": score(decided(linear(features[2]), num), targets[2]),
                "linear_val": score(decided(linear(features[1]), num), targets[1]),
            }
            found |= self.neighbours(features[0], targets[0], features[2], targets[2], num)
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
        return metrics

    def neighbours(
        self, bank: Tensor, known: Tensor, queries: Tensor, target: Tensor, num_classes: int
    ) -> dict[str, float]:
        """Scores of nearest neighbours, and recalls of classes, of clips [M, D] among labelled ones [N, D]."""
        options = {"k": self.k, "temperature": self.temperature}
        if not num_classes:
            return {"knn": score(weighted_means(bank, known, queries, **options), target)}
        found = {"knn": score(votes(bank, known, queries, num_classes=num_classes, **options).argmax(1), target)}
        is_same = known[nearest(bank, queries, max(RANKS))[1]] == target[:, None]
        return found | {f"recall_{rank}": float(is_same[:, :rank].any(1).double().mean()) for rank in RANKS}


def is_known(label: Tensor) -> Tensor:
    """Which clips [N] have a label."""
    return label.isfinite() if label.is_floating_point() else label >= 0


def decided(output: Tensor, num_classes: int) -> Tensor:
    """The likeliest class of logits [M, C]; numbers [M] as they are."""
    return output.argmax(-1) if num_classes else output


def score(predicted: Tensor, target: Tensor) -> float:
    """Accuracy of classes [M]; R2 of numbers [M]."""
    if target.is_floating_point():
        return float(r2_scores(predicted[:, None], target[:, None]))
    return float((predicted == target).double().mean())


def chance(parts: Sequence[Clips], num_classes: Mapping[str, int]) -> dict[str, float]:
    """What knowing the training labels alone gives on test clips: the commonest class, and recalls of random clips."""
    found = {}
    for name, num in num_classes.items():
        if not num:
            continue  # the mean has R2 0
        train, test = (part.labels[name][is_known(part.labels[name])] for part in (parts[0], parts[2]))
        share = torch.bincount(train, minlength=num).double() / len(train)
        found[f"chance/{name}/accuracy"] = float((test == share.argmax()).double().mean())
        for rank in RANKS:
            found[f"chance/{name}/recall_{rank}"] = float((1 - (1 - share[test]) ** rank).mean())
    return {key: value for key, value in found.items() if not math.isnan(value)}
