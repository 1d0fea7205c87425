"""Trees in 3DIEBench's layout: what is written is read back, what cannot be read is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pybullet", reason="needs the images extra on Linux and Python 3.10 or 3.11", exc_type=ImportError)
pytest.importorskip("PIL", reason="needs the images extra: pip install 'worldmodels[images]'", exc_type=ImportError)

from PIL import Image

from envs import render_objects
from envs.object_cache import PIXELS_FILE, TABLE_FILE
from envs.rendered_objects import PARTS, RenderedObjects

OBJECTS, VIEWS, SIZE = 4, 10, 32


@pytest.fixture
def tree(objects_folder: Path, tmp_path: Path, jobs_done: list[tuple]) -> Path:
    """The four objects as a tree of two classes."""
    root = render_objects.command(
        OBJECTS,
        num_views=VIEWS,
        size=SIZE,
        data_dir=str(objects_folder),
        out=str(tmp_path / "tree"),
        workers=1,
        is_shown=False,
    )
    (root / "other").mkdir()
    for name in ("002", "003"):
        (root / "pybullet" / name).rename(root / "other" / name)
    jobs_done.clear()
    return root


def read(tree: Path, **chosen) -> RenderedObjects:
    """In another folder each time."""
    data_dir = tree.parent / f"decoded{len(list(tree.parent.iterdir()))}"
    return RenderedObjects(path=tree, data_dir=data_dir, workers=1, **{"size": SIZE, **chosen})


def test_a_tree_that_was_written_is_read_back(tree: Path, objects_folder: Path, jobs_done: list[tuple]) -> None:
    source = read(tree)
    assert (source.classes, source.split_by, source.label_by) == (["other", "pybullet"], "object", "class")
    assert source.names == ["other/002", "other/003", "pybullet/000", "pybullet/001"]
    rows = torch.cat([source.split(name).pictures() for name in PARTS])
    table = {row.numpy().tobytes(): i for i, row in enumerate(rows["transformation"])}
    pixels, drawn = np.load(objects_folder / PIXELS_FILE), np.load(objects_folder / TABLE_FILE)
    for i in range(OBJECTS):
        for j in range(VIEWS):
            row = rows[table[drawn[i, j].tobytes()]]
            assert int(row["label"]) == (i < 2)
            error = np.abs(row["observation", "pixels"].numpy().astype(int) - pixels[i, j])
            assert error.mean() < 8  # JPEG halves the resolution of colours
    latent = np.load(tree / "other/003/latent_4.npy")
    assert latent.shape == (7,)
    assert latent.dtype == np.float64
    jobs_done.clear()
    again = RenderedObjects(path=tree, size=SIZE, data_dir=source.folder)
    assert jobs_done == []  # decoded once
    assert (again.part("val").obs == source.part("val").obs).all()


def test_pictures_of_a_tree_are_scaled_down_and_subsets_drawn(tree: Path) -> None:
    source = read(tree, size=16, objects=3, views=4, label_by="object")
    assert source.num_classes == 3
    assert source.split_by == "view"
    assert source.spec["observation", "pixels"].shape == (3, 16, 16)
    assert source.num_views == 2
    with pytest.raises(ValueError, match=r"env\.objects=5: from 1 to 4"):
        read(tree, objects=5)
    with pytest.raises(ValueError, match=r"env\.views=11: from 2 to 10"):
        read(tree, views=11)
    with pytest.raises(ValueError, match=r"env\.size=4"):
        read(tree, size=4)


def test_published_lists_are_the_split(tree: Path) -> None:
    names = {"train": ["other/002", "other/003", "pybullet/000"], "val": ["pybullet/001"]}
    for part, some in names.items():
        np.save(tree / f"{part}_images.npy", np.array([f"/{name}/" for name in some]))
    source = read(tree)
    sizes = {name: source.split(name).num_objects for name in PARTS}
    assert sizes == {"train": 2, "val": 1, "test": 1}
    at = source.names.index("pybullet/001") * VIEWS
    assert torch.equal(source.split("test")._rows, torch.arange(at, at + VIEWS)[None])
    np.save(tree / "val_images.npy", np.array(["/pybullet/000/"]))
    with pytest.raises(ValueError, match=r"pybullet/000 is in 2 of|pybullet/001 is in 0 of"):
        read(tree)


def test_a_tree_of_one_class_has_nothing_to_tell_apart(tree: Path) -> None:
    shutil.rmtree(tree / "other")
    with pytest.raises(ValueError, match=r"all 2 objects are in one folder, pybullet.*label_by=object"):
        read(tree)
    assert read(tree, label_by="object").num_classes == 2


def test_odd_files_of_a_tree_are_read_or_named(tree: Path) -> None:
    place = tree / "other/003"
    picture = Image.open(place / "image_0.jpg")
    for i, mode in enumerate(("L", "CMYK")):
        picture.convert(mode).save(place / f"image_{i}.jpg")
    source = read(tree, label_by="object")
    rows = source._gathered(torch.arange(VIEWS) + VIEWS)["observation", "pixels"]
    assert torch.equal(rows[0, 0], rows[0, 1])
    assert (rows[1].float().mean((1, 2)) - torch.tensor(np.asarray(picture)).float().mean((0, 1))).abs().max() < 10

    def broken(file: str, words: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=rf"{file}.*{words}"):
            read(tree)

    picture.resize((SIZE, SIZE - 1)).save(place / "image_5.jpg")
    broken("image_5.jpg", "31 x 32 pixels; a square")
    picture.resize((16, 16)).save(place / "image_5.jpg")
    broken("image_5.jpg", "16 x 16 pixels; a square of at least env.size=32")
    (place / "image_4.jpg").write_bytes((place / "image_4.jpg").read_bytes()[:300])
    broken("image_4.jpg", "not a picture")
    (place / "image_3.jpg").write_bytes(b"")
    broken("image_3.jpg", "not a picture")
    (place / "image_2.jpg").unlink()
    broken("image_2.jpg", "is missing", FileNotFoundError)
    np.save(place / "latent_1.npy", np.array([1.0, np.nan, 0, 0, 0, 0, 0]))
    broken("latent_1.npy", "seven finite numbers")
    np.save(place / "latent_1.npy", np.zeros(6))
    broken("latent_1.npy", r"float64 \[6\]")
    (place / "latent_1.npy").write_bytes(b"\x93NUMPY")
    broken("latent_1.npy", "not an array")
    (place / "latent_1.npy").unlink()
    broken("latent_1.npy", "is missing", FileNotFoundError)


def test_folders_that_are_no_trees_are_named(tree: Path, objects_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no objects"):
        read(tmp_path / "empty")
    for out, words in ((tree, "holds pictures of other settings"), (tmp_path, "is not empty")):
        with pytest.raises(ValueError, match=words):
            render_objects.command(
                1,
                num_views=VIEWS,
                size=SIZE,
                seed=1 if out == tree else 0,
                data_dir=str(tmp_path / "d"),
                out=str(out),
                workers=1,
            )
        shutil.rmtree(tmp_path / "d")
