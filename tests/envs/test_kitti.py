"""Data in KITTI's layout: what rows hold, what is refused, what is left out and counted."""

from __future__ import annotations

import json
import struct
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from envs.kitti import Kitti, png_size
from envs.scans import Frame, Split
from tests.kitti_folder import CAR, write_frame, write_kitti
from worldmodels.geometry.boxes import points_in_boxes

SHARED = Path(__file__).resolve().parents[3] / "shared/data/kitti_mini"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/kitti_mini")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_kitti(tmp_path / "kitti")


def test_rows_are_as_the_spec_says_and_depend_on_the_generator_only(folder: Path) -> None:
    source = Kitti(data_dir=folder)
    batch = source.sample(8, 1, Generator().manual_seed(3))
    assert batch.batch_size == (8,)
    assert source.spec.expand(8, 1).is_in(batch)
    assert (batch == source.sample(8, 1, Generator().manual_seed(3))).all()
    points, count = batch["observation", "points"][:, 0], batch["observation", "num_points"][:, 0]
    for row in range(8):
        frame = source.frames("train")[int(batch["frame"][row])]
        assert int(count[row]) == len(frame.points)
        assert torch.equal(points[row, : count[row]], frame.points)
        assert not points[row, count[row] :].any(), "padding is zero"
        num = len(frame.boxes)
        assert torch.equal(batch["boxes"][row, 0, :num], frame.boxes)
        assert (batch["box_class"][row, 0, :num] == 0).all()
        assert (batch["box_class"][row, 0, num:] == -1).all()
    with pytest.raises(ValueError, match=r"window=2: frames of .* are single scans"):
        source.sample(2, 2, Generator())


def test_boxes_and_points_are_in_the_lidar_frame(folder: Path) -> None:
    frame = Kitti(data_dir=folder).frames("train")[1]
    np.testing.assert_allclose(frame.boxes[0], [13, 2, -1, *CAR, 0.3], atol=1e-3)
    assert points_in_boxes(frame.points, frame.boxes).sum(0).tolist() == [10, 10]
    assert frame.difficulty.tolist() == [0, 0]
    assert frame.name == "000001"
    assert frame.image_size == (375, 1242)
    assert frame.objects is not None
    assert frame.objects.type == ["Car", "Car", "Van"], "what is not detected is still there for the evaluation"
    label = Kitti(data_dir=folder).frames("train").labels[1]
    assert torch.equal(label.boxes, frame.boxes)
    assert label.points.shape == (0, 4)


def test_points_outside_the_image_are_cropped(folder: Path) -> None:
    cropped, whole = Kitti(data_dir=folder), Kitti(data_dir=folder, is_cropped=False)
    frame = whole.frames("val")[0]
    assert len(frame.points) == 200 + 10 * 4 + 20
    seen = frame.points[torch.from_numpy(frame.calibration.in_view(frame.points.numpy(), frame.image_size))]
    assert torch.equal(cropped.frames("val")[0].points, seen)
    assert 0 < len(seen) < len(frame.points)


def test_label_fraction_takes_the_first_frames(tmp_path: Path) -> None:
    folder = write_kitti(tmp_path, train=7, val=1)
    assert Kitti(data_dir=folder, label_fraction=0.5).frames("train").names == ["000000", "000001", "000002"]
    assert Kitti(data_dir=folder, label_fraction=0.5, train_frames=4).frames("train").names == ["000000", "000001"]
    assert len(Kitti(data_dir=folder, label_fraction=0.5).objects().boxes) == 6
    assert len(Kitti(data_dir=folder, label_fraction=0.2).frames("val")) == 1
    with pytest.raises(ValueError, match=r"label_fraction=0.1: nothing is left of 7 frames"):
        Kitti(data_dir=folder, label_fraction=0.1)


def test_evaluation_batches_hold_every_frame_once(folder: Path) -> None:
    train = Kitti(data_dir=folder).frames("train")
    batches = list(train.batches(3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert torch.cat([batch["frame"] for batch in batches]).flatten().tolist() == [0, 1, 2, 3]


def test_objects_hold_each_ones_points_around_its_centre(folder: Path) -> None:
    source = Kitti(data_dir=folder)
    bank = source.objects()
    assert len(bank.boxes) == 8
    assert bank.num_points.tolist() == [10] * 8
    assert bank.frame.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    clouds, sizes = bank.store.rows(torch.arange(8))
    assert clouds.shape == (8, 10, 4)
    assert torch.equal(sizes, bank.num_points)
    assert float(clouds[..., :3].abs().max()) <= 0.51
    frame = source.frames("train")[1]
    back = torch.cat([clouds[2, :, :3] + bank.boxes[2, :3], clouds[2, :, 3:]], 1)
    mine = frame.points[points_in_boxes(frame.points, frame.boxes[:1])[:, 0]]
    torch.testing.assert_close(back, mine)


def test_large_scans_stay_on_disk_and_give_the_same_batches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    small, large = Kitti(data_dir=folder), Kitti(data_dir=folder, max_device_bytes=5000)
    assert "memory-mapped" in capsys.readouterr().err
    for seed in range(3):
        a, b = (source.sample(3, 1, Generator().manual_seed(seed)) for source in (small, large))
        assert (a == b).all()
    assert torch.equal(small.frames("train")[2].points, large.frames("train")[2].points)
    assert not list((tmp_path / "home").rglob("*.f32")), "nothing is left behind"


@pytest.mark.parametrize("max_bytes", [10**9, 3000])
def test_scans_are_in_memory_once_or_not_at_all(tmp_path: Path, max_bytes: int) -> None:
    """What was read may go: a part of it that is still held, however small, would keep the whole of it."""
    alive: list[weakref.ref[np.ndarray]] = []

    def frames() -> Iterator[Frame]:
        for i in range(5):
            points = np.full((100, 4), i, dtype=np.float32)
            alive.append(weakref.ref(points))
            none = torch.zeros(0, dtype=torch.int64)
            yield Frame(str(i), torch.from_numpy(points), torch.zeros(0, 7), none, none)

    split = Split(frames(), 4, device=torch.device("cpu"), max_device_bytes=max_bytes, spill=tmp_path / "scans")
    assert sum(ref() is not None for ref in alive) == 0
    assert [float(frame.points.mean()) for frame in split] == [0, 1, 2, 3, 4]


def test_other_types_are_counted_and_unknown_ones_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = folder / "training/label_2/000000.txt"
    label.write_text(label.read_text() + label.read_text().splitlines()[0].replace("Car", "palm") + "\n")
    source = Kitti(data_dir=folder)
    notes = [
        "2 objects of the type Van were left out",
        "1 objects of the type palm, which KITTI does not have, were left out",
    ]
    assert source.notes == notes
    assert notes[0] in capsys.readouterr().err
    assert source.describe()["notes"] == notes
    both = Kitti(data_dir=folder, classes=["Van", "Car"])
    assert both.classes == ("Van", "Car")
    assert both.frames("train")[1].box_class.tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match=r"KITTI has no Bus; it has Car, Van"):
        Kitti(data_dir=folder, classes=["Bus"])
    with pytest.raises(ValueError, match=r"env.classes"):
        Kitti(data_dir=folder, classes=[])


def test_points_that_are_not_finite_are_dropped_and_counted(folder: Path) -> None:
    path = folder / "training/velodyne/000000.bin"
    points = np.fromfile(path, "<f4").reshape(-1, 4)
    points[:3, 1] = np.nan
    path.write_bytes(points.tobytes())
    source = Kitti(data_dir=folder)
    assert "3 points that are not finite were left out" in source.notes
    assert bool(source.frames("train")[0].points.isfinite().all())


def test_empty_scans_leave_training_and_stay_in_evaluation(folder: Path) -> None:
    behind = np.array([[-10.0, 0, 0, 0.5]])  # a scan that is empty after the crop
    (folder / "training/velodyne/000001.bin").write_bytes(b"")
    write_frame(folder, "000004", behind, np.array([[10.0, 0, 0, *CAR, 0]]), ["Car"])
    source = Kitti(data_dir=folder)
    assert source.frames("train").names == ["000000", "000002", "000003"]
    assert "1 training frames without a point were left out" in source.notes
    val = source.frames("val")
    assert len(val) == 2
    batch = next(val.batches(2))
    assert batch["observation", "num_points"].flatten().tolist()[0] == 0
    assert not batch["observation", "points"][0].any()
    assert batch["box_class"][0, 0, 0] == 0
    for name in ("000000", "000002", "000003"):
        (folder / f"training/velodyne/{name}.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no training frame has a point"):
        Kitti(data_dir=folder)


def test_a_truncated_scan_and_bad_labels_are_refused_by_name(folder: Path) -> None:
    scan, label = folder / "training/velodyne/000002.bin", folder / "training/label_2/000002.txt"
    whole, text = scan.read_bytes(), label.read_text()
    scan.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"000002.bin: \d+ bytes are no whole number of points"):
        Kitti(data_dir=folder)
    scan.write_bytes(whole)
    label.write_text(text.replace(" 1.5000 1.6000 4.0000", " 1.5000 -1.6000 4.0000", 1))
    with pytest.raises(ValueError, match=r"000002.txt, line 1: .*must be positive"):
        Kitti(data_dir=folder)
    label.write_text(text)
    calib = folder / "training/calib/000002.txt"
    calib.write_text(calib.read_text().replace("Tr_velo_to_cam", "Tr_velo_cam"))  # as raw KITTI names it
    with pytest.raises(ValueError, match=r"000002.txt: the key Tr_velo_to_cam is missing"):
        Kitti(data_dir=folder)


def test_listed_frames_without_files_are_refused_or_skipped(folder: Path) -> None:
    (folder / "training/velodyne/000003.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"names 1 frames whose files are absent, first 000003 in training/velodyne"
    ):
        Kitti(data_dir=folder)
    source = Kitti(data_dir=folder, is_missing_skipped=True)
    assert source.frames("train").names == ["000000", "000001", "000002"]
    assert "1 frames of train.txt whose files are absent were left out" in source.notes


def test_missing_folders_and_lists_name_the_layout(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no KITTI data; it needs ImageSets/train.txt"):
        Kitti(data_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"env.data_dir is null"):
        Kitti(data_dir=None)
    with pytest.raises(ValueError, match=r"train_frames=9: .* has 4 frames"):
        Kitti(data_dir=folder, train_frames=9)
    with pytest.raises(ValueError, match=r"split='test'"):
        Kitti(data_dir=folder).frames("test")
    listed = folder / "ImageSets/train.txt"
    listed.write_text("000001\n000001\n")
    with pytest.raises(ValueError, match=r"names 000001 more than once"):
        Kitti(data_dir=folder)
    listed.unlink()
    with pytest.raises(FileNotFoundError, match=r"train.txt: there is no such file"):
        Kitti(data_dir=folder)


def test_limits_drop_points_and_boxes_outside(folder: Path) -> None:
    limits = [0, -40, -3, 20, 40, 1]
    source = Kitti(data_dir=folder, limits=limits)
    for frame in source.frames("train"):
        assert bool((frame.points[:, 0] <= 20).all())
        assert len(frame.boxes) == 1
    assert "4 boxes outside env.limits were left out" in source.notes
    with pytest.raises(ValueError, match=r"env.limits"):
        Kitti(data_dir=folder, limits=[0, 0, 0, -1, 1, 1])


def test_scans_are_thinned_out_the_same_way_every_time(folder: Path) -> None:
    a, b = (Kitti(data_dir=folder, max_points=50) for _ in range(2))
    assert a.spec["observation", "points"].shape == (50, 4)
    assert torch.equal(a.frames("train")[0].points, b.frames("train")[0].points)
    assert "4 scans were thinned out to env.max_points" in a.notes


def test_labels_need_not_be_there_for_pretraining(folder: Path) -> None:
    for path in (folder / "training/label_2").iterdir():
        path.unlink()
    source = Kitti(data_dir=folder, is_labelled=False)
    assert (source.sample(4, 1, Generator().manual_seed(0))["box_class"] == -1).all()


def test_image_sizes_come_from_the_list_the_image_or_a_default(folder: Path) -> None:
    sizes = folder / "image_sizes.json"
    sizes.write_text(json.dumps({"training (height,width)": {"000000": [360, 1200]}}))
    image = folder / "training/image_2/000001.png"
    image.parent.mkdir()
    head = b"IHDR" + struct.pack(">II5B", 1238, 374, 8, 2, 0, 0, 0)
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)))
    with pytest.warns(UserWarning, match=r"the size of 2 images, first 000002; 375 x 1242 is taken") as caught:
        source = Kitti(data_dir=folder)
    assert len(caught) == 1, "said once"
    assert [frame.image_size for frame in source.frames("train")] == [
        (360, 1200),
        (374, 1238),
        (375, 1242),
        (375, 1242),
    ]
    sizes.write_text(json.dumps({"000000": [360, 1200]}))
    with pytest.raises(ValueError, match=r"image_sizes.json is not of the form"):
        Kitti(data_dir=folder)
    image.write_bytes(b"JFIF" * 10)
    with pytest.raises(ValueError, match=r"is no PNG image"):
        png_size(image)


@shared
@pytest.mark.data
def test_real_frames() -> None:
    source = Kitti(data_dir=SHARED)
    train = source.frames("train")
    assert train.names == ["000000", "000003", "000007", "000009", "000010", "000060"]
    assert [len(frame.boxes) for frame in train] == [1, 1, 4, 3, 9, 3]
    assert source.frames("train")[0].image_size == (370, 1224)
    assert source.notes == ["1 objects of the type Van were left out"]
    assert min(len(frame.points) for frame in train) > 16_000
    assert max(len(frame.points) for frame in train) < 21_000
    bank = source.objects()
    assert bank.num_points[0] == 377
    assert bank.num_points[1] == 674
    assert (bank.difficulty >= 0).sum() == 15
    batch = source.sample(3, 1, Generator().manual_seed(0))
    assert source.spec.expand(3, 1).is_in(batch)


@shared
@pytest.mark.data
def test_the_size_in_a_real_image_is_that_of_the_list() -> None:
    assert png_size(SHARED / "training/image_2/000000.png") == (370, 1224)
    assert png_size(SHARED / "training/image_2/000008.png") == (375, 1242)
