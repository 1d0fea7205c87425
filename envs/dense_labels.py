"""Pictures with a class for every pixel, in CamVid's layout: train/<name>.jpg beside trainannot/<name>.png.

Read when asked for: sets with dense labels are small.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from envs.image_cache import decode_files
from envs.image_files import Tree, Unreadable, decode, is_picture, middle, upright_size
from envs.image_layouts import ANNOTATIONS, place_of


class Dense(NamedTuple):
    """Labelled frames, in the order of their file names."""

    pixels: Tensor  # uint8 [N, 3, H, W]
    labels: Tensor  # uint8 [N, H, W]; ``ignored``, or a class below ``num_classes``
    num_classes: int
    ignored: int  # no class
    names: tuple[str, ...]  # of the picture files, without ending; the frames of a film share their beginning


def has_dense_labels(tree: Tree) -> bool:
    """Whether there are folders of dense labels."""
    return any(name.split("/")[0] in ANNOTATIONS for name in tree.names)


def read_dense(
    tree: Tree, part: str, *, size: int | None, is_enlarged: bool, ignored: int, workers: int | None
) -> Dense:
    """The frames of a part.

    Pictures are resized as everywhere (``envs.image_files.decode``); labels take the nearest pixel.

    Args:
        part: "train", "val" or "test".
        ignored: the label that is no class. All others, of all parts, must be below ``num_classes``: the greatest + 1.

    Raises:
        ValueError: if there are none; if a picture has no labels, or labels of another size (where both are resized: of
            other proportions); if a file is broken: here every one counts.
    """
    labels = {
        name: (ANNOTATIONS[name.split("/")[0]], _stem(name))
        for name in tree.names
        if is_picture(name) and name.split("/")[0] in ANNOTATIONS
    }
    frames = {name: (place_of(name)[0], _stem(name)) for name in tree.names if is_picture(name) and name not in labels}
    wanted = sorted(name for name, (owner, _) in frames.items() if owner == part)
    if not wanted:
        raise ValueError(f"env.path={tree.path}: no labelled frames of {part}: {part}/*.jpg with {part}annot/*.png")
    by_frame = {frame: name for name, frame in labels.items()}
    if missing := [name for name in wanted if frames[name] not in by_frame]:
        raise ValueError(f"{tree.path}: {missing[0]} has no labels in {part}annot ({len(missing)} such frames)")
    pixels = _read(
        tree, wanted, lambda data: (decode(data, size, is_enlarged=is_enlarged), upright_size(data)), workers
    )
    # Classes are counted over all parts, so that probes of train and test agree.
    maps = _read(tree, sorted(labels), lambda data: _decode_labels(data, size), workers)
    classes = [np.unique(found[found != ignored]) for found, _ in maps.values()]
    greatest = max((int(found[-1]) for found in classes if len(found)), default=0)
    chosen = [by_frame[frames[name]] for name in wanted]
    for name, label in zip(wanted, chosen, strict=True):
        (height, width), (tall, wide) = pixels[name][1], maps[label][1]
        is_alike = abs(height * wide - tall * width) <= 0.01 * height * wide  # rounding of a smaller copy
        if (height, width) != (tall, wide) and (size is None or not is_alike):
            shapes = f"[{height}, {width}] and [{tall}, {wide}]"
            what = "; copies of the same proportions fit with env.size=" if is_alike else ": no pixel knows its label"
            raise ValueError(f"{tree.path}: {name} and {label} differ in size: {shapes}{what}")
    if len({frame.shape for frame, _ in pixels.values()}) > 1:
        raise ValueError(f"{tree.path}: the frames of {part} are not of one size; give env.size=")
    return Dense(
        torch.from_numpy(np.stack([pixels[name][0] for name in wanted])),
        torch.from_numpy(np.stack([maps[label][0] for label in chosen])),
        greatest + 1,
        ignored,
        tuple(_stem(name) for name in wanted),
    )


_Sized = tuple[np.ndarray, tuple[int, int]]
"""A picture or its labels, and the height and width that they have in their file."""


def _read(tree: Tree, names: list[str], one: Callable[[bytes], _Sized], workers: int | None) -> dict[str, _Sized]:
    found: dict[str, _Sized] = {}
    for name, result in decode_files(tree, names, one, workers=workers):
        if isinstance(result, Unreadable):
            raise ValueError(f"{tree.path}: {name} {result}")
        found[name] = result
    return found


def _decode_labels(data: bytes, size: int | None) -> _Sized:
    """Class indices uint8 [H, W], of a grey or palette picture of 8 bits; the palette's colours do not count."""
    if not data:
        raise Unreadable("is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("L", "P"):
                raise Unreadable(f"is a picture of mode {image.mode}; labels are grey values or palette entries")
            width, height = image.size
            if size is not None:
                image = image.resize((size, size), Image.Resampling.NEAREST, box=middle(*image.size))
            return np.asarray(image), (height, width)
    except (OSError, SyntaxError) as error:
        raise Unreadable(f"is no readable picture: {error}") from error


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
