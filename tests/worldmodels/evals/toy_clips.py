"""A small real objective on clips, and the scenes that it looks at: what evaluators of clips are tested with."""

from __future__ import annotations

import functools

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F

from envs.moving_scenes import MovingScenes
from perception.clips import ClipViews
from perception.video import VideoTransformer
from worldmodels.core import Objective, Phase
from worldmodels.keys import CONTEXT, FAMILIES, LOSS, OBSERVATION, POOLED, STAT, TARGETS, TOKENS
from worldmodels.masking import Families, VideoBlocks
from worldmodels.nn.transformer import gather_tokens
from worldmodels.predictors.masked_tokens import MaskedTokenPredictor
from worldmodels.targets import EMA

FRAMES, SIZE = 8, 32
FAMILY = {"long": {"num_blocks": 1, "spatial_scale": 0.5}, "short": {"num_blocks": 2, "spatial_scale": 0.15}}


@functools.cache
def scenes() -> MovingScenes:
    """Small clips; drawn once for all tests."""
    return MovingScenes(size=SIZE, num_frames=FRAMES)


class TinyClips(Objective):
    """Latents of hidden tokens from visible ones, as V-JEPA predicts them, on a grid of 4 x 4 x 4."""

    def __init__(self, *, seed: int = 0, dim: int = 24) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.make_views = ClipViews(scenes().spec, num_frames=FRAMES)
            self.window = self.make_views.window
            self.encoder = VideoTransformer(self.make_views.spec, patch=8, dim=dim, depth=1, num_heads=2)
            self.predictor = MaskedTokenPredictor(
                dim, self.encoder.grid, width=16, depth=1, num_heads=2, hidden=32, num_queries=len(FAMILY)
            )
        self.target = EMA(self.encoder, 0.01)
        masks = {name: functools.partial(VideoBlocks, **options) for name, options in FAMILY.items()}
        self.masks = Families(self.encoder.grid, families=masks)
        self.register_buffer("num_losses", torch.zeros(()))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("tiny", self.loss, {"all": [*self.encoder.parameters(), *self.predictor.parameters()]}),)

    def transforms(self):
        return (self.make_views, self.draw_masks)

    def draw_masks(self, batch: TensorDict, generator: Generator) -> TensorDict:
        drawn = self.masks(len(batch), generator).items()
        return batch.copy().update({FAMILIES: {n: {CONTEXT: m.context, TARGETS: m.targets} for n, m in drawn}})

    def loss(self, batch: TensorDict) -> TensorDict:
        self.num_losses += 1  # what an evaluation must put back
        errors = {}
        for i, (name, mask) in enumerate(sorted(batch[FAMILIES].items())):
            error = self.error(batch[OBSERVATION][:, 0], mask[CONTEXT], mask[TARGETS], i)
            errors[name] = error.sum() / (mask[TARGETS] >= 0).sum()
        return TensorDict({LOSS: {"prediction": sum(errors.values()) / 2}, STAT: errors})

    def error(self, obs: TensorDict, context: Tensor, targets: Tensor, query: int) -> Tensor:
        whole = self.target(obs)[TOKENS]
        goal = gather_tokens(F.layer_norm(whole, whole.shape[-1:]), targets[:, 0])
        found = self.predictor(self.encoder(obs, context)[TOKENS], context, targets, query=query)[:, 0]
        return (found - goal).abs().mean(-1) * (targets[:, 0] >= 0)

    @torch.no_grad()
    def prediction_error(self, obs: TensorDict, context: Tensor, targets: Tensor) -> Tensor:
        return self.error(self.make_views.fitted(obs), context, targets, 0)

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        assert not self.training
        return TensorDict({"clip": self.target(self.make_views.fitted(obs))[POOLED]}, obs.batch_size)

    @torch.no_grad()
    def embed_tokens(self, obs: TensorDict) -> TensorDict:
        assert not self.training
        return TensorDict({"clip": self.target(self.make_views.fitted(obs))[TOKENS]}, obs.batch_size)
