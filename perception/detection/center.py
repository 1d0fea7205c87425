"""CenterPoint's head: objects are peaks of a heat map, with their box told at the peak. No anchors.

Source: Yin et al. 2021 (CenterPoint), first stage, in the form of OpenPCDet for Waymo; sheet ad_l_jepa, section 2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perception.detection.assign import never_empty
from perception.detection.codes import MIN_SIZE
from perception.detection.decoding import Detections, suppress, take
from perception.detection.losses import penalty_reduced_focal

PARTS = {"offset": 2, "z": 1, "size": 3, "heading": 2}  # x and y in cells; metres; logarithms; cosine and sine
HEAT_BIAS = -2.19  # an untrained heat map is 0.1 everywhere


class CenterHead(nn.Module):
    """Heat maps of classes, and eight numbers of a box at every cell.

    Args:
        in_dim: channels of the BEV map.
        low, high: corners x, y, z of the range, metres; grid: rows and columns of the map.
        classes: names, as the source gives them.
        backbone: factory ``backbone(in_dim, grid=grid)`` of a module with ``dim`` and ``grid``.
        width: channels of the shared convolution and within the branches.
        min_overlap, min_radius: how far around a centre, in cells, the heat map target reaches.
        score_threshold: of what counts as found; max_candidates: the best of them go on to suppression; nms_iou: boxes
            that overlap more from above are one; max_detections: kept at most.

    Where the sheet is silent: branches have biases, and weights start as PyTorch's convolutions do.
    """

    low: Tensor  # [3]
    high: Tensor  # [3]
    cell: Tensor  # [2], metres along x and y
    last: Tensor  # [2], the middle of the last cell along x and y, in cells

    def __init__(
        self,
        in_dim: int,
        *,
        low: Sequence[int | float],
        high: Sequence[int | float],
        grid: tuple[int, int],
        classes: Sequence[str],
        backbone: Callable[..., nn.Module],
        width: int = 64,
        min_overlap: float = 0.1,
        min_radius: int = 2,
        score_threshold: float = 0.1,
        max_candidates: int = 500,
        nms_iou: float = 0.7,
        max_detections: int = 500,
    ) -> None:
        super().__init__()
        self.num_classes, self.min_overlap, self.min_radius = len(classes), min_overlap, min_radius
        self.score_threshold, self.max_candidates = score_threshold, max_candidates
        self.nms_iou, self.max_detections = nms_iou, max_detections
        self.backbone: Any = backbone(in_dim, grid=grid)
        self.grid: tuple[int, int] = self.backbone.grid
        corners = torch.tensor([[float(edge) for edge in corner] for corner in (low, high)])
        self.register_buffer("low", corners[0], persistent=False)
        self.register_buffer("high", corners[1], persistent=False)
        num = torch.tensor([self.grid[1], self.grid[0]])
        self.register_buffer("cell", (corners[1] - corners[0])[:2] / num, persistent=False)
        self.register_buffer("last", num - 0.5, persistent=False)
        self.shared = _conv(self.backbone.dim, width)
        outs = {"heat": self.num_classes, **PARTS}
        last = {name: nn.Conv2d(width, num, 3, padding=1) for name, num in outs.items()}
        nn.init.constant_(last["heat"].bias, HEAT_BIAS)
        self.outs = nn.ModuleDict({name: nn.Sequential(_conv(width, width), conv) for name, conv in last.items()})

    def forward(self, bev: Tensor) -> dict[str, Tensor]:
        """Read a map [B, in, Y, X]: "heat" [B, C, Y, X] logits, "box" [B, 8, Y, X] in the order of ``PARTS``."""
        features = self.shared(self.backbone(bev))
        parts = [self.outs[name](features) for name in PARTS]
        return {"heat": self.outs["heat"](features), "box": torch.cat(parts, 1)}

    def loss(self, raw: Mapping[str, Tensor], boxes: Tensor, box_class: Tensor) -> dict[str, Tensor]:
        """Named losses of labelled ``boxes`` [B, M, 7] and ``box_class`` [B, M], -1 for padding.

        "class" is the focal loss of the heat maps, "box" the absolute error of the eight numbers at the centres, summed
        over the eight. Both are sums over the batch, divided by its objects.
        """
        boxes, box_class = never_empty(boxes, box_class)
        centre, place = self.places(boxes)
        is_valid = box_class >= 0
        heat = self.heat_map(boxes, box_class, place)
        column, row = place.unbind(-1)
        numbers = take(raw["box"].float().flatten(2).mT, row * self.grid[1] + column)  # [B, M, 8]
        error = (numbers - self.numbers(boxes, centre - place)).abs().sum(-1)
        return {
            "class": penalty_reduced_focal(raw["heat"].float(), heat),
            "box": torch.where(is_valid, error, 0.0).sum() / is_valid.sum().clamp_min(1),
        }

    def places(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Centres of boxes [B, M, 7] in cells along x and y [B, M, 2], and the cells they fall into, int64.

        A centre outside the map moves to its edge (the box has a corner inside).
        """
        centre = torch.minimum(((boxes[..., :2] - self.low[:2]) / self.cell).clamp_min(0), self.last)
        return centre, centre.floor().long()

    def numbers(self, boxes: Tensor, offset: Tensor) -> Tensor:
        """What the branches should say of boxes [B, M, 7] that lie ``offset`` [B, M, 2] from their cells: [B, M, 8]."""
        heading = boxes[..., 6:]
        sizes = boxes[..., 3:6].clamp_min(MIN_SIZE).log()
        return torch.cat([offset, boxes[..., 2:3], sizes, heading.cos(), heading.sin()], -1)

    @torch.no_grad()
    def heat_map(self, boxes: Tensor, box_class: Tensor, place: Tensor) -> Tensor:
        """Target [B, C, Y, X]: around each centre's cell ``place`` [B, M, 2] a bump of height 1; the highest counts."""
        radius = gaussian_radius(boxes[..., 3:5] / self.cell, self.min_overlap).floor().clamp_min(self.min_radius)
        sigma = ((2 * radius + 1) / 6)[..., None]
        bumps = []
        for axis, length in ((1, self.grid[0]), (0, self.grid[1])):
            distance = (torch.arange(length, device=boxes.device) - place[..., axis, None]).abs()  # [B, M, length]
            bump = (-distance.square() / (2 * sigma.square())).exp()
            bumps.append(torch.where(distance <= radius[..., None], bump, 0.0))
        bump = bumps[0][..., :, None] * bumps[1][..., None, :]  # [B, M, Y, X], the product of both axes
        own = [(box_class == index)[..., None, None] for index in range(self.num_classes)]
        return torch.stack([torch.where(is_own, bump, 0.0).amax(1) for is_own in own], 1)

    @torch.no_grad()
    def decode(self, raw: Mapping[str, Tensor]) -> Detections:
        """What the predictions of ``forward`` say: the best peaks within the range, overlapping boxes suppressed."""
        logits, num_cells = raw["heat"].float().flatten(1), self.grid[0] * self.grid[1]  # [B, C * Y * X]
        scores, index = logits.sigmoid().topk(min(self.max_candidates, logits.shape[1]))
        labels, cells = index // num_cells, index % num_cells
        offset, z, size, heading = take(raw["box"].float().flatten(2).mT, cells).split(list(PARTS.values()), -1)
        place = torch.stack([cells % self.grid[1], cells // self.grid[1]], -1)
        centre = torch.cat([(place + offset) * self.cell + self.low[:2], z], -1)
        angle = torch.atan2(heading[..., 1:], heading[..., :1])
        is_inside = ((centre >= self.low) & (centre <= self.high)).all(-1)
        return suppress(
            torch.cat([centre, size.exp(), angle], -1),
            scores,
            labels,
            is_inside & (scores >= self.score_threshold),
            iou=self.nms_iou,
            max_detections=self.max_detections,
        )


def _conv(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_dim, out_dim, 3, padding=1), nn.BatchNorm2d(out_dim), nn.ReLU())


def gaussian_radius(size: Tensor, min_overlap: float) -> Tensor:
    """How far the centre of a box of ``size`` [..., 2] may be off and still overlap by ``min_overlap``: [...].

    The least of three cases: box shifted, shrunk, grown. As in all released code (CornerNet on), each is the greater
    root of its quadratic a r^2 - b r + c = 0 times a, not the root itself.

    Source: Law and Deng 2018 (CornerNet).
    """
    both, area = size.sum(-1), size.prod(-1)
    cases = (
        (1.0, both, area * (1 - min_overlap) / (1 + min_overlap)),
        (4.0, 2 * both, area * (1 - min_overlap)),
        (4 * min_overlap, -2 * min_overlap * both, area * (min_overlap - 1)),
    )
    roots = [(b + (b.square() - 4 * a * c).clamp_min(0).sqrt()) / 2 for a, b, c in cases]
    return torch.stack(roots).amin(0)
