"""Pictures as a source: decoded once to bytes on the training device, or mapped from disk; batches by index.

The objective sees the training pictures. Probes ask ``part`` for the labelled pictures of each part, and ``split`` for
a source of one part alone. A picture is a window of one row.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Bounded, Categorical, Composite

from envs.dense_labels import Dense, has_dense_labels, read_dense
from envs.image_cache import PARTS, Decoded, decoded, from_arrays
from envs.image_files import Tree, open_tree
from envs.image_layouts import UNKNOWN
from envs.image_sets import NAMED, named_pictures
from worldmodels.core import Policy
from worldmodels.keys import LABEL, OBSERVATION, PIXELS

JUDGED = ("train", "val", "test")
_COPY = 4096  # pictures copied to the device at a time


class Part(NamedTuple):
    """Labelled pictures."""

    obs: TensorDict  # [N], on the source's device
    target: Tensor  # int64 [N], classes


class PictureStore:
    """Pictures uint8 [N, 3, H, W] in the order of their parts, on the device or in a mapped file.

    Args:
        data: as decoded. order: int64 [N], which of its pictures come first, second, ...
    """

    def __init__(self, data: Decoded, order: np.ndarray, *, device: torch.device, max_device_bytes: int) -> None:
        self.device = device
        self.shape = data.pixels.shape[1:]
        rows = data.order[order]
        self._rows: Tensor | None = None
        size = len(rows) * int(np.prod(self.shape))
        if size > max_device_bytes:
            print(f"{size:,} bytes of pictures are more than max_device_bytes: memory-mapped", file=sys.stderr)
            self._pixels, self._rows = torch.from_numpy(data.pixels), torch.from_numpy(rows)
            return
        self._pixels = torch.empty((len(rows), *self.shape), dtype=torch.uint8, device=device)
        for first in range(0, len(rows), _COPY):
            chosen = rows[first : first + _COPY]
            self._pixels[first : first + len(chosen)] = torch.from_numpy(np.ascontiguousarray(data.pixels[chosen]))

    def gather(self, index: Tensor) -> Tensor:
        """Pictures ``index`` [B], copied to the device."""
        if self._rows is None:
            return self._pixels.index_select(0, to_device(index, self.device))
        return to_device(self._pixels[self._rows[index.cpu()]], self.device)

    def between(self, first: int, last: int) -> Tensor:
        """Pictures ``first`` to ``last``: without a copy if they are on the device."""
        if self._rows is None:
            return self._pixels[first:last]
        return self.gather(torch.arange(first, last))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it: a GPU reads from pinned memory when it comes to it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Pictures:
    """A range of the pictures of a store, as a source.

    Args:
        store: all pictures. labels: int64 [N] of all, on the device. first, last: the range.
        classes: names; empty if there are no labels.
        has_labels: whether every picture of the range has one.
    """

    task = "classification"

    def __init__(
        self, store: PictureStore, labels: Tensor, *, first: int, last: int, classes: tuple[str, ...], has_labels: bool
    ) -> None:
        self._store, self._labels, self._range, self._has_labels = store, labels, (first, last), has_labels
        self.device, self.classes = store.device, classes
        pixels = Bounded(0, 255, store.shape, dtype=torch.uint8, device=self.device)
        self.spec = Composite({OBSERVATION: Composite({PIXELS: pixels}, device=self.device)}, device=self.device)
        if has_labels:
            self.spec[LABEL] = Categorical(len(classes), shape=(), device=self.device)

    @property
    def num_rows(self) -> int:
        """Pictures that are drawn from."""
        return self._range[1] - self._range[0]

    @property
    def num_classes(self) -> int:
        """Classes of all parts; 0 if there are no labels."""
        return len(self.classes)

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw pictures uniformly: "observation" and, where every picture has one, "label", [B, 1].

        Raises:
            ValueError: if ``window`` is not 1: these pictures have no order.
        """
        if window != 1:
            raise ValueError(
                f"window={window}: pictures of env=images have no order. Use views=augmented, which makes views of "
                "one, or env=rendered_objects"
            )
        index = torch.randint(self.num_rows, (batch_size,), generator=generator, device=generator.device)
        index = index + self._range[0]
        rows = {OBSERVATION: {PIXELS: self._store.gather(index)[:, None]}}
        if self._has_labels:
            rows[LABEL] = self._labels[index.to(self.device)][:, None]
        return TensorDict(rows, device=self.device).auto_batch_size_(1)

    def attach(self, policy: Policy | None) -> None:
        """Fixed data needs no policy."""


class Images(Pictures):
    """Pictures from files, or of a named set, cut into train, val and test.

    Where the data have one held-out part, that is the test, and val is drawn from train; where they have none, both are
    drawn. Drawn parts hold the same share of every class. Pictures without labels that come with labelled ones (STL-10)
    are for training, and then "label" is in no row the objective sees.

    Args:
        device: of batches.
        dataset: "photographs" or "digits", see ``envs.image_sets``; or
        path: a folder or tar archive, see ``envs.image_layouts``; then ``dataset`` is not used.
        size: side of the pictures in pixels, see ``envs.image_files.decode``; None keeps them, if all are alike.
        is_enlarged: whether smaller pictures are enlarged; else they count as broken files.
        max_bad_share: of broken files. Up to it they are left out, and named in ``notes``; beyond it data are refused.
        val_share, test_share, split_seed: of drawn parts.
        ignored_label: of dense labels: no class.
        cache_dir: of decoded pictures. workers: threads that decode; None one a core.
        max_device_bytes: more than that stays on disk, memory-mapped.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: for data that are no pictures, broken, or too few, by name.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        dataset: str | None = "photographs",
        path: str | os.PathLike[str] | None = None,
        size: int | None = 32,
        is_enlarged: bool = True,
        max_bad_share: int | float = 0.01,
        val_share: int | float = 0.1,
        test_share: int | float = 0.1,
        split_seed: int = 42,
        ignored_label: int = 11,
        cache_dir: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        max_device_bytes: int = 8 * 2**30,
    ) -> None:
        if size is not None and size < 1:
            raise ValueError(f"env.size={size}: at least one pixel, or null")
        if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
            raise ValueError(f"val_share={val_share}, test_share={test_share}: each above 0, and a rest for training")
        shares = {"val_share": float(val_share), "test_share": float(test_share), "seed": split_seed}
        self._tree: Tree | None = None
        self._reading: Mapping[str, Any] = {"size": size, "is_enlarged": is_enlarged, "workers": workers}
        self._ignored = ignored_label
        if path is not None:
            self._tree = open_tree(path)
            data = decoded(self._tree, max_bad_share=float(max_bad_share), cache_dir=cache_dir, **self._reading)
        elif dataset is None:
            raise ValueError(f"pictures come from env.dataset ({', '.join(NAMED)}) or from env.path; both are null")
        else:
            data = from_arrays(named_pictures(dataset, size, **shares), size)
        self.layout, self.notes = data.layout, data.notes
        parts = split_parts(data, **shares)
        ranges, first = {}, 0
        for name, index in parts.items():
            ranges[name] = (first, first + len(index))
            first += len(index)
        self.ranges: dict[str, tuple[int, int]] = ranges
        order = np.concatenate(list(parts.values()))
        store = PictureStore(data, order, device=torch.device(device), max_device_bytes=max_device_bytes)
        super().__init__(
            store,
            torch.from_numpy(data.labels[order]).to(device),
            first=0,
            last=ranges["unlabeled"][1],  # train, and what has no labels
            classes=data.classes,
            has_labels=bool(data.classes) and not len(parts["unlabeled"]),
        )

    def split(self, name: str) -> Pictures:
        """A source of "train", "val" or "test" alone, with labels if the data have any."""
        first, last = self._between(name)
        labelled = bool(self.classes)
        return Pictures(self._store, self._labels, first=first, last=last, classes=self.classes, has_labels=labelled)

    def part(self, name: str) -> Part:
        """Labelled pictures of "train", "val" or "test"; mapped ones are copied to the device.

        Raises:
            ValueError: if there are no labels.
        """
        first, last = self._between(name)
        if not self.classes:
            raise ValueError(
                f"the pictures of {self._where} have no labels to be probed: put each class into a folder of its own, "
                "or switch off what asks for them (eval.probe=null eval.knn=null)"
            )
        obs = TensorDict({PIXELS: self._store.between(first, last)}, [last - first], device=self.device)
        return Part(obs, self._labels[first:last])

    def dense(self, name: str) -> Dense:
        """Frames of "train", "val" or "test" with a class for every pixel, in the order of their names, on the CPU.

        Raises:
            ValueError: if the data have no dense labels.
        """
        if self._tree is None or not has_dense_labels(self._tree):
            raise ValueError(
                f"{self._where} has no dense labels: CamVid's folders train, trainannot, val, valannot, test, "
                "testannot are needed in env.path"
            )
        self._between(name)
        return read_dense(self._tree, name, ignored=self._ignored, **self._reading)

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, for JSON."""
        return {
            "path": str(self._tree.path.resolve()) if self._tree else None,
            "layout": self.layout,
            "shape": list(self._store.shape),
            "classes": list(self.classes),
            "rows": {name: last - first for name, (first, last) in self.ranges.items()},
            "notes": list(self.notes),
        }

    @property
    def _where(self) -> str:
        return str(self._tree.path) if self._tree else self.layout

    def _between(self, name: str) -> tuple[int, int]:
        if name not in JUDGED:
            raise ValueError(f"there is no part {name}; parts are {', '.join(JUDGED)}")
        return self.ranges[name]


def split_parts(data: Decoded, *, val_share: float, test_share: float, seed: int) -> dict[str, np.ndarray]:
    """Which pictures are in "train", "unlabeled", "val" and "test", int64 [n] each.

    Raises:
        ValueError: if there is no training picture, or too few to draw a part from.
    """
    found = {name: np.flatnonzero(data.parts == code) for code, name in enumerate(PARTS)}
    whole = found.pop("")
    if len(whole):
        found["train"] = whole
    if not len(found["train"]):
        have = ", ".join(name for name, index in found.items() if len(index))
        raise ValueError(f"there are pictures of {have} and none to train on: name their folder train")
    if not len(found["test"]):  # the one part held out is what is judged
        found["val"], found["test"] = found["test"], found["val"]
    random = np.random.default_rng(seed)
    total = len(found["train"])
    for name, share in (("test", test_share), ("val", val_share)):
        if not len(found[name]):
            rest = len(found["train"]) / total  # shares are of all, as long as both are drawn
            found[name], found["train"] = _drawn(data, found["train"], share / rest, random)
            if not len(found[name]) or not len(found["train"]):
                raise ValueError(
                    f"{total} pictures are too few to draw {name} of {share:.0%} from; name folders {name}"
                )
    return {name: found[name] for name in PARTS if name}


def _drawn(
    data: Decoded, index: np.ndarray, share: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A ``share`` of the pictures ``index`` of every class, and the rest; a group goes one way."""
    groups, labels = data.groups[index], data.labels[index]
    alone = groups == UNKNOWN
    groups = np.where(alone, groups.max(initial=0) + 1 + np.arange(len(index)), groups)
    units, first, owner = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = random.permutation(len(units))
    by_class = shuffled[np.argsort(labels[first[shuffled]], kind="stable")]
    # Every so many along this line: as even over the classes as whole numbers allow, and right in sum.
    count = np.floor(share * np.arange(len(units) + 1) + 1e-9)
    chosen = np.zeros(len(units), bool)
    chosen[by_class] = np.diff(count) > 0
    is_drawn = chosen[owner]
    return index[is_drawn], index[~is_drawn]
