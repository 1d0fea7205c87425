"""What moving scenes are painted with: scikit-learn's digits and patches of scikit-image's photographs, in three parts.

No digit and no pixel of a photograph is in two parts. Needs no download: pip install 'worldmodels[images]'.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from envs.image_cache import from_arrays
from envs.image_sets import named_pictures
from envs.images import JUDGED, split_parts

_PATCH = 80  # pixels of a photograph that one background shows
_MOST = {"train": 64, "val": 16, "test": 16}  # patches of a photograph
_PLAIN = (
    8.0  # a patch whose grey levels have a smaller standard deviation is left out: it shows no motion of the camera
)
_TEXTURE = (150.0, 45.0)  # mean and standard deviation of the grey levels of textures, so that digits stand out on all
_DIGIT, _RIM = 8, 2  # pixels of a digit; empty ones around it, so that its corners lie within the disc


class ScenePictures(NamedTuple):
    """The pictures of one part, uint8, on the device."""

    ink: Tensor  # [N, A, A], digits: 0 paper, 255 ink; their corners lie on the circle around them
    digit: Tensor  # int64 [N], which digit
    texture: Tensor  # [M, 3, A, A], patches of photographs, of one brightness and contrast
    background: Tensor  # [M, 3, S, S], the same patches, made to wrap around without a seam

    def to(self, device: torch.device) -> ScenePictures:
        """A copy on this device."""
        return ScenePictures(*(entry.to(device) for entry in self))


@functools.lru_cache(maxsize=2)  # sources of the same settings share them; nobody writes into them
def scene_pictures(
    size: int, detail: int, *, val_share: float, test_share: float, seed: int
) -> dict[str, ScenePictures]:
    """The pictures of "train", "val" and "test".

    Args:
        size: of frames in pixels, S.
        detail: of what discs show, in texels, A.
        val_share, test_share: of digits of every class, and of the length of every photograph.
        seed: of the drawn parts, and of which patches of a photograph are kept.

    Raises:
        ImportError: without scikit-learn or scikit-image.
    """
    shares = {"val_share": val_share, "test_share": test_share, "seed": seed}
    try:
        digits = from_arrays(named_pictures("digits", None, **shares), None)
        photographs = named_pictures("photographs", _PATCH, **shares)
    except ImportError as error:
        raise ImportError(
            "env=moving_scenes needs digits and photographs: pip install 'worldmodels[images]'"
        ) from error
    random, drawn = np.random.default_rng(seed), split_parts(digits, **shares)
    patches, part_of = np.concatenate(photographs.arrays), np.asarray(photographs.parts)
    is_plain = patches.mean(1).std((1, 2)) < _PLAIN
    found = {}
    for name in JUDGED:
        rows = random.permutation(np.flatnonzero((part_of == name) & ~is_plain))
        owner = photographs.labels[rows]
        kept = [rows[owner == label][: _MOST[name]] for label in np.unique(owner)]  # as many of every photograph
        chosen = torch.from_numpy(patches[np.concatenate(kept)])
        ink = torch.from_numpy(digits.pixels[drawn[name], :1])  # [N, 1, 8, 8], grey
        found[name] = ScenePictures(
            ink=_resized(F.pad(ink, (_RIM,) * 4), detail)[:, 0],
            digit=torch.from_numpy(digits.labels[drawn[name]]),
            texture=_evened(_resized(chosen, detail)),
            background=without_seam(chosen, size),
        )
    return found


def without_seam(patches: Tensor, size: int) -> Tensor:
    """Patches uint8 [M, 3, H, H] resized, so that they wrap around with period ``size``: uint8 [M, 3, S, S].

    A patch is a quarter wider than needed; what is too much is faded into the opposite edge.
    """
    fade = max(1, size // 4)
    wide = F.interpolate(patches.float(), size=(size + fade,) * 2, mode="bilinear", antialias=True)
    weight = torch.arange(fade) / fade  # of the own pixels, as those of the other edge fade out
    for _ in range(2):
        wide[..., :fade] = torch.lerp(wide[..., size:], wide[..., :fade], weight)
        wide = wide[..., :size].mT
    return wide.round().clamp(0, 255).to(torch.uint8).contiguous()


def _resized(pictures: Tensor, size: int) -> Tensor:
    """Pictures uint8 [N, C, H, H] of another size."""
    small = F.interpolate(pictures.float(), size=(size, size), mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def _evened(pictures: Tensor) -> Tensor:
    """Pictures uint8 [N, 3, H, W] of one brightness and contrast."""
    mean, deviation = _TEXTURE
    grey = pictures.float().mean(1).flatten(1)  # [N, H W]
    shift, scale = (entry[:, None, None, None] for entry in (grey.mean(1), grey.std(1).clamp_min(1)))
    return ((pictures - shift) / scale * deviation + mean).round().clamp(0, 255).to(torch.uint8)
