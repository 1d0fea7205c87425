"""Waymo's data as processed by OpenPCDet: what rows hold, what is refused, what is left out and counted."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from envs.paste import PastedObjects
from envs.waymo import Waymo
from tests.waymo_folder import PROCESSED, write_waymo
from worldmodels.geometry.boxes import points_in_boxes

FIRST = f"{PROCESSED}/segment-1_with_camera_labels"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_waymo(tmp_path / "waymo")


def changed(folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Rewrite the first sequence's pickle."""
    path = folder / f"{FIRST}/segment-1_with_camera_labels.pkl"
    infos = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(change(infos) or infos))


def test_rows_have_five_channels_and_boxes_around_their_points(folder: Path) -> None:
    source = Waymo(data_dir=folder)
    assert source.frames("train").names == [
        "segment-1_with_camera_labels/0000",
        "segment-1_with_camera_labels/0005",
        "segment-2_with_camera_labels/0004",
    ], "every fifth, counted over all sequences"
    assert len(source.frames("val")) == 6
    batch = source.sample(4, 1, Generator().manual_seed(0))
    assert source.spec.expand(4, 1).is_in(batch)
    assert source.spec["observation", "points"].shape[-1] == 5
    frame = source.frames("train")[1]
    raw = np.load(folder / f"{FIRST}/0005.npy")
    np.testing.assert_array_equal(frame.points[:, [0, 1, 2, 4]], raw[:, [0, 1, 2, 4]])
    np.testing.assert_allclose(frame.points[:, 3], np.tanh(raw[:, 3]), rtol=1e-6)
    torch.testing.assert_close(frame.boxes[0], torch.tensor([15.0, -3, 0.8, 4.6, 2.0, 1.7, 0.3]))
    assert frame.box_class.tolist() == [0, 1, 2]
    assert frame.difficulty.tolist() == [1, 2, 2], "ten points, four points, said to be hard"
    assert points_in_boxes(frame.points, frame.boxes).sum(0).tolist() == [10, 4, 10]
    assert frame.calibration is None
    assert source.notes == ["9 objects of the type Sign were left out", "9 objects without a point were left out"]


def test_objects_are_pasted_with_all_their_channels(folder: Path) -> None:
    source = Waymo(data_dir=folder)
    bank = source.objects()
    assert bank.store.points.shape[1] == 5
    wrapped = PastedObjects(source, counts={"Vehicle": 3, "Cyclist": 2, "Pedestrian": 2}, max_added=64)
    batch = wrapped.sample(8, 1, Generator().manual_seed(0))
    assert wrapped.spec.expand(8, 1).is_in(batch)
    assert (batch["box_class"] == 1).sum() == 8, "pedestrians have four points: none is pasted"
    assert (batch["box_class"] == 0).sum() > 8
    one = bank.store.cloud(0)
    row = batch["observation", "points"][:, 0]
    assert any((row[..., 3:] == point[3:]).all(-1).any() for point in one)


def test_frames_points_and_labels_are_chosen(folder: Path) -> None:
    assert len(Waymo(data_dir=folder, train_every=1).frames("train")) == 12
    assert len(Waymo(data_dir=folder, train_every=2, label_fraction=0.5, val_every=4).frames("train")) == 3
    clean = Waymo(data_dir=folder, are_unlabelled_zones_kept=False)
    assert clean.notes[-1] == "41 points of no-label zones were left out"
    assert len(clean.frames("train")[0].points) == 127 - 13
    signs = Waymo(data_dir=folder, classes=["Sign", "Vehicle"]).frames("train")[0]
    assert signs.box_class.tolist() == [1, 0]
    small = Waymo(data_dir=folder, limits=[0, -10, -2, 20, 10, 4], max_points=20)
    assert len(small.frames("train")[0].points) == 20


def test_pretraining_opens_no_pickle(folder: Path) -> None:
    for path in folder.rglob("*.pkl"):
        path.write_bytes(b"anything")
    source = Waymo(data_dir=folder, is_labelled=False, train_every=1)
    assert source.frames("train").names[:2] == [f"segment-1_with_camera_labels/{i:04d}" for i in range(2)]
    assert len(source.frames("train")) == 12
    assert (source.sample(4, 1, Generator().manual_seed(0))["box_class"] == -1).all()
    with pytest.raises(ValueError, match=r"segment-1_with_camera_labels.pkl is no pickle of plain data"):
        Waymo(data_dir=folder)


def test_folders_may_be_named_as_newer_and_older_releases_do(folder: Path) -> None:
    first = folder / FIRST
    for name in ("training_segment-1_with_camera_labels", "segment-1"):
        new = first.with_name(name)
        first.rename(new)
        (next(new.glob("*.pkl"))).rename(new / f"{name}.pkl")
        first = new
        assert Waymo(data_dir=folder).frames("train").names[0] == f"{name}/0000"
    first.rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"segment-1_with_camera_labels: there is no such folder; .*is_missing"):
        Waymo(data_dir=folder)
    source = Waymo(data_dir=folder, is_missing_skipped=True)
    assert len(source.frames("train")) == 2
    assert "1 sequences of train.txt that are absent were left out" in source.notes


def test_empty_frames_and_types_that_waymo_does_not_have(folder: Path) -> None:
    def change(infos: list[dict[str, Any]]) -> None:
        infos[0]["annos"]["name"] = np.array(["Vehicle", "Palm", "Cyclist", "Sign", "Vehicle"])
        infos[5]["annos"] = {key: np.array([]) for key in infos[5]["annos"]}

    changed(folder, change)
    source = Waymo(data_dir=folder)
    assert [len(frame.boxes) for frame in source.frames("train")] == [2, 0, 3]
    assert "1 objects of the type Palm, which Waymo does not have, were left out" in source.notes


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("difficulty", None, "frame segment-1_with_camera_labels/0000: annos has no difficulty"),
        ("location", np.zeros((4, 3)), "0000: 5 names but annos/location [4, 3]"),
        ("dimensions", np.zeros((5, 3)), "0000: annos/dimensions must be positive"),
        ("heading_angles", np.full(5, np.nan), "0000: annos/heading_angles must be finite"),
        ("num_points_in_gt", np.array(["a"] * 5), "0000: annos/num_points_in_gt holds something that is not a number"),
    ],
)
def test_bad_labels_are_named(folder: Path, key: str, value: np.ndarray | None, message: str) -> None:
    def change(infos: list[dict[str, Any]]) -> None:
        if value is None:
            del infos[0]["annos"][key]
        else:
            infos[0]["annos"][key] = value

    changed(folder, change)
    with pytest.raises(ValueError, match=re.escape(message)):
        Waymo(data_dir=folder)


def test_bad_pickles_are_named(folder: Path) -> None:
    changed(folder, lambda infos: [{"annos": infos[0]["annos"]}])
    with pytest.raises(ValueError, match=r"labels.pkl must hold .* not KeyError\('point_cloud'\)"):
        Waymo(data_dir=folder)
    changed(folder, lambda infos: [{"point_cloud": {"sample_idx": 0}, "annos": [1]}])
    with pytest.raises(ValueError, match=r"annos is list, not a dict of arrays"):
        Waymo(data_dir=folder)
    changed(folder, lambda infos: [{"annos": Path("foreign")}])
    with pytest.raises(ValueError, match=r"labels.pkl is no pickle of plain data: it wants pathlib"):
        Waymo(data_dir=folder)
    (folder / f"{FIRST}/segment-1_with_camera_labels.pkl").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels.pkl: there is no such file"):
        Waymo(data_dir=folder)


def test_bad_scans_are_named_or_counted(folder: Path) -> None:
    scan = folder / f"{FIRST}/0000.npy"
    rows = np.load(scan)
    rows[3, 1], rows[5, 3] = np.nan, np.inf
    np.save(scan, rows)
    source = Waymo(data_dir=folder)
    assert "2 points that are not finite were left out" in source.notes
    assert len(source.frames("train")[0].points) == len(rows) - 2
    whole = scan.read_bytes()
    for bad, message in (
        (
            rows[:, :5],
            r"x, y, z, intensity, elongation, zone flag are float \[P, 6\], not float32 \[127, 5\]",
        ),
        (np.zeros((127, 6), dtype=np.int64), r"float \[P, 6\], not int64 \[127, 6\]"),
        (np.array([None, 1], dtype=object), r"0000.npy is no whole .npy file"),
    ):
        np.save(scan, bad, allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            Waymo(data_dir=folder)
    for size in (0, 20, 200):
        scan.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"0000.npy is no whole .npy file"):
            Waymo(data_dir=folder)
    scan.unlink()
    with pytest.raises(FileNotFoundError, match=r"0000.npy: there is no such file"):
        Waymo(data_dir=folder)


def test_bad_choices_and_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env.data_dir is null: give the folder that holds ImageSets"):
        Waymo(data_dir=None)
    with pytest.raises(FileNotFoundError, match=r"there is no Waymo data; it needs ImageSets"):
        Waymo(data_dir=tmp_path / "none")
    with pytest.raises(ValueError, match=r"Waymo has no Car; it has Vehicle, Pedestrian, Cyclist, Sign"):
        Waymo(data_dir=folder, classes=["Car"])
    with pytest.raises(ValueError, match=r"env.train_every=0: every n-th frame is used"):
        Waymo(data_dir=folder, train_every=0)
    with pytest.raises(ValueError, match=r"split='test': there are train, val"):
        Waymo(data_dir=folder).frames("test")
    with pytest.raises(TypeError, match="max_pionts"):
        Waymo(data_dir=folder, max_pionts=3)
    (folder / "ImageSets/train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.txt: there is no such file; Waymo data need"):
        Waymo(data_dir=folder)
