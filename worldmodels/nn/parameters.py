"""Named groups of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn


def matrices_and_vectors(parts: Mapping[str, Iterable[nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """Two groups a part: "<part>", its matrices, and "<part>_vectors", biases and norms, to be kept from decay."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, part in parts.items():
        found = list(part)
        groups[name] = [p for p in found if p.ndim > 1]
        groups[f"{name}_vectors"] = [p for p in found if p.ndim <= 1]
    return groups
