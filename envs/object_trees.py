"""3DIEBench's layout: a folder a class, in it a folder an object, in it its views. Read, and written.

::

    ROOT/02691156/1a04e3eab45ca15dd86060f189eb133/image_0.jpg     square picture, 256 pixels in 3DIEBench
                                                  latent_0.npy    seven numbers: ``envs.object_scene.TRANSFORMATIONS``
    ROOT/train_images.npy, ROOT/val_images.npy                    optional: "/02691156/1a04.../" of each part's objects

Source: Garrido et al., Self-Supervised Learning of Split Invariant Equivariant Representations, ICML 2023.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.object_cache import PIXELS_FILE, TABLE_FILE, ObjectViews
from worldmodels.files import atomic_write_json

_LISTS = {"train": "train_images.npy", "test": "val_images.npy"}  # 3DIEBench has two parts; its val is what is reported
_QUALITY = 95  # of JPEG files


def pillow() -> Any:
    """PIL.Image.

    Raises:
        ImportError: naming what to install.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"pictures are read by Pillow ({error}): pip install 'worldmodels[images]'") from error
    return Image


def list_objects(root: Path) -> list[str]:
    """Names "class/object" of all objects below ``root``, sorted.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no objects in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"env.path={root}: there is no such folder; it needs <class>/<object>/image_0.jpg, ...")
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")]
    names = [
        f"{folder}/{entry.name}"
        for folder in sorted(folders)
        for entry in os.scandir(root / folder)
        if entry.is_dir() and not entry.name.startswith(".")
    ]
    if not names:
        raise ValueError(f"env.path={root}: no objects; 3DIEBench has <class>/<object>/image_0.jpg, latent_0.npy")
    return sorted(names)


def count_views(root: Path, name: str) -> int:
    """Views of one object, numbered from 0."""
    numbers = {int(file.stem[6:]) for file in (root / name).glob("image_*.jpg") if file.stem[6:].isdecimal()}
    return next(i for i in range(len(numbers) + 1) if i not in numbers)


def settings_of(root: Path, names: Sequence[str], *, views: int | None, size: int) -> dict[str, Any]:
    """What the decoded pictures depend on; another tree, or one that changed, gives other settings.

    Args:
        root: of the tree. names: of the objects wanted. views: of each; None takes as many as the first object has.
        size: of decoded pictures, pixels.
    """
    there = count_views(root, names[0])
    views = there if views is None else views
    if not 2 <= views <= there:
        raise ValueError(f"env.views={views}: from 2 to {there}, as {root / names[0]} has {there}")
    if size < 8:
        raise ValueError(f"env.size={size}: pictures have at least 8 pixels a side")
    marks = "\n".join(f"{name} {(root / name).stat().st_mtime_ns}" for name in names)
    digest = hashlib.sha256(marks.encode()).hexdigest()
    return {"tree": str(root.resolve()), "objects": digest, "views": views, "size": size}


def decode(settings: dict[str, Any], names: Sequence[str]) -> ObjectViews:
    """Read all views of some objects, pictures scaled down to "size".

    Raises:
        FileNotFoundError: a view is missing.
        ValueError: a picture or a table that cannot be read, is not square, too small, or not of seven finite numbers.
    """
    root, views, size = Path(settings["tree"]), settings["views"], settings["size"]
    pixels = np.empty((len(names), views, 3, size, size), np.uint8)
    table = np.empty((len(names), views, 7), np.float32)
    for i, name in enumerate(names):
        for j in range(views):
            pixels[i, j] = read_picture(root / name / f"image_{j}.jpg", size)
            table[i, j] = read_latent(root / name / f"latent_{j}.npy")
    return ObjectViews(pixels, table)


def read_picture(path: Path, size: int) -> np.ndarray:
    """RGB uint8 [3, size, size] of a square picture at least that large; gray and CMYK are turned to RGB."""
    image = pillow()
    try:
        with image.open(path) as file:
            picture = file.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; env.views counts views that every object has") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files depends on where
        raise ValueError(f"{path}: not a picture that can be read ({error})") from error
    width, height = picture.size
    if width != height or width < size:
        raise ValueError(f"{path} has {height} x {width} pixels; a square of at least env.size={size} is needed")
    if width > size:
        picture = picture.resize((size, size), image.Resampling.BILINEAR)  # Pillow averages when it scales down
    return np.asarray(picture).transpose(2, 0, 1)


def read_latent(path: Path) -> np.ndarray:
    """The seven numbers of a view, float64 [7]."""
    try:
        numbers = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; it has the seven numbers of image_*.jpg beside it") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not an array that can be read ({error})") from error
    if numbers.shape != (7,) or numbers.dtype.kind != "f" or not np.isfinite(numbers).all():
        raise ValueError(f"{path}: {numbers.dtype} {list(numbers.shape)}, but seven finite numbers are needed")
    return numbers


def published_split(root: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Object numbers of "train" and "test", where the tree has 3DIEBench's two lists; None where it has not.

    Raises:
        ValueError: an object in neither list or in both.
    """
    paths = {part: root / file for part, file in _LISTS.items()}
    if not all(path.exists() for path in paths.values()):
        return None
    listed = {part: {str(n).strip("/") for n in np.load(path, allow_pickle=False)} for part, path in paths.items()}
    for name in names:
        if (count := sum(name in some for some in listed.values())) != 1:
            where = " and ".join(_LISTS.values())
            raise ValueError(f"{root}: {name} is in {count} of {where}; every object belongs to one of them")
    return {part: np.array([i for i, n in enumerate(names) if n in some], int) for part, some in listed.items()}


def write_object(root: str, name: str, folder: str, index: int) -> None:
    """Write object ``index`` of a folder of views (``envs.object_cache``) as ``root/name``, unless it is there.

    The folder of an object appears when all its files are written.
    """
    final = Path(root) / name
    if final.exists():
        return
    image, hidden = pillow(), final.with_name(f".{final.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    pixels, table = _opened(folder)
    for j, (picture, numbers) in enumerate(zip(pixels[index], table[index], strict=True)):
        content = io.BytesIO()
        image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(content, "JPEG", quality=_QUALITY)
        (hidden / f"image_{j}.jpg").write_bytes(content.getvalue())
        np.save(hidden / f"latent_{j}.npy", numbers.astype(np.float64))
    hidden.rename(final)


@functools.cache
def _opened(folder: str) -> tuple[np.ndarray, np.ndarray]:
    return np.load(Path(folder) / PIXELS_FILE, mmap_mode="r"), np.load(Path(folder) / TABLE_FILE, mmap_mode="r")


def claim_tree(root: Path, settings: Mapping[str, Any]) -> None:
    """Note in ``root`` what its pictures are; refuses one that holds others.

    Raises:
        ValueError: if it does.
    """
    note = root / "provenance.json"
    if note.exists():
        if json.loads(note.read_text())["settings"] != dict(settings):
            raise ValueError(f"out={root} holds pictures of other settings; choose another out")
    elif root.exists() and any(root.iterdir()):
        raise ValueError(f"out={root} is not empty and was not written here; choose another out")
    atomic_write_json(note, {"made_by": "envs.render_objects: pybullet's objects", "settings": dict(settings)})
