from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from worldmodels.formats.kitti_text import format_objects, parse_objects, read_objects, write_objects

CAR = "Car 0.00 0 0.47 98.56 181.27 387.60 279.29 1.50 1.60 4.00 -6.00 1.65 12.00 0.01"
DONT_CARE = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"


def test_columns_are_read_in_order():
    objects = parse_objects(f"{CAR}\n\n{DONT_CARE}\n")
    assert len(objects) == 2
    assert objects.type == ["Car", "DontCare"]
    assert objects.score is None
    assert objects.occluded.tolist() == [0, -1]
    assert objects.bbox[0].tolist() == [98.56, 181.27, 387.6, 279.29]
    assert objects.size[0].tolist() == [1.5, 1.6, 4]  # height, width, length
    assert objects.location[0].tolist() == [-6, 1.65, 12]
    assert (objects.alpha[0], objects.rotation_y[0]) == (0.47, 0.01)


def test_results_have_a_score():
    objects = parse_objects(f"{CAR} 0.9\n{CAR} -3e-1")
    np.testing.assert_array_equal(objects.score, [0.9, -0.3])
    assert parse_objects("", has_score=True).score.shape == (0,)
    assert parse_objects("").score is None
    assert parse_objects("").bbox.shape == (0, 4)


def test_select_keeps_what_belongs_together():
    objects = parse_objects(f"{CAR} 0.9\n{CAR.replace('Car', 'Van')} 0.4")
    for index in ([1], np.array([False, True])):
        found = objects.select(index)
        assert found.type == ["Van"]
        assert found.score.tolist() == [0.4]
        assert found.size.shape == (1, 3)
    assert len(objects.select([])) == 0


def test_written_objects_are_read_back(tmp_path):
    objects = parse_objects(f"{CAR} 0.98765\n{CAR} 0.5")
    write_objects(tmp_path / "out" / "000001.txt", objects, decimals=5)
    again = read_objects(tmp_path / "out" / "000001.txt", has_score=True)
    assert again.type == objects.type
    for name in ("truncated", "occluded", "alpha", "bbox", "size", "location", "rotation_y", "score"):
        np.testing.assert_array_equal(getattr(again, name), getattr(objects, name))
    assert format_objects(parse_objects("")) == ""
    assert parse_objects(format_objects(parse_objects(DONT_CARE))).type == ["DontCare"]


@pytest.mark.parametrize(
    ("text", "has_score", "message"),
    [
        (f"{CAR}\n{CAR} 0.9", None, "000007.txt, line 2: 16 columns; a label has 15"),
        (CAR, True, "line 1: 15 columns; a result has 16"),
        (f"{CAR} 0.9", False, "line 1: 16 columns; a label has 15"),
        ("Car 0 0", None, "line 1: 3 columns"),
        (f"\n{CAR.replace('1.65', 'low')}", None, "line 2: y=low is not a number"),
        (CAR.replace("0.47", "nan"), None, "line 1: alpha=nan is not finite"),
        (f"{CAR} inf", None, "line 1: score=inf is not finite"),
        (CAR.replace("1.60", "0.00"), None, "line 1: height width length 1.5 0 4 of a Car must be positive"),
        (CAR.replace("0.00 0 ", "0.00 0.5 "), None, r"occluded=0\.5 is not a whole number"),
        (CAR.replace("387.60", "8.60"), None, r"rectangle 98\.56 181\.27 8\.6 279\.29 ends before"),
    ],
)
def test_bad_lines_are_named(text, has_score, message):
    with pytest.raises(ValueError, match=message):
        parse_objects(text, where="000007.txt", has_score=has_score)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt: there is no such file"):
        read_objects(tmp_path / "none.txt")
    (tmp_path / "scan.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"scan\.txt is no text file"):
        read_objects(tmp_path / "scan.txt")


def test_what_cannot_be_read_back_is_not_written():
    objects = parse_objects(CAR)
    objects.size[0, 1] = 1e-6  # 0.0000 in the file
    with pytest.raises(ValueError, match="must be positive"):
        format_objects(objects)
    with pytest.raises(ValueError, match="is not one word"):
        format_objects(replace(parse_objects(CAR), type=["a car"]))


def test_real_labels(shared_data):
    folder = shared_data / "kitti_mini" / "training" / "label_2"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/kitti_mini")
    frames = [read_objects(path, has_score=False) for path in sorted(folder.glob("*.txt"))]
    names = [name for frame in frames for name in frame.type]
    assert len(frames) == 13
    assert (names.count("Car"), names.count("Pedestrian"), names.count("Cyclist")) == (37, 3, 4)
