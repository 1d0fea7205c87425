"""What an objective makes of clips, to be looked at: masks over time, feature maps in colours, nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import Embeds, Objective
from worldmodels.evals.clip_tokens import CLIPS, EmbedsTokens, fitted_clips, require_clips
from worldmodels.evals.picture_grids import Tile, tile_picture
from worldmodels.evals.picture_rows import (
    color_maps,
    covered,
    faded,
    neighbour_rows,
    same_class,
    tinted,
)
from worldmodels.evals.results import device_of, in_chunks, judging, pack
from worldmodels.keys import CONTEXT, FAMILIES, OBSERVATION, PIXELS, TARGETS

_GAP = 3  # white pixels between frames


class ClipPictures:
    """Pictures of masks, of tokens' principal components and of nearest neighbours, of the same clips every time.

    Files: "masks.png", where the objective's transforms draw families of masks: the clip, a frame for every step of the
    encoder's grid, and for each family what the encoder sees and what is asked for; "features.png", where it has
    ``embed_tokens``: frames above their tokens' three main directions as colours, fitted on all clips together;
    "neighbours.png", where it has ``embed``: the middle frames of clips and of those nearest to them.

    Scalars: "explained", share of the tokens' variance in the three components; for labels that are classes
    "<label>/neighbour_same_class", share of nearest clips with the same one, and "<label>/chance_same_class".

    Args:
        source: with ``split(name)``, ``part(name, num)`` and ``label_classes``; clips are those of "test".
        every: steps between two looks; 0 looks at the end only.
        num_masks: clips with their masks; num: clips drawn with features, and with neighbours.
        num_neighbours: of each.
        num_pool: clips among which neighbours are looked for.
        entry: of what ``embed`` and ``embed_tokens`` give.
        chunk: clips encoded at a time.
        seed: of the clips with masks, and of these.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no clips, or settings make no sense.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        num_masks: int = 2,
        num: int = 4,
        num_neighbours: int = 6,
        num_pool: int = 256,
        entry: str = "clip",
        chunk: int = CLIPS,
        seed: int = 0,
        name: str = "clip_pictures",
    ) -> None:
        require_clips(source, name)
        if min(num_masks, num) < 1 or num > num_pool or not 1 <= num_neighbours < num_pool:
            raise ValueError(
                f"{name}: num_masks={num_masks}, num={num} and num_neighbours={num_neighbours} must be at least 1 and "
                f"fit in num_pool={num_pool}"
            )
        self.source, self.every, self.name, self.entry, self.chunk = source, every, name, entry, chunk
        self.num_masks, self.num, self.num_neighbours, self.num_pool = num_masks, num, num_neighbours, num_pool
        self.seed = seed

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Draw.

        Raises:
            ValueError: if the objective has nothing to be drawn, or no such ``entry``.
        """
        grid = getattr(getattr(objective, "encoder", None), "grid", ())
        if len(grid) != 3 or not isinstance(objective, Embeds | EmbedsTokens):
            raise ValueError(
                f"{self.name} needs an objective with embed(obs) or embed_tokens(obs) on a grid (T, H, W); "
                f"{type(objective).__name__} has none. Use objective=v_jepa, =v_pixel or =salt"
            )
        title, files = f"step {step}" if step else "step 0 (untrained)", {}
        metrics: dict[str, float] = {}
        with judging(objective):
            batch, look = self._batch(objective), {"side": 0.95, "aspect": float(grid[0])}
            if FAMILIES in batch.keys():
                rows = mask_strips(frames_of(batch[OBSERVATION, PIXELS][:, 0], grid[0]), batch[FAMILIES], grid)
                files["masks.png"] = tile_picture(rows, title=f"masks, {title}", **look)
            obs, label = self.source.part("test", self.num_pool)
            obs = obs.to(device_of(objective))
            images = frames_of(fitted_clips(objective, obs)[PIXELS], grid[0])
            if isinstance(objective, EmbedsTokens):
                tokens = self._entry(objective.embed_tokens(obs[: self.num])).float()
                rows, metrics["explained"] = feature_strips(images, tokens, grid)
                files["features.png"] = tile_picture(rows, title=f"three main directions of tokens, {title}", **look)
            if isinstance(objective, Embeds):
                latent = self._entry(in_chunks(objective.embed, obs, self.chunk))
                middle = images[:, grid[0] // 2]
                drawn = {"num": self.num, "num_neighbours": self.num_neighbours, "what": "clip"}
                rows, neighbours = neighbour_rows(middle, latent, **drawn)
                files["neighbours.png"] = tile_picture(rows, title=f"nearest by {self.entry}, {title}")
                for name in sorted(self.source.label_classes):
                    found = same_class(neighbours, label[name].to(neighbours.device))
                    metrics |= {f"{name}/{key}": value for key, value in found.items()}
        return pack(metrics, files=files)

    def _batch(self, objective: Objective) -> TensorDict:
        """Clips as the objective trains on them, its transforms drawn from this evaluator's seed."""
        generator = Generator(device_of(objective)).manual_seed(self.seed)
        batch = self.source.split("test").sample(self.num_masks, objective.window, generator)
        for transform in objective.transforms():
            batch = transform(batch, generator)
        return batch

    def _entry(self, found: TensorDict) -> Tensor:
        if self.entry not in found.keys():
            raise ValueError(f"eval.{self.name}.entry={self.entry}: there are {', '.join(map(str, found.keys()))}")
        return found[self.entry]


def frames_of(clips: Tensor, steps: int) -> np.ndarray:
    """The first frame of every step, uint8 [N, T', S, S, 3], of clips [N, T, 3, S, S]."""
    return clips[:, :: clips.shape[1] // steps].permute(0, 1, 3, 4, 2).cpu().numpy()


def mask_strips(images: np.ndarray, families: TensorDict, grid: tuple[int, int, int]) -> list[list[Tile]]:
    """For each clip a strip of its frames, and for each family one of what is shown and one of what is asked for.

    Args:
        images: uint8 [N, T', S, S, 3]; families: by name, "context" int64 [N, K] and "targets" int64 [N, 1, K'].
    """
    rows, size = [], images.shape[2:4]
    for i, image in enumerate(images):
        clip = image / 255
        rows.append([Tile(strip(clip), None, f"clip {i + 1}")])
        for j, name in enumerate(sorted(map(str, families.keys()))):
            shown, asked = families[name, CONTEXT][i], families[name, TARGETS][i, 0]
            of_shown, of_asked = (f"{int((index >= 0).sum())} of {np.prod(grid)} tokens" for index in (shown, asked))
            seen = faded(clip, covered(shown, grid, size))
            rows.append([Tile(strip(seen), None, f"{name}: seen, {of_shown}")])
            wanted = tinted(clip, covered(asked, grid, size), j)
            rows.append([Tile(strip(wanted), None, f"{name}: asked for, {of_asked}")])
    return rows


def feature_strips(images: np.ndarray, tokens: Tensor, grid: tuple[int, int, int]) -> tuple[list[list[Tile]], float]:
    """Frames above their tokens' three main directions as colours, and the share of variance that these hold.

    Args:
        images: uint8 [N, T', S, S, 3]; tokens: [n, T' H W, D] of the first n clips.
    """
    maps, explained = color_maps(tokens, grid)  # [n, T', H, W, 3]
    (height, width), rows = images.shape[2:4], []
    for i, (image, colors) in enumerate(zip(images, maps, strict=False)):
        large = colors.repeat(height // grid[1], 1).repeat(width // grid[2], 2)
        rows += [[Tile(strip(image / 255), None, f"clip {i + 1}")], [Tile(strip(large), None, "features")]]
    return rows, explained


def strip(frames: np.ndarray) -> np.ndarray:
    """Frames [T, S, S, 3], values 0 to 1, side by side with a gap: [S, W, 3]."""
    gap = np.ones((frames.shape[1], _GAP, 3))
    parts = [part for frame in frames for part in (frame, gap)]
    return np.concatenate(parts[:-1], 1)
