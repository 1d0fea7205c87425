"""Several views of every picture in one batched call on the device, and the numbers by which they were made.

Notable: nothing is done picture by picture; every random number of a batch is drawn at once; what differs between views
is a tensor entry, never a branch. On a CPU the work goes through the cache in parts.

Recipe: seq-JEPA (arXiv 2505.03176), which follows EquiMod; sheet seq_jepa, sections 1.3 and 1.4. A crop alone is
that of I-JEPA (arXiv 2301.08243).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F
from torchrl.data import Bounded, Composite, Unbounded

from perception import colour
from perception.resample import Bicubic, Kernel, blur, fitted, resample, resize_weights
from worldmodels.keys import ACTION, OBSERVATION, PIXELS, TRANSFORMATION

CHANCES = ("flip", "jitter", "grayscale", "blur", "solarise")
COLUMNS = {"crop": range(4), "jitter": range(4, 8), "blur": range(8, 9)}  # of a transformation
# Standard deviation of each column in the published recipe: crops in sides of the source picture, as drawn on a square
# of 1024 pixels (a test draws them again); jitter and blur from their uniform distributions, jitter with chance 0.8.
_CROP_UNITS = (0.1187, 0.1187, 0.1514, 0.1514)  # top, left, height, width
_COLOUR_UNITS = (0.2066, 0.2066, 0.1033, 0.0516, 0.5485)  # brightness, contrast, saturation, hue, blur
_TRIES = 10  # crops drawn for one that fits
_PART = 1 << 18  # numbers worked on at a time on a CPU: what stays in its cache


class Augmentation(NamedTuple):
    """How each of V views of B pictures is made."""

    crop: Tensor  # float [B, V, 4], top, left, height, width: whole pixels of the source picture
    is_flipped: Tensor  # bool [B, V]
    factors: Tensor  # float [B, V, 4], of brightness, contrast, saturation; turn of the hue in circles
    order: Tensor  # int64 [B, V, 4], a permutation of these four
    is_grey: Tensor  # bool [B, V]
    sigma: Tensor  # float [B, V], of the blur, in pixels of the view; 0 for none
    is_solarised: Tensor  # bool [B, V]


class AugmentedViews:
    """Crops of a picture, mirrored, with other colours, blurred: ``num_views`` of them, the last one the target.

    A view is a random resized crop, then a mirroring, jitter of brightness, contrast, saturation and hue in an order
    drawn for each view, grey, blur, solarising. It is rounded to bytes once, at the end.

    "transformation" [V, 9] is top, left, height and width of the crop in pixels of the source picture; the factors of
    brightness, contrast and saturation and the turn of the hue, 1, 1, 1, 0 without jitter; sigma of the blur in pixels
    of the view, 0 without. Mirroring, grey and solarising are not in it. "action" is the difference to the next view.

    Args:
        spec: one picture; needs ("observation", "pixels") uint8 [3, H, W].
        num_views: V. With two or more, the last one is the target; a single one is no target.
        size: side of the views, or [height, width]; None keeps that of the source.
        crop_scale: least and greatest share of the area. crop_ratio: of width to height.
        jitter: greatest change of brightness, contrast, saturation and hue.
        sigma: least and greatest of the blur, in pixels of the view.
        chances: of "flip", "jitter", "grayscale", "blur" and "solarise"; those not named are 0.
        target: chances in which the target differs.
        action: which parts of the transformation are the action: "crop", "jitter", "blur".
        normalize: "standard" divides each difference by a constant, the parameter's standard deviation in the published
            recipe; "released" first divides each parameter by its norm over the sample's views, as the released code
            does, which makes actions depend on V and on the target view: sequences of another length have others.
        kernel: of the resizing; None is bicubic, as published. It is widened when a crop shrinks (antialiasing).

    Raises:
        ValueError: for data without pictures in colour, and for settings that make no sense, by name.
    """

    window = 1

    def __init__(
        self,
        spec: Composite,
        *,
        num_views: int,
        size: int | Sequence[int] | None = None,
        crop_scale: Sequence[int | float] = (0.2, 1.0),
        crop_ratio: Sequence[int | float] = (3 / 4, 4 / 3),
        jitter: Sequence[int | float] = (0.4, 0.4, 0.2, 0.1),
        sigma: Sequence[int | float] = (0.1, 2.0),
        chances: Mapping[str, int | float] | None = None,
        target: Mapping[str, int | float] | None = None,
        action: Sequence[str] = ("crop", "jitter", "blur"),
        normalize: str = "standard",
        kernel: Kernel | None = None,
    ) -> None:
        self.source_shape = picture_shape(spec, "views of pictures")
        height, width = (size, size) if isinstance(size, int) else size or self.source_shape
        self.num, self.size, self.kernel = check_num(num_views), (int(height), int(width)), kernel or Bicubic()
        if min(self.size) < 1:
            raise ValueError(f"views.size={list(self.size)}: height and width of at least one pixel")
        self.scale, self.ratio = _range(crop_scale, "crop_scale", most=1.0), _range(crop_ratio, "crop_ratio")
        if len(jitter) != 4 or min(jitter) < 0 or max(jitter[:3]) > 1 or jitter[3] > 0.5:
            raise ValueError(
                f"views.jitter={list(jitter)}: changes of brightness, contrast, saturation (each at most 1)"
                " and hue (at most 0.5)"
            )
        self.jitter, self.sigma = tuple(map(float, jitter)), _range(sigma, "sigma")
        usual = _chances(chances or {}, "chances")
        last = usual | _chances(target or {}, "target") if num_views > 1 else usual
        self.chances = {name: [usual.get(name, 0.0)] * (num_views - 1) + [last.get(name, 0.0)] for name in CHANCES}
        self.radius = max(1, round((min(self.size) - 10) / 20))  # sheet section 1.4: a kernel of 3 at 32, 7 at 64
        if max(self.chances["blur"]) > 0 and self.radius >= min(self.size):
            raise ValueError(f"views.size={list(self.size)} is too small for a blur")
        if unknown := sorted(set(action) - set(COLUMNS)):
            raise ValueError(f"views.action={list(action)}: {unknown[0]} is none of {', '.join(COLUMNS)}")
        self.columns = [column for name, columns in COLUMNS.items() if name in action for column in columns]
        if normalize not in ("standard", "released"):
            raise ValueError(f"views.normalize={normalize}: it is standard or released")
        self.is_released_scale = normalize == "released"
        sides = [side for side in (*self.source_shape, *self.source_shape)]
        self.units = [unit * side for unit, side in zip(_CROP_UNITS, sides, strict=True)] + list(_COLOUR_UNITS)
        self.spec = view_spec(spec, self.size, num_parameters=9, num_actions=len(self.columns))

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Make views of ("observation", "pixels") [B, 1, 3, H, W]; leaves become [B, V, ...]."""
        pictures = single_pictures(batch)
        how = self.draw(len(pictures), generator)
        colours = torch.cat((how.factors, how.sigma[..., None]), -1)
        transformation = torch.cat((how.crop, colours), -1)  # [B, V, 9]
        action = self.differences(transformation)
        return with_views(batch, self.render(pictures, how), transformation, action)

    def fitted(self, obs: TensorDict) -> TensorDict:
        """Pictures [B] with their middle at the size of views; those that have it, as they are."""
        return obs.copy().set(PIXELS, fitted(obs[PIXELS], self.size))

    def draw(self, num: int, generator: Generator) -> Augmentation:
        """Draw how to make the views of ``num`` pictures, on the generator's device."""
        shape, like = (num, self.num), {"generator": generator, "device": generator.device}
        uniform = torch.rand((11, *shape), **like)
        chance = torch.tensor([self.chances[name] for name in CHANCES], device=generator.device)  # [5, V]
        is_flipped, is_jittered, is_grey, is_blurred, is_solarised = (uniform[:5] < chance[:, None]).unbind()
        strength = uniform.new_tensor(self.jitter)
        neutral = uniform.new_tensor((1.0, 1.0, 1.0, 0.0))
        change = (2 * uniform[5:9].movedim(0, -1) - 1) * strength * is_jittered[..., None]  # [B, V, 4]
        low, high = self.sigma
        return Augmentation(
            crop=draw_crops(shape, self.source_shape, scale=self.scale, ratio=self.ratio, generator=generator),
            is_flipped=is_flipped,
            factors=neutral + change,
            order=torch.rand((*shape, 4), **like).argsort(-1),
            is_grey=is_grey,
            sigma=(low + (high - low) * uniform[9]) * is_blurred,
            is_solarised=is_solarised,
        )

    def render(self, pictures: Tensor, how: Augmentation) -> Tensor:
        """Views uint8 [B, V, 3, S, T] of pictures uint8 [B, 3, H, W], made as told."""
        each = self.num * 3 * max(self.size[0] * self.size[1], math.prod(self.source_shape) // self.num)
        part = max(1, _PART // each) if pictures.device.type == "cpu" else len(pictures)
        views = pictures.new_empty((len(pictures), self.num, 3, *self.size))
        for start in range(0, len(pictures), part):
            chosen = slice(start, start + part)
            made = self._render(pictures[chosen].float(), Augmentation(*(entry[chosen] for entry in how)))
            views[chosen] = made.round_().clamp_(0, 255).unflatten(0, (-1, self.num))
        return views

    def _render(self, pictures: Tensor, how: Augmentation) -> Tensor:
        """Float [B V, 3, S, T] of a part; what never happens is left out."""
        (height, width), (rows, columns) = self.source_shape, self.size
        top, left, tall, wide = how.crop.unbind(-1)
        x = resample(
            pictures,
            resize_weights(top, tall, num=height, size=rows, kernel=self.kernel),
            resize_weights(left, wide, num=width, size=columns, kernel=self.kernel, is_flipped=how.is_flipped),
        ).clamp_(0, 255)  # a cubic overshoots at edges
        can = {name: max(chances) > 0 for name, chances in self.chances.items()}
        if can["jitter"]:
            x = colour.jitter(x, how.factors.flatten(0, 1), how.order.flatten(0, 1))
        if can["grayscale"]:
            x = colour.to_grey(x, how.is_grey.flatten())
        if can["blur"]:
            x = blur(x, how.sigma.flatten(), radius=self.radius)
        if can["solarise"]:
            x = colour.solarise(x, how.is_solarised.flatten())
        return x

    def differences(self, transformation: Tensor) -> Tensor:
        """Actions [B, V, A] of transformations [B, V, 9]: what leads to the next view; zero for the last."""
        if self.is_released_scale:
            return to_next(F.normalize(transformation, dim=1)[..., self.columns])
        return to_next(transformation, self.action_between)

    def action_between(self, transformation_a: Tensor, transformation_b: Tensor) -> Tensor:
        """Action [..., A] that leads from a view made by one transformation [..., 9] to one made by another.

        In standard deviations whatever ``normalize`` is: released actions depend on all views of a sample, and only
        networks are given those. What a linear map finds of a number does not depend on its unit.
        """
        change = (transformation_b - transformation_a) / transformation_a.new_tensor(self.units)
        return change[..., self.columns]


def draw_crops(
    shape: tuple[int, ...],
    picture: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: Generator,
) -> Tensor:
    """Crops of pictures [H, W] = ``picture``: top, left, height, width, whole pixels as floats, ``shape`` + [4].

    The area is uniform, the logarithm of width to height is uniform; the first of ten draws that fits is taken. If none
    does, the middle of the picture, as large as the ratios allow (in wide or tall pictures, or near the whole area).
    """
    like = {"generator": generator, "device": generator.device}
    height, width = picture
    uniform = torch.rand((2, *shape, _TRIES), **like)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[0])
    slope = math.log(ratio[1] / ratio[0])
    aspect = ratio[0] * torch.exp(slope * uniform[1])  # width over height
    wide, tall = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()  # [..., tries]
    fits = (wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height)
    first = fits.to(torch.uint8).argmax(-1, keepdim=True)
    widest, tallest = min(width, max(1, round(height * ratio[1]))), min(height, max(1, round(width / ratio[0])))
    has_fit = fits.any(-1)
    wide = torch.where(has_fit, wide.gather(-1, first)[..., 0], float(widest))
    tall = torch.where(has_fit, tall.gather(-1, first)[..., 0], float(tallest))
    place = torch.rand((2, *shape), **like)
    place = torch.where(has_fit, place, 0.5)
    top, left = (place[0] * (height - tall + 1)).floor(), (place[1] * (width - wide + 1)).floor()
    return torch.stack((top.clamp_max(height - tall), left.clamp_max(width - wide), tall, wide), -1)


# --- what all views of pictures share --------------------------------------------------------------------------------
def picture_shape(spec: Composite, what: str) -> tuple[int, int]:
    """Height and width of the pictures of a source; a ValueError in the words of ``what`` if it has none in colour."""
    if (OBSERVATION, PIXELS) not in spec.keys(True):
        raise ValueError(f"{what} need observation/pixels in the data. Use env=images or env=rendered_objects.")
    shape = spec[OBSERVATION, PIXELS].shape
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"{what} need pixels [3, H, W], red, green, blue; these are {list(shape)}")
    return int(shape[1]), int(shape[2])


def view_spec(spec: Composite, size: tuple[int, int], *, num_parameters: int, num_actions: int) -> Composite:
    """The spec of one view: that of the source, with pictures of ``size``, a transformation and an action."""
    views, device = spec.clone(), spec.device
    views[OBSERVATION, PIXELS] = Bounded(0, 255, (3, *size), dtype=torch.uint8, device=device)
    views[TRANSFORMATION] = Unbounded((num_parameters,), device=device)
    views[ACTION] = Unbounded((num_actions,), device=device)
    return views


def single_pictures(batch: TensorDict) -> Tensor:
    """Pictures [B, 3, H, W] of a batch of one row a sample."""
    pixels = batch[OBSERVATION, PIXELS]
    if pixels.ndim != 5 or pixels.shape[1] != 1:
        raise ValueError(f"views of a picture are made of windows of one row; pixels are {list(pixels.shape)}")
    return pixels[:, 0]


def with_views(batch: TensorDict, pixels: Tensor, transformation: Tensor, action: Tensor) -> TensorDict:
    """The batch with views [B, V, ...] in the place of its single row; all else is repeated for every view."""
    num = pixels.shape[1]
    rows: dict[Any, Tensor] = {key: leaf.expand(-1, num, *leaf.shape[2:]) for key, leaf in batch.items(True, True)}
    rows |= {(OBSERVATION, PIXELS): pixels, TRANSFORMATION: transformation, ACTION: action}
    return TensorDict(rows, batch.batch_size, device=batch.device)  # whatever batch size entries inside it had


def to_next(rows: Tensor, between: Callable[[Tensor, Tensor], Tensor] = lambda a, b: b - a) -> Tensor:
    """What leads from each row of [B, V, P] to the next, [B, V, A]; zero for the last."""
    return F.pad(between(rows[:, :-1], rows[:, 1:]), (0, 0, 0, 1))


def check_num(num_views: int) -> int:
    """A number of views, at least one."""
    if num_views < 1:
        raise ValueError(f"views.num_views={num_views}: at least one")
    return num_views


def _range(pair: Sequence[int | float], what: str, *, most: float = math.inf) -> tuple[float, float]:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
        limit = "" if most == math.inf else f", at most {most:g}"
        raise ValueError(f"views.{what}={list(pair)}: the least and the greatest, above 0{limit}")
    return float(pair[0]), float(pair[1])


def _chances(chances: Mapping[str, int | float], what: str) -> dict[str, float]:
    if unknown := sorted(set(chances) - set(CHANCES)):
        raise ValueError(f"views.{what}.{unknown[0]}: there are chances of {', '.join(CHANCES)}")
    if wrong := {name: chance for name, chance in chances.items() if not 0 <= chance <= 1}:
        raise ValueError(f"views.{what}={wrong}: chances lie within 0 and 1")
    return {str(name): float(chance) for name, chance in chances.items()}
