"""How data sets of pictures lie on disk. Each layout knows whether a tree of files is one of its kind, and reads it.

A new layout is a class with ``detect`` and ``read``, and its place in ``LAYOUTS``: the first that recognises a tree
reads it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from envs.image_files import ENDINGS, PART_NAMES, Tree, is_picture
from worldmodels.formats.plain_pickle import load_plain_pickle

UNKNOWN = -1  # a picture's label where there is none


@dataclass(frozen=True)
class Pictures:
    """What a layout found: pictures in files, or already as numbers."""

    layout: str
    parts: Sequence[str]
    """Of each picture: "train", "val", "test", "unlabeled", or "" where the data have no parts."""
    labels: np.ndarray
    """int64 [N] into ``classes``, or UNKNOWN."""
    classes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """Names in the tree, [N]; or"""
    arrays: tuple[np.ndarray, ...] = ()
    """uint8 [n, 3, H, W], end to end N pictures."""
    groups: np.ndarray | None = None
    """int64 [N]: pictures of one group, of one object say, are never split between parts."""
    notes: tuple[str, ...] = field(default=())


class Layout(Protocol):
    """One way of laying out a data set."""

    def detect(self, names: Sequence[str]) -> bool:
        """Whether files of these names are in this layout."""
        ...

    def read(self, tree: Tree) -> Pictures:
        """What there is; a ValueError naming what is damaged."""
        ...


def find_layout(tree: Tree) -> Layout:
    """The layout of a tree.

    Raises:
        ValueError: if there is not a single picture.
    """
    for layout in LAYOUTS:
        if layout.detect(tree.names):
            return layout
    kinds = ", ".join(ENDINGS[:6])
    raise ValueError(
        f"env.path={tree.path}: no picture among {len(tree.names)} files ({kinds}, ...), nor CIFAR's pickles, nor "
        "STL-10's binaries"
    )


class CifarPickles:
    """CIFAR-10 and CIFAR-100 as their authors give them, "python version"; the fine labels of CIFAR-100."""

    _BATCH = re.compile(r"data_batch_\d+")

    def detect(self, names: Sequence[str]) -> bool:
        """data_batch_1, ..., test_batch; or train, test, meta."""
        return {"data_batch_1", "test_batch"} <= set(names) or {"train", "test", "meta"} <= set(names)

    def read(self, tree: Tree) -> Pictures:
        """Rows of 3072 bytes, red then green then blue."""
        is_ten = "test_batch" in tree.names
        train = sorted(filter(self._BATCH.fullmatch, tree.names)) if is_ten else ["train"]
        test, meta = ("test_batch", "batches.meta") if is_ten else ("test", "meta")
        wanted = [*train, test, *([meta] if meta in tree.names else [])]
        content = {
            name: load_plain_pickle(io.BytesIO(data), name=f"{tree.path}: {name}", is_python_2=True)
            for name, data in tree.contents(wanted)
        }
        label_key = b"labels" if is_ten else b"fine_labels"
        pictures = [self._pictures(content[name], label_key, f"{tree.path}: {name}") for name in (*train, test)]
        labels = np.concatenate([labels for _, labels in pictures])
        names = content.get(meta, {}).get(b"label_names" if is_ten else b"fine_label_names")
        classes = [text.decode() for text in names] if names else [str(i) for i in range(int(labels.max()) + 1)]
        parts = [
            part
            for name, (_, labels) in zip((*train, test), pictures, strict=True)
            for part in ["test" if name == test else "train"] * len(labels)
        ]
        arrays = tuple(array for array, _ in pictures)
        return Pictures("cifar", parts, labels, tuple(classes), arrays=arrays)

    @staticmethod
    def _pictures(content: Any, label_key: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
        data = content.get(b"data") if isinstance(content, dict) else None
        labels = content.get(label_key) if isinstance(content, dict) else None
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
            raise ValueError(f"{name}: data of bytes [N, 3072] are needed, in a batch of CIFAR")
        if labels is None or len(labels) != len(data):
            raise ValueError(f"{name}: {len(data)} pictures need as many {label_key.decode()}")
        return data.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)


class Stl10Binaries:
    """STL-10 binaries: uint8 [N, 3, 96, 96], column after column; labels 1..10. The unlabelled ones train, too."""

    _SIZE = 96

    def detect(self, names: Sequence[str]) -> bool:
        """train_X.bin."""
        return "train_X.bin" in names

    def read(self, tree: Tree) -> Pictures:
        """The parts that are there."""
        arrays, parts, labels = [], [], []
        for stem, part in (("train", "train"), ("test", "test"), ("unlabeled", "unlabeled")):
            if f"{stem}_X.bin" not in tree.names:
                continue
            data = np.frombuffer(tree.read(f"{stem}_X.bin"), np.uint8)
            if not len(data) or len(data) % (3 * self._SIZE**2):
                raise ValueError(f"{tree.path}: {stem}_X.bin has {len(data)} bytes, no whole number of 3 x 96 x 96")
            arrays.append(data.reshape(-1, 3, self._SIZE, self._SIZE).swapaxes(2, 3))
            parts += [part] * len(arrays[-1])
            labels.append(self._labels(tree, stem, len(arrays[-1])))
        names = tree.read("class_names.txt").decode().split() if "class_names.txt" in tree.names else None
        classes = names or [str(number) for number in range(1, 11)]
        return Pictures("stl10", parts, np.concatenate(labels), tuple(classes), arrays=tuple(arrays))

    @staticmethod
    def _labels(tree: Tree, stem: str, num: int) -> np.ndarray:
        if stem == "unlabeled":
            return np.full(num, UNKNOWN)
        if f"{stem}_y.bin" not in tree.names:
            raise ValueError(f"{tree.path}: {stem}_y.bin, the labels of {stem}_X.bin, is not there")
        labels = np.frombuffer(tree.read(f"{stem}_y.bin"), np.uint8).astype(np.int64) - 1
        if len(labels) != num or labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"{tree.path}: {stem}_y.bin must hold {num} labels from 1 to 10")
        return labels


class TinyImageNet:
    """Tiny ImageNet: train/<wnid>/images, val/images with val/val_annotations.txt. The test pictures have no labels."""

    _LIST = "val/val_annotations.txt"

    def detect(self, names: Sequence[str]) -> bool:
        """val/val_annotations.txt."""
        return self._LIST in names

    def read(self, tree: Tree) -> Pictures:
        """Training and validation pictures."""
        pictures = [name for name in tree.names if is_picture(name)]
        train = [name for name in pictures if name.startswith("train/")]
        val = [name for name in pictures if name.startswith("val/")]
        classes = sorted({name.split("/")[1] for name in train})
        lines = [line.split() for line in tree.read(self._LIST).decode().splitlines() if line.strip()]
        annotated = {f"val/images/{line[0]}": line[1] for line in lines if len(line) > 1}
        if missing := [name for name in val if annotated.get(name) not in classes]:
            raise ValueError(
                f"{tree.path}: {self._LIST} gives {missing[0]} no class of train/ ({len(missing)} such files)"
            )
        code = {name: index for index, name in enumerate(classes)}
        labels = [code[name.split("/")[1]] for name in train] + [code[annotated[name]] for name in val]
        num_left = len(pictures) - len(train) - len(val)
        notes = (f"{num_left} pictures without labels, outside train and val, are left out",) if num_left else ()
        parts = ["train"] * len(train) + ["val"] * len(val)
        return Pictures(
            "tiny_imagenet", parts, np.asarray(labels, np.int64), tuple(classes), files=(*train, *val), notes=notes
        )


class RenderedViews:
    """3DIEBench: <synset>/<object>/image_<i>.jpg beside latent_<i>.npy. Pictures only; an object stays in one part."""

    _IMAGE = re.compile(r"([^/]+)/([^/]+)/image_\d+\.(?:jpg|jpeg|png)")
    _LATENT = re.compile(r"[^/]+/[^/]+/latent_\d+\.npy")

    def detect(self, names: Sequence[str]) -> bool:
        """latent_<i>.npy in folders of objects."""
        return any(self._LATENT.fullmatch(name) for name in names)

    def read(self, tree: Tree) -> Pictures:
        """The class is the synset."""
        found = [match for name in tree.names if (match := self._IMAGE.fullmatch(name))]
        if not found:
            raise ValueError(f"{tree.path}: latents, but no <synset>/<object>/image_<i>.jpg")
        classes, label = np.unique([match[1] for match in found], return_inverse=True)
        _, group = np.unique([f"{match[1]}/{match[2]}" for match in found], return_inverse=True)
        files = tuple(match[0] for match in found)
        return Pictures(
            "3diebench", [""] * len(files), label.astype(np.int64), tuple(map(str, classes)), files=files, groups=group
        )


class Folders:
    """Class folders, as ImageFolder reads them, below train, val and test or without; or just pictures, unlabelled.

    What lies deeper belongs to the class of its uppermost folder. Folders trainannot, valannot, testannot hold dense
    labels (``envs.dense_labels``) and no pictures.
    """

    def detect(self, names: Sequence[str]) -> bool:
        """Any picture."""
        return any(map(is_picture, names))

    def read(self, tree: Tree) -> Pictures:
        """Pictures with and without classes side by side are refused: one of the two is a mistake."""
        pictures = [name for name in tree.names if is_picture(name) and name.split("/")[0] not in ANNOTATIONS]
        places = [place_of(name) for name in pictures]
        notes = []
        if any(part for part, _ in places) and (
            stray := [n for n, p in zip(pictures, places, strict=True) if not p[0]]
        ):
            notes.append(f"{len(stray)} pictures outside train, val and test are left out: {stray[0]}, ...")
            pictures = [name for name, place in zip(pictures, places, strict=True) if place[0]]
            places = [place for place in places if place[0]]
        parts, owners = [part for part, _ in places], [owner for _, owner in places]
        if loose := [name for name, owner in zip(pictures, owners, strict=True) if not owner]:
            if len(loose) < len(pictures):
                raise ValueError(
                    f"env.path={tree.path}: {len(loose)} pictures lie beside the class folders: {loose[0]}, ..."
                )
            return Pictures("pictures", parts, np.full(len(loose), UNKNOWN), files=tuple(loose), notes=tuple(notes))
        classes, labels = np.unique(owners, return_inverse=True)
        if empty := [name for name in tree.empty if name != "."]:
            notes.append(f"{len(empty)} empty folders are no classes: {', '.join(empty[:3])}")
        if len(classes) == 1:
            notes.append(f"all pictures are of one class, {classes[0]}: they count as unlabelled")
            labels, classes = np.full(len(pictures), UNKNOWN), classes[:0]
        names = tuple(map(str, classes))
        return Pictures(
            "class_folders", parts, labels.astype(np.int64), names, files=tuple(pictures), notes=tuple(notes)
        )


ANNOTATIONS = {f"{name}annot": part for name, part in PART_NAMES.items()}
"""Folders of dense labels, and their part."""
LAYOUTS: tuple[Layout, ...] = (CifarPickles(), Stl10Binaries(), TinyImageNet(), RenderedViews(), Folders())


def place_of(name: str) -> tuple[str, str]:
    """Part and class of a picture by its path; "" where there is none."""
    folders = name.split("/")[:-1]
    part = PART_NAMES.get(folders[0], "") if folders else ""
    rest = folders[1:] if part else folders
    return part, rest[0] if rest else ""
