"""Pictures with a class for every pixel, and objectives that see the colour of a patch, or nothing."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Bounded, Composite

from worldmodels.core import Objective
from worldmodels.evals.dense_patches import raw_patches

PATCH, GRID = 4, (4, 6)
SIZE = (GRID[0] * PATCH, GRID[1] * PATCH)
SPEC = Composite(observation=Composite(pixels=Bounded(0, 255, (3, *SIZE), dtype=torch.uint8)))
VOID = 11


def dense(labels: Tensor, pixels: Tensor | None = None) -> SimpleNamespace:
    """Pictures in which class 0 is red, 1 green and 2 blue, unless told otherwise."""
    if pixels is None:
        pixels = 200 * torch.stack([labels == c for c in range(3)], 1).byte()
    names = tuple(f"film_{i:03}" for i in range(len(labels)))
    return SimpleNamespace(pixels=pixels.contiguous(), labels=labels.byte(), num_classes=3, ignored=VOID, names=names)


class Scenes:
    """The same scenes for every part, or as many as are given."""

    spec = SPEC

    def __init__(self, *parts: SimpleNamespace) -> None:
        self.parts = dict(zip(("train", "val", "test"), parts * (1 if len(parts) == 3 else 3), strict=True))

    def dense(self, name: str) -> SimpleNamespace:
        return self.parts[name]


class Looker(Objective):
    """Sees the mean colour of every patch, or noise that is fixed by the picture."""

    window = 1

    def __init__(self, *, is_blind: bool = False) -> None:
        super().__init__()
        self.is_blind, self.encoder = is_blind, SimpleNamespace(grid=GRID)
        self.norm = nn.BatchNorm1d(3)
        self.weight = nn.Parameter(torch.ones(()))

    def phases(self) -> tuple:
        return ()

    def patches(self, obs: TensorDict) -> Tensor:
        assert not self.training
        if self.is_blind:
            return torch.rand(len(obs), GRID[0] * GRID[1], 5)
        return raw_patches(obs["pixels"], GRID).unflatten(2, (3, -1)).mean(-1)


def halves(num: int) -> Tensor:
    """Class 0 on the left, 1 on the right: position says all."""
    return (torch.arange(SIZE[1]) >= SIZE[1] // 2).long().expand(num, *SIZE)


def patchwork(num: int, seed: int = 0, num_classes: int = 3) -> Tensor:
    """Random classes patch by patch: position says nothing."""
    cells = torch.randint(0, num_classes, (num, *GRID), generator=Generator().manual_seed(seed))
    return cells.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
