"""AP of a run's detections, its files and its pictures."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from envs.kitti import Kitti
from envs.scans import LabelledScans
from envs.waymo import Waymo
from perception.detection.decoding import Detections
from perception.detection.kitti_ap import evaluate
from tests.kitti_folder import write_kitti
from tests.systems import composed
from tests.waymo_folder import write_waymo
from worldmodels import build
from worldmodels.core import Objective, Phase
from worldmodels.evals.bev_maps import BEVMaps, principal_colors
from worldmodels.evals.detection import DetectionScore
from worldmodels.evals.range_detection import RangeScore
from worldmodels.evals.results import unpack
from worldmodels.evals.scan_pictures import outlines, wires
from worldmodels.formats.kitti_text import parse_objects
from worldmodels.geometry.boxes import footprint
from worldmodels.keys import NUM_POINTS


class Oracle(Objective):
    """Finds what is labelled in the frames of a source, moved by ``shift`` metres; scans are told by their size."""

    window = 1

    def __init__(self, source: LabelledScans, shift: float = 0.0) -> None:
        super().__init__()
        self.frames, self.shift = list(source.frames("val")), shift
        self.encoder = nn.Identity()
        self.encoder.low, self.encoder.high = (0.0, -40.0, -3.0), (70.4, 40.0, 1.0)

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def detect(self, obs: TensorDict) -> Detections:
        boxes, scores, labels = torch.zeros(len(obs), 9, 7), torch.zeros(len(obs), 9), torch.full((len(obs), 9), -1)
        for row, num in enumerate(obs[NUM_POINTS].tolist()):
            (frame,) = (frame for frame in self.frames if len(frame.points) == num)
            count = len(frame.boxes)
            boxes[row, :count], labels[row, :count] = frame.boxes, frame.box_class
            boxes[row, :count, 0] += self.shift
            scores[row, :count] = torch.linspace(0.9, 0.5, count)
        return Detections(boxes, scores, labels)


@pytest.fixture
def source(tmp_path: Path) -> Kitti:
    return Kitti(data_dir=write_kitti(tmp_path, train=2, val=5))


def test_right_boxes_score_as_much_as_the_truth_and_wrong_ones_nothing(source):
    score = DetectionScore(source=source, every=0, num_pictures=1)
    right = unpack(score(Oracle(source), 3))
    assert right.metrics["Car/3d/moderate"] == right.metrics["Car/3d/moderate_of_truth"] > 0
    assert right.metrics["score"] == pytest.approx(1)
    assert right.metrics["boxes"] == 2
    wrong = unpack(score(Oracle(source, shift=3.0), 3))
    assert wrong.metrics["Car/3d/moderate"] == wrong.metrics["score"] == 0


def test_result_files_are_what_other_evaluators_read(source):
    score = DetectionScore(source=source, every=0)
    found = unpack(score(Oracle(source, shift=0.2), 3))
    with zipfile.ZipFile(io.BytesIO(found.files["results.zip"])) as archive:
        assert archive.namelist() == [f"{name}.txt" for name in source.frames("val").names]
        results = [parse_objects(archive.read(name).decode(), has_score=True) for name in archive.namelist()]
    again = evaluate(score.truth, results)["strict/Car/3d"]["R40"]
    np.testing.assert_allclose(again[1], found.metrics["Car/3d/moderate"], atol=1e-6)
    assert "| Car | strict | 3d |" in found.files["ap.md"].decode()
    assert sum(name.endswith(".png") for name in found.files) == 4


GROUPS = {"All": {"classes": ["Vehicle"], "overlap": 0.7}, "Cyclist": {"classes": ["Cyclist"], "overlap": 0.5}}


def test_scores_by_distance_need_no_camera(tmp_path):
    source = Waymo(data_dir=write_waymo(tmp_path))
    score = RangeScore(source=source, every=0, groups=GROUPS, num_pictures=1)
    right = unpack(score(Oracle(source), 3))
    assert right.metrics["All/overall"] == right.metrics["Cyclist/0-30"] == right.metrics["score"] == pytest.approx(100)
    assert right.metrics["boxes"] == 3
    assert "All/50+" not in right.metrics, "there is none"
    assert "| All | 0.7 | 100.00 | 100.00 | - | - |" in right.files["ap.md"].decode()
    assert "frame_segment-3_with_camera_labels_0000.png" in right.files
    saved = np.load(io.BytesIO(right.files["results.npz"]), allow_pickle=False)
    assert saved["frame"].tolist() == [i for i in range(6) for _ in range(3)]
    assert saved["frames"][0] == "segment-3_with_camera_labels/0000"
    assert saved["classes"][saved["kind"]].tolist() == ["Vehicle", "Pedestrian", "Cyclist"] * 6
    wrong = unpack(score(Oracle(source, shift=3.0), 3))
    assert wrong.metrics["All/overall"] == wrong.metrics["score"] == 0


def test_bad_choices_of_scores_by_distance_are_named(source, tmp_path):
    waymo = Waymo(data_dir=write_waymo(tmp_path), is_labelled=False)
    with pytest.raises(ValueError, match=r"range_detection needs labelled objects; val of .* has none"):
        RangeScore(source=waymo, every=0, groups=GROUPS)
    with pytest.raises(ValueError, match=r"groups: there is no class Vehicle; env.classes has Car, Pedestrian"):
        RangeScore(source=source, every=0, groups=GROUPS)
    with pytest.raises(
        ValueError, match=r"needs a camera calibration for KITTI's AP; .* Use eval=\[range_detection,bev_map\]"
    ):
        DetectionScore(source=waymo, every=0)


def test_labels_that_know_no_orientation_are_scored_without(source):
    score = DetectionScore(source=source, every=0, num_pictures=0)
    for truth in score.truth:
        truth.alpha[:] = -10
    found = unpack(score(Oracle(source), 3))
    assert found.metrics["score"] == pytest.approx(1)
    assert "aos" not in found.files["ap.md"].decode()


def test_bad_sources_and_objectives_are_named(source):
    with pytest.raises(ValueError, match="detection needs labelled scans; Toy has none"):
        DetectionScore(source=build.build_source(composed("agent=td_jepa"), torch.device("cpu")), every=0)
    with pytest.raises(ValueError, match="needs an objective that detects"):
        DetectionScore(source=source, every=0)(build_small("ad_l_jepa", source), 0)
    with pytest.raises(ValueError, match=r"needs labels; those of .* were not read. Set env.is_labelled=true"):
        DetectionScore(source=Kitti(data_dir=source.where, is_labelled=False), every=0)
    (Path(source.where) / "ImageSets/val.txt").write_text("")
    for evaluator in (DetectionScore, BEVMaps):
        with pytest.raises(ValueError, match=r"no frame is left of val"):
            evaluator(source=Kitti(data_dir=source.where), every=0)


@pytest.mark.parametrize("name", ["ad_l_jepa", "lidar_detection"])
def test_scans_without_a_point_are_judged_like_others(tmp_path, name):
    folder = write_kitti(tmp_path, train=2, val=2)
    for path in sorted((folder / "training/velodyne").iterdir())[2:]:
        path.write_bytes(b"")
    source = Kitti(data_dir=folder)
    objective = build_small(name, source)
    seen = unpack(BEVMaps(source=source, every=0)(objective, 0))
    assert (seen.metrics["active"], seen.metrics["explained"]) == (0, 0)
    assert len(seen.files) == 2
    if name == "lidar_detection":
        found = unpack(DetectionScore(source=source, every=0)(objective, 0))
        assert found.metrics["score"] == 0


def build_small(name: str, source: Kitti) -> Objective:
    return build.build_objective(composed(f"objective={name}"), source, torch.device("cpu"))


def test_maps_of_a_real_encoder(source):
    found = unpack(BEVMaps(source=source, every=0, num=2)(build_small("ad_l_jepa", source), 5))
    assert len(found.files) == 2
    assert 0 < found.metrics["active"] < 1
    assert 0 < found.metrics["explained"] <= 1 + 1e-9


def test_colours_follow_the_directions_of_greatest_variance():
    hidden = torch.randn(500, 3) * torch.tensor([9.0, 3.0, 1.0])
    basis = torch.linalg.qr(torch.randn(8, 8))[0][:3]
    colors, share = principal_colors(hidden @ basis)
    assert share == pytest.approx(1, abs=1e-5)
    assert colors.min() == 0
    assert colors.max() == 1
    for i in range(3):
        pair: Tensor = torch.stack([colors[:, i], hidden[:, i]])
        assert torch.corrcoef(pair)[0, 1].abs() > 0.9


def test_drawn_boxes_are_where_the_boxes_are():
    boxes = torch.tensor([[3.0, -2.0, 0.5, 4.0, 2.0, 1.0, 0.7], [9.0, 1.0, 0.0, 1.0, 1.0, 2.0, -2.0]])
    lines = outlines(boxes.numpy())
    np.testing.assert_allclose(lines[:, :4], footprint(boxes), atol=1e-6)
    np.testing.assert_allclose(
        lines[:, 5],
        (boxes[:, :2] + boxes[:, 3:4] / 2 * torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], 1)),
        atol=1e-6,
    )
    wire = wires(boxes.numpy())
    assert wire.shape == (72, 3)
    assert np.isnan(wire).all(1).sum() == 24
    np.testing.assert_allclose(np.nanmax(wire[:36, 2]), 1.0)
