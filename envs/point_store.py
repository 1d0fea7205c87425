"""Clouds of different sizes in one place: on the device, or on disk beyond a size; rows are padded when gathered."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class PointStore:
    """Clouds of different sizes end to end, [S, C]: a batch is one gather, padded with zeros.

    Args:
        points: [S, C], on the device or memory-mapped. counts: int64 [N], of each cloud; they add up to S.
        device: where batches are wanted. width: P, points of a padded row; clouds beyond it are cut.
    """

    def __init__(self, points: Tensor, counts: Tensor, *, device: torch.device, width: int) -> None:
        self.points, self.device, self.width = points, device, width
        self.counts = counts.to(points.device)
        self.starts = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return len(self.counts)

    def cloud(self, index: int) -> Tensor:
        """One cloud as it is, [P_i, C]."""
        start, count = int(self.starts[index]), int(self.counts[index])
        return self.points[start : start + count].to(self.device)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Clouds ``index`` [...] as float32 [..., P, C] and their sizes int64 [...], on the device; no host sync."""
        index = index.to(self.points.device)
        if not len(self.points):  # nothing was ever seen
            shape = (*index.shape, self.width, self.points.shape[-1])
            return torch.zeros(shape, device=self.device), torch.zeros_like(index).to(self.device)
        count = self.counts[index].clamp(max=self.width)
        slot = torch.arange(self.width, device=index.device)
        place = (self.starts[index][..., None] + slot).clamp(max=len(self.points) - 1)  # [..., P]
        rows = self.points.index_select(0, place.flatten()).unflatten(0, place.shape)
        rows = torch.where((slot < count[..., None])[..., None], rows, 0.0)
        return rows.to(self.device, non_blocking=True), count.to(self.device, non_blocking=True)

    @classmethod
    def build(
        cls, clouds: Iterable[np.ndarray], channels: int, *, device: torch.device, max_device_bytes: int, spill: Path
    ) -> PointStore:
        """Store ``clouds`` float32 [P_i, C]: on the device, or beyond ``max_device_bytes`` in the file ``spill``.

        The file is rewritten by every run and removed from its folder at once where the system allows it, so nothing
        is left behind.
        """
        kept: list[np.ndarray] = []
        counts: list[int] = []
        size, file = 0, None
        for cloud in clouds:
            counts.append(len(cloud))
            size += cloud.nbytes
            if file is None and size > max_device_bytes:
                spill.parent.mkdir(parents=True, exist_ok=True)
                print(f"scans are larger than max_device_bytes={max_device_bytes:,}: memory-mapped", file=sys.stderr)
                file = open(spill, "wb")  # noqa: SIM115 (closed below)
                file.writelines(c.tobytes() for c in kept)
                kept = []
            if file is None:
                kept.append(cloud)
            else:
                file.write(cloud.tobytes())
        width = max([1, *counts])
        if file is not None:
            file.close()
            points = torch.from_file(str(spill), shared=False, size=size // 4, dtype=torch.float32).view(-1, channels)
            if os.name == "posix":
                spill.unlink()  # the mapping keeps the data alive
        else:
            points = torch.empty(sum(counts), channels, device=device)
            at = 0
            for i, cloud in enumerate(kept):
                points[at : at + len(cloud)] = torch.from_numpy(cloud)
                at += len(cloud)
                kept[i] = np.empty(0)  # freed as we go: no second copy of everything
        return cls(points, torch.tensor(counts, dtype=torch.int64), device=device, width=width)
