"""What an objective makes of pictures, to be looked at: masks, feature maps in colours, nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F

from worldmodels.core import Embeds, Objective
from worldmodels.evals.dense_patches import Patches, patch_features
from worldmodels.evals.picture_grids import Tile, tile_picture
from worldmodels.evals.picture_rows import (
    color_maps,
    covered,
    faded,
    first_of_each,
    neighbour_rows,
    same_class,
    tinted,
)
from worldmodels.evals.results import device_of, in_chunks, judging, pack
from worldmodels.keys import CONTEXT, LABEL, OBSERVATION, PIXELS, TARGETS


class PatchPictures:
    """Pictures of masks, of patches' principal components and of nearest neighbours, of the same samples every time.

    Files: "masks.png", where the objective's transforms draw "context" and "targets": the picture, what the encoder
    sees, and each set that is asked for in its colour; "features.png", where it has ``patches``: their three main
    directions as colours, fitted on all pictures together; "patch_neighbours.png": patches at the middle of a picture
    and the most similar ones of other pictures; "neighbours.png", where it has ``embed``: the same for whole pictures.

    Scalars: "explained", share of the patches' variance in the three components; "neighbour_same_class", share of
    nearest pictures with the same label, and "chance_same_class", of any other picture, where there are labels.

    Args:
        source: of pictures; those of ``split("test")`` where it has splits.
        every: steps between two looks; 0 looks at the end only.
        num: pictures drawn; num_neighbours: of each.
        num_pool: samples among which neighbours are looked for; a picture that was drawn again counts once.
        entry: of what ``embed`` gives; None takes the first by name.
        chunk: pictures encoded at a time.
        seed: of the pictures and their masks.
        name: of this evaluator in logs and files.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        num: int = 6,
        num_neighbours: int = 6,
        num_pool: int = 512,
        entry: str | None = None,
        chunk: int = 256,
        seed: int = 0,
        name: str = "patch_pictures",
    ) -> None:
        if (OBSERVATION, PIXELS) not in source.spec.keys(True):
            raise ValueError(f"{name} draws pictures; {type(source).__name__} has none. Use env=images")
        if not 1 <= num <= num_pool or not 1 <= num_neighbours < num_pool:
            raise ValueError(
                f"{name}: num={num} and num_neighbours={num_neighbours} must be at least 1 and fit in "
                f"num_pool={num_pool}"
            )
        self.source = source.split("test") if hasattr(source, "split") else source
        self.every, self.name, self.entry, self.chunk, self.seed = every, name, entry, chunk, seed
        self.num, self.num_neighbours, self.num_pool = num, num_neighbours, num_pool

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Draw."""
        title, files = f"step {step}" if step else "step 0 (untrained)", {}
        metrics: dict[str, float] = {}
        with judging(objective):
            batch = self._batch(objective)
            pixels = batch[OBSERVATION, PIXELS][:, 0]  # [N, 3, S, S], the first view where there are several
            obs = TensorDict({PIXELS: pixels}, [len(pixels)])
            images = pixels.permute(0, 2, 3, 1).cpu().numpy()
            grid = getattr(getattr(objective, "encoder", None), "grid", ())
            if CONTEXT in batch.keys() and TARGETS in batch.keys() and len(grid) == 2:
                rows = mask_rows(images, batch[CONTEXT][: self.num], batch[TARGETS][: self.num], grid)
                files["masks.png"] = tile_picture(rows, title=f"masks, {title}")
            if isinstance(objective, Patches) and len(grid) == 2:
                features = patch_features(objective, obs, self.chunk)  # [N, H W, D]
                rows, metrics["explained"] = feature_rows(images, features[: self.num], grid)
                files["features.png"] = tile_picture(rows, title=f"three main directions of patches, {title}")
                rows = self.patch_rows(images, features, grid)
                files["patch_neighbours.png"] = tile_picture(rows, title=f"nearest patches, {title}")
            if isinstance(objective, Embeds):
                latent = in_chunks(objective.embed, obs, self.chunk)
                entry = self.entry or min(map(str, latent.keys()))
                drawn = {"num": self.num, "num_neighbours": self.num_neighbours, "what": "picture"}
                rows, neighbours = neighbour_rows(images, latent[entry], **drawn)
                files["neighbours.png"] = tile_picture(rows, title=f"nearest by {entry}, {title}")
                if LABEL in batch.keys() and not batch[LABEL].is_floating_point():
                    metrics |= same_class(neighbours, batch[LABEL].reshape(len(pixels), -1)[:, 0])
        if not files:
            raise ValueError(f"{self.name}: {type(objective).__name__} has no masks, no patches(obs) and no embed(obs)")
        return pack(metrics, files=files)

    def _batch(self, objective: Objective) -> TensorDict:
        """Different samples as the objective trains on them, its transforms drawn from this evaluator's seed."""
        generator = Generator(device_of(objective)).manual_seed(self.seed)
        batch = self.source.sample(self.num_pool, objective.window, generator)
        for transform in objective.transforms():
            batch = transform(batch, generator)
        return batch[first_of_each(batch[OBSERVATION, PIXELS][:, 0])]

    def patch_rows(self, images: np.ndarray, features: Tensor, grid: tuple[int, int]) -> list[list[Tile]]:
        """The middle patch of each of the first pictures, and the most similar patches of other pictures, one each."""
        middle, num = (grid[0] // 2) * grid[1] + grid[1] // 2, min(self.num, len(images))
        unit = F.normalize(features, dim=-1)
        cosine = torch.einsum("qd,nkd->qnk", unit[:num, middle], unit)
        best, place = cosine.max(-1)  # of each picture, [num, N]
        best[torch.arange(num), torch.arange(num)] = -torch.inf
        nearest = best.topk(min(self.num_neighbours, len(images) - 1))
        rows = []
        for query in range(num):
            row = [Tile(images[query], _box(images, grid, middle), "patch")]
            for score, index in zip(nearest.values[query].tolist(), nearest.indices[query].tolist(), strict=True):
                row.append(Tile(images[index], _box(images, grid, int(place[query, index])), f"{score:.2f}"))
            rows.append(row)
        return rows


def mask_rows(images: np.ndarray, context: Tensor, targets: Tensor, grid: tuple[int, int]) -> list[list[Tile]]:
    """For each picture: itself, what is shown of it, and each set that is asked for.

    Args:
        images: uint8 [N, S, S, 3]; context: int64 [n, K]; targets: int64 [n, M, K'], -1 is padding.
    """
    rows = []
    for image, shown, asked in zip(images, context, targets, strict=False):
        picture = image / 255
        is_shown = covered(shown, grid, image.shape[:2])
        row = [Tile(picture, None, "picture"), Tile(faded(picture, is_shown), None, "context")]
        for i, chosen in enumerate(asked):
            is_asked = covered(chosen, grid, image.shape[:2])
            row.append(Tile(tinted(picture, is_asked, i), None, f"target {i + 1}"))
        rows.append(row)
    return rows


def feature_rows(images: np.ndarray, features: Tensor, grid: tuple[int, int]) -> tuple[list[list[Tile]], float]:
    """Pictures above their patches' three main directions as colours, and the share of variance that these hold."""
    maps, explained = color_maps(features, grid)  # [n, H, W, 3]
    return [[Tile(image) for image in images[: len(maps)]], [Tile(found) for found in maps]], explained


def _box(images: np.ndarray, grid: tuple[int, int], token: int) -> tuple[float, float, float, float]:
    """Left, top, width and height of a token's patch in pixels."""
    height, width = images.shape[1] / grid[0], images.shape[2] / grid[1]
    return (token % grid[1]) * width, (token // grid[1]) * height, width, height
