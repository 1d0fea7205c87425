from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch.nn import functional as F
from torchrl.data import Bounded, Composite, Unbounded

from perception.image import FlatPixels, ResNet18, VisionTransformer
from worldmodels.nn.positions import grid_sinusoids
from worldmodels.targets import EMA


def spec(height: int = 16, width: int = 24, channels: int = 3) -> Composite:
    pixels = Bounded(0, 255, (channels, height, width), dtype=torch.uint8)
    return Composite({"observation": Composite({"pixels": pixels})})


def pictures(num: int = 5, **sizes) -> TensorDict:
    return spec(**sizes).expand(num).rand()["observation"]


def vit(**options) -> VisionTransformer:
    return VisionTransformer(spec(), **{"patch": 8, "dim": 16, "depth": 2, "num_heads": 2} | options)


def resnet(**options) -> ResNet18:
    return ResNet18(spec(), **{"has_small_stem": True, "width": 4} | options)


@given(height=st.integers(1, 9), width=st.integers(1, 9), quarter=st.integers(1, 6))
def test_positions_are_the_column_then_the_row(height, width, quarter):
    codes = grid_sinusoids((height, width), 4 * quarter).unflatten(0, (height, width))
    row, column = height - 1, width // 2
    rates = [10_000 ** (-k / quarter) for k in range(quarter)]
    expected = [wave(place * rate) for place in (column, row) for wave in (math.sin, math.cos) for rate in rates]
    torch.testing.assert_close(codes[row, column], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert torch.equal(codes[0, :, 2 * quarter :], codes[:1, :1, 2 * quarter :].expand(1, width, -1)[0])


def test_positions_need_a_width_for_two_axes():
    with pytest.raises(ValueError, match="multiple of 4"):
        grid_sinusoids((2, 3), 6)


def test_a_token_a_patch_row_by_row():
    encoder = vit()
    assert encoder.grid == (2, 3)
    out = encoder(pictures())
    assert out["tokens"].shape == (5, 6, 16)
    torch.testing.assert_close(out["pooled"], out["tokens"].mean(1))


def test_the_patch_embedding_is_a_convolution_of_normalised_values():
    encoder, obs = vit(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]), pictures()
    values = (obs["pixels"] / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.6, 0.7])[
        :, None, None
    ]
    embed = encoder.embed_patch
    expected = F.conv2d(values, embed.weight.unflatten(1, (3, 8, 8)), embed.bias, stride=8).flatten(2).mT
    found = embed(torch.addcmul(encoder.shift, encoder.cut(obs["pixels"]).float(), encoder.scale))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_patches_that_are_not_kept_have_no_influence():
    encoder, obs, keep = vit(), pictures(), torch.tensor([[4, 1]]).expand(5, -1)
    other = obs.clone()
    other["pixels"][:, :, :8, :8] += 9  # patch 0
    for name, value in encoder(obs, keep).items():
        torch.testing.assert_close(encoder(other, keep)[name], value)
    changed = obs.clone()
    changed["pixels"][:, :, :8, 8:16] += 9  # patch 1
    assert not torch.allclose(encoder(changed, keep)["tokens"][:, 0], encoder(obs, keep)["tokens"][:, 0])


def test_padding_changes_nothing():
    encoder, obs = vit(), pictures()
    short, long = torch.tensor([[4, 1]]).expand(5, -1), torch.tensor([[4, 1, -1]]).expand(5, -1)
    a, b = encoder(obs, short), encoder(obs, long)
    torch.testing.assert_close(a["tokens"], b["tokens"][:, :2])
    torch.testing.assert_close(a["pooled"], b["pooled"])
    assert float(b["tokens"][:, 2:].detach().abs().sum()) == 0


def test_keeping_all_patches_is_keeping_nothing_back():
    encoder, obs = vit(), pictures()
    whole, kept = encoder(obs), encoder(obs, torch.arange(6).expand(5, -1))
    torch.testing.assert_close(kept["tokens"], whole["tokens"], rtol=1e-4, atol=1e-5)


def test_a_patch_counts_for_its_place():
    encoder = vit()
    plain = TensorDict({"pixels": torch.full((1, 3, 16, 24), 90, dtype=torch.uint8)}, [1])
    tokens = encoder(plain)["tokens"][0].detach()
    assert float(torch.cdist(tokens, tokens).fill_diagonal_(1).min()) > 1e-3


@pytest.mark.parametrize("has_small_stem", [True, False])
def test_resnet_gives_one_latent_a_picture(has_small_stem):
    encoder = resnet(has_small_stem=has_small_stem)
    out = encoder(pictures())
    assert (encoder.dim, encoder.grid) == (32, ())
    assert out["tokens"].shape == (5, 1, 32)
    assert torch.equal(out["tokens"][:, 0], out["pooled"])


def test_resnet_has_the_published_number_of_weights():
    encoder = ResNet18(spec(), has_small_stem=False)
    assert encoder.dim == 512
    assert (
        sum(p.numel() for p in encoder.parameters()) == 11_689_512 - 513_000
    )  # without its classifier of 1000 classes


def test_resnet_blocks_start_as_their_shortcut():
    encoder = resnet().eval()
    block = encoder.layers[3]
    x = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x)


def test_resnet_uses_its_batch_in_training_and_running_statistics_otherwise():
    encoder, obs = resnet(), pictures()
    alone = encoder.eval()(obs[:1])["pooled"]
    torch.testing.assert_close(encoder(obs)["pooled"][:1], alone)
    assert not torch.allclose(encoder.train()(obs)["pooled"][:1], alone)
    assert not torch.allclose(encoder.eval()(obs)["pooled"][:1], alone)  # they have moved


@pytest.mark.parametrize("has_own_statistics", [True, False])
def test_an_averaged_resnet_follows_with_or_without_statistics_of_its_own(has_own_statistics):
    encoder, obs = resnet(), pictures()
    target = EMA(encoder, tau=1.0, has_own_statistics=has_own_statistics)
    encoder.train()(obs)
    target.train().update(0)
    mine, theirs = target.module.layers[1], encoder.layers[1]
    assert torch.equal(mine.running_mean, theirs.running_mean) != has_own_statistics
    reference = copy.deepcopy(encoder).train(has_own_statistics)
    torch.testing.assert_close(target(obs)["pooled"], reference(obs)["pooled"])


def test_flat_pixels_are_the_picture_averaged_down():
    flat = FlatPixels(spec(), side=4)
    assert flat.dim == 3 * 4 * 4
    assert not list(flat.parameters())
    obs = pictures()
    features = flat(obs)["pooled"].unflatten(1, (3, 4, 4))
    torch.testing.assert_close(features[:, 1, 2, 3], obs["pixels"][:, 1, 8:12, 18:24].float().mean((1, 2)) / 255)
    assert FlatPixels(spec(4, 6), side=8).dim == 3 * 4 * 6


def test_bad_input_is_named():
    other = Composite({"observation": Composite({"state": Unbounded((2,))})})
    for make in (vit, resnet):
        with pytest.raises(ValueError, match=r"encoder.mean has 1 numbers; pictures have 3"):
            make(mean=[0.5])
    with pytest.raises(ValueError, match="do not tile pictures of 16 x 24"):
        vit(patch=7)
    turned = TensorDict({"pixels": pictures()["pixels"].mT}, [5])  # as many patches, in other places
    with pytest.raises(ValueError, match=r"positions for pictures of 16 x 24; these are 24 x 16. .*resnet18"):
        vit()(turned)
    for make in (
        lambda: VisionTransformer(other, patch=8, dim=16, depth=1, num_heads=1),
        lambda: ResNet18(other, has_small_stem=True),
        lambda: FlatPixels(other),
    ):
        with pytest.raises(ValueError, match=r"needs observation/pixels in the data; it has \['state'\]"):
            make()
    for encoder in (resnet(), FlatPixels(spec())):
        with pytest.raises(ValueError, match="keep must be None"):
            encoder(pictures(), torch.zeros(5, 1, dtype=torch.int64))


@pytest.mark.parametrize(("has_small_stem", "grid"), [(True, (2, 3)), (False, (1, 1))])
def test_cells_of_the_last_map_are_tokens_row_by_row(has_small_stem, grid):
    encoder, obs = resnet(has_small_stem=has_small_stem, has_map=True, has_group_norms=True), pictures()
    assert encoder.grid == grid
    out = encoder(obs)
    assert out["tokens"].shape == (5, math.prod(grid), encoder.dim)
    torch.testing.assert_close(out["pooled"], out["tokens"].mean(1))
    changed = obs.clone()
    changed["pixels"][:, :, 8:12, 16:20] = 255 - changed["pixels"][:, :, 8:12, 16:20]  # where cell (1, 2) looks first
    change = (encoder(changed)["tokens"] - out["tokens"]).norm(dim=(0, 2))
    assert change.argmax() == math.prod(grid) - 1
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())
