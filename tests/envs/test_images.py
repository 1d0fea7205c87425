"""Pictures as a source: layouts, parts, the cache, and data that are broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

pytest.importorskip("PIL", reason="needs the images extra: pip install 'worldmodels[images]'")

from envs.images import Images
from tests import picture_files as write
from worldmodels.core import Source


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Images]:
    """Builds a source of ``tmp_path / "set"`` with a cache of its own."""

    def make(**settings) -> Images:
        given = {"path": tmp_path / "set", "size": 8, "cache_dir": tmp_path / "cache", "workers": 2, **settings}
        return Images(**given)

    return make


def rows(source: Images) -> dict[str, int]:
    return {name: len(source.part(name).obs) for name in ("train", "val", "test")}


def as_numbers(part) -> np.ndarray:
    return part.obs["pixels"].numpy()


def test_class_folders_with_parts_keep_every_byte(images, tmp_path):
    write.write_class_folders(tmp_path / "set", parts=("train", "valid", "test"), num=3)
    source = images()
    assert isinstance(source, Source)
    assert (source.task, source.num_classes, source.classes) == ("classification", 2, ("a", "b"))
    for place, name in enumerate(("train", "val", "test")):
        part = source.part(name)
        assert part.target.tolist() == [0, 0, 0, 1, 1, 1]
        expected = np.stack([write.random_picture(6 * place + i).transpose(2, 0, 1) for i in range(6)])
        np.testing.assert_array_equal(as_numbers(part), expected)
    batch = source.sample(16, 1, Generator().manual_seed(0))
    assert batch.batch_size == (16,)
    assert batch["observation", "pixels"].shape == (16, 1, 3, 8, 8)
    assert source.spec.expand(16, 1).is_in(batch)
    assert (batch == source.sample(16, 1, Generator().manual_seed(0))).all()
    train = {picture.tobytes() for picture in as_numbers(source.part("train"))}
    assert {picture.numpy().tobytes() for picture in batch["observation", "pixels"]} <= train
    with pytest.raises(ValueError, match=r"window=2: .*no order.*env=rendered_objects"):
        source.sample(2, 2, Generator())


def test_a_split_is_a_source_of_its_part_alone(images, tmp_path):
    write.write_class_folders(tmp_path / "set", num=20)
    source = images()
    for name in ("train", "val", "test"):
        part, split = source.part(name), source.split(name)
        assert isinstance(split, Source)
        assert split.num_rows == len(part.target)
        assert (split.num_classes, split.classes, split.task) == (2, ("a", "b"), "classification")
        batch = split.sample(64, 1, Generator().manual_seed(0))
        assert split.spec.expand(64, 1).is_in(batch)
        known = {
            picture.tobytes(): label for picture, label in zip(as_numbers(part), part.target.tolist(), strict=True)
        }
        for picture, label in zip(batch["observation", "pixels"], batch["label"], strict=True):
            assert known[picture.numpy().tobytes()] == int(label)
    with pytest.raises(ValueError, match="there is no part dev; parts are train, val, test"):
        source.split("dev")


def test_drawn_parts_are_disjoint_and_hold_the_same_share_of_each_class(images, tmp_path):
    write.write_class_folders(tmp_path / "set", num=20)
    source = images(val_share=0.1, test_share=0.2)
    assert rows(source) == {"train": 28, "val": 4, "test": 8}
    for name, share in (("val", 2), ("test", 4)):
        assert source.part(name).target.bincount().tolist() == [share, share]
    every = [picture.tobytes() for name in ("train", "val", "test") for picture in as_numbers(source.part(name))]
    assert len(set(every)) == 40
    np.testing.assert_array_equal(as_numbers(images(test_share=0.2).part("test")), as_numbers(source.part("test")))
    other = images(test_share=0.2, split_seed=1)
    assert (as_numbers(other.part("test")) != as_numbers(source.part("test"))).any()


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_the_one_part_held_out_is_the_test(images, tmp_path, held_out):
    write.write_class_folders(tmp_path / "set", parts=("train", held_out), num=10)
    source = images()
    assert rows(source) == {"train": 18, "val": 2, "test": 20}
    expected = np.stack([write.random_picture(20 + i).transpose(2, 0, 1) for i in range(20)])
    np.testing.assert_array_equal(as_numbers(source.part("test")), expected)


def test_an_archive_gives_the_same_as_its_folder(images, tmp_path):
    write.write_class_folders(tmp_path / "set", num=40)
    write.write_tar(tmp_path / "set.tar.gz", tmp_path / "set")
    folder, archive = images(), images(path=tmp_path / "set.tar.gz")
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(as_numbers(folder.part(name)), as_numbers(archive.part(name)))
        assert torch.equal(folder.part(name).target, archive.part(name).target)


def test_cifar_pickles(images, tmp_path):
    pixels = write.write_cifar10(tmp_path / "set" / "cifar-10-batches-py")
    source = images(size=32)
    assert source.classes == tuple(f"class {i}" for i in range(10))
    np.testing.assert_array_equal(as_numbers(source.part("test")), pixels[40:])
    assert source.part("test").target.tolist() == 2 * list(range(10))
    assert {p.tobytes() for n in ("train", "val") for p in as_numbers(source.part(n))} == {
        p.tobytes() for p in pixels[:40]
    }
    write.write_tar(tmp_path / "cifar-10-python.tar.gz", tmp_path / "set")
    again = images(size=32, path=tmp_path / "cifar-10-python.tar.gz")
    np.testing.assert_array_equal(as_numbers(again.part("val")), as_numbers(source.part("val")))
    assert images(size=16).spec["observation", "pixels"].shape == (3, 16, 16)
    with pytest.raises(ValueError, match=r"cifar are smaller than env.size=64"):
        images(size=64, is_enlarged=False)


def test_cifar_100_takes_the_fine_labels(images, tmp_path):
    write.write_cifar100(tmp_path / "set")
    source = images(size=32, val_share=0.5)
    assert (source.num_classes, source.classes[37]) == (100, "fine 37")
    assert rows(source) == {"train": 200 - 100, "val": 100, "test": 200}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((2, 3000), np.uint8), "labels": [0, 1]}, r"data_batch_1: data of bytes \[N, 3072\]"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "2 pictures need as many labels"),
        ([1, 2], r"data of bytes \[N, 3072\]"),
    ],
)
def test_damaged_cifar_is_refused(images, tmp_path, content, message):
    write.write_cifar10(tmp_path / "set")
    (tmp_path / "set" / "data_batch_1").write_bytes(write.python_2_pickle(content))
    with pytest.raises(ValueError, match=message):
        images(size=32)
    assert not list((tmp_path / "cache").glob("set*"))  # nothing half done stays
    assert not list((tmp_path / "cache").glob(".set*"))


def test_tiny_imagenet(images, tmp_path):
    write.write_tiny_imagenet(tmp_path / "set" / "tiny-imagenet-200")
    source = images()
    assert source.classes == ("n01", "n02")
    assert source.part("test").target.tolist() == [1, 0, 1]  # the validation pictures
    assert rows(source) == {"train": 18, "val": 2, "test": 3}
    assert source.notes == ("1 pictures without labels, outside train and val, are left out",)
    (tmp_path / "set" / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\n")
    with pytest.raises(ValueError, match=r"gives val/images/val_0.JPEG no class of train/ \(3 such files\)"):
        images()


def test_stl10_binaries(images, tmp_path):
    train = write.write_stl10(tmp_path / "set")
    source = images(size=96, val_share=0.5)
    known = {picture.tobytes() for picture in train}
    assert {p.tobytes() for p in as_numbers(source.part("train"))} <= known  # columns and rows are put right
    assert source.classes == tuple(f"kind{i}" for i in range(10))
    assert source.num_rows == len(source.part("train").obs) + 5  # what has no label trains, too
    assert "label" not in source.sample(4, 1, Generator()).keys()
    assert "label" not in source.spec.keys()
    assert "label" in source.split("train").sample(4, 1, Generator()).keys()
    (tmp_path / "set" / "train_X.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"train_X.bin has 3 bytes, no whole number"):
        images(size=96)


def test_views_of_one_object_stay_in_one_part(images, tmp_path):
    write.write_3diebench(tmp_path / "set")
    source = images()
    assert (source.layout, source.classes) == ("3diebench", ("s1", "s2"))
    assert rows(source) == {"train": 48, "val": 6, "test": 6}
    objects = {
        name: {(int(label), int(p.mean()) // 20) for p, label in zip(as_numbers(part), part.target, strict=True)}
        for name in ("train", "val", "test")
        if (part := source.part(name))
    }
    assert [len(found) for found in objects.values()] == [16, 2, 2]
    assert len(set.union(*objects.values())) == 20


def test_a_flat_folder_has_no_labels(images, tmp_path):
    for index in range(20):
        write.write_picture(tmp_path / "set" / f"{index}.png", write.random_picture(index))
    (tmp_path / "set" / "readme.txt").write_text("not a picture")
    source = images()
    assert (source.num_classes, source.num_rows) == (0, 16)
    assert "label" not in source.sample(4, 1, Generator()).keys()
    assert source.split("test").sample(4, 1, Generator())["observation", "pixels"].shape == (4, 1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"have no labels to be probed.*eval.probe=null"):
        source.part("test")


def test_a_single_class_counts_as_unlabelled_and_says_so(images, tmp_path):
    write.write_class_folders(tmp_path / "set", classes="a", num=20)
    (tmp_path / "set" / "empty").mkdir()
    source = images()
    assert source.num_classes == 0
    assert source.notes == (
        "1 empty folders are no classes: empty",
        "all pictures are of one class, a: they count as unlabelled",
    )


def test_folders_without_pictures_or_with_strays_are_refused(images, tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="no picture among 0 files"):
        images()
    (tmp_path / "set" / "a" / "notes.txt").write_text("no")
    with pytest.raises(ValueError, match=r"no picture among 1 files \(.jpg.*STL-10"):
        images()
    write.write_class_folders(tmp_path / "set", num=2)
    write.write_picture(tmp_path / "set" / "cover.png", write.random_picture(0))
    with pytest.raises(ValueError, match=r"1 pictures lie beside the class folders: cover.png"):
        images()
    (tmp_path / "set" / "cover.png").unlink()
    with pytest.raises(ValueError, match="4 pictures are too few to draw test of 10% from"):
        images()


def test_pictures_outside_the_parts_are_left_out_and_named(images, tmp_path):
    write.write_class_folders(tmp_path / "set", parts=("train", "test"))
    write.write_picture(tmp_path / "set" / "docs" / "figure.png", write.random_picture(0))
    assert images().notes == ("1 pictures outside train, val and test are left out: docs/figure.png, ...",)
    (tmp_path / "other").mkdir()
    write.write_class_folders(tmp_path / "other", parts=("test",))
    with pytest.raises(ValueError, match="pictures of test and none to train on"):
        images(path=tmp_path / "other")


def test_broken_files_are_named_and_counted_or_refused(images, tmp_path, capsys):
    write.write_class_folders(tmp_path / "set", num=40)
    (tmp_path / "set" / "a" / "00.png").write_bytes(b"")
    (tmp_path / "set" / "b" / "03.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"2 of 80 files are left out: a/00.png is empty .*env.max_bad_share=0.01"):
        images()
    source = images(max_bad_share=0.05)
    assert len(source.notes) == 1
    assert "a/00.png is empty (0 bytes); b/03.png is no readable picture" in source.notes[0]
    assert source.notes[0] in capsys.readouterr().err
    assert sum(rows(source).values()) == 78
    labels = torch.cat([source.part(name).target for name in ("train", "val", "test")])
    assert labels.bincount().tolist() == [39, 39]
    with pytest.raises(ValueError, match="2 of 80 files"):  # a cache does not lower the bar
        images(max_bad_share=0.01)


def test_a_set_of_nothing_but_broken_files_is_refused(images, tmp_path):
    write.write_class_folders(tmp_path / "set", num=1)
    for path in (tmp_path / "set").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"not one of 2 files is a readable picture: a/00.png is empty"):
        images(max_bad_share=1)


def test_pictures_keep_their_size_only_if_all_are_alike(images, tmp_path):
    for index in range(20):
        write.write_picture(tmp_path / "set" / f"{index:02}.png", write.random_picture(index, size=(6, 9)))
    assert images(size=None).spec["observation", "pixels"].shape == (3, 6, 9)
    write.write_picture(tmp_path / "set" / "20.png", write.random_picture(20, size=(6, 8)))
    with pytest.raises(ValueError, match=r"pictures of 9 x 6 and 8 x 6 pixels .* give env.size="):
        images(size=None)


def test_small_pictures_are_enlarged_or_refused(images, tmp_path):
    write.write_class_folders(tmp_path / "set")
    assert images(size=12).spec["observation", "pixels"].shape == (3, 12, 12)
    with pytest.raises(ValueError, match=r"not one of 20 files .*smaller than env.size=12"):
        images(size=12, is_enlarged=False)


def test_what_was_decoded_once_is_not_decoded_again(images, tmp_path, monkeypatch):
    write.write_class_folders(tmp_path / "set")
    first = images()
    (home,) = (tmp_path / "cache").glob("set-8-*")
    facts = json.loads((home / "facts.json").read_text())
    assert (facts["layout"], facts["files"], facts["shape"]) == ("class_folders", 20, [3, 8, 8])
    assert facts["from"] == str((tmp_path / "set").resolve())
    monkeypatch.setattr("envs.image_cache.decode", None)
    again = images()
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(as_numbers(first.part(name)), as_numbers(again.part(name)))
    monkeypatch.undo()
    write.write_picture(tmp_path / "set" / "a" / "00.png", write.random_picture(99))
    changed = images()
    every = {p.tobytes() for name in ("train", "val", "test") for p in as_numbers(changed.part(name))}
    assert write.random_picture(99).transpose(2, 0, 1).tobytes() in every


def test_more_than_fits_is_mapped_from_disk(images, tmp_path, capsys):
    write.write_class_folders(tmp_path / "set", parts=("train", "val", "test"))
    whole, mapped = images(), images(max_device_bytes=100)
    assert "memory-mapped" in capsys.readouterr().err
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(as_numbers(whole.part(name)), as_numbers(mapped.part(name)))
    batches = [source.sample(8, 1, Generator().manual_seed(1)) for source in (whole, mapped)]
    assert (batches[0] == batches[1]).all()


def test_dense_labels_of_camvid(images, tmp_path):
    write.write_camvid(tmp_path / "set")
    source = images(size=None)
    assert (source.num_classes, source.num_rows) == (0, 4)
    frames = source.dense("val")
    assert frames.pixels.shape == (4, 3, 6, 8)
    assert frames.labels.shape == (4, 6, 8)
    assert (frames.num_classes, frames.ignored) == (5, 11)
    assert frames.names == tuple(f"film_{i}" for i in range(4))
    expected = np.stack([write.random_picture(10 + i, size=(6, 8)).transpose(2, 0, 1) for i in range(4)])
    np.testing.assert_array_equal(frames.pixels.numpy(), expected)
    assert (frames.labels[:, 0] == 11).all()
    assert int(frames.labels[:, 1:].max()) == 4
    square = images(size=3).dense("val")
    assert square.pixels.shape == (4, 3, 3, 3)
    assert torch.equal(square.labels, frames.labels[:, 1::2, 2:7:2])  # the nearest pixel of the middle square
    write.write_picture(tmp_path / "set" / "valannot" / "film_2.png", np.zeros((5, 8), np.uint8))
    with pytest.raises(
        ValueError, match=r"val/film_2.png and valannot/film_2.png differ in size: \[6, 8\] and \[5, 8\]"
    ):
        images(size=None).dense("val")
    with pytest.raises(ValueError, match=r"\[6, 8\] and \[5, 8\]: no pixel knows its label"):
        images(size=3).dense("val")  # both would become squares of 3 pixels, of different places
    write.write_picture(tmp_path / "set" / "valannot" / "film_2.png", np.full((3, 4), 2, np.uint8))
    with pytest.raises(ValueError, match=r"\[6, 8\] and \[3, 4\]; copies of the same proportions fit with env.size="):
        images(size=None).dense("val")
    assert (images(size=3).dense("val").labels[2] == 2).all()
    (tmp_path / "set" / "valannot" / "film_2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"valannot/film_2.png is empty"):
        images(size=None).dense("val")
    (tmp_path / "set" / "valannot" / "film_2.png").unlink()
    with pytest.raises(ValueError, match=r"val/film_2.png has no labels in valannot \(1 such frames\)"):
        images(size=None).dense("val")


def test_other_data_have_no_dense_labels(images, tmp_path):
    write.write_class_folders(tmp_path / "set")
    with pytest.raises(ValueError, match=r"has no dense labels: CamVid's folders train, trainannot"):
        images().dense("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": None}, r"env.dataset \(photographs, digits\) or from env.path; both are null"),
        ({"dataset": "digit"}, "no such pictures; did you mean digits"),
        ({"size": 0}, "env.size=0: at least one pixel"),
        ({"val_share": 0}, "val_share=0"),
        ({"size": None}, "cut into patches: give env.size="),
        ({"size": 900}, "env.size=900: the photographs are too small"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, tmp_path):
    if "workers" in settings:
        write.write_class_folders(tmp_path / "set")
        settings = settings | {"path": tmp_path / "set", "cache_dir": tmp_path}
    with pytest.raises(ValueError, match=message):
        Images(**settings)
