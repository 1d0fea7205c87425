"""What reads a label off a latent: linear, MLP and ResNet, as in the comparisons of tabular networks.

Source: Gorishniy et al. 2021 (arXiv 2106.11959), section 3. Differs: LayerNorm where they have BatchNorm, and no
dropout, so that a row's output depends on no batch mate and on no random number.
"""

from __future__ import annotations

from torch import Tensor, nn

from worldmodels.nn.mlp import MLP


class LinearHead(nn.Linear):
    """One linear map; built as ``LinearHead(in_dim, out_dim)``."""


class MLPHead(MLP):
    """Hidden ReLU layers of one width: ``MLPHead(in_dim, out_dim, width=..., depth=...)``."""


class ResNetHead(nn.Module):
    """Blocks x + W2 relu(W1 norm(x)) of one width, then norm, ReLU and a linear map.

    Args:
        in_dim, out_dim: of the whole; width: of the residual stream; depth: blocks; hidden: width inside a block.
    """

    def __init__(self, in_dim: int, out_dim: int, *, width: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(in_dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
            for _ in range(depth)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in] to [B, out]."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)
