"""Occupancy-MAE: a scan with most voxels hidden, and a decoder that says where points were. AD-L-JEPA's baseline.

Voxels are hidden at random, the more of them the nearer, where scans are dense. From the encoder's bird's-eye view a
small decoder gives, for every part of every cell, the chance that it holds a point of the whole scan.

Paper: Min et al., Occupancy-MAE (arXiv 2206.09900). Differs: its decoder goes back to single voxels through 3D
deconvolutions; here a cell is split into ``parts``, which keeps the output small and the encoder the same. Occupied
parts are rare: they weigh as much as all others together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Encoder, Objective, Phase, Transform
from worldmodels.keys import COORDS, KEPT, LOSS, OBSERVATION, POOLED, STAT, VOXELS


class OccupancyMAE(Objective):
    """Says which parts of the range hold points.

    Args:
        spec: one scan.
        encoder: perception with voxels and a BEV grid (``perception.lidar``), a factory or a shared module.
        width: channels of the decoder.
        parts: of a cell along z, y, x.
        mask_ratio: share of the voxels hidden within each distance from the sensor and beyond the last one.
        mask_distance: metres, ascending; one fewer than ratios.
    """

    window = 1
    ratios: Tensor
    distances: Tensor

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        width: int = 128,
        parts: Sequence[int] = (10, 2, 2),
        mask_ratio: Sequence[int | float] = (0.9, 0.7, 0.5),
        mask_distance: Sequence[int | float] = (30, 50),
    ) -> None:
        super().__init__()
        if len(mask_ratio) != len(mask_distance) + 1 or not all(0 <= ratio < 1 for ratio in mask_ratio):
            raise ValueError(
                f"objective.mask_ratio={list(mask_ratio)}: shares from 0 to below 1, one more than the distances "
                f"{list(mask_distance)}"
            )
        self.encoder: Any = encoder if isinstance(encoder, nn.Module) else encoder(spec)
        self.parts = tuple(parts)
        rows, columns = self.encoder.grid
        depth, height, breadth = self.encoder.shape  # voxels; one more along z than the range holds
        self.fine = (self.parts[0], rows * self.parts[1], columns * self.parts[2])  # parts of the whole range
        voxels = (depth - 1, height, breadth)
        if any(num % parts for num, parts in zip(voxels, self.fine, strict=True)):
            raise ValueError(f"objective.parts={list(parts)}: {self.fine} parts do not divide {voxels} voxels evenly")
        self.steps = [num // parts for num, parts in zip(voxels, self.fine, strict=True)]  # voxels a part
        self.decoder = nn.Sequential(
            nn.Conv2d(self.encoder.dim, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, self.parts[0] * self.parts[1] * self.parts[2], 1),
        )
        self.register_buffer("ratios", torch.tensor([float(r) for r in mask_ratio]), persistent=False)
        self.register_buffer("distances", torch.tensor([float(d) for d in mask_distance]), persistent=False)

    def phases(self) -> tuple[Phase, ...]:
        """A single one."""
        params = {"encoder": [*self.encoder.parameters()], "decoder": [*self.decoder.parameters()]}
        return (Phase("occupancy_mae", self.loss, params),)

    def transforms(self) -> tuple[Transform, ...]:
        """Voxels of a batch and which of them are kept."""
        return (self.draw_masks,)

    def draw_masks(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add voxels, and bool "voxels_kept" [B, V]: each voxel with its distance's chance."""
        batch = self.encoder.add_voxels(batch, generator)
        distance = self.encoder.centres(batch[OBSERVATION][:, 0])[..., :2].norm(dim=-1)  # [B, V] metres
        ratio = self.ratios[torch.bucketize(distance, self.distances)]
        return batch.set(KEPT, torch.rand(ratio.shape, generator=generator, device=ratio.device) >= ratio)

    def loss(self, batch: TensorDict) -> TensorDict:
        """Binary cross-entropy of all parts, occupied and empty ones weigh half each; "kept" is the share of voxels."""
        obs = batch[OBSERVATION][:, 0]
        logits = self.decode(self.encoder.bev(self.encoder.keeping(obs, batch[KEPT])))  # [B, Z, Y, X]
        occupied = self.occupied(obs)
        error = F.binary_cross_entropy_with_logits(logits.float(), occupied.float(), reduction="none")
        share = occupied.float().mean().clamp(1e-6, 1 - 1e-6)
        balanced = (error * torch.where(occupied, 0.5 / share, 0.5 / (1 - share))).mean()
        with torch.no_grad():
            found = logits > 0
            both, either = (found & occupied).sum(), (found | occupied).sum()
            is_voxel = obs[VOXELS, COORDS][..., 0] >= 0
            kept = (batch[KEPT] & is_voxel).sum() / is_voxel.sum().clamp_min(1)
            stats = {"occupancy_iou": both / either.clamp_min(1), "kept": kept}
        return TensorDict({LOSS: {"occupancy": balanced}, STAT: stats})

    def decode(self, bev: Tensor) -> Tensor:
        """Logits [B, Z', Y', X'] of the parts of a map [B, D, Y, X]."""
        out = self.decoder(bev).unflatten(1, self.parts)  # [B, pz, py, px, Y, X]
        return out.permute(0, 1, 4, 2, 5, 3).reshape(len(bev), *self.fine)

    def occupied(self, obs: TensorDict) -> Tensor:
        """Which parts hold a voxel of ``obs``: bool [B, Z', Y', X']."""
        coords = obs[VOXELS, COORDS]  # [B, V, 3]
        voxels = zip(coords.unbind(-1), self.steps, strict=True)
        z, y, x = (voxel.div(step, rounding_mode="floor") for voxel, step in voxels)
        num_z, num_y, num_x = self.fine
        flat, num = (z * num_y + y) * num_x + x, num_z * num_y * num_x
        flat = torch.where(coords[..., 0] >= 0, flat, num)  # padding marks one too many
        marks = torch.zeros(len(flat), num + 1, dtype=torch.bool, device=flat.device).scatter(1, flat, True)
        return marks[:, :num].unflatten(1, self.fine)

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """The encoder's mean over cells of whole scans, "scan" [B, D]."""
        return TensorDict({"scan": self.encoder(obs)[POOLED]}, batch_size=obs.batch_size)

    @torch.no_grad()
    def bev(self, obs: TensorDict) -> Tensor:
        """The encoder's map of whole scans, [B, D, Y, X]."""
        return self.encoder.bev(obs)
