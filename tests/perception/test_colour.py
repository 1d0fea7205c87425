"""Colours against scikit-image (hue) and Pillow (everything else), which rounds to bytes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from perception import colour

skimage = pytest.importorskip("skimage.color", reason="needs the images extra: pip install 'worldmodels[images]'")


def pictures(num: int = 6, size: int = 9) -> torch.Tensor:
    """Random bytes, and in the first picture greys, pure colours, black and white."""
    given = torch.randint(0, 256, (num, 3, size, size)).float()
    corners = torch.tensor(list(itertools.product((0.0, 255.0), repeat=3)))
    given[0, :, 0, :8] = corners.T
    given[0, :, 1] = given[0, :1, 1]
    return given


def pillow(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).numpy().astype(np.uint8))


def test_hue_turns_as_in_scikit_image():
    given, turn = pictures(), torch.tensor([0.0, 0.1, -0.1, 0.5, -0.5, 0.27])
    made = colour.turn_hue(given, turn)
    for index in range(len(given)):
        hsv = skimage.rgb2hsv(given[index].double().numpy() / 255, channel_axis=0)
        hsv[0] = (hsv[0] + float(turn[index])) % 1
        expected = 255 * skimage.hsv2rgb(hsv, channel_axis=0)
        np.testing.assert_allclose(made[index].numpy(), expected, atol=2e-3)
    torch.testing.assert_close(made[0], given[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.4])
@pytest.mark.parametrize(
    ("which", "enhance"),
    [
        (colour.BRIGHTNESS, ImageEnhance.Brightness),
        (colour.CONTRAST, ImageEnhance.Contrast),
        (colour.SATURATION, ImageEnhance.Color),
    ],
)
def test_blends_are_those_of_pillow(which, enhance, factor):
    """Pillow rounds the grey and cuts off the result's fraction: up to 1.5 apart."""
    given = pictures()
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(len(given), 1)
    factors[:, which] = factor
    made = colour.jitter(given, factors, torch.arange(4).repeat(len(given), 1))
    for index in range(len(given)):
        expected = np.asarray(enhance(pillow(given[index])).enhance(factor), np.float32).transpose(2, 0, 1)
        np.testing.assert_allclose(made[index].numpy(), expected, atol=1.5)
    if factor == 1:
        torch.testing.assert_close(made, given)


def test_each_picture_has_its_own_order():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    given = pictures(1).expand(24, -1, -1, -1)
    factors = torch.tensor([1.3, 0.7, 1.2, 0.08]).repeat(24, 1)
    made = colour.jitter(given, factors, orders)
    one = torch.tensor([1.0, 1.0, 1.0, 0.0])
    for index, order in enumerate(orders):
        expected = given[:1]
        for which in order.tolist():  # one after the other, alone
            alone = torch.where(torch.arange(4) == which, factors[0], one)
            expected = colour.jitter(expected, alone[None], torch.arange(4)[None])
        torch.testing.assert_close(made[index], expected[0], rtol=0, atol=1e-2)
    assert (made[0] - made[-1]).abs().max() > 1  # the order matters


def test_grey_and_solarised_pictures_are_those_marked():
    given, marked = pictures(), torch.tensor([True, False, True, False, False, True])
    grey, bright = colour.to_grey(given, marked), colour.solarise(given, marked)
    for index, is_marked in enumerate(marked.tolist()):
        if not is_marked:
            assert torch.equal(grey[index], given[index])
            assert torch.equal(bright[index], given[index])
            continue
        picture = pillow(given[index])
        light = np.asarray(picture.convert("L"), np.float32)
        np.testing.assert_allclose(grey[index].numpy(), np.stack([light] * 3), atol=1)
        inverted = np.asarray(ImageOps.solarize(picture, 128), np.float32).transpose(2, 0, 1)
        np.testing.assert_array_equal(bright[index].numpy(), inverted)


def test_choosing_rows_and_masking_all_agree(monkeypatch):
    """On a GPU nothing may ask how many rows are chosen: the same numbers come from working on all."""
    given, marked = pictures(), torch.tensor([True, False, True, False, False, True])
    factors, order = 0.6 + 0.8 * torch.rand(6, 4), torch.rand(6, 4).argsort(-1)
    chosen = colour.jitter(given, factors, order), colour.to_grey(given, marked), colour.solarise(given, marked)
    before = given.clone()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    masked = colour.jitter(given, factors, order), colour.to_grey(given, marked), colour.solarise(given, marked)
    for a, b in zip(chosen, masked, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(given, before)
