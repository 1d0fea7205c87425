"""Resampling against Pillow (without its rounding: pictures of floats) and blur against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perception.resample import Bicubic, Bilinear, blur, fitted, gaussian_weights, resample, resize_weights, resized

skimage = pytest.importorskip("skimage.filters", reason="needs the images extra: pip install 'worldmodels[images]'")
KERNELS = [(Bicubic(), Image.Resampling.BICUBIC), (Bilinear(), Image.Resampling.BILINEAR)]


def pictures(num: int, height: int, width: int) -> torch.Tensor:
    return 255 * torch.rand(num, 3, height, width)


def pillow(channel: torch.Tensor, box: tuple[int, ...], size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """Cut out ``box`` (left, top, right, bottom) and resize to (width, height), in floats."""
    return np.asarray(Image.fromarray(channel.numpy()).crop(box).resize(size, method))


@pytest.mark.parametrize(("kernel", "method"), KERNELS)
@settings(max_examples=25)
@given(st.data())
def test_crops_are_resized_as_by_pillow(kernel, method, data):
    height, width, rows, columns = (data.draw(st.integers(4, 40)) for _ in range(4))
    tall, wide = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - tall)), data.draw(st.integers(0, width - wide))
    given = pictures(1, height, width)
    made = resample(
        given,
        resize_weights(
            torch.tensor([[float(top)]]), torch.tensor([[float(tall)]]), num=height, size=rows, kernel=kernel
        ),
        resize_weights(
            torch.tensor([[float(left)]]), torch.tensor([[float(wide)]]), num=width, size=columns, kernel=kernel
        ),
    )
    assert made.shape == (1, 3, rows, columns)
    for channel in range(3):
        expected = pillow(given[0, channel], (left, top, left + wide, top + tall), (columns, rows), method)
        np.testing.assert_allclose(made[0, channel].numpy(), expected, atol=2e-2)


def test_every_view_of_every_picture_has_weights_of_its_own():
    given = pictures(2, 12, 10)
    start, length = torch.tensor([[0.0, 3.0, 2.0], [5.0, 0.0, 1.0]]), torch.tensor([[12.0, 4.0, 9.0], [6.0, 8.0, 10.0]])
    rows = resize_weights(start, length, num=12, size=7, kernel=Bicubic())
    columns = resize_weights(start[:, [2, 0, 1]], length.clamp_max(5), num=10, size=6, kernel=Bicubic())
    together = resample(given, rows, columns).unflatten(0, (2, 3))
    for picture in range(2):
        for view in range(3):
            one = slice(picture, picture + 1), slice(view, view + 1)
            torch.testing.assert_close(together[picture, view], resample(given[one[0]], rows[one], columns[one])[0])


def test_weights_mirror_and_keep_a_whole_picture():
    start, length = torch.zeros(1, 2), torch.full((1, 2), 9.0)
    weights = resize_weights(start, length, num=9, size=9, kernel=Bicubic(), is_flipped=torch.tensor([[False, True]]))
    torch.testing.assert_close(weights[0, 0], torch.eye(9))
    torch.testing.assert_close(weights[0, 1], torch.eye(9).flip(0))
    torch.testing.assert_close(
        resize_weights(start, length, num=9, size=4, kernel=Bilinear()).sum(-1), torch.ones(1, 2, 4)
    )


@pytest.mark.parametrize(("height", "width", "radius"), [(32, 32, 1), (20, 27, 3)])
def test_blur_is_that_of_scikit_image(height, width, radius):
    given, sigma = pictures(4, height, width), torch.tensor([0.1, 0.7, 2.0, 0.0])
    made = blur(given, sigma, radius=radius)
    for picture, width_of in zip(range(3), sigma[:3].tolist(), strict=True):
        expected = skimage.gaussian(
            given[picture].numpy(), sigma=width_of, truncate=radius / width_of, mode="mirror", channel_axis=0,
            preserve_range=True,
        )  # fmt: skip
        np.testing.assert_allclose(made[picture].numpy(), expected, atol=1e-3)
    torch.testing.assert_close(made[3], given[3])


def test_a_blur_wider_than_the_picture_is_refused():
    with pytest.raises(ValueError, match="pictures of at least 6 pixels"):
        gaussian_weights(torch.ones(1), size=5, radius=5)


def test_bytes_keep_their_size_or_are_resized_as_by_pillow():
    pixels = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    assert resized(pixels, (24, 32)) is pixels
    made = resized(pixels, (10, 12))
    assert made.dtype == torch.uint8
    for channel, expected in zip(made[0], pixels[0].float(), strict=True):
        theirs = pillow(expected, (0, 0, 32, 24), (12, 10), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(channel.numpy(), theirs, atol=0.51)


@pytest.mark.parametrize(("size", "box"), [((12, 12), (4, 0, 28, 24)), ((6, 16), (0, 6, 32, 18)), ((24, 32), None)])
def test_the_middle_is_kept_in_the_proportions_asked_for(size, box):
    pixels = torch.randint(0, 256, (1, 3, 24, 32), dtype=torch.uint8)
    left, top, right, bottom = box or (0, 0, 32, 24)
    assert torch.equal(fitted(pixels, size), resized(pixels[..., top:bottom, left:right], size))
