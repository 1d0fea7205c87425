"""Small nets with batch norm: projectors, predictors and action embeddings of two-view and sequence methods."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class Projector(nn.Module):
    """Linear, batch norm, ReLU for every width but the last, then Linear: [B, in] to [B, dim].

    A Linear has a bias only where no batch norm follows, which would take it away again.

    Args:
        in_dim: width of the input.
        widths: of the layers; the last one is ``dim``.
        has_last_norm: whether the result goes through a batch norm without scale and shift.

    Raises:
        ValueError: if ``widths`` is empty.
    """

    def __init__(self, in_dim: int, widths: Sequence[int], *, has_last_norm: bool = False) -> None:
        super().__init__()
        if not widths:
            raise ValueError("a projector has at least one layer: widths is empty")
        self.in_dim, self.dim = in_dim, widths[-1]
        layers: list[nn.Module] = []
        for i, o in pairwise([in_dim, *widths[:-1]]):
            layers += [nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.ReLU()]
        last = widths[-2] if len(widths) > 1 else in_dim
        layers.append(nn.Linear(last, self.dim, bias=not has_last_norm))
        if has_last_norm:
            layers.append(nn.BatchNorm1d(self.dim, affine=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in] to [B, dim]; while training, B must be at least 2."""
        return self.layers(x)
