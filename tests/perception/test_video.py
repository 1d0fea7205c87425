"""Encoder of clips: a convolution's tokens, in order, wherever they are kept; sizes are the published ones."""

from __future__ import annotations

import functools

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from tensordict import TensorDict
from torch.nn import functional as F
from torchrl.data import Bounded, Composite, Unbounded

from perception.patches import taken
from perception.video import VideoTransformer
from worldmodels.nn.positions import SinusoidalPositions
from worldmodels.nn.rotary import RotaryPositions

PLACES = {"added": functools.partial(SinusoidalPositions, scale=0.5), "rotary": RotaryPositions}


def spec(frames: int = 4, height: int = 16, width: int = 24, channels: int = 3) -> Composite:
    pixels = Bounded(0, 255, (frames, channels, height, width), dtype=torch.uint8)
    return Composite({"observation": Composite({"pixels": pixels})})


def clips(num: int = 3, **sizes) -> TensorDict:
    return spec(**sizes).expand(num).rand()["observation"]


def encoder(**options) -> VideoTransformer:
    made = VideoTransformer(spec(), **{"patch": 8, "dim": 24, "depth": 2, "num_heads": 2} | options)
    for block in made.blocks.blocks:  # weights of 0.02 give nearly flat attention: rotations would hardly show
        block.attention.qkv.weight.data.mul_(20)
    return made


def test_the_patch_embedding_is_a_convolution_of_normalised_values_in_order_of_time_row_and_column():
    made, obs = encoder(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]), clips()
    assert made.grid == (2, 2, 3)
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    values = ((obs["pixels"] / 255 - mean) / std).transpose(1, 2)  # [B, C, T, H, W]
    embed = made.embed_patch
    kernel = embed.weight.unflatten(1, (3, 2, 8, 8))
    expected = F.conv3d(values, kernel, embed.bias, stride=(2, 8, 8)).flatten(2).mT
    found = embed(torch.addcmul(made.shift, made.cut(obs["pixels"]).float(), made.scale))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("places", PLACES)
def test_kept_tokens_stand_where_they_stood_and_see_no_others(places):
    made, obs = encoder(positions=PLACES[places]), clips()
    keep = torch.tensor([[11, 0, 5], [3, 4, 2], [9, 10, 1]])
    whole = made(obs)
    assert whole["tokens"].shape == (3, 12, 24)
    torch.testing.assert_close(whole["pooled"], whole["tokens"].mean(1))
    everything = torch.stack([torch.randperm(12) for _ in range(3)])
    rows = torch.arange(3)[:, None]
    torch.testing.assert_close(made(obs, everything)["tokens"], whole["tokens"][rows, everything], rtol=1e-4, atol=1e-5)
    other = obs.clone()
    other["pixels"][0, :2, :, :8, 8:16] += 9  # token 1 of the first clip, which is not kept
    for name, value in made(obs, keep).items():
        torch.testing.assert_close(made(other, keep)[name], value)
    assert not torch.allclose(made(other)["tokens"][0], whole["tokens"][0])


@pytest.mark.parametrize("places", PLACES)
def test_padding_changes_nothing(places):
    made, obs = encoder(positions=PLACES[places]), clips()
    short, long = torch.tensor([[4, 1]]).expand(3, -1), torch.tensor([[4, 1, -1]]).expand(3, -1)
    a, b = made(obs, short), made(obs, long)
    torch.testing.assert_close(a["tokens"], b["tokens"][:, :2])
    torch.testing.assert_close(a["pooled"], b["pooled"])
    assert float(b["tokens"][:, 2:].detach().abs().sum()) == 0


@pytest.mark.parametrize("places", PLACES)
def test_a_token_counts_for_its_place_in_time_and_in_the_picture(places):
    """With equal cuboids attention alone cannot tell places apart; one that differs makes distances to it count."""
    made = encoder(positions=PLACES[places])
    pixels = torch.full((1, 4, 3, 16, 24), 90, dtype=torch.uint8)
    pixels[:, :2, :, :8, :8] = 250
    tokens = made(TensorDict({"pixels": pixels}, [1]))["tokens"][0].detach()
    assert float(torch.cdist(tokens, tokens).fill_diagonal_(1).min()) > 1e-4


def test_checkpointing_changes_no_number():
    obs, plain = clips(), encoder(positions=RotaryPositions)
    other = encoder(positions=RotaryPositions, is_checkpointed=True)
    other.load_state_dict(plain.state_dict())
    for made in (plain, other):
        made(obs)["tokens"].square().sum().backward()
    for mine, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_rows_are_taken_as_by_gather():
    rows, index = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8), torch.tensor([[4, 0], [1, 1], [2, -1]])
    expected = rows.gather(1, index.clamp_min(0)[..., None].expand(-1, -1, 7))
    assert torch.equal(taken(rows, index), expected)


PUBLISHED = {  # sheet salt_video, section 1.3: weights in millions, width, depth, heads
    "tiny": (5.6, 192, 12, 3),
    "small": (22, 384, 12, 6),
    "base": (86, 768, 12, 12),
    "large": (303, 1024, 24, 16),
    "huge": (632, 1280, 32, 16),
    "giant": (1010, 1408, 40, 22),
    "gigantic": (1840, 1664, 48, 16),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_group_are_the_published_ones(name):
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", [f"encoder=video_{name}", "env=toy", "agent=td_jepa"])
    with torch.device("meta"):
        made = instantiate(cfg.encoder)(spec(16, 224, 224))
    millions, dim, depth, num_heads = PUBLISHED[name]
    assert made.grid == (8, 14, 14)
    assert (made.dim, len(made.blocks.blocks), made.blocks.blocks[0].attention.num_heads) == (dim, depth, num_heads)
    assert sum(p.numel() for p in made.parameters()) / 1e6 == pytest.approx(millions, rel=0.025)


def test_bad_input_is_named():
    make = functools.partial(VideoTransformer, patch=8, dim=24, depth=1, num_heads=2)
    with pytest.raises(ValueError, match=r"needs observation/pixels in the data; it has \['state'\]"):
        make(Composite({"observation": Composite({"state": Unbounded((2,))})}))
    picture = Composite({"observation": Composite({"pixels": Bounded(0, 255, (3, 16, 16), dtype=torch.uint8)})})
    with pytest.raises(ValueError, match=r"needs clips.*\[3, 16, 16\].*views=clips"):
        make(picture)
    with pytest.raises(ValueError, match=r"encoder.mean has 3 numbers; clips have 1"):
        make(spec(channels=1))
    for sizes in ({"frames": 3}, {"height": 20}):
        with pytest.raises(ValueError, match="cuboids of 2 x 8 x 8 do not tile"):
            make(spec(**sizes))
    still = TensorDict({"pixels": torch.zeros(3, 3, 16, 24, dtype=torch.uint8)}, [3])
    for obs in (clips(frames=2), still):
        with pytest.raises(ValueError, match=r"takes clips \[T, C, H, W\] = \[4, 3, 16, 24\]"):
            make(spec())(obs)
