"""What evaluators of clips share: tokens of clips on a grid of time, rows and columns, and those of pixels alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from perception.patches import MEAN, STD, byte_scale
from worldmodels.core import Objective
from worldmodels.evals.attentive_probe import normalized
from worldmodels.evals.results import device_of
from worldmodels.keys import PIXELS

CLIPS = 64  # encoded at a time


@runtime_checkable
class EmbedsTokens(Protocol):
    """Sees a clip as tokens on a grid, ``objective.encoder.grid``."""

    def embed_tokens(self, obs: TensorDict) -> TensorDict:
        """Return one entry for each representation, tokens [B, N, D] in the order of time, row, column.

        Args:
            obs: batch size [B]; "pixels" uint8 [B, T, 3, H, W].
        """
        ...


class Tokens(NamedTuple):
    """A representation of N clips."""

    normalized: Tensor  # float16 [N, L, D], every token with mean 0 and variance 1
    mean: Tensor  # float32 [N, D], of the tokens as they are


def require_clips(source: Any, name: str) -> None:
    """Raise a ValueError in the words of ``name`` if the source has no fixed clips."""
    if not hasattr(source, "part") or not hasattr(source, "label_classes"):
        raise ValueError(
            f"{name} needs clips with labels, part(name, num) and label_classes; {type(source).__name__} has not both. "
            "Use env=moving_scenes or env=video"
        )


def clip_grid(objective: Objective, name: str) -> tuple[int, int, int]:
    """The grid T', H', W' of an objective that sees clips.

    Raises:
        ValueError: if it does not.
    """
    grid = getattr(getattr(objective, "encoder", None), "grid", ())
    if not isinstance(objective, EmbedsTokens) or len(grid) != 3:
        raise ValueError(
            f"{name} needs an objective with embed_tokens(obs) on a grid (T, H, W); {type(objective).__name__} has "
            "none. Use objective=v_jepa, =v_pixel or =salt"
        )
    return grid[0], grid[1], grid[2]


def fitted_clips(objective: Any, obs: TensorDict) -> TensorDict:
    """Clips [N] as the objective's encoder takes them, without chance."""
    return objective.make_views.fitted(obs) if hasattr(objective, "make_views") else obs


@torch.no_grad()
def encoded(objective: Any, obs: TensorDict, chunk: int = CLIPS) -> dict[str, Tokens]:
    """Every representation that an ``EmbedsTokens`` gives of clips [N], ``chunk`` of them at a time, on its device."""
    device = device_of(objective)
    return _gathered(objective.embed_tokens(part.to(device)) for part in obs.split(chunk))


@torch.no_grad()
def encoded_pixels(
    objective: Objective, obs: TensorDict, grid: tuple[int, int, int], *, side: int, chunk: int = CLIPS
) -> Tokens:
    """The same of cuboids' own pixels, see ``pixel_tokens``, of clips as the objective's encoder sees them."""
    device = device_of(objective)
    clips = (fitted_clips(objective, part.to(device))[PIXELS] for part in obs.split(chunk))
    tokens = (pixel_tokens(pixels, grid, side=side) for pixels in clips)
    return _gathered(TensorDict({PIXELS: part}, [len(part)]) for part in tokens)[PIXELS]


def pixel_tokens(pixels: Tensor, grid: tuple[int, int, int], *, side: int) -> Tensor:
    """Pixels of every cuboid of a grid [N, T' H' W', U 3 P P], normalised; P is at most ``side``, larger ones averaged.

    Args:
        pixels: uint8 [N, T, 3, H, W]; grid: T', H', W', which divide T, H and W.
    """
    steps, rows, columns = grid
    num, frames, _, height, width = pixels.shape
    size = (rows * min(side, height // rows), columns * min(side, width // columns))
    scale, shift = (x.to(pixels.device)[:, None, None] for x in byte_scale(MEAN, STD))
    values = pixels.flatten(0, 1).float() * scale + shift
    if size != (height, width):
        values = F.adaptive_avg_pool2d(values, size)
    cells = values.view(num, steps, frames // steps, 3, rows, size[0] // rows, columns, size[1] // columns)
    return cells.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4).flatten(1, 3)


def _gathered(parts: Iterable[TensorDict]) -> dict[str, Tokens]:
    """Tokens of every name, of parts in turn; every token is held once, in half precision."""
    found: dict[str, list[Tokens]] = {}
    for part in parts:
        for name, tokens in part.items():
            found.setdefault(str(name), []).append(Tokens(normalized(tokens).half(), tokens.float().mean(1)))
    return {name: Tokens(*(torch.cat(list(kind)) for kind in zip(*held, strict=True))) for name, held in found.items()}
