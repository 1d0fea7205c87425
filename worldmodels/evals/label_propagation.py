"""Label propagation: the first frame's classes are carried through a film by the similarity of patches alone."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from perception.resample import resized
from worldmodels.core import Objective
from worldmodels.evals.dense_patches import (
    label_patches,
    patch_features,
    picture_size,
    raw_patches,
    require_dense,
    require_patches,
    segmentation_metrics,
)
from worldmodels.evals.probes import confusion
from worldmodels.evals.results import device_of, judging, pack
from worldmodels.keys import PIXELS


class LabelPropagation:
    """mIoU and accuracy of pixels of all frames after the first, whose classes are known.

    Every patch takes the classes of the ``k`` most similar patches by cosine, weighted by a softmax, among the first
    frame and the ``num_context`` frames before it, no further than ``radius`` patches away. Classes are carried as
    shares of a patch's pixels and enlarged bilinearly to the size of the labels. Nothing is fitted.

    Metrics "<row>/miou" and "/accuracy" for "patches" (the objective's features), "raw" (a patch's own pixels), "copy"
    (the first frame's classes again) and "ceiling" (every frame's own classes in patches: the best there is at this
    grid). The untrained encoder is the row of step 0.

    Args:
        source: with ``dense(name)``, whose ``names`` [N], in order, tell films and frames apart, see ``films``.
        every: steps between two looks; 0 looks at the end only.
        part: "train", "val" or "test".
        length: frames of a clip; films are cut into as many whole clips as they have.
        k: neighbours a patch has; temperature: of their softmax.
        radius: greatest distance of a neighbour in rows and in columns of patches; None restricts nothing.
        num_context: frames before the present one that are looked at beside the first.
        chunk: pictures encoded at a time.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no such pictures, or their names do not say which frames follow each other.

    Source: the protocol on DAVIS of Jabri et al. (arXiv 2006.14613) with the values of Caron et al., DINO
    (arXiv 2104.14294): k 5, temperature 0.1, 7 frames, radius 12 at 8-pixel patches.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        part: str = "test",
        length: int = 6,
        k: int = 5,
        temperature: float = 0.1,
        radius: int | None = 3,
        num_context: int = 7,
        chunk: int = 256,
        name: str = "label_propagation",
    ) -> None:
        require_dense(source, name)
        if length < 2 or k < 1 or num_context < 1 or not temperature > 0:
            raise ValueError(
                f"{name}: length={length} must be at least 2, k={k} and num_context={num_context} at least 1, "
                f"temperature={temperature} above 0"
            )
        self.source, self.every, self.part, self.name = source, every, part, name
        self.length, self.k, self.temperature, self.radius = length, k, temperature, radius
        self.num_context, self.chunk = num_context, chunk
        self._dense: Any = None
        self._controls: dict[tuple[tuple[int, int], tuple[int, int]], dict[str, float]] = {}

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Propagate."""
        grid, size = require_patches(objective, self.name), picture_size(objective, self.source)
        if self._dense is None:  # reading takes longer than propagating
            self._dense = self.source.dense(self.part)
        dense, device = self._dense, device_of(objective)
        frames = clips_of(films(dense.names), self.length, self.name)  # [clips, T]
        pixels = resized(dense.pixels[frames.flatten()].to(device), size)
        labels = dense.labels[frames.flatten()].to(device)
        own_size = tuple(labels.shape[1:])
        classes = F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0]
        shares = label_patches(pixels, classes.byte(), grid, dense.num_classes, dense.ignored).shares
        shares = shares.unflatten(0, tuple(frames.shape))  # [clips, T, H W, C]
        target = labels.unflatten(0, tuple(frames.shape))[:, 1:].flatten(0, 1)

        def score(carried: Tensor) -> dict[str, float]:
            rows = carried[:, 1:].flatten(0, 1)
            return segmentation_metrics(pixel_confusion(rows, target, grid, own_size, dense.ignored))

        def carried(features: Tensor) -> Tensor:
            return self.propagate(features.unflatten(0, tuple(frames.shape)), shares[:, 0], grid)

        with judging(objective):
            obs = TensorDict({PIXELS: pixels}, [len(pixels)])
            found = score(carried(patch_features(objective, obs, self.chunk)))
        metrics = {f"patches/{key}": value for key, value in found.items()}
        if (size, grid) not in self._controls:
            rows = {
                "raw": carried(raw_patches(pixels, grid)),
                "copy": shares[:, :1].expand_as(shares),
                "ceiling": shares,
            }
            self._controls[size, grid] = {f"{row}/{k}": v for row, c in rows.items() for k, v in score(c).items()}
        return pack(metrics | self._controls[size, grid])

    def propagate(self, features: Tensor, first: Tensor, grid: tuple[int, int]) -> Tensor:
        """Shares of classes [clips, T, N, C], from features [clips, T, N, D] and the first frame's [clips, N, C]."""
        unit = F.normalize(features, dim=-1)
        is_near = near(grid, self.radius, features.device)  # [N, N]
        found = [first]
        for t in range(1, features.shape[1]):
            context = sorted({0, *range(max(0, t - self.num_context), t)})
            cosine = torch.einsum("bnd,btmd->bntm", unit[:, t], unit[:, context])
            cosine = cosine.masked_fill(~is_near[:, None], -torch.inf).flatten(2)  # [clips, N, t N]
            nearest = cosine.topk(min(self.k, cosine.shape[-1]))
            weight = (nearest.values / self.temperature).softmax(-1)  # out of reach: 0
            known = torch.stack([found[i] for i in context], 1).flatten(1, 2)  # [clips, t N, C]
            clip = torch.arange(len(known), device=known.device)[:, None, None]
            found.append((known[clip, nearest.indices] * weight[..., None]).sum(2))
        return torch.stack(found, 1)


def films(names: Sequence[str]) -> list[int]:
    """The film of each frame, by names that end in the number of the frame: "0001TP_006690", "bear/00012".

    A film ends where the rest of the name changes, or numbers do not rise, or leap by more than half as much again as
    they usually do in it.

    Raises:
        ValueError: if a name ends in no number.
    """
    found = [re.fullmatch(r"(.*?)(?:[_/. -][A-Za-z]?)?(\d+)", name) for name in names]
    if None in found:
        raise ValueError(f"frame {names[found.index(None)]} ends in no number: which frame follows it?")
    named = [(match[1], int(match[2])) for match in found if match is not None]
    steps: dict[str, list[int]] = {}
    for (film, number), (next_film, following) in itertools.pairwise(named):
        if film == next_film and following > number:
            steps.setdefault(film, []).append(following - number)
    films = [0][: len(named)]
    for (film, number), (next_film, following) in itertools.pairwise(named):
        usual = statistics.median(steps.get(film, [0]))
        goes_on = film == next_film and 0 < following - number <= 1.5 * usual
        films.append(films[-1] + (not goes_on))
    return films


def clips_of(sequence: Sequence[int], length: int, name: str) -> Tensor:
    """Numbers of frames [clips, length] that follow each other in one film.

    Args:
        sequence: the film of each frame, in order; name: the evaluator that asks.

    Raises:
        ValueError: if no film is that long.
    """
    clips: list[list[int]] = []
    start = 0
    for end in range(1, len(sequence) + 1):
        if end == len(sequence) or sequence[end] != sequence[start]:
            clips += [list(range(i, i + length)) for i in range(start, end - length + 1, length)]
            start = end
    if not clips:
        raise ValueError(f"{name}: no film has length={length} frames")
    return torch.tensor(clips)


def near(grid: tuple[int, int], radius: int | None, device: torch.device) -> Tensor:
    """Whether two patches [N, N] of a grid are at most ``radius`` rows and columns apart."""
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).to(device)  # [N, 2]
    distance = (places[:, None] - places[None]).abs().amax(-1)
    return distance <= (max(grid) if radius is None else radius)


def pixel_confusion(
    shares: Tensor, target: Tensor, grid: tuple[int, int], size: tuple[int, int], ignored: int | None
) -> Tensor:
    """Confusion [C, C] of pixels that are no void: shares of classes [N, H W, C], enlarged, and labels [N, *size]."""
    num_classes = shares.shape[-1]
    counts = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=shares.device)
    for part, labels in zip(shares.split(32), target.split(32), strict=True):
        maps = part.mT.unflatten(2, grid)  # [n, C, H, W]
        predicted = F.interpolate(maps, size, mode="bilinear", align_corners=False).argmax(1)
        is_valid = labels < num_classes
        if ignored is not None:
            is_valid &= labels != ignored
        counts += confusion(predicted[is_valid], labels[is_valid].long(), num_classes)
    return counts
