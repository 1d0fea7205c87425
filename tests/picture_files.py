"""Small data sets of pictures, written in the layouts they are published in."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.python_2_pickle import python_2_pickle


def random_picture(seed: int, *, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def write_picture(path: Path, picture: np.ndarray | Image.Image) -> None:
    """By its ending; PNG keeps every byte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)


def write_class_folders(folder: Path, *, parts: tuple[str, ...] = ("",), classes: str = "ab", num: int = 10) -> None:
    """PNGs [part/]class/i.png; the seed of each is its place in the order of parts, classes, numbers."""
    seed = 0
    for part in parts:
        for name in classes:
            for index in range(num):
                write_picture(folder / part / name / f"{index:02}.png", random_picture(seed))
                seed += 1


def write_tar(path: Path, folder: Path, *, top: str = ".") -> None:
    """All files below ``folder``, below ``top`` in the archive; compressed by the archive's ending."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        tar.add(folder, arcname=top)


def write_cifar10(folder: Path, *, num: int = 20) -> np.ndarray:
    """Two batches and a test batch as Toronto gives them; returns the pictures uint8 [3 num, 3, 32, 32]."""
    pixels = np.random.default_rng(0).integers(0, 256, (3 * num, 3072), np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        rows = slice(index * num, (index + 1) * num)
        content = {"data": pixels[rows], "labels": [i % 10 for i in range(num)], "batch_label": name}
        (folder / name).write_bytes(python_2_pickle(content))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(python_2_pickle({"label_names": names, "num_vis": 3072}))
    return pixels.reshape(-1, 3, 32, 32)


def write_cifar100(folder: Path, *, num: int = 200) -> None:
    """Train, test and meta."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        labels = [i % 100 for i in range(num)]
        data = np.full((num, 3072), 7, np.uint8)
        content = {"data": data, "fine_labels": labels, "coarse_labels": [i % 20 for i in range(num)]}
        (folder / name).write_bytes(python_2_pickle(content))
    (folder / "meta").write_bytes(python_2_pickle({"fine_label_names": [f"fine {i}" for i in range(100)]}))


def write_stl10(folder: Path) -> np.ndarray:
    """10 training, 10 test and 5 unlabelled pictures; returns the training ones uint8 [10, 3, 96, 96]."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    found = {}
    for name, num in (("train", 10), ("test", 10), ("unlabeled", 5)):
        found[name] = random.integers(0, 256, (num, 3, 96, 96), np.uint8)
        (folder / f"{name}_X.bin").write_bytes(found[name].swapaxes(2, 3).tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(bytes(range(1, 11)))
    (folder / "class_names.txt").write_text("\n".join(f"kind{i}" for i in range(10)))
    return found["train"]


def write_tiny_imagenet(folder: Path) -> None:
    """Two classes: 10 training pictures each, three validation pictures, one test picture."""
    for wnid in ("n02", "n01"):
        for index in range(10):
            write_picture(folder / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", random_picture(index))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("a\t0\t0\t1\t1\n")
    lines = []
    for index, wnid in enumerate(("n02", "n01", "n02")):
        write_picture(folder / "val" / "images" / f"val_{index}.JPEG", random_picture(100 + index))
        lines.append(f"val_{index}.JPEG\t{wnid}\t0\t0\t1\t1")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines))
    write_picture(folder / "test" / "images" / "test_0.JPEG", random_picture(200))


def write_3diebench(folder: Path) -> None:
    """Two synsets of ten objects of three views."""
    for synset in ("s1", "s2"):
        for item in range(10):
            for view in range(3):
                place = folder / synset / f"object{item}"
                write_picture(place / f"image_{view}.jpg", np.full((8, 8, 3), 20 * item, np.uint8))
                np.save(place / f"latent_{view}.npy", np.zeros(7, np.float32))


def write_camvid(folder: Path, *, size: tuple[int, int] = (6, 8)) -> None:
    """Four frames a part, height and width ``size``; classes 0..4, and 11 in the first row."""
    for seed, part in enumerate(("train", "val", "test")):
        for index in range(4):
            write_picture(folder / part / f"film_{index}.png", random_picture(10 * seed + index, size=size))
            labels = np.random.default_rng(index).integers(0, 5, size, np.uint8)
            labels[0] = 11
            write_picture(folder / f"{part}annot" / f"film_{index}.png", labels)


def encoded(picture: np.ndarray | Image.Image, kind: str) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind)
    return file.getvalue()
