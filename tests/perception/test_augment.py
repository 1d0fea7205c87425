"""Views of pictures: what they tell of themselves is how they were made, and they are made as Pillow would."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from PIL import Image
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Bounded, Categorical, Composite

from perception.augment import _CROP_UNITS, AugmentedViews, draw_crops
from perception.resample import fitted
from worldmodels.core import Views

PUBLISHED = {
    "chances": {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 1.0},
    "target": {"blur": 0.1, "solarise": 0.2},
}


def spec_of(height: int = 24, width: int = 24) -> Composite:
    pixels = Bounded(0, 255, (3, height, width), dtype=torch.uint8)
    return Composite({"observation": Composite({"pixels": pixels}), "label": Categorical(10, shape=())})


def batch_of(num: int, height: int = 24, width: int = 24) -> TensorDict:
    """Smooth random pictures with labels."""
    small = torch.rand(num, 3, 5, 5)
    pixels = 255 * torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
    rows = {
        "observation": {"pixels": pixels.round().to(torch.uint8)[:, None]},
        "label": torch.arange(num)[:, None] % 10,
    }
    return TensorDict(rows).auto_batch_size_(1)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_views_keep_the_contract():
    views = AugmentedViews(spec_of(), num_views=4, size=16, **PUBLISHED)
    assert isinstance(views, Views)
    batch = batch_of(6)
    before = batch.clone()
    made = views(batch, seeded())
    assert (batch == before).all()
    assert made.batch_size == (6,)
    assert made["observation", "pixels"].shape == (6, 4, 3, 16, 16)
    assert views.spec.expand(6, 4).is_in(made)
    assert made["label"].tolist() == [[i] * 4 for i in range(6)]
    assert (made == views(batch, seeded())).all()
    assert (made["observation", "pixels"] != views(batch, seeded(1))["observation", "pixels"]).any()
    assert (made["action"][:, -1] == 0).all()


def test_views_are_made_of_rows_that_have_a_batch_size_of_their_own():
    """As those of rendered objects: [B, 1]."""
    rows = TensorDict({"pixels": torch.randint(0, 256, (4, 1, 3, 12, 12), dtype=torch.uint8)}, [4, 1])
    batch = TensorDict({"observation": rows, "label": torch.arange(4)[:, None]}, [4])
    made = AugmentedViews(spec_of(12, 12), num_views=3)(batch, Generator().manual_seed(0))
    assert made["observation", "pixels"].shape == (4, 3, 3, 12, 12)
    assert made["label"].tolist() == [[i] * 3 for i in range(4)]
    assert set(batch.keys()) == {"observation", "label"}


def test_pictures_are_fitted_without_chance_and_views_stay_as_they_are():
    views, batch = AugmentedViews(spec_of(24, 32), num_views=2, size=[12, 8], **PUBLISHED), batch_of(3, 24, 32)
    obs = batch["observation"][:, 0]
    assert torch.equal(views.fitted(obs)["pixels"], fitted(obs["pixels"], (12, 8)))
    made = views(batch, seeded())["observation", "pixels"].flatten(0, 1)
    assert torch.equal(views.fitted(TensorDict({"pixels": made}, [6]))["pixels"], made)


def test_a_view_does_not_depend_on_the_part_of_the_batch_it_is_worked_on_with(monkeypatch):
    views = AugmentedViews(spec_of(), num_views=3, **PUBLISHED)
    batch = batch_of(20)
    whole = views(batch, seeded())["observation", "pixels"]
    monkeypatch.setattr("perception.augment._PART", 1)  # picture by picture
    alone = views(batch, seeded())["observation", "pixels"]
    difference = (whole.int() - alone.int()).abs()
    assert difference.max() <= 1  # products of other shapes round otherwise
    assert (difference > 0).float().mean() < 1e-3


def test_crops_and_mirrors_are_what_pillow_makes_of_the_transformation():
    views = AugmentedViews(spec_of(24, 30), num_views=2, size=16, chances={"flip": 0.5})
    batch = batch_of(16, 24, 30)
    how = views.draw(16, seeded())
    made = views(batch, seeded())
    pixels, told = made["observation", "pixels"], made["transformation"]
    torch.testing.assert_close(told[..., :4], how.crop)
    assert 0 < int(how.is_flipped.sum()) < 32
    for index in range(16):
        picture = Image.fromarray(batch["observation", "pixels"][index, 0].permute(1, 2, 0).numpy())
        for view in range(2):
            top, left, height, width = map(int, told[index, view, :4].tolist())
            crop = picture.crop((left, top, left + width, top + height)).resize((16, 16), Image.Resampling.BICUBIC)
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if how.is_flipped[index, view] else crop
            difference = pixels[index, view].int().numpy() - np.asarray(crop, int).transpose(2, 0, 1)
            assert np.abs(difference).max() <= 2  # Pillow rounds to bytes between rows and columns
            assert np.abs(difference).mean() < 0.3
    assert (told[..., 4:] == torch.tensor([1.0, 1, 1, 0, 0])).all()  # no jitter, no blur


def test_target_and_observed_views_have_their_own_chances():
    views = AugmentedViews(spec_of(8, 8), num_views=3, **PUBLISHED)
    how = views.draw(4000, seeded())
    shares = {
        "flip": how.is_flipped,
        "jitter": how.factors[..., 0] != 1,
        "grey": how.is_grey,
        "blur": how.sigma > 0,
        "solarise": how.is_solarised,
    }
    found = {name: flags.float().mean(0).tolist() for name, flags in shares.items()}
    assert found["flip"] == pytest.approx([0.5] * 3, abs=0.03)
    assert found["jitter"] == pytest.approx([0.8] * 3, abs=0.03)
    assert found["grey"] == pytest.approx([0.2] * 3, abs=0.03)
    assert found["blur"] == pytest.approx([1, 1, 0.1], abs=0.03)
    assert found["solarise"] == pytest.approx([0, 0, 0.2], abs=0.03)
    low, high = torch.tensor([0.6, 0.6, 0.8, -0.1]) - 1e-6, torch.tensor([1.4, 1.4, 1.2, 0.1]) + 1e-6
    assert ((how.factors >= low) & (how.factors <= high)).all()
    orders = how.order.flatten(0, 1) @ torch.tensor([64, 16, 4, 1])
    assert len(orders.unique()) == 24  # all orders, each as likely
    assert orders.unique(return_counts=True)[1].float().std() < 0.1 * 500
    assert AugmentedViews(spec_of(), num_views=1, **PUBLISHED).draw(50, seeded()).sigma.min() > 0  # no target


def mean_area(num: int = 5000) -> float:
    """Of crops of a square of 32 pixels, drawn one by one until one fits; large ones fit less often."""
    random, areas = np.random.default_rng(0), []
    while len(areas) < num:
        area, aspect = 32**2 * random.uniform(0.2, 1), math.exp(random.uniform(-1, 1) * math.log(4 / 3))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if wide <= 32 and tall <= 32:
            areas.append(wide * tall / 32**2)
    return float(np.mean(areas))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 60), (3, 3), (1, 40)])
def test_crops_lie_within_the_picture(height, width):
    crop = draw_crops((2000,), (height, width), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), generator=seeded())
    top, left, tall, wide = crop.unbind(-1)
    assert torch.equal(crop, crop.round())
    assert (tall >= 1).all()
    assert (wide >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()
    if (height, width) == (32, 32):
        area = tall * wide / 32**2
        assert float(area.min()) > 0.17
        assert float(area.max()) <= 1
        assert float(area.mean()) == pytest.approx(mean_area(), abs=0.015)
        assert ((wide / tall).log().abs() <= math.log(4 / 3) + 0.15).all()


def test_actions_are_differences_in_fixed_units():
    generator = seeded(3)
    crop = draw_crops((200_000,), (1024, 1024), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), generator=generator)
    np.testing.assert_allclose((crop / 1024).std(0).numpy(), _CROP_UNITS, rtol=0.01)
    views = AugmentedViews(spec_of(64, 64), num_views=3, **PUBLISHED)
    wide = AugmentedViews(spec_of(64, 128), num_views=3, **PUBLISHED)
    assert wide.units[1] == 2 * views.units[1]
    how = views.draw(20_000, generator)
    told = torch.cat((how.crop, how.factors, how.sigma[..., None]), -1)
    spread = told[:, 0].std(0) / torch.tensor(views.units)
    torch.testing.assert_close(spread, torch.ones(9), rtol=0, atol=0.03)
    action = views.differences(told)
    torch.testing.assert_close(action[:, 0] * torch.tensor(views.units), told[:, 1] - told[:, 0], rtol=1e-4, atol=1e-4)


def test_actions_as_released_and_parts_of_them():
    settings = {"num_views": 3, **PUBLISHED, "normalize": "released"}
    told = torch.rand(5, 3, 9)
    told[:, :, 7] = 0  # no hue anywhere: no division by zero
    action = AugmentedViews(spec_of(), **settings).differences(told)
    norm = told.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    torch.testing.assert_close(action[:, :2], (told / norm).diff(dim=1))
    assert torch.isfinite(action).all()
    standard = AugmentedViews(spec_of(), **{**settings, "normalize": "standard"})  # what probes regress either way
    between = AugmentedViews(spec_of(), **settings).action_between(told[:, 0], told[:, 1])
    assert torch.equal(between, standard.differences(told)[:, 0])
    for parts, columns in (("crop", slice(0, 4)), ("jitter", slice(4, 8)), ("blur", slice(8, 9))):
        views = AugmentedViews(spec_of(), **settings, action=[parts])
        torch.testing.assert_close(views.differences(told), action[..., columns])
        assert views.spec["action"].shape == (columns.stop - columns.start,)
        assert views.spec["transformation"].shape == (9,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_views": 0}, "views.num_views=0"),
        ({"crop_scale": (0.5, 0.2)}, r"views.crop_scale=\[0.5, 0.2\]: the least and the greatest"),
        ({"crop_scale": (0.5, 1.2)}, "at most 1"),
        ({"jitter": (0.4, 0.4, 0.2)}, "views.jitter"),
        ({"chances": {"rotate": 1}}, "views.chances.rotate: there are chances of flip"),
        ({"target": {"blur": 2}}, "chances lie within 0 and 1"),
        ({"action": ["flip"]}, "flip is none of crop, jitter, blur"),
        ({"normalize": "none"}, "standard or released"),
        ({"size": 1, "chances": {"blur": 1}}, "too small for a blur"),
        ({"size": 0}, r"views.size=\[0, 0\]: height and width of at least one pixel"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        AugmentedViews(spec_of(), **{"num_views": 2, **settings})


def test_other_data_are_refused():
    state = Composite({"observation": Composite({"state": Bounded(0, 1, (3,))})})
    with pytest.raises(ValueError, match=r"need observation/pixels.*env=images"):
        AugmentedViews(state, num_views=2)
    grey = Composite({"observation": Composite({"pixels": Bounded(0, 255, (1, 8, 8), dtype=torch.uint8)})})
    with pytest.raises(ValueError, match=r"pixels \[3, H, W\].*\[1, 8, 8\]"):
        AugmentedViews(grey, num_views=2)
    batch = batch_of(2)
    two_rows = batch.apply(lambda leaf: leaf.expand(-1, 2, *leaf.shape[2:]))
    with pytest.raises(ValueError, match="windows of one row"):
        AugmentedViews(spec_of(), num_views=2)(two_rows, seeded())


@pytest.mark.parametrize(("name", "num"), [("augmented", 4), ("crop", 1), ("of_images", 4), ("saccades", 5)])
def test_the_settings_of_the_group_make_views(name, num):
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", [f"views={name}", "env=toy", "agent=td_jepa"])
    views = instantiate(cfg.views)(spec_of(40, 40))
    assert (views.num, views.window) == (num, 1)
    made = views(batch_of(2, 40, 40), seeded())
    assert views.spec.expand(2, num).is_in(made)
