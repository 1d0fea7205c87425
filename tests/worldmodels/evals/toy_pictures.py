"""Pictures whose bytes say what there is to know, views of them, and objectives that read some of it exactly.

Bytes of the first channel: row 0 the two numbers of the transformation, row 1 a hint at the class, row 2 noise.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded

from worldmodels.core import Encoder, Objective

SIZE, CLASSES = 4, 2
SPEC = Composite(observation=Composite(pixels=Bounded(0, 255, (3, SIZE, SIZE), dtype=torch.uint8)))


class Pictures:
    """Rows without order; a class is one of two."""

    num_classes, classes, task = CLASSES, ("no", "yes"), "classification"
    spec = SPEC
    num_views = 5

    def split(self, name: str) -> Pictures:
        return self

    def part(self, name: str) -> SimpleNamespace:
        generator = Generator().manual_seed(("train", "val", "test").index(name))
        batch = ToyViews(self.spec, num_views=1)(self.sample(300, 1, generator), generator)
        obs = TensorDict({"pixels": batch["observation", "pixels"][:, 0]}, [300])
        return SimpleNamespace(obs=obs, target=batch["label"][:, 0])

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        label = torch.randint(0, CLASSES, (batch_size, window), generator=generator)
        pixels = torch.zeros(batch_size, window, 3, SIZE, SIZE, dtype=torch.uint8)
        return TensorDict({"observation": {"pixels": pixels}, "label": label}, [batch_size])

    def attach(self, policy: object) -> None:
        pass


class ToyViews:
    """Each view has two random numbers, noise, and a hint at the class that is right in three of four cases."""

    window = 1

    def __init__(self, spec: Composite, *, num_views: int) -> None:
        self.num = num_views
        self.spec = Composite(observation=spec["observation"], transformation=Unbounded((2,)), action=Unbounded((3,)))

    def fitted(self, obs: TensorDict) -> TensorDict:
        return obs

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        size = len(batch["label"])
        draws = torch.randint(1, 255, (size, self.num, 2, 2), generator=generator, dtype=torch.uint8)
        is_right = torch.rand(size, self.num, generator=generator) < 0.75
        pixels = batch["observation", "pixels"].expand(-1, self.num, -1, -1, -1).clone()
        pixels[:, :, 0, 0, :2], pixels[:, :, 0, 2, :2] = draws[:, :, 0], draws[:, :, 1]
        pixels[:, :, 0, 1, 0] = (batch["label"] == is_right).byte()
        transformation = draws[:, :, 0].float()
        action = torch.zeros(size, self.num, 3)
        action[:, :-1] = self.action_between(transformation[:, :-1], transformation[:, 1:])
        return batch.copy().update(
            {"observation": {"pixels": pixels}, "transformation": transformation, "action": action}
        )

    def action_between(self, transformation_a: Tensor, transformation_b: Tensor) -> Tensor:
        """The third number never changes."""
        difference = transformation_b - transformation_a
        return torch.cat([difference, torch.ones_like(difference[..., :1])], -1)


class Flat(Encoder):
    """All bytes, no weights."""

    grid = ()

    def __init__(self, spec: Composite) -> None:
        super().__init__()

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        pixels = obs["pixels"].float().flatten(1)
        return TensorDict({"tokens": pixels[:, None], "pooled": pixels}, obs.batch_size)


class Reader(Objective):
    """Reads the bytes of one row of a picture. It has all that makes evaluations leave traces in an objective."""

    window = 1

    def __init__(self, row: int = 0) -> None:
        super().__init__()
        self.row, self.seen = row, []
        self.norm, self.dropout = nn.BatchNorm1d(2, affine=False), nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.ones(()))
        self.norm(torch.rand(10, 2))

    def phases(self) -> tuple:
        return ()

    def read(self, pixels: Tensor) -> Tensor:
        self.seen.append(float(pixels.float().mean()))
        return pixels[..., 0, self.row, :2].float()

    def embed(self, obs: TensorDict) -> TensorDict:
        row = self.read(obs["pixels"])
        assert not self.training
        changed = self.dropout(self.norm(row)) if len(row) > 1 else row
        return TensorDict({"view": row, "other": changed}, obs.batch_size)


class Walker(Reader):
    """Adds up actions, and keeps what the first and the last view look like; predicts the next view exactly."""

    def aggregate(self, views: TensorDict, *, has_actions: bool = True, has_pixels: bool = True) -> Tensor:
        rows = self.read(views["observation", "pixels"])
        walked = views["action"][:, :-1].sum(1)
        return torch.cat([rows[:, 0] * has_pixels, rows[:, -1] * has_pixels, walked * has_actions], -1)

    def embed_action(self, action: Tensor) -> Tensor:
        return 0.5 * action

    def foresee(self, views: TensorDict) -> Tensor:
        return around(self.read(views["observation", "pixels"])[:, -1] + views["action"][:, -1, :2])

    def anchor(self, obs: TensorDict) -> Tensor:
        return around(self.read(obs["pixels"]))


class Collapsed(Walker):
    """Foresees the same whatever happens."""

    def foresee(self, views: TensorDict) -> Tensor:
        return torch.ones(len(views), 4)

    def anchor(self, obs: TensorDict) -> Tensor:
        return torch.ones(len(obs), 4)


def around(numbers: Tensor) -> Tensor:
    """Numbers as angles on circles: equal numbers have cosine 1 and others less."""
    angle = numbers / 255 * torch.pi
    return torch.cat([angle.sin(), angle.cos()], -1)
