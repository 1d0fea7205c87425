"""Views of samples made by hand: nothing but tensors, for objectives that learn from several views of a picture."""

from __future__ import annotations

import functools

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded

from worldmodels.core import Encoder

SIDE, ACTION_DIM = 8, 3


class GivenViews:
    """The batch already holds the views; ``views.num`` of them are rows of a window."""

    def __init__(self, spec: Composite, *, num: int) -> None:
        self.spec, self.num, self.window = spec, num, num

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        return batch

    def fitted(self, obs: TensorDict) -> TensorDict:
        return obs


class PooledPixels(Encoder):
    """A linear map of pixels with batch norm and ReLU: small, exact in float64, and it mixes a batch while training."""

    grid = ()

    def __init__(self, spec: Composite, *, dim: int = 8) -> None:
        super().__init__()
        self.dim = dim
        num = spec["observation", "pixels"].shape.numel()
        self.layers = nn.Sequential(nn.Linear(num, dim), nn.BatchNorm1d(dim), nn.ReLU())

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        pixels = obs["pixels"].flatten(1).to(self.layers[0].weight.dtype) / 255 - 0.5
        pooled = self.layers(pixels)
        return TensorDict({"tokens": pooled[:, None], "pooled": pooled}, batch_size=obs.batch_size)


def spec_of(side: int = SIDE, action_dim: int = ACTION_DIM) -> Composite:
    pixels = Bounded(0, 255, (3, side, side), dtype=torch.uint8)
    return Composite({"observation": Composite({"pixels": pixels}), "action": Unbounded((action_dim,))})


def batch_of(num: int, views: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> TensorDict:
    """Random pictures and actions, [num, views]; the last action is zero, as the contract of views says."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num, views, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    action = torch.randn(num, views, ACTION_DIM, generator=generator, dtype=torch.float64).to(dtype)
    action[:, -1] = 0
    obs = TensorDict({"pixels": pixels}, batch_size=[num, views])
    return TensorDict({"observation": obs, "action": action}, batch_size=[num])


def parts(num: int = 4, *, dim: int = 8) -> dict:
    """What every objective on views takes."""
    return {
        "encoder": functools.partial(PooledPixels, dim=dim),
        "views": functools.partial(GivenViews, num=num),
    }


def moving_spots(num: int, views: int, generator: Generator, *, side: int = 16) -> TensorDict:
    """A spot somewhere in each of [num, views] pictures; the action is where it moves to, in sides of the picture.

    It is brighter than the rest, or in three of ten views darker: the mean picture of a place is faint, so a linear map
    of pixels hardly tells where the spot is.
    """
    where = 2 + (side - 5) * torch.rand(num, views, 2, generator=generator)
    near = torch.exp(-(torch.arange(side) - where[..., None]).square() / 4)  # [num, views, 2, side]
    spot = near[..., 0, :, None] * near[..., 1, None, :]
    sign = torch.where(torch.rand(num, views, 1, 1, generator=generator) < 0.3, -1.0, 1.0)
    noise = 20 * torch.randn(spot.shape, generator=generator)
    pixels = (127.5 + 110 * sign * spot + noise).clamp(0, 255).to(torch.uint8)
    action = torch.zeros(num, views, 2)
    action[:, :-1] = where.diff(dim=1) / side
    obs = TensorDict({"pixels": pixels[:, :, None].repeat(1, 1, 3, 1, 1)}, batch_size=[num, views])
    return TensorDict({"observation": obs, "action": action}, batch_size=[num])
