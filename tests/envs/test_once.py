"""Data in ONCE's layout: what rows hold, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from envs.once import Once
from envs.paste import PastedObjects
from tests.once_folder import write_once
from worldmodels.evals.detection import DetectionScore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_once(tmp_path)


def test_rows_are_those_of_any_labelled_scan(folder: Path) -> None:
    source = Once(data_dir=folder)
    assert source.frames("train").names == ["000076/160", "000076/162"]
    assert source.frames("val").names == ["000080/160", "000080/162"]
    assert source.notes == ["2 frames without boxes were left out"]
    batch = source.sample(4, 1, Generator().manual_seed(0))
    assert source.spec.expand(4, 1).is_in(batch)
    frame = source.frames("train")[1]
    torch.testing.assert_close(frame.boxes[0], torch.tensor([12.0, -3, -0.8, 4.4, 1.9, 1.6, 0.4]))
    assert frame.box_class.tolist() == [0, 1]
    assert frame.calibration is None
    assert source.objects().num_points.tolist() == [10] * 4
    assert len(PastedObjects(source, counts={"Bus": 2}).sample(2, 1, Generator().manual_seed(0))) == 2


def test_pretraining_uses_every_frame_and_no_box(folder: Path) -> None:
    source = Once(data_dir=folder, is_labelled=False)
    assert len(source.frames("train")) == 3
    assert (source.sample(4, 1, Generator().manual_seed(0))["box_class"] == -1).all()
    assert len(Once(data_dir=folder, is_labelled=False, label_fraction=0.7).frames("train")) == 2
    other = Once(data_dir=folder, classes=["Car"], splits={"train": "val"})
    assert "2 objects of the type Bus were left out" in other.notes


def test_without_a_camera_there_is_no_ap_of_kitti(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"detection needs a camera calibration for KITTI's AP; .* has none"):
        DetectionScore(source=Once(data_dir=folder), every=0)


def test_bad_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env.data_dir is null"):
        Once(data_dir=None)
    with pytest.raises(FileNotFoundError, match=r"there is no ONCE data; it needs ImageSets"):
        Once(data_dir=tmp_path / "none")
    with pytest.raises(ValueError, match=r"ONCE has no Van"):
        Once(data_dir=folder, classes=["Van"])
    with pytest.raises(FileNotFoundError, match=r"raw_medium.txt: there is no such file"):
        Once(data_dir=folder, splits={"train": "raw_medium"})
    scan = folder / "data/000076/lidar_roof/160.bin"
    content = scan.read_bytes()
    scan.write_bytes(content[:-3])
    with pytest.raises(ValueError, match=r"160.bin: 1917 bytes are no whole number of points of 16 bytes"):
        Once(data_dir=folder)
    scan.unlink()
    with pytest.raises(FileNotFoundError, match=r"160.bin: there is no such file"):
        Once(data_dir=folder)
    scan.write_bytes(np.full((3, 4), np.nan, "<f4").tobytes() + content)
    assert "3 points that are not finite were left out" in Once(data_dir=folder).notes
    path = folder / "data/000076/000076.json"
    whole = json.loads(path.read_text())
    whole["frames"][0]["annos"]["names"] = ["Car"]
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"frame 000076/160: 1 names but 2 boxes_3d"):
        Once(data_dir=folder)
    whole["frames"][0]["annos"] = {"names": ["Car"], "boxes_3d": [[1, 1, 1, 4, 0, 1, 0]]}
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"must be finite, with positive length"):
        Once(data_dir=folder)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"000076.json must hold"):
        Once(data_dir=folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"000076.json: there is no such file"):
        Once(data_dir=folder)
