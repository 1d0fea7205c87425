"""Pictures that packages bring along, and the real ones beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Generator

skimage_data = pytest.importorskip("skimage.data", reason="needs the images extra: pip install 'worldmodels[images]'")
pytest.importorskip("sklearn", reason="needs the images extra: pip install 'worldmodels[images]'")

from envs.image_cache import decode_files  # noqa: E402
from envs.image_files import decode, open_tree  # noqa: E402
from envs.image_layouts import find_layout  # noqa: E402
from envs.image_sets import _FLAT, PHOTOGRAPHS, _strips, shrunk  # noqa: E402
from envs.images import Images  # noqa: E402


@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (96, 96)])
def test_no_pixel_of_a_photograph_is_in_two_parts(shape):
    numbered = np.arange(np.prod(shape)).reshape(1, *shape).repeat(3, 0)
    strips = _strips(numbered, 16, 0.1, 0.2)
    seen = [set(strips[name].flatten().tolist()) for name in ("train", "val", "test")]
    assert all(seen)
    assert len(set.union(*seen)) == sum(map(len, seen))
    patch = strips["train"][3, 0]
    row, column = np.unravel_index(patch[0, 0], shape)
    np.testing.assert_array_equal(patch, numbered[0, row : row + 16, column : column + 16])  # upright


def test_photographs_need_no_network_and_are_cut_to_any_size():
    source = Images(size=32)
    assert set(source.classes) <= set(PHOTOGRAPHS)
    assert len(source.classes) >= 13
    left_out = ", ".join(name for name in PHOTOGRAPHS if name not in source.classes)
    assert source.notes == (f"left out, a part would have no patch of 32 pixels: {left_out}",)
    counts = {name: source.part(name).target.bincount() for name in ("train", "val", "test")}
    assert all((count > 0).all() for count in counts.values())
    assert int(counts["train"].max()) == 512
    assert int(counts["test"].max()) <= 128
    again = Images(size=32)
    assert torch.equal(source.part("val").obs["pixels"], again.part("val").obs["pixels"])
    large = Images(size=128)
    assert large.num_classes >= 2
    assert large.spec["observation", "pixels"].shape == (3, 128, 128)
    few = Images(size=300)
    assert few.num_classes == 2
    assert "hubble_deep_field" not in few.notes[0]


def test_patches_show_something_at_half_size():
    source, random = Images(size=32), np.random.default_rng(0)
    for name in ("train", "val", "test"):
        pixels = source.part(name).obs["pixels"].float()
        assert float(pixels.std((2, 3), correction=0).mean(1).min()) >= _FLAT
    picture = random.integers(0, 256, (3, 7, 5)).astype(np.uint8)
    made = shrunk(picture)
    assert made.shape == (3, 3, 2)
    assert abs(float(picture[1, 2:4, 0:2].mean()) - made[1, 1, 0]) <= 0.5
    flat = np.full((3, 60, 100), 77, np.uint8)
    flat[:, :, :60] += random.integers(0, 100, (60, 60)).astype(np.uint8)
    assert _strips(flat, 16, 0.1, 0.2) == {}, "the part for test shows nothing"


def test_digits_are_grey_and_of_the_asked_size():
    source = Images(dataset="digits", size=16)
    assert source.classes == tuple("0123456789")
    pixels = source.part("test").obs["pixels"]
    assert pixels.shape == (179, 3, 16, 16)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert int(pixels.max()) > 230


def test_the_settings_of_the_group_make_a_source():
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", ["env=images", "env.dataset=digits", "env.size=8", "objective=t_jepa"])
    source = instantiate(cfg.env.source, device="cpu")
    assert source.spec.expand(4, 1).is_in(source.sample(4, 1, Generator()))
    assert source.describe()["rows"] == {"train": 1439, "unlabeled": 0, "val": 179, "test": 179}


@pytest.mark.data
def test_camvid_as_it_comes(shared_data: Path, tmp_path: Path):
    source = Images(path=shared_data / "camvid_240x180/camvid_240x180.tar", size=None, cache_dir=tmp_path, workers=1)
    assert source.describe()["rows"] == {"train": 367, "unlabeled": 0, "val": 101, "test": 233}
    assert source.spec["observation", "pixels"].shape == (3, 180, 240)
    frames = source.dense("train")
    assert frames.pixels.shape == (367, 3, 180, 240)
    assert list(frames.names) == sorted(frames.names)
    assert frames.num_classes == 11
    shares = frames.labels.flatten().bincount(minlength=12) / frames.labels.numel()
    published = [0.168, 0.233, 0.010, 0.317, 0.045, 0.097, 0.012, 0.011, 0.059, 0.006, 0.003, 0.039]  # sheet dmt_jepa
    np.testing.assert_allclose(shares.numpy(), published, atol=0.004)


@pytest.mark.data
def test_cifar10_as_it_comes(shared_data: Path):
    """All 60,000 take half a minute: here all names, and the pictures of one class."""
    tree = open_tree(shared_data / "cifar10/cifar10_images.tar.gz")
    found = find_layout(tree).read(tree)
    assert (found.layout, len(found.classes), found.classes[0]) == ("class_folders", 10, "airplane")
    for part, num in (("train", 5000), ("test", 1000)):
        chosen = [label for label, owner in zip(found.labels.tolist(), found.parts, strict=True) if owner == part]
        assert np.bincount(chosen).tolist() == [num] * 10
    names = [name for name in found.files if name.startswith("test/airplane/00")]
    pictures = [result for _, result in decode_files(tree, names, lambda data: decode(data, 32), workers=1)]
    assert [picture.shape for picture in pictures] == [(3, 32, 32)] * 100
    red, green, blue = np.stack(pictures).mean((0, 2, 3))
    assert blue > green > red  # the sky
