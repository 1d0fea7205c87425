"""Objects seen from many sides, as a source: a window is some distinct random views of one object.

Without ``path`` the objects are pybullet's, drawn on this machine (``envs.object_scene``); with it, those of a tree in
3DIEBench's layout (``envs.object_trees``), decoded once. "transformation" tells how each view was made.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded

from envs import object_trees, render_objects
from envs.object_cache import ObjectViews, default_folder, fill
from worldmodels.core import Policy
from worldmodels.keys import LABEL, OBSERVATION, PIXELS, TRANSFORMATION

PARTS = ("train", "val", "test")
_OBJECTS = 200  # drawn where nobody says how many


class Part(NamedTuple):
    """Labelled single pictures."""

    obs: TensorDict  # [N]
    target: Tensor  # int64 [N], classes
    transformation: Tensor  # float32 [N, 7]


class RenderedObjects:
    """Views of objects, cut into train, val and test; batches come from train, or from the part that ``split`` names.

    ``split_by="view"``: every part has every object and other views of it; objects can be recognised.
    ``split_by="object"``: every part has other objects, to judge what carries over. If 3DIEBench's own lists are in the
    tree (train_images.npy, val_images.npy), its val is "test", and "val" is drawn from its train.

    Args:
        device: of batches.
        objects: how many; None takes 200 of pybullet's, or all of a tree, of which fewer are drawn by ``split_seed``.
        views: of each object; None takes 50, or all of a tree.
        size: height and width of pictures in pixels; a tree's are scaled down.
        seed, axes, min_angle, max_angle, has_colour, has_moving_spot: of what is drawn, see
            ``envs.object_scene.draw_transformations``; of no effect with ``path``.
        path: a tree in 3DIEBench's layout.
        label_by: "object" or "class" (a tree's folders); None: the class if a tree is given.
        split_by: "view" or "object"; None: by view if labels are objects, by object if they are classes.
        val_share, test_share: of the views or objects.
        split_seed: of the parts.
        data_dir: where the array of pictures is kept; None: a folder below ~/.worldmodels for these settings.
        workers: processes that draw or decode; None takes one a core.
        max_device_bytes: more pictures than that stay on disk, memory-mapped.

    Raises:
        ValueError: a choice that cannot be; it names the key.
        FileNotFoundError: no tree at ``path``, or a view is missing in it.
        ImportError: pictures are missing and what makes them is, too.
    """

    task = "classification"

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        objects: int | None = None,
        views: int | None = None,
        size: int = 64,
        seed: int = 0,
        axes: str = "xyz",
        min_angle: int | float = 0,
        max_angle: int | float = 90,
        has_colour: bool = True,
        has_moving_spot: bool = True,
        path: str | os.PathLike[str] | None = None,
        label_by: str | None = None,
        split_by: str | None = None,
        val_share: float = 0.2,
        test_share: float = 0.2,
        split_seed: int = 0,
        data_dir: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        max_device_bytes: int = 8 * 2**30,
    ) -> None:
        self.device, self._max_bytes, self.part_name = torch.device(device), max_device_bytes, "train"
        self.label_by = _choice("label_by", label_by, ("object", "class"), "object" if path is None else "class")
        by_view = self.label_by == "object"
        self.split_by = _choice("split_by", split_by, ("view", "object"), "view" if by_view else "object")
        memory = {"data_dir": data_dir, "workers": workers}
        if path is None:
            drawn = {"size": size, "seed": seed, "axes": axes, "min_angle": min_angle, "max_angle": max_angle}
            drawn |= {"has_colour": has_colour, "has_moving_spot": has_moving_spot}
            found = self._draw(objects, views, drawn, memory)
        else:
            found = self._read(Path(path).expanduser(), objects, views, size, split_seed, memory)
        self._label_objects()
        self._keep(found)
        self._parts = self._split(val_share, test_share, split_seed)

    @property
    def num_classes(self) -> int:
        """Classes that labels tell apart."""
        return len(self.classes)

    @property
    def num_views(self) -> int:
        """Views of each object in this part: the longest window."""
        return self._rows.shape[1]

    @property
    def num_objects(self) -> int:
        """Objects of this part."""
        return len(self._rows)

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw objects uniformly, and for each ``window`` distinct views in random order.

        Returns:
            batch size [B]: pixels uint8 [B, V, 3, S, S], "transformation" float32 [B, V, 7], "label" int64 [B, V].

        Raises:
            ValueError: if an object has fewer views in this part.
        """
        objects, views = self._rows.shape
        if not 1 <= window <= views:
            raise ValueError(
                f"window={window}: from 1 to {views}, as each object has {views} of its {self.settings['views']} views "
                f"in {self.part_name}. Use fewer views a sample, or a greater env.views"
            )
        at = {"generator": generator, "device": generator.device}
        drawn = torch.randint(objects, (batch_size,), **at).to(self._rows.device)
        keys = torch.rand(batch_size, views, **at).to(self._rows.device)
        column = keys.topk(window, dim=1).indices  # [B, V] the greatest of random keys: distinct, in random order
        return self._gathered(self._rows[drawn].gather(1, column))

    def attach(self, policy: Policy | None) -> None:
        """Fixed data needs no policy."""

    def split(self, name: str) -> RenderedObjects:
        """The same source, drawing from "train", "val" or "test"; pictures are shared."""
        if name not in PARTS:
            raise ValueError(f"part {name}: there are {', '.join(PARTS)}")
        other = copy.copy(self)
        other.part_name = name
        return other

    def part(self, name: str) -> Part:
        """Every picture of "train", "val" or "test", labelled: to recognise what was seen in training.

        Raises:
            ValueError: if labels are objects and each part has others; or if the part is too large for the device.
        """
        if self.split_by == self.label_by == "object":
            raise ValueError(
                f"labels are objects and env.split_by=object: those of val and test were never seen in training, so no "
                f"probe can name them. Use env.split_by=view to recognise them; regressions draw from split({name!r})"
            )
        rows = self.split(name).pictures()
        return Part(rows[OBSERVATION], rows[LABEL], rows[TRANSFORMATION])

    def pictures(self) -> TensorDict:
        """Every row of this part, [N], object after object; for regressions, too, whatever the parts are.

        Raises:
            ValueError: if they are more than ``max_device_bytes``.
        """
        num = self._rows.numel()
        if (size := num * self._pixels[0].numel()) > self._max_bytes:
            raise ValueError(
                f"{num:,} pictures of {self.part_name} take {size / 2**30:.1f} GiB, more than env.max_device_bytes; "
                f"draw from split({self.part_name!r}), or use fewer env.objects"
            )
        return self._gathered(self._rows.flatten())

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, for JSON."""
        parts = {name: list(rows.shape) for name, rows in self._parts.items()}
        chosen = {"label_by": self.label_by, "split_by": self.split_by, "objects_and_views": parts}
        return {"data": str(self.folder), "settings": self.settings, **chosen, "objects": len(self.names)}

    @property
    def _rows(self) -> Tensor:
        return self._parts[self.part_name]

    def _gathered(self, index: Tensor) -> TensorDict:
        """Rows ``index`` int64 [B, ...], leaves [B, ..., *row]."""
        pixels = self._pixels.index_select(0, index.flatten().to(self._pixels.device)).unflatten(0, index.shape)
        pixels = pixels.to(self.device, non_blocking=True)
        seen = TensorDict({PIXELS: pixels}, index.shape)
        facts = {TRANSFORMATION: self._transformation[index], LABEL: self._label[index]}
        return TensorDict({OBSERVATION: seen, **facts}, index.shape[:1])

    def _draw(
        self, objects: int | None, views: int | None, drawn: dict[str, Any], memory: dict[str, Any]
    ) -> ObjectViews:
        """Views of pybullet's objects; sets ``settings``, ``names`` and ``folder``."""
        if self.label_by == "class":
            raise ValueError("env.label_by=class: pybullet's objects have no class; use object")
        self.settings = render_objects.settings_of(views=50 if views is None else views, **drawn)
        objects = _OBJECTS if objects is None else objects
        self.folder, found = render_objects.render_objects(self.settings, objects, **memory)
        self.names, self.published = render_objects.object_names(objects), None
        return found

    def _read(
        self, tree: Path, objects: int | None, views: int | None, size: int, seed: int, memory: dict[str, Any]
    ) -> ObjectViews:
        """Views of a tree's objects; sets ``settings``, ``names`` and ``folder``."""
        self.names = _chosen(object_trees.list_objects(tree), objects, seed)
        if self.label_by == "class" and len(folders := {name.split("/")[0] for name in self.names}) < 2:
            raise ValueError(
                f"env.path={tree}: all {len(self.names)} objects are in one folder, {folders.pop()}, so there are no "
                f"classes to tell apart. Use env.label_by=object"
            )
        self.settings = object_trees.settings_of(tree, self.names, views=views, size=size)
        self.published = object_trees.published_split(tree, self.names)
        self.folder, found = _decoded(self.settings, self.names, **memory)
        return found

    def _label_objects(self) -> None:
        """Set ``classes`` and the label of every row."""
        kinds = self.names if self.label_by == "object" else [name.split("/")[0] for name in self.names]
        self.classes = sorted(set(kinds))
        label = torch.from_numpy(np.searchsorted(self.classes, kinds))
        self._label = label.repeat_interleave(self.settings["views"]).to(self.device)

    def _keep(self, found: ObjectViews) -> None:
        """Move rows [N], object after object, to the device, or leave the pictures on disk."""
        is_small = found.pixels.nbytes <= self._max_bytes
        pixels = torch.from_numpy(np.array(found.pixels) if is_small else found.pixels).flatten(0, 1)
        self._pixels = pixels.to(self.device) if is_small else pixels
        self._transformation = torch.from_numpy(np.array(found.transformation)).flatten(0, 1).to(self.device)
        size, at = self.settings["size"], {"device": self.device}
        self.spec = Composite(
            {
                OBSERVATION: Composite({PIXELS: Bounded(0, 255, (3, size, size), dtype=torch.uint8, **at)}, **at),
                TRANSFORMATION: Unbounded((7,), **at),
                LABEL: Categorical(len(self.classes), shape=(), **at),
            },
            **at,
        )

    def _split(self, val_share: float, test_share: float, seed: int) -> dict[str, Tensor]:
        """Row numbers of each part, int64 [objects, views]."""
        rng, views, num = np.random.default_rng(seed), self.settings["views"], len(self.names)
        rows = np.arange(num * views).reshape(num, views)
        if self.split_by == "view":
            order = rng.permuted(np.tile(np.arange(views), (num, 1)), axis=1)
            cut = _cut(views, val_share, test_share, "views of an object: use a greater env.views")
            parts = {name: np.take_along_axis(rows, order[:, some], 1) for name, some in cut.items()}
        elif self.published is not None:
            train, share = rng.permutation(self.published["train"]), val_share
            num_val = max(1, round(share * len(train)))
            if num_val >= len(train) or not len(self.published["test"]):
                raise ValueError(f"{len(train)} objects of 3DIEBench's train, none to spare: use a greater env.objects")
            parts = {"train": train[num_val:], "val": train[:num_val], "test": self.published["test"]}
            parts = {name: rows[np.sort(some)] for name, some in parts.items()}
        else:
            order = rng.permutation(num)
            cut = _cut(num, val_share, test_share, "objects: use a greater env.objects, or env.split_by=view")
            parts = {name: rows[np.sort(order[some])] for name, some in cut.items()}
        return {name: torch.from_numpy(some).to(self.device) for name, some in parts.items()}


def _choice(key: str, given: str | None, choices: tuple[str, ...], default: str) -> str:
    if given is not None and given not in choices:
        raise ValueError(f"env.{key}={given}: {' or '.join(choices)}, or null for {default}")
    return default if given is None else given


def _cut(num: int, val_share: float, test_share: float, what: str) -> dict[str, slice]:
    """Places of each part among ``num`` in random order; every part has at least one."""
    if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
        raise ValueError(
            f"env.val_share={val_share}, env.test_share={test_share}: each above 0, and a rest for training"
        )
    num_val, num_test = max(1, round(val_share * num)), max(1, round(test_share * num))
    if num_val + num_test >= num:
        raise ValueError(f"three parts, each with at least one, cannot be cut from {num} {what}")
    return {
        "val": slice(0, num_val),
        "test": slice(num_val, num_val + num_test),
        "train": slice(num_val + num_test, num),
    }


def _chosen(names: list[str], objects: int | None, seed: int) -> list[str]:
    """All names, or ``objects`` of them drawn by ``seed``, sorted."""
    if objects is None:
        return names
    if not 1 <= objects <= len(names):
        raise ValueError(f"env.objects={objects}: from 1 to {len(names)}, as the tree has no more; null takes all")
    return [names[i] for i in np.sort(np.random.default_rng(seed).permutation(len(names))[:objects])]


def _decoded(
    settings: dict[str, Any], names: list[str], *, data_dir: str | os.PathLike[str] | None, workers: int | None
) -> tuple[Path, ObjectViews]:
    folder = default_folder("object_trees", settings) if data_dir is None else Path(data_dir).expanduser()
    make, ready = object_trees.decode, object_trees.pillow
    return folder, fill(folder, settings, names, make, packages=("pillow",), workers=workers, ready=ready)
