"""What pictures of masks, features and neighbours are put together from, for still pictures and for clips."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodels.evals.bev_maps import principal_colors
from worldmodels.evals.picture_grids import Tile

SETS = ((0.94, 0.60, 0.0), (0.10, 0.60, 0.31), (0.12, 0.31, 0.61), (0.84, 0.19, 0.15))  # colours of target sets
HIDDEN = 0.55  # what a patch that nobody sees fades to


def first_of_each(pixels: Tensor) -> Tensor:
    """Where each different picture of [N, C, H, W] comes first, in order: int64 [N']."""
    _, kind = torch.unique(pixels.flatten(1), dim=0, return_inverse=True)  # [N]
    place = torch.arange(len(kind), device=kind.device)
    first = torch.full_like(place, len(kind)).scatter_reduce_(0, kind, place, "amin")
    return first[first < len(kind)].sort().values


def covered(tokens: Tensor, grid: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """Which pixels tokens [K] of a grid cover, [S, S, 1], or [T, S, S, 1] on a grid with steps; -1 is padding."""
    is_chosen = torch.zeros(math.prod(grid) + 1, dtype=torch.bool, device=tokens.device)
    is_chosen[tokens] = True  # padding marks the last one, which is no token
    is_chosen = is_chosen[:-1].reshape(grid).repeat_interleave(size[0] // grid[-2], -2)
    return is_chosen.repeat_interleave(size[1] // grid[-1], -1)[..., None].cpu().numpy()


def faded(picture: np.ndarray, is_shown: np.ndarray) -> np.ndarray:
    """A picture, values 0 to 1, where it is shown, and grey elsewhere."""
    return np.where(is_shown, picture, HIDDEN)


def tinted(picture: np.ndarray, is_asked: np.ndarray, index: int) -> np.ndarray:
    """A picture in the colour of a set of targets where it is asked for, and a shade of itself elsewhere."""
    tint = np.array(SETS[index % len(SETS)])
    return np.where(is_asked, 0.6 * picture + 0.4 * tint, 0.25 * picture + 0.75 * HIDDEN)


def color_maps(features: Tensor, grid: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Three main directions of tokens [n, N, D] as colours [n, *grid, 3], and the share of variance that they hold."""
    colors, explained = principal_colors(features.flatten(0, 1))
    return colors.unflatten(0, (len(features), *grid)).cpu().numpy(), explained


def neighbour_rows(
    images: np.ndarray, latent: Tensor, *, num: int, num_neighbours: int, what: str
) -> tuple[list[list[Tile]], Tensor]:
    """Each of the first pictures and those most similar to it by cosine.

    Args:
        images: [N, S, S, 3]; latent: [N, D], one each; num: pictures to be drawn; what: they are called.

    Returns:
        Rows of tiles, and the neighbours of all pictures, int64 [N, num_neighbours].
    """
    unit = F.normalize(latent.float(), dim=-1)
    nearest = (unit @ unit.T).fill_diagonal_(-torch.inf).topk(min(num_neighbours, len(images) - 1))
    rows = []
    for query in range(min(num, len(images))):
        row = [Tile(images[query], None, what)]
        for score, index in zip(nearest.values[query].tolist(), nearest.indices[query].tolist(), strict=True):
            row.append(Tile(images[index], None, f"{score:.2f}"))
        rows.append(row)
    return rows, nearest.indices


def same_class(neighbours: Tensor, label: Tensor) -> dict[str, float]:
    """Share of neighbours [N, k] that have the class [N] of their picture, and that of any other picture.

    Pictures without a class, -1, neither ask nor count as neighbours; nothing if there are not two with one.
    """
    is_known = label >= 0
    is_pair = is_known[:, None] & is_known[neighbours]
    is_same = (label[:, None] == label[None]) & is_known[:, None]
    num = int(is_known.sum())
    if num < 2 or not bool(is_pair.any()):
        return {}
    return {
        "neighbour_same_class": int((is_pair & (label[neighbours] == label[:, None])).sum()) / int(is_pair.sum()),
        "chance_same_class": (int(is_same.sum()) - num) / (num * (num - 1)),
    }
