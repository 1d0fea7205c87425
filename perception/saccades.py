"""Saccades: small patches of a picture around fixations that its salient places attract.

Source: seq-JEPA (arXiv 2505.03176), predictive learning across saccades; sheet seq_jepa, section 1.5. Differs: the
published saliency is a network's (DeepGaze IIE), whose weights are no file of ours; here it is local contrast energy
times a Gaussian around the centre of the picture. A patch is a crop of whole pixels, not an interpolation.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F
from torchrl.data import Composite

from perception.augment import check_num, picture_shape, single_pictures, to_next, view_spec, with_views
from perception.colour import grey
from perception.resample import blur

_FLOOR = 1e-16  # added to every chance, so that a picture that is inhibited everywhere still has fixations


class Saccades:
    """Patches around fixations that are drawn one after the other; no other augmentation.

    A fixation is a pixel, drawn with chances proportional to the saliency. Once it is drawn, the square of half-width
    ``patch // 2`` around it has chance 0 (inhibition of return). What of a patch lies beyond the picture is black.

    "transformation" [V, 2] is the fixation's row and column over the picture's height and width, within [0, 1);
    "action" is the difference to the next one.

    Args:
        spec: one picture; needs ("observation", "pixels") uint8 [3, H, W].
        num_views: V, fixations of a picture.
        patch: side of a patch in pixels.
        has_saliency: whether salient places are likelier; else all pixels are alike.
        has_inhibition: whether fixated places are left out.

    Raises:
        ValueError: if the patch is no smaller than the picture.
    """

    window = 1

    def __init__(
        self,
        spec: Composite,
        *,
        num_views: int,
        patch: int = 32,
        has_saliency: bool = True,
        has_inhibition: bool = True,
    ) -> None:
        self.source_shape = picture_shape(spec, "saccades")
        if not 2 <= patch <= min(self.source_shape):
            size = " x ".join(map(str, self.source_shape))
            raise ValueError(f"views.patch={patch}: patches of 2 pixels or more, no larger than the pictures ({size})")
        self.num, self.patch = check_num(num_views), patch
        self.has_saliency, self.has_inhibition = has_saliency, has_inhibition
        self.spec = view_spec(spec, (patch, patch), num_parameters=2, num_actions=2)

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Make patches of ("observation", "pixels") [B, 1, 3, H, W]; leaves become [B, V, ...]."""
        pictures = single_pictures(batch)
        fixations = self.fixate(pictures, generator)
        place = fixations / fixations.new_tensor(self.source_shape)  # [B, V, 2]
        return with_views(batch, self.patches(pictures, fixations), place, to_next(place, self.action_between))

    def fitted(self, obs: TensorDict) -> TensorDict:
        """Whole pictures: encoders of patches pool over any size."""
        return obs

    def action_between(self, transformation_a: Tensor, transformation_b: Tensor) -> Tensor:
        """Way [..., 2] from one fixation to another, in heights and widths of the picture."""
        return transformation_b - transformation_a

    def fixate(self, pictures: Tensor, generator: Generator) -> Tensor:
        """Draw fixations int64 [B, V, 2], row and column, in pictures uint8 [B, 3, H, W]."""
        height, width = self.source_shape
        shape = (len(pictures), height, width)
        chance = saliency(pictures) if self.has_saliency else torch.ones(shape, device=pictures.device)
        row = torch.arange(height, device=pictures.device)[:, None]
        column = torch.arange(width, device=pictures.device)
        found = []
        for _ in range(self.num):
            index = torch.multinomial(chance.flatten(1), 1, generator=generator)[:, 0]  # [B]
            at = torch.stack((index.div(width, rounding_mode="floor"), index.remainder(width)), -1)  # [B, 2]
            found.append(at)
            if self.has_inhibition:
                down, right = at[:, 0, None, None] - row, at[:, 1, None, None] - column
                is_seen = (down.abs() <= self.patch // 2) & (right.abs() <= self.patch // 2)  # [B, H, W]
                chance = chance.masked_fill(is_seen, 0) + _FLOOR
        return torch.stack(found, 1)

    def patches(self, pictures: Tensor, fixations: Tensor) -> Tensor:
        """Patches uint8 [B, V, 3, P, P]: the fixation is pixel P // 2 of its patch, both ways."""
        before, after = self.patch // 2, self.patch - 1 - self.patch // 2
        padded = F.pad(pictures, (before, after, before, after))
        crops = padded.unfold(-2, self.patch, 1).unfold(-2, self.patch, 1)  # [B, 3, H, W, P, P], a view
        sample = torch.arange(len(pictures), device=pictures.device)[:, None]
        return crops.movedim(1, 3)[sample, fixations[..., 0], fixations[..., 1]]


def saliency(pictures: Tensor, *, blur_share: float = 1 / 24, center_share: float = 1 / 3) -> Tensor:
    """How much a place attracts the eye, without a network: contrast around it, times nearness to the centre.

    Contrast is the squared gradient of the grey picture (central differences), blurred by a Gaussian whose standard
    deviation is ``blur_share`` of the shorter side. The centre's Gaussian has ``center_share`` of each side.

    Args:
        pictures: uint8 [B, 3, H, W].

    Returns:
        chances [B, H, W], which add up to 1; those of a uniform picture are the centre's Gaussian alone.
    """
    height, width = pictures.shape[-2:]
    light = F.pad(grey(pictures.float()), (1, 1, 1, 1), mode="replicate")
    down, right = light[..., 2:, 1:-1] - light[..., :-2, 1:-1], light[..., 1:-1, 2:] - light[..., 1:-1, :-2]
    sigma = blur_share * min(height, width)
    radius = min(max(1, round(3 * sigma)), min(height, width) - 1)
    energy = blur(down.square() + right.square(), light.new_full((len(pictures),), sigma), radius=radius)[:, 0]
    near = [
        torch.exp(-0.5 * ((torch.arange(side, device=light.device) + 0.5) / side - 0.5).div(center_share).square())
        for side in (height, width)
    ]
    chance = (energy + 1e-3) * near[0][:, None] * near[1]  # bytes squared: far below any visible contrast
    return chance / chance.sum((1, 2), keepdim=True)
