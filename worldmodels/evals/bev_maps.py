"""What an encoder makes of a scan: its map's three main directions of variation as colours, seen from above."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodels.core import Objective
from worldmodels.evals.results import judging, pack
from worldmodels.evals.scan_pictures import map_picture
from worldmodels.keys import OBSERVATION


@runtime_checkable
class Maps(Protocol):
    """Sees a scan as a map."""

    def bev(self, obs: TensorDict) -> Tensor:
        """Map [B, D, Y, X] of scans, zero where nothing is active."""
        ...


class BEVMaps:
    """Principal components of active cells of a few frames, fitted on all of them together.

    Equal colours are equal features; empty cells are white. Scalars: "explained", the share of variance in the three
    components, and "active", the share of cells that are not empty.

    Args:
        source: with ``frames(split)``.
        every: steps between two looks; 0 looks at the end only.
        num: frames.
        name: of this evaluator in logs and files.
    """

    def __init__(self, *, source: Any, every: int, split: str = "val", num: int = 3, name: str = "bev_map") -> None:
        self.frames = source.frames(split)
        self.every, self.num, self.name = every, min(num, len(self.frames)), name

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Draw the maps."""
        if not isinstance(objective, Maps):
            raise ValueError(f"{self.name} needs an objective with maps of scans; {type(objective).__name__} has none")
        with judging(objective):
            maps = objective.bev(next(self.frames.batches(self.num))[OBSERVATION][:, 0]).float()
        cells = maps.permute(0, 2, 3, 1)  # [B, Y, X, D]
        is_active = (cells != 0).any(-1)
        colors, explained = principal_colors(cells[is_active])
        picture = torch.ones(*is_active.shape, 3)
        picture[is_active.cpu()] = colors.cpu()
        encoder: Any = objective.encoder
        files = {
            f"frame_{name.replace('/', '_')}.png": map_picture(
                image.numpy(), low=encoder.low, high=encoder.high, title=f"frame {name}, step {step}"
            )
            for name, image in zip(self.frames.names, picture, strict=False)
        }
        return pack({"explained": explained, "active": float(is_active.float().mean())}, files=files)


def principal_colors(features: Tensor) -> tuple[Tensor, float]:
    """First three principal components of features [N, D], each spread over 0..1 by its 2nd and 98th percentile.

    Returns:
        [N, 3] and the share of variance they hold, 0 where there is none. Signs are fixed so that the largest weight is
        positive.
    """
    if not len(features):  # scans without a point in range, or an encoder that is zero everywhere
        return features.new_zeros(0, 3), 0.0
    centred = (features - features.mean(0)).double()
    values, vectors = torch.linalg.eigh(centred.mT @ centred)
    axes = vectors[:, -3:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    scores = centred @ axes
    low, high = torch.quantile(scores[:: max(1, len(scores) // 100_000)], torch.tensor([0.02, 0.98]).to(scores), dim=0)
    share = float(values[-3:].sum() / values.sum().clamp_min(torch.finfo(values.dtype).tiny))
    return ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float(), share
