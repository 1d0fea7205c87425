"""Objects drawn by pybullet: what is drawn is what the seven numbers say, and windows are views of one object."""

from __future__ import annotations

import colorsys
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Generator

pytest.importorskip("pybullet", reason="needs the images extra on Linux and Python 3.10 or 3.11", exc_type=ImportError)

from envs import object_cache, render_objects
from envs.object_cache import PIXELS_FILE, PROVENANCE, TABLE_FILE
from envs.object_scene import ObjectRenderer, draw_transformations, pybullet
from envs.rendered_objects import PARTS, RenderedObjects
from tests.commands import launch
from worldmodels import build

OBJECTS, VIEWS, SIZE = 4, 10, 32
SMALL = {"objects": OBJECTS, "views": VIEWS, "size": SIZE}
STILL = np.array([0, 0, 0, 0, np.pi / 8, np.pi / 2, 0], np.float32)


@pytest.fixture(scope="module")
def source(objects_folder: Path) -> RenderedObjects:
    return RenderedObjects(**SMALL, data_dir=objects_folder)


@pytest.fixture(scope="module")
def renderer() -> ObjectRenderer:
    return ObjectRenderer(64)


# --- what is drawn ------------------------------------------------------------------------------------------------
@given(st.floats(0, 89), st.sampled_from(["xyz", "z", "xy"]), st.integers(0, 2**31))
@settings(max_examples=20)
def test_transformations_lie_in_their_ranges_and_switches_change_nothing_else(low: float, axes: str, seed: int) -> None:
    drawn = {"axes": axes, "min_angle": low, "max_angle": 90}
    all_on, off = (
        draw_transformations(50, np.random.default_rng(seed), has_colour=on, has_moving_spot=on, **drawn)
        for on in (True, False)
    )
    turned = np.abs(np.degrees(all_on[:, [axis in axes for axis in "xyz"] + [False] * 4]))
    assert turned.min() >= low - 1e-3
    assert turned.max() <= 90 + 1e-3
    assert not all_on[:, [axis not in axes for axis in "xyz"] + [False] * 4].any()
    np.testing.assert_array_equal(all_on[:, :3], off[:, :3])
    assert (all_on[:, [3, 6]] <= 1).all()
    assert (all_on[:, 4] <= np.pi / 4).all()
    assert (all_on[:, 5] <= 2 * np.pi).all()
    assert np.ptp(all_on[:, 3:], axis=0).min() > 0.1
    assert np.ptp(off[:, 3:], axis=0).max() == 0
    assert np.ptp(np.sign(all_on[:, "xyz".index(axes[0])])) == 2  # both


def test_angles_are_extrinsic_xyz(renderer: ObjectRenderer) -> None:
    """The renderer's quaternion is scipy's, and the silhouette is where that rotation and the camera put it."""
    renderer.load_number(3)
    lines = (renderer.folder / "003/003.obj").read_text().splitlines()
    points = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    points -= (points.max(0) + points.min(0)) / 2
    points /= np.linalg.norm(np.ptp(points, axis=0))
    camera = 2.5 / np.sqrt(2) * np.array([0, 1, 1])
    right, up, back = np.array([-1, 0, 0]), np.array([0, -1, 1]) / np.sqrt(2), np.array([0, 1, 1]) / np.sqrt(2)
    focal = 32 / np.tan(np.radians(15))  # pixels
    package, _ = pybullet()
    for angles in draw_transformations(12, np.random.default_rng(5))[:, :3]:
        rotation = Rotation.from_euler("xyz", angles.astype(float))
        one, other = np.array(package.getQuaternionFromEuler(angles.tolist())), rotation.as_quat()
        np.testing.assert_allclose(one * np.sign(one @ other), other, atol=1e-6)
        x, y, z = np.eye(3)
        turns = [Rotation.from_rotvec(a * axis).as_matrix() for a, axis in zip(angles, (x, y, z), strict=True)]
        np.testing.assert_allclose(rotation.as_matrix(), turns[2] @ turns[1] @ turns[0], atol=1e-6)

        seen = rotation.apply(points) - camera
        depth = -seen @ back
        columns, rows = 32 + focal * (seen @ right) / depth, 32 - focal * (seen @ up) / depth
        _, is_object = renderer._draw(angles, np.array([0.0, 0, 1]), np.ones(3))
        drawn = np.nonzero(is_object)
        for expected, found in ((rows, drawn[0]), (columns, drawn[1])):
            np.testing.assert_allclose([found.min(), found.max() + 1], [expected.min(), expected.max()], atol=1.5)


def test_objects_are_centred_and_fill_much_of_the_picture(renderer: ObjectRenderer) -> None:
    for number in (0, 9, 500, 999):
        renderer.load_number(number)
        for row in draw_transformations(10, np.random.default_rng(number)):
            _, is_object = renderer._draw(row[:3], np.array([0.0, 0, 1]), np.ones(3))
            places = np.stack(np.nonzero(is_object), -1)
            assert 100 < len(places) < 64 * 64 / 2
            assert np.abs((places.min(0) + places.max(0) + 1) / 2 - 32).max() < 6  # nearer parts look larger
            assert places.min() >= 2
            assert places.max() <= 61


def test_hues_are_those_asked_for(renderer: ObjectRenderer) -> None:
    renderer.load_number(1)
    rows = np.tile(STILL, (5, 1))
    rows[:, 3], rows[:, 6] = [0.1, 0.3, 0.5, 0.7, 0.9], [0.9, 0.0, 0.2, 0.4, 0.6]
    for row, picture in zip(rows, renderer.render(rows) / 255.0, strict=True):
        assert colorsys.rgb_to_hsv(*picture[:, 0, 0])[0] == pytest.approx(
            row[3], abs=0.02
        )  # a corner, in ambient light
        _, is_object = renderer._draw(row[:3], np.array([0.0, 0, 1]), np.ones(3))
        shade = 0.45 * 0.7  # of grey under ambient light
        bright = picture[:, is_object].T[picture[:, is_object].max(0).argmax()] - shade
        hue, saturation, _ = colorsys.rgb_to_hsv(*np.clip(bright, 0, 1))
        assert abs((hue - row[6] + 0.5) % 1 - 0.5) < 0.02
        assert saturation > 0.95
    grey = ObjectRenderer(32, has_colour=False)
    grey.load_number(1)
    plain = grey.render(rows).astype(int)
    assert np.ptp(plain, axis=1).max() == 0
    assert np.ptp(plain) > 80
    grey.close()


def test_the_spot_stands_where_its_angles_say(renderer: ObjectRenderer) -> None:
    """Its light passes the object and falls on the floor beyond; left of the picture is +x, below is +y."""
    renderer.load_number(1)
    rows = np.tile(STILL, (3, 1))
    rows[:, 4], rows[:, 5] = [np.pi / 4, np.pi / 4, 0], [0, np.pi, 0]
    floor = renderer.render(rows).max(1).astype(float)
    floor[:, 8:56, 8:56] = 0  # the object
    sides = floor[:, :, 60:].mean((1, 2)) - floor[:, :, :4].mean((1, 2))
    assert sides[0] > 10
    assert sides[1] < -10
    assert abs(sides[2]) < 1


def test_a_view_depends_on_seed_and_object_only(objects_folder: Path) -> None:
    chosen = render_objects.settings_of(views=VIEWS, size=SIZE)
    both, one = render_objects.render(chosen, ["001", "002"]), render_objects.render(chosen, ["002"])
    for found, again in zip(both, one, strict=True):
        np.testing.assert_array_equal(found[1], again[0])
    np.testing.assert_array_equal(np.load(objects_folder / PIXELS_FILE)[1:3], both.pixels)  # drawn by another process
    other = render_objects.render(render_objects.settings_of(views=VIEWS, size=SIZE, seed=1), ["002"])
    assert (other.pixels != one.pixels).any()
    assert (other.transformation != one.transformation).all()
    objects = [picture.tobytes() for picture in both.pixels.reshape(-1, 3, SIZE, SIZE)]
    assert len(set(objects)) == len(objects)


# --- the source ---------------------------------------------------------------------------------------------------
def test_windows_are_distinct_views_of_one_object(source: RenderedObjects, objects_folder: Path) -> None:
    pixels, table = np.load(objects_folder / PIXELS_FILE), np.load(objects_folder / TABLE_FILE)
    place = {row.tobytes(): (i, j) for i, views in enumerate(table) for j, row in enumerate(views)}
    seen: dict[str, set] = {}
    for name in PARTS:
        part = source.split(name)
        window = part.num_views
        batch = part.sample(200, window, Generator().manual_seed(0))
        assert batch.batch_size == (200,)
        assert source.spec.expand(200, window).is_in(batch)
        views = [[place[row.numpy().tobytes()] for row in rows] for rows in batch["transformation"]]
        for rows, labels in zip(views, batch["label"].tolist(), strict=True):
            assert {i for i, _ in rows} == set(labels)
            assert len(set(rows)) == window
        assert len({tuple(rows) for rows in views}) > OBJECTS  # in another order each time
        seen[name] = {place for rows in views for place in rows}
        for rows, pictures in zip(views[:5], batch["observation", "pixels"], strict=False):
            for (i, j), picture in zip(rows, pictures, strict=True):
                np.testing.assert_array_equal(picture, pixels[i, j])
    assert [len(seen[name]) for name in PARTS] == [6 * OBJECTS, 2 * OBJECTS, 2 * OBJECTS]
    assert len(set.union(*seen.values())) == VIEWS * OBJECTS


def test_batches_are_of_train_and_a_function_of_the_generator(source: RenderedObjects) -> None:
    first, again, train, other = (
        s.sample(8, 3, Generator().manual_seed(seed))
        for s, seed in ((source, 0), (source, 0), (source.split("train"), 0), (source, 1))
    )
    assert (first == again).all()
    assert (first == train).all()
    assert not (first["transformation"] == other["transformation"]).all()
    counts = source.sample(4000, 1, Generator().manual_seed(2))["label"].flatten().bincount(minlength=OBJECTS)
    assert counts.min() > 850  # 1000 each are expected, give or take 27


def test_parts_are_labelled_pictures(source: RenderedObjects) -> None:
    assert (source.task, source.num_classes, source.classes) == ("classification", 4, ["000", "001", "002", "003"])
    for name, num in zip(PARTS, (24, 8, 8), strict=True):
        part = source.part(name)
        assert part.obs.batch_size == (num,)
        assert part.obs["pixels"].shape == (num, 3, SIZE, SIZE)
        assert part.transformation.shape == (num, 7)
        assert part.target.bincount().tolist() == [num // 4] * 4
    facts = source.describe()
    assert facts["settings"]["seed"] == 0
    assert facts["objects_and_views"]["val"] == [4, 2]
    json.dumps(facts)
    source.attach(None)


def test_parts_of_other_objects_have_no_classes_to_probe(objects_folder: Path) -> None:
    source = RenderedObjects(**SMALL, split_by="object", data_dir=objects_folder)
    labels = [set(source.split(name).pictures()["label"].tolist()) for name in PARTS]
    assert sum(map(len, labels)) == len(set.union(*labels)) == OBJECTS
    assert source.split("test").sample(3, VIEWS, Generator()).batch_size == (3,)
    with pytest.raises(ValueError, match=r"never seen in training.*split_by=view"):
        source.part("test")


def test_pictures_left_on_disk_give_the_same_batches(source: RenderedObjects, objects_folder: Path) -> None:
    on_disk = RenderedObjects(**SMALL, data_dir=objects_folder, max_device_bytes=100_000)
    batches = [s.sample(5, 4, Generator().manual_seed(0)) for s in (source, on_disk)]
    assert (batches[0] == batches[1]).all()
    assert len(on_disk.part("val").target) == 8
    assert len(on_disk.split("train").pictures()) == 24
    with pytest.raises(ValueError, match=r"24 pictures of train take.*max_device_bytes"):
        RenderedObjects(**SMALL, data_dir=objects_folder, max_device_bytes=50_000).part("train")


def test_the_yaml_gives_this_source(objects_folder: Path) -> None:
    chosen = [f"env.{key}={value}" for key, value in {**SMALL, "data_dir": objects_folder}.items()]
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", overrides=["env=rendered_objects", "objective=t_jepa", *chosen])
        written = compose("render_objects")
    source = build.build_source(cfg, torch.device("cpu"))
    assert isinstance(source, RenderedObjects)
    assert source.num_objects == OBJECTS
    drawn = {key: written[key] for key in written if key not in ("objects", "num_views", "data_dir", "out", "workers")}
    assert render_objects.settings_of(views=written.num_views, **drawn) == render_objects.settings_of()


# --- files --------------------------------------------------------------------------------------------------------
def test_finished_objects_are_kept_and_more_are_added(
    objects_folder: Path, tmp_path: Path, jobs_done: list[tuple]
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(objects_folder, mine)
    few = RenderedObjects(**{**SMALL, "objects": 2}, data_dir=mine)
    assert few.num_objects == 2
    more = RenderedObjects(**{**SMALL, "objects": 6}, data_dir=mine, workers=1)
    assert [job[2] for job in jobs_done] == [["004", "005"]]
    assert more.num_classes == 6
    np.testing.assert_array_equal(np.load(mine / PIXELS_FILE)[:4], np.load(objects_folder / PIXELS_FILE))
    assert len(np.load(mine / TABLE_FILE)) == 6
    assert sorted(path.name for path in mine.iterdir()) == sorted([".lock", PIXELS_FILE, TABLE_FILE, PROVENANCE])
    note = json.loads((mine / PROVENANCE).read_text())
    assert note["settings"]["size"] == SIZE
    assert "pybullet" in note["versions"]


def test_goes_on_after_an_interruption(
    objects_folder: Path, tmp_path: Path, jobs_done: list[tuple], monkeypatch
) -> None:
    monkeypatch.setattr(object_cache, "_PART", 1)
    mine, make = tmp_path / "mine", render_objects.render

    def stops(chosen, names):
        if names == ["002"]:
            raise KeyboardInterrupt
        return make(chosen, names)

    chosen = render_objects.settings_of(views=VIEWS, size=SIZE)
    names = render_objects.object_names(OBJECTS)
    with pytest.raises(KeyboardInterrupt):
        object_cache.fill(mine, chosen, names, stops, packages=(), workers=1, is_shown=False)
    assert not (mine / PIXELS_FILE).exists()
    jobs_done.clear()
    (mine / ".pixels.npy.1.tmp").touch()  # of a process that was killed
    object_cache.fill(mine, chosen, names, make, packages=(), workers=1, is_shown=False)
    assert [job[2] for job in jobs_done] == [["002"], ["003"]]
    for file in (PIXELS_FILE, TABLE_FILE):
        assert (mine / file).read_bytes() == (objects_folder / file).read_bytes()
    assert not list(mine.glob(".*.tmp"))


def test_folders_of_other_pictures_are_refused(objects_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds pictures with seed=0; choose another env\.data_dir"):
        RenderedObjects(**SMALL, seed=1, data_dir=objects_folder)
    with pytest.raises(ValueError, match="holds pictures with views=10, size=32"):
        RenderedObjects(objects=2, views=8, size=16, data_dir=objects_folder)
    (tmp_path / PIXELS_FILE).touch()
    with pytest.raises(ValueError, match="not made here"):
        RenderedObjects(**SMALL, data_dir=tmp_path)


@pytest.mark.parametrize("file", [PIXELS_FILE, TABLE_FILE])
def test_damaged_files_are_named(objects_folder: Path, tmp_path: Path, file: str) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(objects_folder, mine)
    content = (mine / file).read_bytes()
    for kept in (len(content) - 1, 60, 0):
        (mine / file).write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"is damaged.*delete it"):
            RenderedObjects(**SMALL, data_dir=mine)
    np.save(mine / file, np.zeros((OBJECTS, VIEWS, 5)))
    with pytest.raises(ValueError, match=rf"{file} is float64 \[4, 10, 5\], but .* is needed"):
        RenderedObjects(**SMALL, data_dir=mine)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"objects": 1001}, "env.objects=1001: from 1 to 1000"),
        ({"objects": 0}, "env.objects=0"),
        ({"views": 1}, "env.views=1: from 2"),
        ({"views": 2}, "three parts.*2 views of an object: use a greater env.views"),
        ({"size": 7}, "env.size=7"),
        ({"seed": -1}, "env.seed=-1"),
        ({"axes": "w"}, "env.axes='w'"),
        ({"min_angle": 90}, "env.min_angle=90, env.max_angle=90"),
        ({"label_by": "class"}, "have no class"),
        ({"label_by": "shape"}, "env.label_by=shape: object or class"),
        ({"split_by": "row"}, "env.split_by=row: view or object"),
        ({"val_share": 0.5, "test_share": 0.5}, "env.val_share=0.5, env.test_share=0.5"),
        ({"objects": 2, "split_by": "object"}, "2 objects: use a greater env.objects"),
    ],
)
def test_impossible_choices_are_named(tmp_path: Path, jobs_done: list[tuple], chosen: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RenderedObjects(**{**SMALL, "objects": 1, "workers": 1, **chosen}, data_dir=tmp_path / "new")


def test_windows_beyond_a_part_are_refused(source: RenderedObjects) -> None:
    for part, window in ((source, 7), (source.split("val"), 3), (source, 0)):
        with pytest.raises(ValueError, match=rf"window={window}: from 1 to {part.num_views}.* in {part.part_name}"):
            part.sample(2, window, Generator())
    with pytest.raises(ValueError, match="part all: there are train, val, test"):
        source.split("all")


def test_without_pybullet_finished_pictures_will_do(objects_folder: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("pybullet", "pybullet_data"):
        monkeypatch.setitem(sys.modules, name, None)
    assert RenderedObjects(**SMALL, data_dir=objects_folder).num_objects == OBJECTS
    with pytest.raises(ImportError, match=r"worldmodels\[images\].*no wheel for Python 3\.12, macOS or Windows"):
        RenderedObjects(**SMALL, data_dir=tmp_path / "new")
    with pytest.raises(ImportError, match=r"worldmodels\[images\]"):
        ObjectRenderer(32)


def test_the_command_draws_what_it_is_told(tmp_path):
    sizes = ["objects=2", "num_views=3", "size=16", "workers=1", f"data_dir={tmp_path / 'drawn'}"]
    done = launch(*sizes, module="envs.render_objects")
    assert done.returncode == 0, done.stderr
    pixels = np.load(next((tmp_path / "drawn").rglob(PIXELS_FILE)), mmap_mode="r")
    assert pixels.size >= 2 * 3 * 3 * 16 * 16
