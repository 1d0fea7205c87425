"""Pictures with a class for every pixel, as patches of an encoder's grid: crops, labels and purity of patches, mIoU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F

from perception.resample import resized
from worldmodels.core import Objective
from worldmodels.evals.probes import confusion
from worldmodels.evals.results import in_chunks
from worldmodels.keys import OBSERVATION, PIXELS

MIN_PURITY = 0.5  # share of a patch's pixels that its class must have
RAW_SIDE = 8  # raw pixels of a patch are averaged down to this side


@runtime_checkable
class Patches(Protocol):
    """Sees a picture as features on a grid, ``objective.encoder.grid``."""

    def patches(self, obs: TensorDict) -> Tensor:
        """Features [B, H W, D] of pictures [B], row by row."""
        ...


class Crops(NamedTuple):
    """Pictures of an encoder's size with labels of their patches, row by row."""

    obs: TensorDict  # [N], "pixels" uint8 [N, 3, S, S]
    shares: Tensor  # float32 [N, H W, C], of a patch's pixels that each class has; the rest is ignored
    label: Tensor  # int64 [N, H W], the commonest class
    purity: Tensor  # float32 [N, H W], its share

    def to(self, device: torch.device) -> Crops:
        """The same on a device."""
        return Crops(*(part.to(device) for part in self))

    @property
    def is_valid(self) -> Tensor:
        """Whether a patch [N, H W] has a class: at least half of its pixels."""
        return self.purity >= MIN_PURITY


def require_patches(objective: Objective, name: str) -> tuple[int, int]:
    """The grid of an objective that sees patches.

    Raises:
        ValueError: if it does not, or its encoder has no grid.
    """
    grid = getattr(getattr(objective, "encoder", None), "grid", ())
    if not isinstance(objective, Patches) or len(grid) != 2:
        raise ValueError(
            f"{name} needs an objective with patches(obs) on a grid (H, W); {type(objective).__name__} has none. "
            "Use objective=i_jepa or =dmt_jepa"
        )
    return grid[0], grid[1]


def require_dense(source: Any, name: str) -> None:
    """Raise a ValueError in the words of ``name`` if the source has no pictures with a class for every pixel."""
    if not hasattr(source, "dense"):
        raise ValueError(
            f"{name} needs pictures with a class for every pixel; {type(source).__name__} has no dense(name). "
            "Use env=images and an env.path in CamVid's layout: train and trainannot, val and valannot, ..."
        )


def picture_size(objective: Any, source: Any) -> tuple[int, int]:
    """Height and width of the pictures that the objective's encoder was built for: those of its views or the source."""
    spec = objective.make_views.spec if hasattr(objective, "make_views") else source.spec
    return tuple(spec[OBSERVATION, PIXELS].shape[-2:])


def cut_crops(
    dense: Any, *, size: tuple[int, int], grid: tuple[int, int], crop: Sequence[float] | None, num: int, seed: int
) -> Crops:
    """Cut random crops out of pictures and resize them to an encoder's size.

    Args:
        dense: "pixels" uint8 [N, 3, H, W], "labels" uint8 [N, H, W], ``num_classes`` and ``ignored``, a label.
        size: height and width that the encoder takes; grid: of its patches.
        crop: least and greatest height of a crop, as shares of the greatest rectangle of the encoder's proportions that
            fits in the picture; None takes the whole picture, whatever its proportions.
        num: crops of a picture; seed: of their sizes and places.

    Returns:
        N num crops, those of a picture next to each other. Pixels are resized bilinearly with antialiasing, labels by
        the nearest pixel.
    """
    count, height, width = dense.labels.shape
    if crop is None:
        if (height, width) == size:
            return label_patches(dense.pixels, dense.labels, grid, dense.num_classes, dense.ignored)
        boxes = torch.tensor([[0, 0, height, width]]).expand(count, 4)[:, None]
    else:
        boxes = random_boxes((height, width), size, crop, (count, num), seed)
    pictures, labels = [], []
    for pixels, classes, own in zip(dense.pixels, dense.labels, boxes.tolist(), strict=True):
        for top, left, tall, wide in own:
            at = (..., slice(top, top + tall), slice(left, left + wide))
            pictures.append(resized(pixels[at], size))
            labels.append(F.interpolate(classes[at][None, None].float(), size, mode="nearest-exact")[0, 0].byte())
    return label_patches(torch.stack(pictures), torch.stack(labels), grid, dense.num_classes, dense.ignored)


def random_boxes(
    of: tuple[int, int], size: tuple[int, int], crop: Sequence[float], num: tuple[int, int], seed: int
) -> Tensor:
    """Top, left, height and width int64 [N, num, 4] of crops with the proportions of ``size``, inside pictures ``of``.

    Raises:
        ValueError: if ``crop`` is no range within 0 and 1.
    """
    low, high = crop
    if not 0 < low <= high <= 1:
        raise ValueError(f"crop={list(crop)}: least and greatest share of the picture's height, above 0 and up to 1")
    generator = Generator().manual_seed(seed)
    draws = torch.rand(3, *num, generator=generator, dtype=torch.float64)
    fit = min(of[0] / size[0], of[1] / size[1])
    share = fit * (low + (high - low) * draws[0])  # crop pixels for one of the encoder's
    sides = [(share * side).round().clamp(1, most) for side, most in zip(size, of, strict=True)]
    places = [(draw * (most - side + 1)).floor() for draw, most, side in zip(draws[1:], of, sides, strict=True)]
    return torch.stack([*places, *sides], -1).long()


def label_patches(
    pixels: Tensor, labels: Tensor, grid: tuple[int, int], num_classes: int, ignored: int | None
) -> Crops:
    """Label the patches of pictures [N, 3, S, S] by their pixels' labels [N, S, S]: classes 0 to C - 1, or void."""
    height, width = labels.shape[1] // grid[0], labels.shape[2] // grid[1]
    cells = labels.unflatten(2, (grid[1], width)).unflatten(1, (grid[0], height))  # [N, H, P, W, P]
    shares = [(cells == c).float().mean((2, 4)).flatten(1) * (c != ignored) for c in range(num_classes)]
    share = torch.stack(shares, -1)  # [N, H W, C]
    purity, label = share.max(-1)
    return Crops(TensorDict({PIXELS: pixels}, [len(pixels)]), share, label, purity)


def raw_patches(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels of every patch [N, H W, 3 P P], 0 to 1, averaged down to at most ``RAW_SIDE`` a side."""
    height, width = pixels.shape[2] // grid[0], pixels.shape[3] // grid[1]
    size = (grid[0] * min(RAW_SIDE, height), grid[1] * min(RAW_SIDE, width))
    small = F.adaptive_avg_pool2d(pixels.float() / 255, size)
    cells = small.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))  # [N, 3, H, P, W, P]
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def patch_features(objective: Patches, obs: TensorDict, chunk: int) -> Tensor:
    """Features [N, H W, D] of pictures, ``chunk`` of them at a time."""
    return in_chunks(objective.patches, obs, chunk).float()


def segmentation_metrics(counts: Tensor) -> dict[str, float]:
    """Accuracy and mean intersection over union of the classes that occur, from ``probes.confusion`` [C, C]."""
    hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    occurring = union > 0
    return {
        "accuracy": float(hits.sum() / counts.sum()),
        "miou": float((hits[occurring] / union[occurring]).mean()),
    }


def score_patches(predicted: Tensor, target: Tensor, num_classes: int) -> dict[str, float]:
    """``segmentation_metrics`` of patches [N]."""
    return segmentation_metrics(confusion(predicted, target, num_classes))
