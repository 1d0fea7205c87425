"""Pictures: the convolutions' sizes and the random shift against padding and cropping each picture by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Bounded, Composite

from perception.pixels import PixelEncoder, RandomShift


def spec(*shape: int) -> Composite:
    return Composite(observation=Composite(pixels=Bounded(0, 255, shape, dtype=torch.uint8)))


def batch_of(pixels: torch.Tensor) -> TensorDict:
    return TensorDict({"observation": {"pixels": pixels}}, batch_size=pixels.shape[:1])


@settings(max_examples=25)
@given(pad=st.integers(0, 4), seed=st.integers(0, 2**31), height=st.integers(5, 9), width=st.integers(5, 9))
def test_every_picture_is_a_crop_of_itself_padded_with_its_edge(pad, seed, height, width):
    pixels = torch.randint(0, 256, (3, 2, 4, height, width), dtype=torch.uint8)
    batch = batch_of(pixels)
    shifted = RandomShift(pad=pad)(batch, Generator().manual_seed(seed))["observation", "pixels"]
    assert shifted.dtype == torch.uint8
    for row in range(3):
        for time in range(2):
            padded = np.pad(pixels[row, time].numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="edge")
            crops = [
                padded[:, top : top + height, left : left + width]
                for top in range(2 * pad + 1)
                for left in range(2 * pad + 1)
            ]  # all channels of a stack together
            assert any(np.array_equal(shifted[row, time].numpy(), crop) for crop in crops)
    assert torch.equal(batch["observation", "pixels"], pixels)


def test_shifts_are_independent_uniform_and_follow_the_generator():
    pad, size = 2, 9
    ramp = (torch.arange(size)[:, None] * size + torch.arange(size)).to(torch.uint8)
    batch = batch_of(ramp.expand(4000, 2, 1, size, size))
    shift = RandomShift(pad=pad)
    pixels = shift(batch, Generator().manual_seed(0))["observation", "pixels"]
    assert torch.equal(pixels, shift(batch, Generator().manual_seed(0))["observation", "pixels"])
    middle = pixels[..., 0, 4, 4].long()  # tells the shift: 4 + dy rows and 4 + dx columns of the ramp
    down, right = middle // size - 4, middle % size - 4  # [B, T]
    for moved in (down, right):
        counts = torch.bincount((moved + pad).flatten(), minlength=2 * pad + 1) / moved.numel()
        assert (counts - 0.2).abs().max() < 0.02
    for one, other in ((down[:, 0], down[:, 1]), (down[:, 0], right[:, 0])):  # rows of a window, and the two directions
        assert torch.corrcoef(torch.stack([one, other]).double())[0, 1].abs() < 0.06


@pytest.mark.parametrize(("shape", "flat"), [((9, 64, 64), 32 * 25 * 25), ((3, 32, 20), 32 * 9 * 3)])
def test_encoder_has_the_published_layout(shape, flat):
    encoder = PixelEncoder(spec(*shape), dim=16)
    assert [conv.stride for conv in encoder.conv if hasattr(conv, "stride")] == [(2, 2), (1, 1), (1, 1), (1, 1)]
    assert encoder.head[0].in_features == flat  # 64 x 64 pictures: 20 000 features
    obs = spec(*shape).expand(2).rand()["observation"]
    out = encoder(obs)
    assert out["pooled"].shape == (2, encoder.dim) == (2, 16)
    assert torch.equal(out["tokens"], out["pooled"][:, None])
    assert out["pooled"].abs().max() <= 1  # tanh


def test_encoder_centres_bytes_and_asks_for_whole_pictures():
    encoder = PixelEncoder(spec(3, 20, 20), dim=4, channels=8)
    obs = spec(3, 20, 20).expand(2).rand()["observation"]
    expected = encoder.head(encoder.conv(obs["pixels"].float() / 255 - 0.5).flatten(1))
    torch.testing.assert_close(encoder(obs)["pooled"], expected)
    with pytest.raises(ValueError, match="keep must be None"):
        encoder(obs, keep=torch.zeros(2, 1, dtype=torch.int64))
