"""env=video: the same clips from a cache, a map and processes that decode ahead; parts, labels, broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Generator, Tensor

from envs import video_cache
from envs.video import Videos
from envs.video_files import Unreadable
from perception.clips import ClipViews
from perception.video import VideoTransformer
from tests.commands import launch
from tests.picture_files import write_class_folders
from tests.video_files import (
    number_level,
    numbered_level,
    truncate,
    write_folders,
    write_list,
    write_only_sound,
    write_shard,
    write_video,
)
from worldmodels.core import ReadsAhead, Source
from worldmodels.keys import LABEL, OBSERVATION, PIXELS
from worldmodels.trainer import batch_seed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos 0..5 of class a, 6..11 of class b; i.mp4 has 12 + i frames of 24 a second."""
    return write_folders(tmp_path_factory.mktemp("videos") / "clips", num=6)


@pytest.fixture
def made(folder: Path, tmp_path: Path) -> Any:
    def make(path: object = folder, **settings: Any) -> Videos:
        settings = {"size": 16, "frame_rate": 24, "workers": 0, "num_frames": 4, "cache_dir": tmp_path, **settings}
        return Videos(path=str(path), **settings)

    return make


def batch(source: Videos, num: int = 8, window: int = 4, seed: int = 0) -> Any:
    return source.sample(num, window, Generator().manual_seed(seed))


def clip_of(clip: Tensor) -> tuple[int, list[int]]:
    """The video a clip [T, 3, H, W] is of, and its frames, which follow each other or repeat the last."""
    width = clip.shape[-1]
    left, right = clip[..., 2 : width // 2 - 2].float(), clip[..., width // 2 + 2 : -2].float()
    frames, levels = left.mean((1, 2, 3)), right.mean((1, 2, 3))
    video = round((float(levels.mean()) - number_level(0)) / 18)
    assert (levels - number_level(video)).abs().max() < 3
    found = [round((float(grey) - numbered_level(0)) / 8) for grey in frames]
    assert (frames - torch.tensor([numbered_level(frame) for frame in found])).abs().max() < 3
    assert found == [min(found[0] + i, 11 + video % 6) for i in range(len(found))]
    return video, found


@pytest.mark.parametrize("is_cached", [True, False])
def test_clips_are_windows_of_one_video_with_its_label(made, is_cached):
    source = made(is_cached=is_cached)
    assert isinstance(source, Source)
    assert isinstance(source, ReadsAhead)
    assert source.label_classes == {"class": ("a", "b")}
    seen = set()
    for window in (4, 15):
        clips = batch(source, 24, window)
        assert clips.batch_size == (24,)
        assert source.spec.expand(24, window).is_in(clips)
        for clip, label in zip(clips[OBSERVATION, PIXELS], clips[LABEL, "class"], strict=True):
            video, frames = clip_of(clip)
            assert label.tolist() == [video // 6] * window
            seen.add((video, frames[0]))
    assert len({video for video, _ in seen}) > 6
    assert len({first for _, first in seen}) > 4


def test_batches_are_functions_of_the_generators_state_and_the_same_from_everywhere(made, capsys):
    stored, mapped = made(), made(max_device_bytes=0)
    assert stored.is_stored
    assert "memory-mapped" in capsys.readouterr().err
    decoded = made(max_cache_bytes=1, cache_dir=stored._cache_dir / "other")
    assert not decoded.is_stored
    assert "more than env.max_cache_bytes=1: they are decoded as they are needed" in capsys.readouterr().err
    for seed in range(3):
        first = batch(stored, seed=seed)
        for source in (stored, mapped, decoded):
            assert bool((batch(source, seed=seed) == first).all())
    assert not torch.equal(batch(stored, seed=1)[OBSERVATION, PIXELS], batch(stored)[OBSERVATION, PIXELS])
    generator = Generator().manual_seed(0)
    one, two = (stored.sample(8, 4, generator)[OBSERVATION, PIXELS] for _ in range(2))
    assert not torch.equal(one, two)


def test_processes_decode_ahead_what_is_announced(made):
    stored, source = made(), made(is_cached=False, workers=2, ahead=2)
    seeds = [batch_seed(0, step, 0) for step in range(6)]
    try:
        for step in range(4):
            source.announce(6, 4, seeds[step : step + 3])
            assert len(source._clips._tickets) <= 3
            generator = Generator().manual_seed(seeds[step])
            wanted = stored.sample(6, 4, Generator().manual_seed(seeds[step]))
            assert bool((source.sample(6, 4, generator) == wanted).all())
            assert torch.equal(
                torch.rand(2, generator=generator), torch.rand(2, generator=_after(stored, seeds[step]))
            )  # the crops that follow are the same, too
        assert len(source._clips._tickets) == 2
        # Plans change: another window, a seed nobody announced, a part in between
        wanted = stored.sample(6, 5, Generator().manual_seed(7))
        assert bool((source.sample(6, 5, Generator().manual_seed(7)) == wanted).all())
        source.announce(6, 4, seeds[:1])
        assert torch.equal(source.part("train", 7).obs[PIXELS], stored.part("train", 7).obs[PIXELS])
        assert bool((batch(source, 6, 4, seeds[0]) == batch(stored, 6, 4, seeds[0])).all())
        readers = source._clips._readers
        readers._processes[0].kill()
        readers._processes[0].join()
        readers._processes[1].kill()
        with pytest.raises(RuntimeError, match=r"decoder 0.*was killed"):
            batch(source, 6, 4, 99)
    finally:
        source._clips.close()
    assert not any(process.is_alive() for process in readers._processes)


def _after(source: Videos, seed: int) -> Generator:
    generator = Generator().manual_seed(seed)
    source.sample(6, 4, generator)
    return generator


def test_parts_are_drawn_once_and_evaluations_look_at_middles(made, folder):
    source = made(segments=2, val_share=0.2, test_share=0.2)
    told = source.describe()
    assert told["videos"] == {"train": 8, "val": 2, "test": 2}
    assert told["labels"] == {"class": ["a", "b"]}
    parts = {name: set(source._members[name].tolist()) for name in ("train", "val", "test")}
    assert set.union(*parts.values()) == set(range(12))
    part = source.part("val", 4)
    assert part.obs[PIXELS].shape == (4, 4, 3, 16, 16)
    clips = [clip_of(clip) for clip in part.obs[PIXELS]]
    assert [video for video, _ in clips] == [clips[0][0]] * 2 + [clips[2][0]] * 2
    assert part.target["class"].tolist() == [video // 6 for video, _ in clips]
    for number, (video, frames) in enumerate(clips):
        middle = (12 + video % 6) * (0.25 + 0.5 * (number % 2))  # of the first or the second half
        assert abs(np.mean(frames) + 0.5 - middle) <= 0.5
    again = made(segments=2, val_share=0.2, test_share=0.2, is_cached=False).part("val", 4)
    assert torch.equal(again.obs[PIXELS], part.obs[PIXELS])
    assert len(source.part("val", 100).obs) == 4  # no more than there are
    assert source.part("test", 2, window=30).obs[PIXELS].shape[1] == 30
    only = source.split("val")
    assert {clip_of(clip)[0] for clip in batch(only, 20)[OBSERVATION, PIXELS]} <= parts["val"]
    with pytest.raises(ValueError, match="there is no part dev; parts are train, val, test"):
        source.part("dev", 2)


def test_lists_and_shards_of_their_own_parts(made, tmp_path, folder):
    members = {}
    for number in range(4):
        members |= {f"{number}.mp4": (folder / "a" / f"{number}.mp4").read_bytes(), f"{number}.cls": b"2"}
    shard = write_shard(tmp_path / "val-0.tar", members)
    lines = [f"{folder}/{name}/{number}.mp4 {label}" for label, name in enumerate("ab") for number in range(6)]
    train = write_list(tmp_path / "train.csv", lines)
    source = made(train, val_path=str(shard), val_share=0.25)
    assert source.describe()["videos"] == {"train": 9, "val": 3, "test": 4}  # the held-out one is what is judged
    assert source.label_classes == {"class": ("0", "1", "2")}
    assert set(source.part("test", 4).target["class"].tolist()) == {2}
    both = made(train, val_path=str(shard), test_path=str(shard))
    assert both.describe()["videos"] == {"train": 12, "val": 4, "test": 4}


def test_unlabelled_videos_have_no_label(made, tmp_path):
    for number in range(4):
        write_video(tmp_path / "v" / f"{number}.mp4", num=6, video=number)
    source = made(tmp_path / "v", val_share=0.25, test_share=0.25)
    assert source.label_classes == {}
    assert LABEL not in batch(source, 2).keys()
    assert list(source.part("train", 2).target.keys()) == []


def test_pictures_are_clips_that_stand_still(made, tmp_path):
    write_class_folders(tmp_path / "pictures", parts=("train", "val"), num=4)
    source = made(tmp_path / "pictures", val_share=0.25)
    clips = batch(source, 5, 4)
    pixels = clips[OBSERVATION, PIXELS]
    assert bool((pixels == pixels[:, :1]).all())
    assert source.label_classes == {"class": ("a", "b")}
    assert source.describe()["videos"] == {"train": 6, "val": 2, "test": 8}
    with pytest.raises(ValueError, match=r"env.size=\[16, 20\]: pictures are kept as squares"):
        made(tmp_path / "pictures", size=[16, 20])
    with pytest.raises(ValueError, match=r"parts come from env.path alone"):
        made(tmp_path / "pictures", val_path=str(tmp_path / "pictures"))


def test_frames_keep_their_sides_where_asked(made):
    assert batch(made(size=[16, 24]))[OBSERVATION, PIXELS].shape == (8, 4, 3, 16, 24)
    assert made(size=[16, 24]).spec[OBSERVATION, PIXELS].shape == (3, 16, 24)


def broken_list(folder: Path, whole: Path) -> Path:
    """A list of 12 whole videos and 4 broken ones."""
    write_only_sound(folder / "sound.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    truncate(write_video(folder / "cut.mp4", num=60), 0.5)
    lines = [f"{whole}/{name}/{number}.mp4 {label}" for label, name in enumerate("ab") for number in range(6)]
    return write_list(folder / "all.csv", [*lines, "sound.mp4 0", "gone.mp4 1", "empty.mp4 0", "cut.mp4 1"])


@pytest.mark.parametrize("is_cached", [True, False])
def test_broken_files_are_counted_named_once_and_left_out(made, folder, tmp_path, capsys, is_cached):
    path = broken_list(tmp_path, folder)
    source = made(path, max_bad_share=0.3, is_cached=is_cached)
    said = capsys.readouterr().err
    assert said.count("4 of 16 videos are left out: sound.mp4 has no pictures, only sound; gone.mp4 is not there") == 1
    told = source.describe()
    assert told["left_out"] == 4
    assert told["left_out_files"][2] == "empty.mp4 is empty: 0 bytes"
    assert "4 of 16 videos are left out" in told["notes"][-1]
    assert sum(told["videos"].values()) == 12
    for clip in batch(source, 32)[OBSERVATION, PIXELS]:
        clip_of(clip)
    with pytest.raises(ValueError, match=r"4 of 16 videos cannot be used: .*more than env.max_bad_share=0.1"):
        made(path, is_cached=is_cached)


def test_nothing_usable_is_one_clear_error(made, tmp_path):
    path = write_list(tmp_path / "gone.csv", ["a.mp4 0", "b.mp4 1"])
    with pytest.raises(ValueError, match=r"not one of 2 videos can be used: a.mp4 is not there; b.mp4 is not there"):
        made(path)


def damage(path: Path) -> None:
    """Spoil the second half of a video; its index stays whole."""
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)


def test_damage_found_while_decoding(made, tmp_path, capsys):
    """A cache leaves the video out; clips that are decoded as needed are replaced by others, always the same ones."""
    fast = {"codec": "mpeg4", "muxing": {"movflags": "faststart"}}
    for number in range(6):
        write_video(tmp_path / "v" / f"{number}.mp4", num=24, video=number, **fast)
    shares = {"val_share": 0.2, "test_share": 0.2, "max_bad_share": 0.5}
    name = f"{int(made(tmp_path / 'v', is_cached=False, **shares)._members['train'][0])}.mp4"
    damage(tmp_path / "v" / name)
    told = made(tmp_path / "v", **shares).describe()
    assert [file.split()[0] for file in told["left_out_files"]] == [name]
    capsys.readouterr()
    first, second = (made(tmp_path / "v", is_cached=False, cache_dir=tmp_path / other, **shares) for other in "ab")
    batches = [batch(first, 32, 12, seed) for seed in range(3)]
    said = capsys.readouterr().err
    assert said.count(f"{name} ") == 1
    assert "other clips are taken instead" in said
    for seed in (2, 0, 1):  # in another order, by another source: what failed before does not matter
        assert bool((batch(second, 32, 12, seed) == batches[seed]).all())


def test_clip_after_clip_that_fails_ends_in_one_error(made, monkeypatch):
    source = made(is_cached=False)

    def fail(*args, **options):
        raise Unreadable("is gone")

    monkeypatch.setattr("envs.video_stream.read_rows", fail)
    with pytest.raises(ValueError, match=r"8 clips in a row cannot be decoded: .*mp4 is gone.*env.is_cached=true"):
        batch(source)


def test_the_cache_is_used_again_and_goes_on_where_it_stopped(made, folder, monkeypatch):
    done, original = [], video_cache._save

    def stopped(path, function, entries, options):
        if function is video_cache._decode and len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        original(path, function, entries, options)

    monkeypatch.setattr(video_cache, "_save", stopped)
    with pytest.raises(KeyboardInterrupt):
        made()
    monkeypatch.setattr(video_cache, "_save", lambda *job: done.append(job[0]) or original(*job))
    first = batch(made())
    assert len(done) == 1 + 3  # one job to examine 12 videos, three to decode them
    assert len(set(done)) == 4
    assert bool((batch(made()) == first).all())
    assert bool((batch(made(is_cached=False)) == first).all())
    assert len(done) == 4
    homes = [path for path in made()._cache_dir.iterdir() if path.is_dir()]
    assert sorted(path.name for path in homes[0].iterdir()) == [
        ".lock", "index.json", "rows_16x16.bin", "rows_16x16.json",
    ]  # fmt: skip
    assert len(homes) == 1


def test_the_cache_is_filled_by_processes(made):
    assert bool((batch(made(workers=2)) == batch(made(workers=0, is_cached=False))).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 4}, "env.size=4"),
        ({"size": [16, 16, 16]}, r"env.size=\[16, 16, 16\]"),
        ({"num_frames": 0}, "env.num_frames=0"),
        ({"frame_rate": 0}, "env.frame_rate=0"),
        ({"segments": 0}, "env.segments=0"),
        ({"ahead": -1}, "env.ahead=-1"),
        ({"workers": -1}, "env.workers=-1"),
        ({"val_share": 0.6, "test_share": 0.5}, "env.val_share=0.6"),
    ],
)
def test_bad_settings_are_named(made, settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)


def test_a_path_is_needed_and_a_clip_has_a_frame(made):
    with pytest.raises(ValueError, match=r"env.path=null"):
        Videos()
    with pytest.raises(ValueError, match="window=0"):
        batch(made(), window=0)
    with pytest.raises(ValueError, match="window=0"):
        made().part("val", 2, window=0)


def test_it_composes_and_feeds_an_encoder_of_clips(folder, tmp_path):
    at = [f"env.path={folder}", f"env.cache_dir={tmp_path}", "env.workers=0", "env.size=32", "env.frame_rate=24"]
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", ["objective=i_jepa", "env=video", "views=clips", "views.num_frames=4", *at])
    source = instantiate(cfg.env.source, device="cpu")
    views = instantiate(cfg.views)(source.spec)
    assert isinstance(views, ClipViews)
    generator = Generator().manual_seed(0)
    clips = views(source.sample(3, views.window, generator), generator)
    assert views.spec.expand(3, 1).is_in(clips)
    encoder = VideoTransformer(views.spec, patch=8, dim=24, depth=1, num_heads=2)
    out = encoder(clips[OBSERVATION][:, 0])
    assert out["tokens"].shape == (3, 2 * 4 * 4, 24)
    part = source.part("val", 1, window=4)
    assert encoder(views.fitted(part.obs))["pooled"].shape == (1, 24)


@pytest.mark.slow
def test_a_run_ends_in_the_same_weights_with_a_cache_and_without(folder, tmp_path):
    """The command: frames of videos for I-JEPA, gathered from a cache, or decoded ahead by a process."""
    ends = []
    for number, where in enumerate(("env.is_cached=true", "env.is_cached=false")):
        run_dir, settings = tmp_path / str(number), [f"env.path={folder}", f"env.cache_dir={tmp_path}/cache", where]
        settings += ["env.size=32", "env.frame_rate=24", "env.workers=1", "steps=4", "batch_size=4", "threads=1"]
        settings += [f"eval.{name}=null" for name in ("collapse", "probe", "knn", "patch_pictures")]
        small = ["encoder.depth=1", "objective.predictor.depth=1", "logger=csv", "device=cpu", f"run_dir={run_dir}"]
        done = launch("objective=i_jepa", "env=video", *settings, *small)
        assert done.returncode == 0, done.stderr
        ends.append((run_dir / "checkpoints" / "step_000000004" / "model.safetensors").read_bytes())
        assert json.loads((run_dir / "source.json").read_text())["is_cached"] is (number == 0)
    assert ends[0] == ends[1]


@pytest.mark.gpu
def test_on_a_gpu_batches_never_wait(made):
    for settings in ({}, {"max_device_bytes": 0}, {"is_cached": False, "workers": 2}):
        source = made(device="cuda", **settings)
        generator = Generator("cuda").manual_seed(0)
        source.sample(4, 4, generator)
        torch.cuda.set_sync_debug_mode("error")
        try:
            clips = source.sample(8, 4, generator)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert clips[OBSERVATION, PIXELS].is_cuda
        assert clips[LABEL, "class"].is_cuda
