"""Linear segmentation of frozen patches: does a patch know what it shows, also where objects meet?

Scenes leak position: on CamVid the commonest class at each place, without any picture, reaches 63 % of patches (sheet
dmt_jepa, section 6). Random crops weaken that, and the position-only row says what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F

from worldmodels.core import Objective
from worldmodels.evals.dense_patches import (
    Crops,
    cut_crops,
    patch_features,
    picture_size,
    raw_patches,
    require_dense,
    require_patches,
    score_patches,
)
from worldmodels.evals.probes import fit_probe
from worldmodels.evals.results import device_of, judging, pack

BORDER_PURITY = 0.9  # patches less pure than this lie where objects meet


class DenseProbe:
    """Linear classification of patches, and the contrast of their features within and between classes.

    Metrics on test crops, for "patches" (the objective's features), "raw" (a patch's own pixels) and "position" (the
    commonest class at that place of the grid):

    * "<row>/accuracy" of patches, "<row>/miou", the mean intersection over union of the classes that occur, and
      "<row>/border_accuracy", accuracy of patches of which a class has 50 to 90 % of the pixels.
    * "patches/same", "/different": mean cosine of patches of the same and of different classes inside a picture, and
      "/contrast", their difference; "raw/contrast" of pixels.

    A patch has the class of most of its pixels, if that is at least half of them; others are left out. The untrained
    encoder is the row of step 0.

    Args:
        source: with ``dense(name)`` of "train", "val", "test".
        every: steps between two probes; 0 probes at the end only.
        crop: least and greatest height of random crops, see ``dense_patches.cut_crops``; None takes whole pictures.
        num_crops: of each picture; only one without ``crop``.
        num_patches: most patches to fit on, chosen at random; as many to choose the penalty on. All are judged.
        penalties: see ``LinearProbe``.
        chunk: pictures encoded at a time.
        seed: of crops and patches.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no such pictures.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        crop: Sequence[float] | None = (0.3, 0.9),
        num_crops: int = 2,
        num_patches: int = 20_000,
        penalties: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2),
        chunk: int = 256,
        seed: int = 0,
        name: str = "dense_probe",
    ) -> None:
        require_dense(source, name)
        self.source, self.every, self.name, self.crop, self.num_crops = source, every, name, crop, num_crops
        self.num_patches, self.penalties, self.chunk, self.seed = num_patches, tuple(penalties), chunk, seed
        self._crops: dict[str, Crops] = {}
        self._made_for: tuple[tuple[int, int], tuple[int, int]] | None = None
        self._controls: dict[str, float] = {}
        self.num_classes = 0

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Probe the patches."""
        grid = require_patches(objective, self.name)
        self._prepare(picture_size(objective, self.source), grid, device_of(objective))
        with judging(objective):
            features = {name: patch_features(objective, c.obs, self.chunk) for name, c in self._crops.items()}
        found = self.judge(features) | object_contrast(features["test"], self._crops["test"])
        return pack({f"patches/{key}": value for key, value in found.items()} | self._controls)

    def judge(self, features: dict[str, Tensor]) -> dict[str, float]:
        """Scores of a linear probe on features [N, H W, D] of each part."""
        rows = {name: features[name][crops.is_valid] for name, crops in self._crops.items()}  # [P, D]
        labels = {name: crops.label[crops.is_valid] for name, crops in self._crops.items()}
        picked = [self._some(len(labels[name])).to(labels[name].device) for name in ("train", "val")]
        fitted = zip(("train", "val"), picked, strict=True)
        x, y = zip(*[(rows[name][index], labels[name][index]) for name, index in fitted], strict=True)
        predict = fit_probe(x, y, num_classes=self.num_classes, penalties=self.penalties)
        return self._scores(predict(rows["test"]).argmax(-1))

    def _scores(self, predicted: Tensor) -> dict[str, float]:
        """Scores of the classes predicted for the valid patches of test [P]."""
        crops = self._crops["test"]
        label, purity = crops.label[crops.is_valid], crops.purity[crops.is_valid]
        found = score_patches(predicted, label, self.num_classes)
        is_border = purity <= BORDER_PURITY
        if bool(is_border.any()):
            found["border_accuracy"] = float((predicted == label)[is_border].double().mean())
        return found

    def _prepare(self, size: tuple[int, int], grid: tuple[int, int], device: torch.device) -> None:
        """Cut the crops and score the controls, once for an encoder's size and grid."""
        if self._made_for == (size, grid):
            return
        for index, name in enumerate(("train", "val", "test")):
            dense, seed = self.source.dense(name), self.seed + index
            crops = cut_crops(dense, size=size, grid=grid, crop=self.crop, num=self.num_crops, seed=seed)
            self._crops[name] = crops.to(device)
            self.num_classes = dense.num_classes
        raw = {name: raw_patches(crops.obs["pixels"], grid) for name, crops in self._crops.items()}
        found = {"raw": self.judge(raw), "position": self._scores(self._by_position())}
        found["raw"]["contrast"] = object_contrast(raw["test"], self._crops["test"])["contrast"]
        self._controls = {f"{row}/{key}": v for row, scores in found.items() for key, v in scores.items()}
        self._made_for = (size, grid)

    def _by_position(self) -> Tensor:
        """The commonest training class at the place of every valid patch of test [P]."""
        train, test = self._crops["train"], self._crops["test"]
        votes = F.one_hot(train.label, self.num_classes) * train.is_valid[..., None]  # [N, H W, C]
        at_place = votes.sum(0) + votes.sum((0, 1)) / (votes.sum() + 1)  # the commonest of all where there is none
        return at_place.argmax(-1).expand(len(test.label), -1)[test.is_valid]

    def _some(self, num: int) -> Tensor:
        return torch.randperm(num, generator=Generator().manual_seed(self.seed))[: self.num_patches]


def object_contrast(features: Tensor, crops: Crops) -> dict[str, float]:
    """Mean cosine of pairs of patches of one class ("same") and of two ("different") inside a picture, and "contrast".

    Args:
        features: [N, H W, D]; crops: their labels. Pictures are weighted by their pairs; those of a single class have
            none of the second kind.
    """
    unit, sums, counts = F.normalize(features, dim=-1), [0.0, 0.0], [0, 0]
    for rows, label, is_valid in zip(unit.split(64), crops.label.split(64), crops.is_valid.split(64), strict=True):
        cosine = rows @ rows.mT  # [n, H W, H W]
        is_pair = is_valid[:, :, None] & is_valid[:, None, :]
        is_pair &= ~torch.eye(label.shape[1], dtype=torch.bool, device=label.device)
        is_same = label[:, :, None] == label[:, None, :]
        for i, chosen in enumerate((is_pair & is_same, is_pair & ~is_same)):
            sums[i] += float((cosine * chosen).sum(dtype=torch.float64))
            counts[i] += int(chosen.sum())
    same, different = (total / count if count else float("nan") for total, count in zip(sums, counts, strict=True))
    return {"same": same, "different": different, "contrast": same - different}
