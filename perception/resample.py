"""Resampling of pictures as two matrix products, one for rows and one for columns, with weights of each picture's own.

Whatever is separable and linear is such a pair of matrices: cutting out and resizing, mirroring, blurring. A batch is
then two batched products on any device, without interpolation grids, loops or index arithmetic per pixel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F


class Kernel(ABC):
    """An interpolation kernel."""

    support: float
    """Beyond this distance, in pixels, its weight is 0."""

    @abstractmethod
    def __call__(self, distance: Tensor) -> Tensor:
        """Weights of pixels at signed distances, in pixels of the coarser picture."""


class Bilinear(Kernel):
    """A triangle."""

    support = 1.0

    def __call__(self, distance: Tensor) -> Tensor:
        """1 - |d| within 1."""
        return (1 - distance.abs()).clamp_min(0)


class Bicubic(Kernel):
    """Keys' cubic with a = -1/2, as Pillow has it.

    Source: Keys 1981, eq. 15.
    """

    support = 2.0

    def __call__(self, distance: Tensor) -> Tensor:
        """Exact for quadratic pictures; negative between 1 and 2."""
        d = distance.abs().clamp_max(2)
        near = (1.5 * d - 2.5) * d * d + 1
        far = ((-0.5 * d + 2.5) * d - 4) * d + 2
        return torch.where(d < 1, near, far)


def resize_weights(
    start: Tensor, length: Tensor, *, num: int, size: int, kernel: Kernel, is_flipped: Tensor | None = None
) -> Tensor:
    """What each new row takes of the old ones, when ``length`` rows from ``start`` on become ``size`` rows.

    When rows get fewer the kernel is widened by their ratio (antialiasing). Rows outside the cut have no influence, as
    if it had been cut out first. This is what Pillow's ``crop`` and ``resize`` do, without their rounding.

    Args:
        start, length: whole numbers as floats [...], in rows of the old picture; at least one row.
        num: rows of the old picture, R.
        size: rows of the new picture, S.
        kernel: of interpolation.
        is_flipped: bool [...], whether the new rows come in reverse order.

    Returns:
        [..., S, R], rows that add up to 1.
    """
    new = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5  # [S]
    old = torch.arange(num, device=start.device, dtype=start.dtype) + 0.5  # [R]
    ratio = (length / size)[..., None]  # [..., 1]
    if is_flipped is not None:
        new = torch.where(is_flipped[..., None], size - new, new)  # [..., S]
    center = start[..., None] + new * ratio  # [..., S]
    weight = kernel((old - center[..., None]) / ratio.clamp_min(1)[..., None])  # [..., S, R]
    is_inside = (old > start[..., None]) & (old < (start + length)[..., None])  # [..., R]
    weight = weight * is_inside[..., None, :]
    return weight / weight.sum(-1, keepdim=True)


def gaussian_weights(sigma: Tensor, *, size: int, radius: int) -> Tensor:
    """What each row takes of the others in a Gaussian blur over ``radius`` rows to both sides.

    Beyond the edge the picture is mirrored, the edge row itself not repeated.

    Args:
        sigma: standard deviation in rows, float [...]; 0 changes nothing.
        size: rows of the picture, S.
        radius: at most S - 1.

    Returns:
        [..., S, S], rows that add up to 1.

    Raises:
        ValueError: if the radius reaches beyond the mirrored picture.
    """
    if not 0 <= radius < size:
        raise ValueError(f"a blur over {radius} pixels to both sides needs pictures of at least {radius + 1} pixels")
    offset = torch.arange(-radius, radius + 1, device=sigma.device)  # [T]
    taps = torch.softmax(-0.5 * (offset / sigma[..., None].clamp_min(1e-3)).square(), -1)  # [..., T]
    row = torch.arange(size, device=sigma.device)
    place = (row[:, None] + offset).abs()  # [S, T], mirrored at the first row
    place = torch.where(place >= size, 2 * (size - 1) - place, place)
    is_taken = F.one_hot(place, size).to(taps.dtype)  # [S, T, S]
    return torch.einsum("...t,sto->...so", taps, is_taken)


def resample(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Several resamplings of every picture.

    Args:
        pictures: float [B, C, H, W].
        rows: [B, V, S, H], see ``resize_weights``.
        columns: [B, V, T, W].

    Returns:
        [B * V, C, S, T].
    """
    num, channels, height, width = pictures.shape
    views, size = rows.shape[1:3]
    flat = pictures.transpose(1, 2).reshape(num, height, channels * width)
    tall = torch.bmm(rows.reshape(num, views * size, height), flat)  # [B, V S, C W]
    tall = tall.view(num * views, size * channels, width)
    both = torch.bmm(tall, columns.reshape(num * views, -1, width).transpose(1, 2))  # [B V, S C, T]
    return both.view(num * views, size, channels, -1).transpose(1, 2)


def blur(pictures: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Blur float pictures [N, C, H, W] by ``sigma`` [N]; see ``gaussian_weights``."""
    height, width = pictures.shape[-2:]
    rows = gaussian_weights(sigma, size=height, radius=radius)[:, None]  # [N, 1, H, H]
    columns = rows if width == height else gaussian_weights(sigma, size=width, radius=radius)[:, None]
    return resample(pictures, rows, columns)


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Bytes [..., C, H, W] as bytes of another size, averaged where it is smaller; unchanged if it is their own."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    batch = pixels.reshape(-1, *pixels.shape[-3:]).float()
    out = F.interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)
    return out.round().clamp(0, 255).byte().reshape(*pixels.shape[:-2], *size)


def fitted(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of bytes [..., C, H, W], as much as has the proportions of ``size``, resized to it."""
    height, width = pixels.shape[-2:]
    scale = min(height / size[0], width / size[1])
    tall, wide = (max(1, round(scale * side)) for side in size)
    top, left = (height - tall) // 2, (width - wide) // 2
    return resized(pixels[..., top : top + tall, left : left + wide], size)
