"""KITTI object text: one object a line, 15 columns for labels, a 16th (score) for results.

    type truncated occluded alpha  left top right bottom  height width length  x y z  rotation_y  [score]

Pixels in the image, metres and radians in the rectified camera frame (x right, y down, z forward). The location is the
centre of the box's BOTTOM face. Nothing here imports torch.

Source: KITTI object benchmark; sheet ad_l_jepa, section 3.1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldmodels.files import atomic_write

DONT_CARE = "DontCare"  # a region of the image without a box; its other columns are fillers
COLUMNS = (
    "type truncated occluded alpha left top right bottom height width length x y z rotation_y score".split()
)  # as in a line


@dataclass(frozen=True, eq=False)
class Objects:
    """The N objects of a frame, float64 unless said otherwise."""

    type: list[str]  # N words, any: Car, Van, Pedestrian, ..., DontCare
    truncated: np.ndarray  # [N], share of the object outside the image, 0..1; -1 unknown
    occluded: np.ndarray  # int64 [N], 0 visible, 1 partly, 2 largely, 3 unknown; -1 in results
    alpha: np.ndarray  # [N], observation angle, radians; -10 unknown
    bbox: np.ndarray  # [N, 4], left, top, right, bottom in pixels
    size: np.ndarray  # [N, 3], height, width, length in metres
    location: np.ndarray  # [N, 3], bottom centre, camera frame, metres
    rotation_y: np.ndarray  # [N], radians about the camera's y axis
    score: np.ndarray | None = None  # [N] for results, None for labels

    def __len__(self) -> int:
        return len(self.type)

    def select(self, index: np.ndarray | Sequence[int]) -> Objects:
        """The objects at ``index``: positions, or a bool [N]."""
        found = np.arange(len(self))[np.asarray(index)] if len(index) else np.arange(0)
        score = None if self.score is None else self.score[found]
        arrays = (self.truncated, self.occluded, self.alpha, self.bbox, self.size, self.location, self.rotation_y)
        return Objects([self.type[i] for i in found], *(array[found] for array in arrays), score)


def read_objects(path: str | os.PathLike[str], *, has_score: bool | None = None) -> Objects:
    """Read a label or result file.

    Args:
        path: the file; an empty one holds no objects.
        has_score: whether its lines have 16 columns (results) or 15 (labels); None takes what the first line has.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: naming file, line and column of what is wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text file") from error
    return parse_objects(text, where=str(file), has_score=has_score)


def parse_objects(text: str, *, where: str = "text", has_score: bool | None = None) -> Objects:
    """Objects of KITTI ``text``; ``where`` names it in errors. See ``read_objects``."""
    numbered = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if has_score is None:
        has_score = bool(numbered) and len(numbered[0][1]) == len(COLUMNS)
    wanted = len(COLUMNS) if has_score else len(COLUMNS) - 1
    for number, words in numbered:
        if len(words) != wanted:
            kind = "a result has 16" if has_score else "a label has 15"
            raise ValueError(f"{where}, line {number}: {len(words)} columns; {kind}")
    types = [words[0] for _, words in numbered]
    values = _numbers(numbered, wanted - 1, where)
    _check(types, values, [number for number, _ in numbered], where)
    return Objects(
        type=types,
        truncated=values[:, 0],
        occluded=values[:, 1].astype(np.int64),
        alpha=values[:, 2],
        bbox=values[:, 3:7],
        size=values[:, 7:10],
        location=values[:, 10:13],
        rotation_y=values[:, 13],
        score=values[:, 14] if has_score else None,
    )


def format_objects(objects: Objects, *, decimals: int = 4) -> str:
    """KITTI text of ``objects``, a line each; with scores if there are any.

    Raises:
        ValueError: naming what ``read_objects`` would not read back.
    """
    columns = [objects.truncated, objects.occluded, objects.alpha, *objects.bbox.T, *objects.size.T]
    columns += [*objects.location.T, objects.rotation_y, *([] if objects.score is None else [objects.score])]
    if bad := [name for name in objects.type if len(name.split()) != 1]:
        raise ValueError(f"type {bad[0]!r} is not one word")
    values = np.stack([np.asarray(column, np.float64) for column in columns], 1)
    _check(objects.type, values.round(decimals), list(range(1, len(objects) + 1)), "objects")
    lines = []
    for name, row in zip(objects.type, values.tolist(), strict=True):
        words = [f"{value:.{decimals}f}" for value in row]
        words[1] = str(int(row[1]))
        lines.append(f"{name} {' '.join(words)}\n")
    return "".join(lines)


def write_objects(path: str | os.PathLike[str], objects: Objects, *, decimals: int = 4) -> None:
    """Write ``objects`` to ``path``, whole or not at all. See ``format_objects``."""
    atomic_write(path, format_objects(objects, decimals=decimals))


def _numbers(numbered: list[tuple[int, list[str]]], width: int, where: str) -> np.ndarray:
    """All columns but the type, float64 [N, width]."""
    try:
        return np.array([words[1:] for _, words in numbered], dtype=np.float64).reshape(-1, width)
    except ValueError:
        for number, words in numbered:
            for name, word in zip(COLUMNS[1:], words[1:], strict=False):
                try:
                    float(word)
                except ValueError:
                    raise ValueError(f"{where}, line {number}: {name}={word} is not a number") from None
        raise


def _check(types: list[str], values: np.ndarray, lines: list[int], where: str) -> None:
    """Refuse numbers that no evaluation can use; ``DontCare`` has fillers instead of a box."""
    for row, column in np.argwhere(~np.isfinite(values)):
        raise ValueError(f"{where}, line {lines[row]}: {COLUMNS[column + 1]}={values[row, column]} is not finite")
    for row in np.flatnonzero(values[:, 1] != np.floor(values[:, 1])):
        raise ValueError(f"{where}, line {lines[row]}: occluded={values[row, 1]:g} is not a whole number")
    for row in np.flatnonzero((values[:, 5] < values[:, 3]) | (values[:, 6] < values[:, 4])):
        corners = " ".join(f"{value:g}" for value in values[row, 3:7])
        raise ValueError(f"{where}, line {lines[row]}: the rectangle {corners} ends before it begins")
    is_box = np.array([name != DONT_CARE for name in types], dtype=bool)
    for row in np.flatnonzero(is_box & (values[:, 7:10] <= 0).any(1)):
        size = " ".join(f"{value:g}" for value in values[row, 7:10])
        raise ValueError(f"{where}, line {lines[row]}: height width length {size} of a {types[row]} must be positive")
