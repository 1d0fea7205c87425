"""Small detection heads, built from the configuration files."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_module
from hydra.utils import instantiate

CLASSES = ("Car", "Pedestrian", "Cyclist")
PLACE = {"low": (0.0, -6.4, -3.0), "high": (12.8, 6.4, 1.0), "grid": (16, 16), "classes": CLASSES}
TINY = {"layers": [1, 1], "widths": [16, 32], "up_widths": [16, 16]}


def detector(name: str) -> Any:
    """``conf/detector/<name>.yaml``: the node of a head, and the weights of its losses."""
    with initialize_config_module("conf", version_base="1.3"):
        return compose(f"detector/{name}")


def tiny(name: str, **facts: Any) -> Any:
    """A head for maps [B, 8, 16, 16]."""
    node = detector(name).objective.detector
    node.backbone.update(TINY)
    return instantiate(node)(8, **{**PLACE, **facts})
