"""Small detection heads, built from the configuration files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Tensor

CLASSES = ("Car", "Pedestrian", "Cyclist")
PLACE = {"low": (0.0, -6.4, -3.0), "high": (12.8, 6.4, 1.0), "grid": (16, 16), "classes": CLASSES}
TINY = {"layers": [1, 1], "widths": [16, 32], "up_widths": [16, 16]}


def detector(name: str) -> Any:
    """The node of ``conf/detector/<name>.yaml`` that makes a head, with its weights beside it."""
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose(f"detector/{name}")
    return cfg


@pytest.fixture(params=["second", "center"])
def name(request) -> str:
    return request.param


@pytest.fixture
def make() -> Callable[..., Any]:
    """``make(name, **facts)``: a tiny head."""

    def build(name: str, **facts: Any) -> Any:
        node = detector(name).objective.detector
        node.backbone.update(TINY)
        return instantiate(node)(8, **{**PLACE, **facts})

    return build


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
