"""Clips: one crop for all frames, as Pillow would cut them, in the contract of views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from PIL import Image
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Bounded, Categorical, Composite

from envs.replay import TrajectoryStore
from perception.clips import ClipViews
from perception.resample import fitted
from worldmodels.core import Views


def spec_of(height: int = 20, width: int = 28) -> Composite:
    pixels = Bounded(0, 255, (3, height, width), dtype=torch.uint8)
    labels = Composite({"direction": Categorical(10, shape=())})
    return Composite({"observation": Composite({"pixels": pixels}), "label": labels})


def batch_of(num: int, frames: int, height: int = 20, width: int = 28) -> TensorDict:
    """Smooth random frames; labels are the same at every frame."""
    small = torch.rand(num * frames, 3, 5, 5)
    pixels = 255 * torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
    label = (torch.arange(num)[:, None] % 10).expand(num, frames)
    rows = {"observation": {"pixels": pixels.byte().unflatten(0, (num, frames))}, "label": {"direction": label}}
    return TensorDict(rows).auto_batch_size_(1)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_clips_keep_the_contract_of_views():
    views = ClipViews(spec_of(), num_frames=4, size=16, flip=0.5)
    assert isinstance(views, Views)
    assert (views.num, views.window) == (1, 4)
    batch = batch_of(6, 4)
    before = batch.clone()
    made = views(batch, seeded())
    assert (batch == before).all()
    assert made.batch_size == (6,)
    assert made["observation", "pixels"].shape == (6, 1, 4, 3, 16, 16)
    assert views.spec.expand(6, 1).is_in(made)
    assert made["label", "direction"].tolist() == [[i] for i in range(6)]
    assert bool((made["action"] == 0).all())
    assert bool((made == views(batch, seeded())).all())
    assert not torch.equal(made["transformation"], views(batch, seeded(1))["transformation"])


def test_every_frame_is_cut_and_mirrored_alike_as_by_pillow():
    views, batch = ClipViews(spec_of(), num_frames=3, size=(16, 12), flip=0.5), batch_of(12, 3)
    made = views(batch, seeded())
    told, pixels = made["transformation"][:, 0], made["observation", "pixels"][:, 0]
    assert 0 < float(told[:, 4].sum()) < 12
    for clip in range(12):
        top, left, height, width, is_flipped = map(int, told[clip].tolist())
        for frame in range(3):
            picture = Image.fromarray(batch["observation", "pixels"][clip, frame].permute(1, 2, 0).numpy())
            crop = picture.crop((left, top, left + width, top + height)).resize((12, 16), Image.Resampling.BILINEAR)
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_flipped else crop
            difference = pixels[clip, frame].int().numpy() - np.asarray(crop, int).transpose(2, 0, 1)
            assert np.abs(difference).max() <= 2  # Pillow rounds to bytes between rows and columns


def test_clips_are_not_mirrored_unless_asked_and_the_whole_frame_stays_itself():
    views = ClipViews(spec_of(24, 24), num_frames=2, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    batch = batch_of(8, 2, 24, 24)
    assert torch.equal(views(batch, seeded())["observation", "pixels"][:, 0], batch["observation", "pixels"])


def test_a_clip_does_not_depend_on_the_part_of_the_batch_it_is_worked_on_with(monkeypatch):
    views, batch = ClipViews(spec_of(), num_frames=4, size=16), batch_of(7, 4)
    whole = views(batch, seeded())["observation", "pixels"]
    monkeypatch.setattr("perception.clips._PART", {"cpu": 1})  # clip by clip
    difference = (whole.int() - views(batch, seeded())["observation", "pixels"].int()).abs()
    assert difference.max() <= 1  # products of other shapes round otherwise
    assert (difference > 0).float().mean() < 1e-3


def test_clips_are_fitted_without_chance_and_views_stay_as_they_are():
    views, batch = ClipViews(spec_of(), num_frames=4, size=(8, 12)), batch_of(3, 4)
    found = views.fitted(batch["observation"])["pixels"]
    assert torch.equal(found, fitted(batch["observation", "pixels"], (8, 12)))
    made = views(batch, seeded())["observation"][:, 0]
    assert torch.equal(views.fitted(made)["pixels"], made["pixels"])
    with pytest.raises(ValueError, match="num_frames=4 frames; these have 3"):
        views.fitted(batch["observation"].apply(lambda leaf: leaf[:, :3]))


def test_pictures_become_clips_that_stand_still():
    views, batch = ClipViews(spec_of(), num_frames=4, size=16, is_still=True), batch_of(5, 1)
    assert views.window == 1
    pixels = views(batch, seeded())["observation", "pixels"]
    assert pixels.shape == (5, 1, 4, 3, 16, 16)
    assert bool((pixels == pixels[:, :, :1]).all())
    pictures = TensorDict({"pixels": batch["observation", "pixels"][:, 0]}, [5])
    assert views.fitted(pictures)["pixels"].shape == (5, 4, 3, 16, 16)


def test_actions_of_all_rows_stay_with_the_clip():
    """Windows of a replay store of pictures: what was done during a clip, row by row."""
    number = torch.arange(20)
    rows = {"observation": {"pixels": number[:, None, None, None].expand(20, 3, 16, 16).byte()}}
    rows |= {"action": torch.stack([number, -number], 1).float(), "terminated": number == 19}
    store = TrajectoryStore(TensorDict(rows, [20]), (number == 9) | (number == 19))
    spec = spec_of(16, 16)
    del spec["label"]
    spec["action"], spec["terminated"] = Bounded(-30, 30, (2,)), Categorical(2, shape=(), dtype=torch.bool)
    views = ClipViews(spec, num_frames=4, size=8)
    batch = store.sample(6, views.window, seeded())
    made = views(batch, seeded())
    assert views.spec.expand(6, 1).is_in(made)
    shown = made["observation", "pixels"][:, 0, :, 0, 0, 0].float()  # [B, T]
    assert torch.equal(made["actions"][:, 0, :, 0], shown)
    assert torch.equal(made["actions"][:, 0, :, 1], -shown)
    assert "actions" not in ClipViews(spec_of(), num_frames=4).spec.keys()
    with pytest.raises(ValueError, match=r"views.flip=0.5: the data have actions"):
        ClipViews(spec, num_frames=4, flip=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, "views.num_frames=0"),
        ({"size": 0}, "views.size=0"),
        ({"flip": 2}, "views.flip=2"),
        ({"crop_scale": (0.5, 1.2)}, r"views.crop_scale=\[0.5, 1.2\].*at most 1"),
        ({"crop_ratio": (2, 1)}, "views.crop_ratio"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        ClipViews(spec_of(), **{"num_frames": 4, **settings})


def test_other_windows_and_data_are_refused():
    with pytest.raises(ValueError, match=r"windows \[4, 3, 20, 28\] of frames; pixels are \[3, 3, 20, 28\]"):
        ClipViews(spec_of(), num_frames=4)(batch_of(2, 3), seeded())
    state = Composite({"observation": Composite({"state": Bounded(0, 1, (3,))})})
    with pytest.raises(ValueError, match="views of clips need observation/pixels"):
        ClipViews(state, num_frames=4)


def test_the_settings_of_the_group_make_clips():
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", ["views=clips", "views.num_frames=3", "env=toy", "agent=td_jepa"])
    views = instantiate(cfg.views)(spec_of())
    made = views(batch_of(2, 3), seeded())
    assert views.spec.expand(2, 1).is_in(made)
