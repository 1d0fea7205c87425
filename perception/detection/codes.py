"""What a network says of a box: seven numbers relative to an anchor, and which of two directions it faces.

A heading is learned in two parts. The code keeps it up to half a turn, where a box looks the same; a direction bin says
which half.

Source: Yan et al. 2018 (SECOND); sheet ad_l_jepa, section 2.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldmodels.geometry.boxes import wrap

DIRECTION_OFFSET = 0.78539  # where the first direction bin starts: an eighth of a turn, digits as published
NUM_DIRECTIONS = 2
MIN_SIZE = 1e-5  # m; keeps the code of a padding box finite


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Code of ``boxes`` [..., 7] relative to ``anchors`` [..., 7], which broadcast.

    Returns:
        [..., 7]: x and y over the anchor's diagonal on the ground, z over its height, logarithms of the three ratios of
        sizes, difference of headings in radians.
    """
    boxes, anchors = torch.broadcast_tensors(boxes, anchors)
    sizes, own = boxes[..., 3:6].clamp_min(MIN_SIZE), anchors[..., 3:6]
    centre = (boxes[..., :3] - anchors[..., :3]) / _units(own)
    return torch.cat([centre, (sizes / own).log(), boxes[..., 6:] - anchors[..., 6:]], -1)


def decode(codes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes [..., 7] of ``codes`` [..., 7] relative to ``anchors`` [..., 7]: undoes ``encode``."""
    codes, anchors = torch.broadcast_tensors(codes, anchors)
    own = anchors[..., 3:6]
    centre = codes[..., :3] * _units(own) + anchors[..., :3]
    return torch.cat([centre, codes[..., 3:6].exp() * own, codes[..., 6:] + anchors[..., 6:]], -1)


def direction_bin(heading: Tensor) -> Tensor:
    """Which half turn a heading lies in: int64 [...], 0 from an eighth of a turn on, 1 from five eighths on."""
    turned = wrap(heading - DIRECTION_OFFSET, 0.0, 2 * math.pi)
    return (turned / math.pi).floor().clamp(0, NUM_DIRECTIONS - 1).long()  # rounding may reach the end of the last bin


def face(heading: Tensor, direction: Tensor) -> Tensor:
    """The heading [...] that equals ``heading`` up to half turns and lies in bin ``direction`` int64 [...]."""
    return wrap(heading - DIRECTION_OFFSET, 0.0, math.pi) + DIRECTION_OFFSET + math.pi * direction


def _units(sizes: Tensor) -> Tensor:
    """Lengths [..., 3] in which centres are told: the diagonal on the ground twice, the height."""
    diagonal = sizes[..., :2].norm(dim=-1, keepdim=True)
    return torch.cat([diagonal, diagonal, sizes[..., 2:3]], -1)
