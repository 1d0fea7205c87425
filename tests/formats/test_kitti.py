"""Calibration and transforms against OpenPCDet's own preparation of real frames, and on a camera one can do by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodels.formats.kitti import NEAR, Calibration, read_scan, training_difficulty
from worldmodels.formats.kitti_text import Objects, parse_objects, read_objects
from worldmodels.geometry.boxes import corners, points_in_boxes, wrap

SHARED = Path(__file__).resolve().parents[3] / "shared/data/kitti_mini"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/kitti_mini")
FRAMES = [f"{i:06d}" for i in range(6)]
SIZE = (375, 1242)

# x right = -y left, y down = -z up, z forward = x forward; the camera half a metre behind the LiDAR.
PLAIN = Calibration(
    np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
    np.eye(3),
    np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0.5]]),
)


def _real(name: str) -> tuple[Calibration, Objects, np.ndarray]:
    calibration = Calibration.read(SHARED / f"training/calib/{name}.txt")
    points, _ = read_scan(SHARED / f"training/velodyne/{name}.bin")
    return calibration, read_objects(SHARED / f"training/label_2/{name}.txt"), points


@shared
@pytest.mark.data
@pytest.mark.parametrize("name", FRAMES)
def test_equals_openpcdet_on_real_frames(name: str) -> None:
    expected = json.loads((SHARED / "openpcdet_reference.json").read_text())[name]
    calibration, objects, points = _real(name)
    boxes, wanted = calibration.boxes_of(objects), np.array(expected["gt_boxes_lidar"])
    gap = boxes[: len(wanted)] - wanted
    gap[:, 6] = wrap(gap[:, 6], 0.5, 2 * np.pi)  # theirs are not wrapped
    assert np.abs(gap).max() < 4e-6  # they compute in float32: 3.3e-6 at a box 69.7 m away
    assert training_difficulty(objects).tolist() == expected["difficulty"]

    seen = torch.from_numpy(points[calibration.in_view(points, expected["image_shape_hw"])])
    inside = points_in_boxes(seen, torch.from_numpy(boxes[: len(wanted)]).float())
    assert inside.sum(0).tolist() == [n for n in expected["num_points_in_gt"] if n >= 0]


@shared
@pytest.mark.data
@pytest.mark.parametrize("name", FRAMES)
def test_labels_come_back_from_their_boxes(name: str) -> None:
    calibration, objects, _ = _real(name)
    labels = objects.select(np.array([kind != "DontCare" for kind in objects.type]))
    found = calibration.objects_of(calibration.boxes_of(labels), labels.type, SIZE)
    np.testing.assert_allclose(found.location, labels.location, atol=1e-9)
    np.testing.assert_allclose(found.size, labels.size, atol=1e-9)
    np.testing.assert_allclose(wrap(found.rotation_y - labels.rotation_y, 0.5, 2 * np.pi), 0, atol=1e-9)
    np.testing.assert_allclose(found.alpha, labels.alpha, atol=0.012)  # annotated with two digits
    far = (labels.location[:, 2] > 15) & (labels.truncated == 0)
    drawn = np.abs(found.bbox - labels.bbox)[far]
    assert drawn.size == 0 or drawn.max() < 5  # theirs are drawn by hand around what is seen


@shared
@pytest.mark.data
def test_calibration_survives_its_text_and_turns_points_there_and_back() -> None:
    calibration, _, points = _real("000003")
    again = Calibration.parse(calibration.text())
    np.testing.assert_array_equal(again.projection, calibration.projection)
    np.testing.assert_array_equal(again.rectification, calibration.rectification)
    np.testing.assert_array_equal(again.lidar_to_camera, calibration.lidar_to_camera)
    some = points[::500, :3].astype(np.float64)
    np.testing.assert_allclose(calibration.to_lidar(calibration.to_camera(some)), some, atol=1e-9)


def test_a_point_ahead_is_where_a_pinhole_camera_sees_it() -> None:
    np.testing.assert_allclose(PLAIN.to_camera(np.array([10.0, 2, 1])), [-2, -1, 10.5])
    pixels, depth = PLAIN.project(np.array([[-2.0, -1, 10.5]]))
    np.testing.assert_allclose(pixels, [[600 - 700 * 2 / 10.5, 180 - 700 / 10.5]])
    assert depth.tolist() == [10.5]
    points = np.array([[10.0, 0, 0, 0.3], [-10, 0, 0, 0.3], [10, 20, 0, 0.3], [0.1, 0, 0, 0.3]], dtype=np.float32)
    assert PLAIN.in_view(points, SIZE).tolist() == [True, False, False, True]


def test_label_of_a_car_ahead_that_drives_away() -> None:
    box = np.array([[20.0, 3.0, -0.8, 4.0, 1.6, 1.5, 0.0]])
    found = PLAIN.objects_of(box, ["Car"], SIZE, np.array([0.5]))
    np.testing.assert_allclose(found.location, [[-3, 1.55, 20.5]])  # bottom: -0.8 - 0.75 is 1.55 below
    np.testing.assert_allclose(found.size, [[1.5, 1.6, 4.0]])
    np.testing.assert_allclose(found.rotation_y, [-np.pi / 2])
    np.testing.assert_allclose(found.alpha, [-np.pi / 2 + np.arctan2(3, 20.5)])
    np.testing.assert_allclose(found.bbox[0, [0, 3]], [600 - 700 * 3.8 / 18.5, 180 + 700 * 1.55 / 18.5])
    assert (found.truncated[0], found.occluded[0]) == (-1, -1)


@given(
    st.lists(
        st.tuples(*(st.floats(a, b) for a, b in ((2, 70), (-30, 30), (-3, 1), (0.3, 5), (0.3, 3), (0.5, 3), (-9, 9)))),
        min_size=1,
        max_size=5,
    )
)
def test_boxes_survive_the_way_to_labels_and_back(rows: list[tuple[float, ...]]) -> None:
    boxes = np.array(rows)
    labels = PLAIN.objects_of(boxes, ["Car"] * len(boxes), SIZE)
    gap = PLAIN.boxes_of(labels) - boxes
    gap[:, 6] = wrap(gap[:, 6], 0.5, 2 * np.pi)
    np.testing.assert_allclose(gap, 0, atol=1e-9)
    for angle in (labels.rotation_y, labels.alpha, PLAIN.boxes_of(labels)[:, 6]):
        assert ((angle >= -np.pi) & (angle < np.pi)).all()
    assert (labels.bbox[:, 2:] >= labels.bbox[:, :2]).all()
    assert (labels.bbox >= 0).all()
    assert (labels.bbox <= [1241, 374, 1241, 374]).all()


def test_a_box_beside_the_camera_is_cut_before_it_is_projected() -> None:
    boxes = np.array(
        [
            [1.0, 2.0, 0.0, 4.0, 1.6, 1.5, 0.0],  # from x = -1 to 3 at the left: touches the image's left edge
            [-20.0, 0.0, 0.0, 4.0, 1.6, 1.5, 0.0],  # behind
        ]
    )
    rectangles = PLAIN.image_boxes(boxes, SIZE)
    left, top, right, bottom = rectangles[0]
    assert left == 0
    assert right == pytest.approx(600 - 700 * 1.2 / 3.5)  # its inner side at its far end
    assert (top, bottom) == (0, 374)
    assert (rectangles[1] == 0).all()
    naive, _ = PLAIN.project(PLAIN.to_camera(corners(torch.from_numpy(boxes[:1])).numpy()))
    assert naive[..., 0].max() > 1000, "without the cut the corners behind the camera land on the right"
    assert NEAR < 0.5


def test_difficulty_follows_height_truncation_and_occlusion() -> None:
    row = "Car {trunc} {occ} 0 0 100 50 {bottom} 1.5 1.6 4 0 1.6 20 0\n"
    cases = [((0.15, 0, 139), 0), ((0.16, 0, 139), 1), ((0, 1, 139), 1), ((0, 0, 138.9), 1), ((0, 2, 124), 2)]
    cases += [((0.5, 0, 124), 2), ((0.51, 0, 200), -1), ((0, 3, 200), -1), ((0, 0, 123), -1)]
    text = "".join(row.format(trunc=t, occ=o, bottom=b) for (t, o, b), _ in cases)
    assert training_difficulty(parse_objects(text)).tolist() == [wanted for _, wanted in cases]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("R0_rect", "R0"), "calib.txt: the key R0_rect is missing; it has P0, P1"),
        (lambda text: text.replace("Tr_velo_to_cam: ", "Tr_velo_to_cam: 1 "), "Tr_velo_to_cam needs 12 finite"),
        (lambda text: text.replace("P2: 7", "P2: nan 7"), "P2 needs 12 finite numbers"),
        (lambda text: text.replace("P2: 7", "P2: x7"), "P2 holds something that is not a number"),
        (lambda _: "", "the key P2 is missing; it has nothing"),
    ],
)
def test_bad_calibrations_are_named(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "calib.txt"
    path.write_text(change(PLAIN.text()))
    with pytest.raises(ValueError, match=message):
        Calibration.read(path)


def test_calibration_without_an_inverse_and_other_files(tmp_path: Path) -> None:
    flat = Calibration(PLAIN.projection, np.zeros((3, 3)), PLAIN.lidar_to_camera)
    with pytest.raises(ValueError, match=r"no inverse"):
        Calibration.parse(flat.text())
    with pytest.raises(FileNotFoundError, match=r"no such file"):
        Calibration.read(tmp_path / "none.txt")
    (tmp_path / "image.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"no text file"):
        Calibration.read(tmp_path / "image.txt")


def test_scans_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    points = np.arange(20, dtype="<f4").reshape(5, 4)
    path = tmp_path / "scan.bin"
    path.write_bytes(points.tobytes())
    found, num_bad = read_scan(path)
    np.testing.assert_array_equal(found, points)
    assert num_bad == 0
    path.write_bytes(points.tobytes()[:-3])
    with pytest.raises(ValueError, match=r"scan.bin: 77 bytes are no whole number of points of 16 bytes"):
        read_scan(path)
    points[1, 2], points[3, 0] = np.nan, np.inf
    path.write_bytes(points.tobytes())
    found, num_bad = read_scan(path)
    np.testing.assert_array_equal(found, points[[0, 2, 4]])
    assert num_bad == 2
    path.write_bytes(b"")
    found, num_bad = read_scan(path)
    assert found.shape == (0, 4)
    with pytest.raises(FileNotFoundError, match=r"no such file"):
        read_scan(tmp_path / "none.bin")
