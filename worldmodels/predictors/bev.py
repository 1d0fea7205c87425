"""Predicting cells of a bird's-eye view from the cells around them."""

from __future__ import annotations

from torch import Tensor, nn


class BEVPredictor(nn.Module):
    """Convolutions 3 x 3 with bias, each followed by a batch norm and a ReLU, the last one too.

    Ending in a ReLU bounds what can be predicted: against a target with entries of both signs in equal number the
    cosine stays below 0.71 (sheet ad_l_jepa, section 6). ``ends_in_relu=False`` leaves the last norm and ReLU out.

    Args:
        dim: channels of the map, D.
        depth: convolutions.
        ends_in_relu: as published.

    Source: AD-L-JEPA (arXiv 2501.04969), sheet section 1.4.
    """

    def __init__(self, dim: int, *, depth: int = 3, ends_in_relu: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            layers.append(nn.Conv2d(dim, dim, 3, padding=1))
            if ends_in_relu or index < depth - 1:
                layers += [nn.BatchNorm2d(dim), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, bev: Tensor) -> Tensor:
        """Map [B, D, Y, X] to the same shape."""
        return self.layers(bev)
