"""Ground-truth sampling: what is pasted, what is removed for it, and that shapes and batches stay as promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from envs.kitti import Kitti
from envs.paste import PastedObjects
from tests.kitti_folder import CAR, write_frame, write_kitti
from worldmodels.geometry.boxes import points_in_boxes
from worldmodels.geometry.overlap import bev_iou


@pytest.fixture
def source(tmp_path: Path) -> Kitti:
    """Six frames with two cars each, whose points have intensity 0.9; two pedestrians in the last; ground 0.1."""
    folder, random = write_kitti(tmp_path, train=6, val=1), np.random.default_rng(1)
    for i in range(6):
        boxes = np.array([[10.0 + 5 * i, 3.0, -1.0, *CAR, 0.2], [12.0 + 5 * i, -6.0 + i, -1.0, *CAR, 1.5]])
        types = ["Car", "Car"]
        if i == 5:
            boxes = np.concatenate(
                [boxes, [[20.0, -9.0, -0.8, 0.8, 0.6, 1.7, 0], [28.0, -9.0, -0.8, 0.8, 0.6, 1.7, 0]]]
            )
            types += ["Pedestrian", "Pedestrian"]
        on = boxes[:, None, :3] + random.uniform(-0.3, 0.3, (len(boxes), 12, 3))
        ground = random.uniform((5, -12, -1.6), (45, 8, -1.5), (900, 3))
        ground = ground[~points_in_boxes(torch.from_numpy(ground), torch.from_numpy(boxes)).any(1).numpy()]
        xyz = np.concatenate([ground, on.reshape(-1, 3)])
        value = np.repeat([0.1, 0.9], [len(ground), 12 * len(boxes)])
        write_frame(folder, f"{i:06d}", np.concatenate([xyz, value[:, None]], 1), boxes, types)
    return Kitti(data_dir=folder)


def _clouds(batch) -> list[Tensor]:
    points, count = batch["observation", "points"][:, 0], batch["observation", "num_points"][:, 0]
    return [row[:n] for row, n in zip(points, count.tolist(), strict=True)]


def test_rows_fill_up_without_overlap(source: Kitti) -> None:
    pasted = PastedObjects(source, counts={"Car": 6, "Pedestrian": 2}, max_added=500)
    batch = pasted.sample(16, 1, Generator().manual_seed(0))
    plain = source.sample(16, 1, Generator().manual_seed(0))
    assert pasted.spec.expand(16, 1).is_in(batch)
    assert torch.equal(batch["frame"], plain["frame"])
    num_cars = (batch["box_class"] == 0).sum((1, 2))
    assert int(num_cars.max()) <= 6
    assert float(num_cars.float().mean()) > 3.0
    assert int((batch["box_class"] == 1).sum()) > 8
    for row in range(16):
        boxes = batch["boxes"][row, 0][batch["box_class"][row, 0] >= 0]
        assert float(bev_iou(boxes, boxes).fill_diagonal_(0).max()) < 1e-3
    own = plain["boxes"].shape[2]
    assert torch.equal(batch["boxes"][:, :, :own], plain["boxes"]), "the scan's own objects come first"
    assert not batch["boxes"][batch["box_class"] < 0].any(), "padding is zero"


def test_pasted_points_replace_those_of_the_scene(source: Kitti) -> None:
    pasted = PastedObjects(source, counts={"Car": 8}, max_added=500)
    batch, plain = (s.sample(16, 1, Generator().manual_seed(5)) for s in (pasted, source))
    own, num_new, num_removed = plain["boxes"].shape[2], 0, 0
    for row, (cloud, before) in enumerate(zip(_clouds(batch), _clouds(plain), strict=True)):
        kinds = batch["box_class"][row, 0, own:]
        new = batch["boxes"][row, 0, own:][kinds >= 0]
        inside = points_in_boxes(cloud, new)
        assert (inside.sum(0) == 12).all(), "each object brings its twelve points, and the ground in it is gone"
        assert (cloud[inside.any(1), 3] == 0.9).all()
        covered = points_in_boxes(before, new).any(1)
        assert len(cloud) == len(before) - int(covered.sum()) + 12 * len(new)
        torch.testing.assert_close(cloud[12 * len(new) :], before[~covered])  # objects in front, the scene in order
        num_new, num_removed = num_new + len(new), num_removed + int(covered.sum())
    assert num_new > 30
    assert num_removed > 30


def test_full_scans_and_touching_candidates_get_nothing(source: Kitti) -> None:
    plain = source.sample(4, 1, Generator().manual_seed(1))
    same = PastedObjects(source, counts={"Car": 2}, max_added=50).sample(4, 1, Generator().manual_seed(1))
    assert (same["box_class"][:, :, plain["box_class"].shape[2] :] == -1).all()
    for a, b in zip(_clouds(same), _clouds(plain), strict=True):
        assert torch.equal(a, b)


def test_a_batch_depends_on_its_generator_only_and_objects_do_not_repeat(source: Kitti) -> None:
    pasted = PastedObjects(source, counts={"Car": 12})
    a, b = (pasted.sample(8, 1, Generator().manual_seed(2)) for _ in range(2))
    assert (a == b).all()
    for row in range(8):
        boxes = a["boxes"][row, 0][a["box_class"][row, 0] >= 0]
        assert len(boxes.unique(dim=0)) == len(boxes)


def test_points_beyond_the_limit_are_cut_from_the_scene(source: Kitti) -> None:
    pasted = PastedObjects(source, counts={"Car": 8}, max_added=1)
    batch, plain = (s.sample(16, 1, Generator().manual_seed(5)) for s in (pasted, source))
    width = plain["observation", "points"].shape[2] + 1
    assert batch["observation", "points"].shape[2] == width
    assert int(batch["observation", "num_points"].max()) <= width


def test_only_good_objects_are_pasted_and_what_cannot_be_is_said(source: Kitti) -> None:
    with pytest.raises(ValueError, match=r"there is no class Bus"):
        PastedObjects(source, counts={"Bus": 3})
    with pytest.raises(ValueError, match=r"nothing to paste: of 14 objects .* none of Cyclist has 5 points"):
        PastedObjects(source, counts={"Cyclist": 3})
    with pytest.raises(ValueError, match=r"none of Car has 13 points"):
        PastedObjects(source, counts={"Car": 3}, min_points=13)
    with pytest.raises(ValueError, match=r"pasting needs labelled scans; Generator has none"):
        PastedObjects(Generator(), counts={"Car": 3})
    pasted = PastedObjects(source, counts={"Car": 3, "Cyclist": 5})
    assert pasted.num_added == 3
    assert pasted.classes == source.classes, "what it does not say itself is the source's"
    assert len(pasted.frames("val")) == 1
