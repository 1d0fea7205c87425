"""Anchors: boxes of usual size at every place of a BEV map, from which an anchor head tells the real ones.

Order of anchors, here and in the head's output: row y, column x, class, rotation.

Source: Yan et al. 2018 (SECOND); sheet ad_l_jepa, section 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

FIELDS = ("size", "bottom", "matched", "unmatched")


class AnchorGrid(nn.Module):
    """The anchors of a map. Their centres run from limit to limit of the range, so they are no cell centres.

    Args:
        low, high: corners x, y, z of the range, metres.
        grid: rows and columns (Y, X) of the map.
        classes: names, as the source gives them.
        anchors: for each class name "size" (length, width, height; metres), "bottom" (z of its underside, metres),
            "matched" and "unmatched" (from which BEV IoU an anchor stands for a box, and below which for none).
            Further names are allowed.
        rotations: headings of every class, radians. 1.57, as published, is not exactly a quarter turn.

    Raises:
        ValueError: if a class has no anchor, or one with missing or impossible numbers.
    """

    x: Tensor  # [X]
    y: Tensor  # [Y]
    z: Tensor  # [C], of centres
    sizes: Tensor  # [C, 3]
    headings: Tensor  # [R]
    matched: Tensor  # [C]
    unmatched: Tensor  # [C]

    def __init__(
        self,
        *,
        low: Sequence[int | float],
        high: Sequence[int | float],
        grid: tuple[int, int],
        classes: Sequence[str],
        anchors: Mapping[str, Mapping[str, Any]],
        rotations: Sequence[int | float] = (0.0, 1.57),
    ) -> None:
        super().__init__()
        chosen = [_settings(name, anchors) for name in classes]
        if not chosen:
            raise ValueError("a detector needs at least one class; the source gives none")
        sizes = torch.tensor([[float(length) for length in one["size"]] for one in chosen])
        facts = {
            "x": torch.linspace(low[0], high[0], grid[1]),
            "y": torch.linspace(low[1], high[1], grid[0]),
            "z": torch.tensor([float(one["bottom"]) for one in chosen]) + sizes[:, 2] / 2,
            "sizes": sizes,
            "headings": torch.tensor([float(angle) for angle in rotations]),
            "matched": torch.tensor([float(one["matched"]) for one in chosen]),
            "unmatched": torch.tensor([float(one["unmatched"]) for one in chosen]),
        }
        for name, values in facts.items():
            self.register_buffer(name, values, persistent=False)
        self.shape = (grid[0], grid[1], len(chosen), len(rotations))  # Y, X, C, R
        self.per_cell = len(chosen) * len(rotations)

    def boxes(self) -> Tensor:
        """All anchors as boxes [Y, X, C, R, 7]."""
        parts = [
            self.x[None, :, None, None],
            self.y[:, None, None, None],
            self.z[:, None],
            *self.sizes[:, None].unbind(-1),
            self.headings,
        ]
        return torch.stack([part.expand(self.shape) for part in parts], -1)


def _settings(name: str, anchors: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The anchor of a class, checked."""
    if name not in anchors:
        raise ValueError(
            f"objective.detector.anchors has no entry for the class {name} of the data; it has {', '.join(anchors)}. "
            f"Give it {', '.join(FIELDS)}, or choose other classes"
        )
    one = anchors[name]
    if set(one) != set(FIELDS):
        raise ValueError(f"objective.detector.anchors.{name} has {', '.join(one)}; it needs {', '.join(FIELDS)}")
    if len(one["size"]) != 3 or min(one["size"]) <= 0:
        raise ValueError(
            f"objective.detector.anchors.{name}.size={list(one['size'])}: three lengths above 0, in metres"
        )
    low, high = one["unmatched"], one["matched"]
    if not 0 <= low <= high <= 1:
        raise ValueError(f"objective.detector.anchors.{name}: 0 <= unmatched={low} <= matched={high} <= 1 fails")
    return one
