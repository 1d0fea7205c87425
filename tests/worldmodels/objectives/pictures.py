"""What tests of objectives on pictures share: a spec, a transform that changes nothing, and batches by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Bounded, Composite

from perception.image import VisionTransformer
from worldmodels.masking import MultiBlock
from worldmodels.nn.class_attention import AggregationHead
from worldmodels.objectives.dmt_jepa import DMTJEPA
from worldmodels.objectives.i_jepa import IJEPA
from worldmodels.predictors.masked_tokens import MaskedTokenPredictor
from worldmodels.targets import EMA


class SameViews:
    """One view a picture: the picture."""

    window, num = 1, 1

    def __init__(self, spec: Composite) -> None:
        self.spec = spec

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Return the batch."""
        return batch

    def fitted(self, obs: TensorDict) -> TensorDict:
        """Return the pictures."""
        return obs


def spec(height: int = 24, width: int = 32) -> Composite:
    """Of pictures."""
    pixels = Bounded(0, 255, (3, height, width), dtype=torch.uint8)
    return Composite({"observation": Composite({"pixels": pixels})})


def batch_of(objective: IJEPA, num: int = 4, *, seed: int = 0) -> TensorDict:
    """Random pictures that have passed the objective's transforms."""
    generator = Generator().manual_seed(seed)
    shape = objective.make_views.spec["observation", "pixels"].shape
    pixels = torch.randint(0, 256, (num, 1, *shape), dtype=torch.uint8, generator=generator)
    batch = TensorDict({"observation": {"pixels": pixels}}, [num])
    for transform in objective.transforms():
        batch = transform(batch, generator)
    return batch


def parts(**masks: Any) -> dict[str, Any]:
    """Small parts of either objective: a grid of 6 x 8 patches."""
    return {
        "encoder": partial(VisionTransformer, patch=4, dim=16, depth=2, num_heads=2),
        "views": SameViews,
        "predictor": partial(MaskedTokenPredictor, width=8, depth=1, num_heads=2, hidden=16),
        "target": partial(EMA, tau=0.1),
        "masks": partial(MultiBlock, min_keep=2, **masks),
    }


def i_jepa(**options: Any) -> IJEPA:
    """A small I-JEPA."""
    return IJEPA(spec(), **(parts() | options))


def dmt_jepa(**options: Any) -> DMTJEPA:
    """A small DMT-JEPA."""
    head = partial(AggregationHead, depth=2, num_heads=2)
    return DMTJEPA(spec(), **(parts() | {"head": head} | options))


def check_compiles_whole(objective: IJEPA) -> None:
    """The loss traces without a break, and compiled is what it was."""
    batch = batch_of(objective)
    torch._dynamo.reset()
    compiled = torch.compile(objective.loss, fullgraph=True, backend="eager")(batch)["loss", "prediction"]
    torch.testing.assert_close(compiled, objective.loss(batch)["loss", "prediction"])
