"""What tests of detection share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture(params=["second", "center"])
def name(request) -> str:
    """Every detection head."""
    return request.param


@pytest.fixture
def scene() -> tuple[Tensor, Tensor, Tensor]:
    """A BEV map [2, 8, 16, 16], boxes [2, 4, 7] and classes [2, 4] with padding in between; the boxes lie apart."""
    boxes = torch.tensor(
        [
            [[3.0, -3.3, -1.0, 4.1, 1.7, 1.5, 0.4], [0] * 7, [9.1, 2.2, 0.2, 0.7, 0.6, 1.8, -2.0], [0] * 7],
            [
                [9.7, -1.2, -0.8, 3.7, 1.6, 1.6, 2.9],
                [4.0, 4.1, 0.1, 1.7, 0.6, 1.7, -1.2],
                [0] * 7,
                [2.6, -2.9, 0.3, 0.8, 0.7, 1.7, 1.6],
            ],
        ]
    )
    box_class = torch.tensor([[0, -1, 1, -1], [0, 2, -1, 1]])
    return torch.randn(2, 8, 16, 16), boxes, box_class
