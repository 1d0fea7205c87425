"""SECOND's part behind the encoder: a 2D backbone over the BEV map and an anchor head.

Source: Yan et al. 2018 (SECOND), in the form of OpenPCDet; sheet ad_l_jepa, section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.detection.anchors import AnchorGrid
from perception.detection.assign import IGNORED, assign, never_empty
from perception.detection.codes import NUM_DIRECTIONS, decode, direction_bin, encode, face
from perception.detection.decoding import Detections, suppress, take
from perception.detection.losses import box_code_error, sigmoid_focal

PRIOR = 0.01  # chance of an object that an untrained head gives every anchor


def norm_relu(width: int) -> tuple[nn.Module, nn.Module]:
    """What follows every convolution of a backbone."""
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01), nn.ReLU()


class BEVBackbone(nn.Module):
    """Blocks of 3 x 3 convolutions at falling resolution, each brought back to that of the first and joined.

    Args:
        in_dim: channels of the BEV map; grid: its rows and columns.
        layers: convolutions of each block after its first one.
        widths: channels of each block; strides: of each block's first convolution.
        up_widths: channels of each block once brought back.

    Raises:
        ValueError: if the lists differ in length, or the strides do not divide the grid.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        grid: tuple[int, int],
        layers: Sequence[int] = (5, 5),
        widths: Sequence[int] = (128, 256),
        strides: Sequence[int] = (1, 2),
        up_widths: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        if not len(layers) == len(widths) == len(strides) == len(up_widths) > 0:
            given = (
                f"layers={list(layers)}, widths={list(widths)}, strides={list(strides)}, up_widths={list(up_widths)}"
            )
            raise ValueError(f"the BEV backbone needs one entry a block in each of {given}")
        total = math.prod(strides)
        if any(size % total for size in grid):
            raise ValueError(
                f"a BEV map of {grid[0]} x {grid[1]} cells cannot shrink {total}-fold: choose another range"
            )
        self.grid = (grid[0] // strides[0], grid[1] // strides[0])
        self.dim = sum(up_widths)
        self.blocks, self.ups = nn.ModuleList(), nn.ModuleList()
        scale = 1  # of a block against the first
        for index, (depth, width, stride, up) in enumerate(zip(layers, widths, strides, up_widths, strict=True)):
            scale *= stride if index else 1
            parts = [nn.Conv2d(in_dim, width, 3, stride=stride, padding=1, bias=False), *norm_relu(width)]
            for _ in range(depth):
                parts += [nn.Conv2d(width, width, 3, padding=1, bias=False), *norm_relu(width)]
            self.blocks.append(nn.Sequential(*parts))
            back = nn.ConvTranspose2d(width, up, scale, stride=scale, bias=False)
            self.ups.append(nn.Sequential(back, *norm_relu(up)))
            in_dim = width

    def forward(self, bev: Tensor) -> Tensor:
        """Map [B, in, Y, X] to [B, dim, Y', X'] with ``grid`` = (Y', X')."""
        outs = []
        for block, up in zip(self.blocks, self.ups, strict=True):
            bev = block(bev)
            outs.append(up(bev))
        return torch.cat(outs, 1)


class SecondHead(nn.Module):
    """An anchor head: for every anchor its classes, its box code and its direction.

    Args:
        in_dim: channels of the BEV map.
        low, high: corners x, y, z of the range, metres; grid: rows and columns of the map.
        classes: names, as the source gives them.
        anchors: of each class; see ``AnchorGrid``.
        backbone: factory ``backbone(in_dim, grid=grid)`` of a module with ``dim`` and ``grid``.
        score_threshold: of what counts as found; max_candidates: the best of them go on to suppression; nms_iou: boxes
            that overlap more from above are one; max_detections: kept at most.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        low: Sequence[int | float],
        high: Sequence[int | float],
        grid: tuple[int, int],
        classes: Sequence[str],
        anchors: Mapping[str, Mapping[str, Any]],
        backbone: Callable[..., nn.Module],
        score_threshold: float = 0.1,
        max_candidates: int = 4096,
        nms_iou: float = 0.01,
        max_detections: int = 500,
    ) -> None:
        super().__init__()
        self.score_threshold, self.max_candidates = score_threshold, max_candidates
        self.nms_iou, self.max_detections = nms_iou, max_detections
        self.backbone: Any = backbone(in_dim, grid=grid)
        self.anchors = AnchorGrid(low=low, high=high, grid=self.backbone.grid, classes=classes, anchors=anchors)
        self.widths = {"class": len(classes), "box": 7, "direction": NUM_DIRECTIONS}  # numbers an anchor
        outs = {name: nn.Conv2d(self.backbone.dim, self.anchors.per_cell * num, 1) for name, num in self.widths.items()}
        nn.init.constant_(outs["class"].bias, -math.log((1 - PRIOR) / PRIOR))
        nn.init.normal_(outs["box"].weight, std=0.001)
        self.outs = nn.ModuleDict(outs)

    def forward(self, bev: Tensor) -> dict[str, Tensor]:
        """Read a map [B, in, Y, X]: "class" [B, N, C] logits, "box" [B, N, 7] codes, "direction" [B, N, 2] logits."""
        features = self.backbone(bev)
        # [B, A * num, Y, X] to [B, Y * X * A, num]
        return {
            name: self.outs[name](features).permute(0, 2, 3, 1).reshape(len(bev), -1, num)
            for name, num in self.widths.items()
        }

    def loss(self, raw: Mapping[str, Tensor], boxes: Tensor, box_class: Tensor) -> dict[str, Tensor]:
        """Named losses of labelled ``boxes`` [B, M, 7] and ``box_class`` [B, M], -1 for padding.

        Each is a sum over anchors, divided by the sample's positive anchors and averaged over samples: "class" of all
        but ignored anchors, "box" and "direction" of positive ones.
        """
        boxes, box_class = never_empty(boxes, box_class)
        label, index = assign(self.anchors, boxes, box_class)  # [B, N]
        is_positive = label >= 0
        truth = take(boxes, index)  # [B, N, 7]
        classes = torch.arange(self.widths["class"], device=label.device)
        codes = encode(truth, self.anchors.boxes().flatten(0, 3))
        focal = sigmoid_focal(raw["class"].float(), (label[..., None] == classes).float()).sum(-1)
        facing = F.cross_entropy(raw["direction"].float().mT, direction_bin(truth[..., 6]), reduction="none")
        terms = {
            "class": torch.where(label == IGNORED, 0.0, focal),
            "box": torch.where(is_positive, box_code_error(raw["box"].float(), codes), 0.0),
            "direction": torch.where(is_positive, facing, 0.0),
        }
        num_positive = is_positive.sum(1).clamp_min(1)
        return {name: (term.sum(1) / num_positive).mean() for name, term in terms.items()}

    @torch.no_grad()
    def decode(self, raw: Mapping[str, Tensor]) -> Detections:
        """What the predictions of ``forward`` say: one class an anchor, overlapping boxes suppressed."""
        logits, labels = raw["class"].float().max(-1)  # [B, N]
        scores, index = logits.sigmoid().topk(min(self.max_candidates, logits.shape[1]))
        boxes = decode(take(raw["box"].float(), index), self.anchors.boxes().flatten(0, 3)[index])
        direction = take(raw["direction"], index).argmax(-1)
        boxes = torch.cat([boxes[..., :6], face(boxes[..., 6], direction)[..., None]], -1)
        return suppress(
            boxes,
            scores,
            labels.gather(1, index),
            scores >= self.score_threshold,
            iou=self.nms_iou,
            max_detections=self.max_detections,
        )
