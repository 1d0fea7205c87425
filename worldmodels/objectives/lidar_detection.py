"""3D detection in LiDAR scans: an encoder, from scratch or pre-trained (``init=RUN_DIR``), and a detector on its map.

The detector (SECOND, CenterPoint: ``perception.detection``) brings its own targets, losses and decoding.

Source: sheet ad_l_jepa, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from perception.detection.decoding import Detections
from worldmodels.core import Encoder, Objective, Phase, Transform
from worldmodels.keys import BOX_CLASS, BOXES, LOSS, OBSERVATION, POOLED, STAT


class LidarDetection(Objective):
    """Finds labelled boxes.

    Args:
        spec: one scan with "boxes" and "box_class".
        encoder: perception with voxels and a BEV grid (``perception.lidar``), a factory or a shared module.
        detector: factory ``detector(dim, low=, high=, grid=)`` of a head with ``loss`` and ``decode``.

    Raises:
        ValueError: if the data have no boxes.
    """

    window = 1

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        detector: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        if BOXES not in spec.keys():
            raise ValueError("objective=lidar_detection needs labelled boxes. Use env=lidar_scenes or env=kitti")
        self.encoder: Any = encoder if isinstance(encoder, nn.Module) else encoder(spec)
        low, high = self.encoder.low, self.encoder.high
        self.detector: Any = detector(self.encoder.dim, low=low, high=high, grid=self.encoder.grid)

    def phases(self) -> tuple[Phase, ...]:
        """A single one; the encoder is a group of its own, to fine-tune it at another rate."""
        params = {"encoder": [*self.encoder.parameters()], "detector": [*self.detector.parameters()]}
        return (Phase("detection", self.loss, params),)

    def transforms(self) -> tuple[Transform, ...]:
        """Voxels of a batch."""
        return (self.encoder.add_voxels,)

    def loss(self, batch: TensorDict) -> TensorDict:
        """The detector's losses."""
        raw = self.detector(self.encoder.bev(batch[OBSERVATION][:, 0]))
        losses = self.detector.loss(raw, batch[BOXES][:, 0], batch[BOX_CLASS][:, 0])
        return TensorDict({LOSS: losses, STAT: {"boxes": (batch[BOX_CLASS] >= 0).float().sum() / len(batch)}})

    @torch.no_grad()
    def detect(self, obs: TensorDict) -> Detections:
        """What the detector finds in scans, batch size [B]."""
        return self.detector.decode(self.detector(self.encoder.bev(obs)))

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """The encoder's mean over cells, "scan" [B, D]."""
        return TensorDict({"scan": self.encoder(obs)[POOLED]}, batch_size=obs.batch_size)

    @torch.no_grad()
    def bev(self, obs: TensorDict) -> Tensor:
        """The encoder's map of whole scans, [B, D, Y, X]."""
        return self.encoder.bev(obs)
