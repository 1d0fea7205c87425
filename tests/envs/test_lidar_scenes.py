"""Simulated frames: a function of seed and number, labelled as KITTI, like a real scan where that can be counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

pytest.importorskip("open3d", reason="needs the lidar extra: pip install 'worldmodels[lidar]'", exc_type=ImportError)

from envs import lidar_scan, lidar_world
from envs.lidar_collect import collect_scenes, default_folder, make_frame, settings_of
from envs.lidar_meshes import labelled_templates, scenery_templates
from envs.lidar_scan import IMAGE_SIZE, beams, calibration, simulate
from envs.lidar_scenes import LidarScenes
from envs.paste import PastedObjects
from worldmodels.formats.kitti_text import format_objects
from worldmodels.geometry.boxes import points_in_boxes
from worldmodels.geometry.overlap import bev_intersection

SETTINGS = settings_of(seed=0, sweep=100, min_points=5)


@pytest.fixture(scope="module")
def scans() -> list[lidar_scan.Scan]:
    return [simulate(0, i, sweep=100, min_points=5) for i in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames and one, made by a worker. Do not write into it."""
    path = tmp_path_factory.mktemp("scenes") / "made"
    collect_scenes(path, SETTINGS, frames=3, val_frames=1, workers=1, is_shown=False)
    return path


def test_shapes_fill_the_unit_cube_and_are_small() -> None:
    for templates in labelled_templates().values():
        for template in templates:
            np.testing.assert_allclose(template.mesh.vertices.min(0), -0.5, atol=1e-6)
            np.testing.assert_allclose(template.mesh.vertices.max(0), 0.5, atol=1e-6)
            assert len(template.mesh.triangles) < 600
            assert template.mesh.triangles.max() < len(template.mesh.vertices)
    for meshes in scenery_templates().values():
        assert all(len(mesh.triangles) < 300 for mesh in meshes)


def test_a_frame_is_a_function_of_seed_and_number() -> None:
    first, again = (simulate(1, 7, sweep=90, min_points=5) for _ in range(2))
    np.testing.assert_array_equal(first.points, again.points)
    assert format_objects(first.objects) == format_objects(again.objects)
    for other in (simulate(1, 8, sweep=90, min_points=5), simulate(2, 7, sweep=90, min_points=5)):
        assert other.points.shape != first.points.shape or (other.points != first.points).any()


def test_things_do_not_stand_in_each_other_nor_in_the_air() -> None:
    for seed in range(20):
        world = lidar_world.build(np.random.default_rng(seed))
        boxes = torch.from_numpy(world.boxes)
        shared = bev_intersection(boxes, boxes).fill_diagonal_(0)
        assert float(shared.max()) < 1e-9
        bottom = world.boxes[:, 2] - world.boxes[:, 5] / 2
        near = np.abs(world.boxes[:, 0]) < 40
        assert np.abs(bottom[near] + lidar_world.SENSOR_HEIGHT).max() < 1.5  # slopes and kerbs
        size = np.stack([world.boxes[[kind == name for kind in world.types], 3:6].mean(0) for name in ("Car",)])
        np.testing.assert_allclose(size, [[3.88, 1.63, 1.53]], atol=0.4)


def test_points_on_an_object_lie_in_its_box(scans: list[lidar_scan.Scan]) -> None:
    """Labels against points, by the reader's own test; noise leaves a few outside."""
    camera = calibration()
    for scan in scans:
        labels = scan.objects.select(np.array([kind != "DontCare" for kind in scan.objects.type]))
        points = torch.from_numpy(scan.points[camera.in_view(scan.points, IMAGE_SIZE)])
        boxes = torch.from_numpy(camera.boxes_of(labels)).float()
        boxes[:, 3:6] += 0.1
        assert int(points_in_boxes(points, boxes).sum(0).min()) >= 5
        assert bool((boxes[:, 0] > 0).all())


def test_scenes_have_what_a_detector_must_find(scans: list[lidar_scan.Scan]) -> None:
    kinds = [kind for scan in scans for kind in scan.objects.type]
    per_frame = {name: kinds.count(name) / len(scans) for name in ("Car", "Pedestrian", "Cyclist")}
    assert 3 <= per_frame["Car"] <= 10
    assert 1 <= per_frame["Pedestrian"] <= 4
    assert 0.3 <= per_frame["Cyclist"] <= 2
    occluded = np.concatenate([scan.objects.occluded for scan in scans])
    assert set(occluded.tolist()) == {-1, 0, 1, 2, 3}
    truncated = np.concatenate([scan.objects.truncated for scan in scans])
    assert 0.1 < truncated.max() < 0.95


def test_scans_look_like_real_ones(scans: list[lidar_scan.Scan]) -> None:
    """Real frames: 17 to 20 thousand points in view, 13 to 17 thousand voxels, the first ring of ground at 6 m."""
    camera, sizes, voxels = calibration(), [], []
    for scan in scans:
        points = scan.points[camera.in_view(scan.points, IMAGE_SIZE)]
        near = points[(points[:, 0] < 70.4) & (np.abs(points[:, 1]) < 40) & (np.abs(points[:, 2] + 1) < 2)]
        cells = np.floor((near[:, :3] - (0, -40, -3)) / (0.05, 0.05, 0.1)).astype(int)
        sizes.append(len(points))
        voxels.append(len(np.unique(cells, axis=0)))
        ground = points[points[:, 2] < -1.6]
        if len(ground):
            assert np.hypot(ground[:, 0], ground[:, 1]).min() > 4.5
    assert 15_000 < np.median(sizes) < 20_000
    assert 12_000 < np.median(voxels) < 17_000
    intensity = np.concatenate([scan.points[:, 3] for scan in scans])
    assert intensity.min() >= 0
    assert intensity.max() <= 0.99
    assert len(beams()) == 64
    assert np.degrees(beams()).min() == pytest.approx(-24.33)


def test_a_whole_turn_goes_round() -> None:
    scan = simulate(0, 0, sweep=360, min_points=5)
    assert scan.rays == 64 * 2083
    assert 90_000 < len(scan.points) < 130_000
    quarter = np.histogram(np.arctan2(scan.points[:, 1], scan.points[:, 0]), 4)[0]
    assert quarter.min() > 15_000


def test_what_hides_an_object_shows_in_its_label() -> None:
    """A wall beside the car, then one that hides a quarter, two thirds and nine tenths of it."""
    template = labelled_templates()["Car"][0]
    box = np.array([[20.0, 0, -0.98, 4, 1.6, 1.5, 0]])
    car = template.mesh.vertices * (4, 1.6, 1.5) + box[0, :3]
    found = []
    for low, high in (
        ((5, 10, -2), (5.2, 20, 0.5)),
        *(((10, -2, -2), (10.2, edge, 0.5)) for edge in (-0.2, 0.12, 0.35)),  # hides 1.8 times as far at the car
    ):
        wall = lidar_world.box(low, high, lidar_world.WALL)
        mesh = lidar_world.join([template.mesh._replace(vertices=car.astype(np.float32)), wall])
        owner = np.where(np.arange(len(mesh.triangles)) < len(template.mesh.triangles), 0, -1).astype(np.int32)
        whole = np.ones(len(owner), dtype=np.float32)
        world = lidar_world.World(
            types=["Car"],
            boxes=box,
            vertices=mesh.vertices,
            triangles=mesh.triangles.astype(np.uint32),
            owner=owner,
            reflectance=whole,
            see_through=0 * whole,
            roughness=0 * whole,
            thing_of_vertex=np.repeat([0, 1], [len(car), len(wall.vertices)]).astype(np.int32),
        )
        scan = lidar_scan.scan(world, np.random.default_rng(0), sweep=90, min_points=5)
        assert scan.objects.type == ["Car"]
        found.append(int(scan.objects.occluded[0]))
    assert found == [0, 1, 2, 3]


def test_folder_is_kittis_and_the_source_reads_it(folder: Path) -> None:
    source = LidarScenes(frames=3, val_frames=1, data_dir=folder)
    assert source.frames("train").names == ["000000", "000001", "000002"]
    assert source.frames("val").names == ["900000"]
    batch = source.sample(4, 1, Generator().manual_seed(0))
    assert source.spec.expand(4, 1).is_in(batch)
    scan = simulate(0, 1, sweep=100, min_points=5)
    frame = source.frames("train")[1]
    np.testing.assert_array_equal(frame.points, scan.points[calibration().in_view(scan.points, IMAGE_SIZE)])
    note = json.loads((folder / "provenance.json").read_text())
    assert note["settings"] == SETTINGS
    assert source.describe()["settings"] == SETTINGS
    assert len(source.objects().boxes) == sum(len(frame.boxes) for frame in source.frames("train"))


def test_finished_frames_are_kept_and_more_are_added(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Without a worker: what would be made is made here."""
    import shutil

    from envs import lidar_collect

    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    made: list[int] = []

    def here(function, jobs, *, advance, **_) -> None:
        for position, job in enumerate(jobs):
            made.append(job[2])
            function(*job)
            advance(position)

    monkeypatch.setattr(lidar_collect, "run_jobs", here)
    collect_scenes(mine, SETTINGS, frames=3, val_frames=1, workers=1, is_shown=False)
    assert made == []
    (mine / "training/velodyne/000001.bin").unlink()
    collect_scenes(mine, SETTINGS, frames=4, val_frames=1, workers=1, is_shown=False)
    assert made == [1, 3]
    for name in ("velodyne/000001.bin", "label_2/000001.txt", "calib/000001.txt"):
        assert (mine / "training" / name).read_bytes() == (folder / "training" / name).read_bytes()
    assert (mine / "ImageSets/train.txt").read_text().split() == ["000000", "000001", "000002", "000003"]
    (mine / "ImageSets/val.txt").unlink()  # stopped before the lists were written
    collect_scenes(mine, SETTINGS, frames=4, val_frames=1, workers=1, is_shown=False)
    assert (mine / "ImageSets/val.txt").read_text().split() == ["900000"]
    assert not list(mine.rglob("*.tmp"))


def test_the_scan_is_written_last(tmp_path: Path, monkeypatch) -> None:
    from worldmodels import files

    written: list[str] = []
    write = files.os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: (written.append(Path(b).parent.name), write(a, b)))
    make_frame(str(tmp_path), SETTINGS, 5)
    assert written[-1] == "velodyne"
    assert sorted(written) == ["calib", "label_2", "velodyne"]


def test_other_settings_and_foreign_frames_are_refused(folder: Path, tmp_path: Path) -> None:
    other = settings_of(seed=1, sweep=100, min_points=5)
    with pytest.raises(ValueError, match=r"holds frames with seed=0; choose another env.data_dir"):
        collect_scenes(folder, other, frames=1, val_frames=1, workers=1)
    (tmp_path / "training").mkdir()
    with pytest.raises(ValueError, match=r"were not simulated here"):
        collect_scenes(tmp_path, other, frames=1, val_frames=1, workers=1)
    assert default_folder(other) != default_folder(SETTINGS)
    for bad in ({"seed": -1}, {"sweep": 45}, {"min_points": 0}):
        with pytest.raises(ValueError, match=r"env\."):
            settings_of(**{"seed": 0, "sweep": 100, "min_points": 5, **bad})
    with pytest.raises(ValueError, match=r"env.frames=0"):
        collect_scenes(tmp_path, other, frames=0, val_frames=1, workers=1)


def test_without_open3d_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open3d", None)
    with pytest.raises(ImportError, match=r"pip install 'worldmodels\[lidar\]'"):
        simulate(0, 0, sweep=100, min_points=5)


def test_few_labels_are_those_of_the_first_frames_and_so_is_what_is_pasted(folder: Path) -> None:
    all_of, few = (LidarScenes(frames=3, val_frames=1, data_dir=folder, label_fraction=p) for p in (1, 0.67))
    assert few.frames("train").names == all_of.frames("train").names[:2] == ["000000", "000001"]
    assert few.frames("val").names == all_of.frames("val").names
    batch = few.sample(32, 1, Generator().manual_seed(0))
    assert batch["frame"].unique().tolist() == [0, 1]
    bank, whole = few.objects(), all_of.objects()
    assert torch.equal(bank.boxes, whole.boxes[whole.frame < 2])
    assert len(bank.boxes) < len(whole.boxes)
    kinds = {name: 30 for i, name in enumerate(few.classes) if (bank.box_class[bank.difficulty >= 0] == i).any()}
    pasted = PastedObjects(few, counts=kinds, min_points=1).sample(16, 1, Generator().manual_seed(1))
    own = batch["boxes"].shape[2]
    new = pasted["boxes"][:, 0, own:][pasted["box_class"][:, 0, own:] >= 0]
    assert len(new) > 0
    assert (new[:, None] == bank.boxes).all(-1).any(1).all(), "every pasted box is one of these frames"
