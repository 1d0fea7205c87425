"""Colours of a batch of pictures, float [N, 3, H, W] in 0..255, each changed by numbers of its own.

Brightness, contrast, saturation and grey are blends with black, the mean grey, and each pixel's grey, cut to 0..255 as
in Pillow's ``ImageEnhance``; hue turns on the circle of HSV.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, as everywhere


def grey(pictures: Tensor) -> Tensor:
    """Luma [N, 1, H, W]."""
    red, green, blue = pictures.unbind(1)
    return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])[:, None]


def jitter(pictures: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, each picture in an order of its own.

    Args:
        pictures: float [N, 3, H, W], 0..255.
        factors: [N, 4], of brightness, contrast and saturation (1 changes nothing), and the turn of the hue in circles.
        order: int64 [N, 4], a permutation of 0..3: which of the four comes first, second, ...

    Returns:
        new pictures.
    """
    for which in order.unbind(1):  # each [N]
        amount = factors.gather(1, which[:, None])[:, 0]  # [N]
        is_hue = which == HUE
        pictures = _blend(
            pictures, keep=amount.masked_fill(is_hue, 1), is_own=which == SATURATION, is_mean=which == CONTRAST
        )
        pictures = _where(is_hue & (amount != 0), pictures, turn_hue, amount)
    return pictures


def to_grey(pictures: Tensor, is_grey: Tensor) -> Tensor:
    """Replace the pictures marked in ``is_grey`` [N] by their grey, in three channels."""
    return _where(is_grey, pictures, lambda chosen: grey(chosen).expand_as(chosen))


def solarise(pictures: Tensor, is_solarised: Tensor, *, threshold: float = 128.0) -> Tensor:
    """Invert what is at or above ``threshold``, once rounded to bytes, in the pictures marked [N]."""
    return _where(is_solarised, pictures, lambda x: torch.where(x >= threshold - 0.5, 255 - x, x))


def turn_hue(pictures: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by ``turn`` [N] circles; the greatest and the least of a pixel's three values stay.

    With the greatest value V, its distance C from the least and the hue h in circles, channel c is V minus C times
    clamp(2 - 6 d, 0, 1), where d is the distance of h on the circle from the hue opposite to c: 1/2, 5/6, 1/6. This is
    HSV to RGB without cases.
    """
    red, green, blue = pictures.unbind(1)
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low  # [N, H, W]
    is_red, is_green = high == red, high == green
    across = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    sector = torch.full_like(high, 4 / 6).masked_fill_(is_green, 2 / 6).masked_fill_(is_red, 0)
    hue = across.div_(chroma.clamp_min(1e-6)).div_(6).add_(sector).add_(turn[:, None, None])  # across is 0 where grey
    distance = hue[:, None] - hue.new_tensor((1 / 2, 5 / 6, 1 / 6))[:, None, None]  # [N, 3, H, W]
    distance = distance.sub_(distance.round()).abs_()
    share = distance.mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(high[:, None], chroma[:, None], share, value=-1)


def _where(is_chosen: Tensor, pictures: Tensor, change: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """``change(pictures, *numbers)`` of the pictures marked [N].

    On a CPU, where looking at a size costs no wait, of those only; else of all, and the others are thrown away.
    """
    if pictures.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.where(_each(is_chosen), change(pictures, *numbers), pictures)
    chosen = is_chosen.nonzero()[:, 0]
    if not len(chosen):
        return pictures
    changed = change(pictures[chosen], *(entry[chosen] for entry in numbers))
    return pictures.index_copy(0, chosen, changed)


def _blend(pictures: Tensor, *, keep: Tensor, is_own: Tensor, is_mean: Tensor) -> Tensor:
    """Keep * picture + (1 - keep) * (its grey, the mean of its grey, or black), cut to 0..255; flags [N]."""
    other, light = 1 - keep, grey(pictures)
    constant = light.mean((1, 2, 3)) * other * is_mean
    light = light.mul_(_each(other * is_own)).add_(_each(constant))
    return torch.addcmul(light, pictures, _each(keep)).clamp_(0, 255)


def _each(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]
