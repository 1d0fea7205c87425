"""Which videos there are: lists of Kinetics' and Something-Something's kind, folders, WebDataset's tar shards.

A list has no header and a line a video, its path and its class with one space between, or "::" where paths have spaces;
paths are relative to the list's folder. A folder's classes are its folders, below train, val and test or without. A
shard is a plain tar with KEY.mp4 beside KEY.cls or KEY.json; videos are read where they lie in it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs.image_files import Archive, Folder, Tree, is_picture, open_tree
from envs.image_layouts import UNKNOWN, place_of
from envs.video_files import ENDINGS, Place, is_video

_LABEL_KEYS = ("label", "class", "cls")
_BRACES = re.compile(r"^(.*)\{(\d+)\.\.(\d+)\}(.*)$")


class Listing(NamedTuple):
    """Videos and what is said of them."""

    names: tuple[str, ...]
    """As messages call them, [N]."""
    places: tuple[Place, ...]
    parts: tuple[str, ...]
    """"train", "val", "test", or "" where nothing says so."""
    labels: tuple[str, ...]
    """As written; "" where there is none."""
    layout: str
    """"list", "folder" or "shards"; several with "+" between."""
    notes: tuple[str, ...] = ()

    @property
    def marks(self) -> str:
        """Changes when a file does."""
        marks = hashlib.sha256()
        facts: dict[str, str] = {}
        for place in self.places:
            if place.path not in facts:
                facts[place.path] = _stamp(place.path)
            marks.update(f"{place.path}/{facts[place.path]}/{place.offset}/{place.size}\n".encode())
        return marks.hexdigest()


def find_videos(path: str | os.PathLike[str]) -> Listing | Tree:
    """The videos at ``path``: a list, a folder, a tar, or tars as "shard-{000..009}.tar" or "shard-*.tar".

    Returns:
        their listing; or, of a folder or archive without videos but with pictures, the tree of its files.

    Raises:
        FileNotFoundError: if there is nothing there.
        ValueError: if nothing there is a video or a picture, or a list or a shard is damaged.
    """
    text = os.path.expanduser(os.fspath(path))
    if shards := _shards(text):
        return _read_shards(shards)
    place = Path(text)
    if place.is_file() and place.suffix == ".tar":
        found = _read_shards([place])
        return found if found.names else _pictures(place)
    if place.is_dir():
        return _read_folder(place)
    if not place.exists():
        raise FileNotFoundError(f"env.path={path}: there is no such list, folder or shard")
    if is_video(place.name):
        raise ValueError(f"env.path={path} is one video; give a list, a folder or tar shards of them")
    if ".tar" in place.suffixes or place.suffix == ".tgz":
        tree = open_tree(place)
        if any(map(is_video, tree.names)):
            raise ValueError(f"env.path={path}: videos are read where they lie, so the archive must be a plain .tar")
        return _pictures(place)
    return _read_list(place)


def joined(listings: Sequence[tuple[str, Listing]]) -> Listing:
    """Listings end to end; the name before each is the part of those videos whose listing does not tell."""
    every = [listing for _, listing in listings]
    return Listing(
        tuple(name for listing in every for name in listing.names),
        tuple(place for listing in every for place in listing.places),
        tuple(part or name for name, listing in listings for part in listing.parts),
        tuple(label for listing in every for label in listing.labels),
        "+".join(dict.fromkeys(listing.layout for listing in every)),
        tuple(note for listing in every for note in listing.notes),
    )


def numbered(labels: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int64 [N], UNKNOWN where there is none, and the names of classes; numbers stay what they are.

    Raises:
        ValueError: if some labels are numbers and others are names.
    """
    given = sorted(set(labels) - {""})
    numbers = [label for label in given if re.fullmatch(r"-?\d+", label)]
    if numbers and len(numbers) < len(given):
        other = next(label for label in given if label not in numbers)
        raise ValueError(f"labels are numbers or names, not both: there are {numbers[0]} and {other!r}")
    if numbers:
        code = {label: max(int(label), UNKNOWN) for label in given}
        classes = tuple(str(number) for number in range(max(code.values()) + 1))
    else:
        code, classes = {label: number for number, label in enumerate(given)}, tuple(given)
    return np.asarray([code.get(label, UNKNOWN) for label in labels], np.int64), classes


def _read_list(path: Path) -> Listing:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"env.path={path} is no list of videos: it is no text") from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"env.path={path}: the list is empty")
    separator = "::" if all("::" in line for _, line in rows) else " "
    names, labels = [], []
    for number, line in rows:
        fields = line.strip().split(separator)
        if len(fields) > 2:
            raise ValueError(
                f"{path}, line {number}: {len(fields)} fields, but a path and a label are needed; where paths have "
                "spaces, write :: between the two, in every line"
            )
        names.append(fields[0].strip())
        labels.append(fields[1].strip() if len(fields) == 2 else "")
    places = tuple(Place(os.path.join(path.parent.resolve(), name)) for name in names)  # absolute ones stay
    return Listing(tuple(names), places, ("",) * len(names), tuple(labels), "list")


def _read_folder(path: Path) -> Listing | Tree:
    tree = Folder(path)
    videos = [name for name in tree.names if is_video(name)]
    if not videos:
        if shards := [tree.path_of(name) for name in tree.names if name.endswith(".tar")]:
            return _read_shards(shards)
        return _pictures(path, tree)
    notes = []
    if num := sum(map(is_picture, tree.names)):
        notes.append(f"{path}: {num} pictures beside the videos are left out")
    found = [place_of(name) for name in videos]
    loose = [name for name, (_, owner) in zip(videos, found, strict=True) if not owner]
    if loose and len(loose) < len(videos):
        raise ValueError(f"env.path={path}: {len(loose)} videos lie beside the class folders: {loose[0]}, ...")
    places = tuple(Place(str(tree.path_of(name).resolve())) for name in videos)
    parts, labels = tuple(part for part, _ in found), tuple(owner for _, owner in found)
    if len(set(labels)) == 1 and labels[0]:
        notes.append(f"{path}: all videos are of one class, {labels[0]}")
    return Listing(tuple(videos), places, parts, labels, "folder", tuple(notes))


def _shards(text: str) -> list[Path]:
    """Archives named by a pattern of braces or stars; none if ``text`` is no such pattern."""
    if match := _BRACES.match(text):
        head, first, last, tail = match.groups()
        numbers = range(int(first), int(last) + 1)
        paths = [Path(f"{head}{number:0{len(first)}d}{tail}") for number in numbers]
        if missing := [path for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"env.path={text}: {len(missing)} shards are not there, first {missing[0]}")
        if not paths:
            raise ValueError(f"env.path={text}: the braces name no shard")
        return paths
    if "*" in text and not Path(text).exists():
        paths = [Path(name) for name in sorted(glob.glob(text))]
        if not paths:
            raise FileNotFoundError(f"env.path={text}: there is no such shard")
        return paths
    return []


def _read_shards(paths: Sequence[Path]) -> Listing:
    names, places, parts, labels = [], [], [], []
    for path in paths:
        told: dict[str, str] = {}
        videos: list[tuple[str, Place]] = []
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    key, _, ending = name.rpartition(".")
                    if not member.isfile():
                        continue
                    if is_video(name):
                        videos.append((name, Place(str(path.resolve()), member.offset_data, member.size)))
                    elif ending in ("cls", "json") and (file := tar.extractfile(member)) is not None:
                        told[key] = _label(file.read(), ending, f"{path}: {name}") or told.get(key, "")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{path} is no readable tar of videos: {error or type(error).__name__}") from error
        for name, place in videos:
            part, owner = place_of(name)
            names.append(f"{path.name}/{name}")
            places.append(place)
            parts.append(part)
            labels.append(told.get(name.rpartition(".")[0], "") if told else owner)
    return Listing(tuple(names), tuple(places), tuple(parts), tuple(labels), "shards")


def _label(data: bytes, ending: str, name: str) -> str:
    """The class that a file beside a video tells; "" if it tells none."""
    try:
        content = data.decode().strip()
        if ending == "cls":
            return content
        facts = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    values = [facts[key] for key in _LABEL_KEYS if key in facts] if isinstance(facts, dict) else []
    return str(values[0]) if values and values[0] is not None else ""


def _pictures(path: Path, tree: Tree | None = None) -> Tree:
    tree = tree or Archive(path)
    if not any(map(is_picture, tree.names)):
        kinds = ", ".join(ENDINGS[:6])
        raise ValueError(f"env.path={path}: no video ({kinds}, ...) and no picture among {len(tree.names)} files")
    return tree


def _stamp(path: str) -> str:
    try:
        facts = os.stat(path)
    except OSError:
        return "missing"
    return f"{facts.st_size}/{facts.st_mtime_ns}"
