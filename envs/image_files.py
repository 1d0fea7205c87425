"""Picture files: folders and tar archives of them, and one file's bytes as red, green and blue.

Needs Pillow: pip install 'worldmodels[images]'.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import struct
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

try:
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    raise ImportError("pictures need Pillow: pip install 'worldmodels[images]'") from error

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def is_picture(name: str) -> bool:
    """Whether a file's name ends like a picture's."""
    return name.lower().endswith(ENDINGS)


class Tree(ABC):
    """Files below a folder, wherever it is. Hidden files and folders do not count."""

    path: Path
    marks: str
    """Changes when the content does."""
    empty: tuple[str, ...] = ()
    """Folders without anything in them, as far as the tree can tell."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Paths of all files, sorted, from the first folder that does more than wrap another, with "/"."""

    @abstractmethod
    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Name and content of each of these files, in an order of the tree's own."""

    def read(self, name: str) -> bytes:
        """Content of one file."""
        return next(iter(self.contents([name])))[1]


class Folder(Tree):
    """Files of a folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found: list[str] = []
        marks, empty = hashlib.sha256(str(path.resolve()).encode()), []
        for folder, folders, files in os.walk(path, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if not folders and not files:
                empty.append(Path(folder).relative_to(path).as_posix())
            for name in sorted(files):
                if not name.startswith("."):
                    file = Path(folder, name)
                    facts = file.stat()
                    found.append(file.relative_to(path).as_posix())
                    marks.update(f"{found[-1]}/{facts.st_size}/{facts.st_mtime_ns}".encode())
        self._top, names = common_top(found)
        self._names, self.marks, self.empty = tuple(sorted(names)), marks.hexdigest(), tuple(empty)

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of all files."""
        return self._names

    def path_of(self, name: str) -> Path:
        """Where the file ``name`` lies."""
        return self.path / self._top / name

    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """In the order asked for."""
        for name in names:
            yield name, self.path_of(name).read_bytes()


class Archive(Tree):
    """Files of a tar archive, compressed or not, which is read from front to back and never unpacked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        facts = path.stat()
        self.marks = hashlib.sha256(f"{path.resolve()}/{facts.st_size}/{facts.st_mtime_ns}".encode()).hexdigest()

    @functools.cached_property
    def _listing(self) -> tuple[str, tuple[str, ...]]:
        top, names = common_top([name for name, _ in self._members(lambda name: False)])
        return top, tuple(sorted(names))

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of all files; the first time, the archive is read through."""
        return self._listing[1]

    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """In the order of the archive, which is read no further than needed."""
        top = f"{self._listing[0]}/" if self._listing[0] else ""
        wanted = {top + name for name in names}
        for name, data in self._members(wanted.__contains__):
            if name in wanted:
                wanted.remove(name)
                yield name.removeprefix(top), data
                if not wanted:
                    return

    def _members(self, is_read: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """All files, with the content of those that ``is_read`` names."""
        try:
            with tarfile.open(self.path, "r|*") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    if member.isfile() and not any(part.startswith(".") for part in name.split("/")):
                        file = tar.extractfile(member) if is_read(name) else None
                        yield name, file.read() if file is not None else b""
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{self.path} is no readable tar archive: {error or type(error).__name__}") from error


def open_tree(path: str | os.PathLike[str]) -> Tree:
    """The files of a folder or an archive.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is neither.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"env.path={path}: there is no such folder or archive")
    if place.is_file() and not place.name.lower().endswith(_ARCHIVES):
        raise ValueError(f"env.path={path}: a folder of pictures or a tar archive ({', '.join(_ARCHIVES)})")
    return Archive(place) if place.is_file() else Folder(place)


def common_top(names: list[str]) -> tuple[str, list[str]]:
    """The folder that only wraps all others ("" if there is none), and the names below it.

    A folder with pictures of its own wraps nothing: it may be a class.
    """
    tops = {name.split("/", 1)[0] for name in names}
    inner = [name.split("/", 1)[-1] for name in names]
    is_owner = any("/" not in name and is_picture(name) for name in inner)
    if len(tops) != 1 or is_owner or names == inner or (top := tops.pop()) in PART_NAMES:
        return "", names
    further, rest = common_top(inner)
    return f"{top}/{further}".rstrip("/"), rest


PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Folders that name a part of the data, and that part."""


class Unreadable(ValueError):
    """A file that is no whole picture."""


def decode(data: bytes, size: int | None, *, is_enlarged: bool = True) -> np.ndarray:
    """One picture file as uint8 [3, H, W], red, green, blue.

    * Grey, black and white, and palettes become colours. What is transparent lies on white.
    * 16-bit grey, 0..65535, is divided by 257. 16-bit colours keep their upper byte (that is how Pillow opens them).
    * CMYK is converted without a colour profile, as (255 - ink) (255 - black) / 255. Colour profiles are not applied.
    * Of several frames the first counts. A photograph is turned as its camera noted (EXIF).
    * The shorter side becomes ``size`` (bicubic, antialiased), and the middle of the longer one is kept.

    Args:
        data: content of the file.
        size: S, side of the result; None keeps the picture as large as it is.
        is_enlarged: whether pictures smaller than ``size`` are enlarged.

    Raises:
        Unreadable: saying why.
    """
    if not data:
        raise Unreadable("is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if size is not None:
                image.draft(None, (2 * size, 2 * size))  # large JPEGs are decoded at a half, a quarter, an eighth
            colours = to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:  # its own words name an address in memory
        raise Unreadable("is no readable picture: its content is of no known kind") from error
    except _BROKEN as error:
        raise Unreadable(f"is no readable picture: {str(error) or type(error).__name__}") from error
    return fit(colours, size, is_enlarged=is_enlarged)


def upright_size(data: bytes) -> tuple[int, int]:
    """Height and width of a picture that ``decode`` reads, turned as its camera noted; only its header is read."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        is_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (width, height) if is_turned else (height, width)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in mode RGB; see ``decode``."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"grey values of mode {image.mode} from {grey.min()} to {grey.max()} are not 16 bits")
        return Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, size: int | None, *, is_enlarged: bool = True) -> np.ndarray:
    """Resize the shorter side to ``size`` and keep the middle: uint8 [3, S, S]; see ``decode``."""
    width, height = image.size
    if size is not None and (width, height) != (size, size):
        if min(width, height) < size and not is_enlarged:
            raise Unreadable(
                f"is {width} x {height} pixels, smaller than env.size={size} (env.is_enlarged=true enlarges)"
            )
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=middle(width, height))
    return np.asarray(image).transpose(2, 0, 1)


def middle(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest square in the middle."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
