"""KITTI average precision: 2D, BEV, 3D, orientation; R11 and R40; easy, moderate, hard; cars, pedestrians, cyclists.

    python -m perception.detection.kitti_ap --labels training/label_2 --detections results --split ImageSets/val.txt

Detections are KITTI result files (16 columns), one a frame. Written from the definition in sheet ad_l_jepa, section
3.3; where its sources differ, as the benchmark's own program: a height exactly at the limit counts, and so do
detections that equal their object. With n < 41 counted objects even perfect detections score (n - 1) / 40 (R40) only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from perception.detection.kitti_matching import Curves, Pairs, Task, curves, frame_pairs
from worldmodels.files import atomic_write_json
from worldmodels.formats.kitti_text import DONT_CARE, Objects, read_objects

DIFFICULTIES = ("easy", "moderate", "hard")
MIN_HEIGHT = (40, 25, 25)  # pixels
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.3, 0.5)
CLASSES = {"Car": "Van", "Pedestrian": "Person_sitting", "Cyclist": None}  # and the neighbour that may be found
METRICS = ("bbox", "bev", "3d", "aos")
OVERLAPS = {  # a hit overlaps by more than this: bbox and aos, bev and 3d
    "strict": {"Car": (0.7, 0.7), "Pedestrian": (0.5, 0.5), "Cyclist": (0.5, 0.5)},
    "relaxed": {"Car": (0.7, 0.5), "Pedestrian": (0.5, 0.25), "Cyclist": (0.5, 0.25)},
}
LEAST_OVERLAP = 0.25
UNKNOWN_ANGLE = -10.0


class Flat(NamedTuple):
    """Objects of all frames, one after the other; N in all."""

    frame: np.ndarray  # int [N]
    kind: np.ndarray  # str [N], in lower case as the benchmark does not mind the case
    alpha: np.ndarray  # [N]
    truncated: np.ndarray  # [N]
    occluded: np.ndarray  # [N]
    bbox: np.ndarray  # [N, 4]
    boxes: np.ndarray  # [N, 7] in a frame of x right, z forward, y down: what overlap.py calls x, y, z is x, z, y here
    score: np.ndarray  # [N], 0 for labels

    @property
    def height(self) -> np.ndarray:
        """Pixels, [N]."""
        return self.bbox[:, 3] - self.bbox[:, 1]


def evaluate(truth: Sequence[Objects], detections: Sequence[Objects]) -> dict[str, dict[str, list[float]]]:
    """AP in per cent.

    Args:
        truth: labels of F frames; detections: results of the same F frames, all classes together.

    Returns:
        {"strict/Car/3d": {"R11": [easy, moderate, hard], "R40": [...]}, ...} for strict and relaxed overlaps, every
        class, and bbox, bev, 3d, aos. There is no aos if any detection's alpha is -10, which says it is not known.

    Raises:
        ValueError: if the frames do not correspond, or detections have no scores.
    """
    found = precision_curves(truth, detections)
    return {
        name: {"R11": (100 * curve[:, ::4].mean(1)).tolist(), "R40": (100 * curve[:, 1:].mean(1)).tolist()}
        for name, curve in found.items()
    }


def precision_curves(truth: Sequence[Objects], detections: Sequence[Objects]) -> dict[str, np.ndarray]:
    """Interpolated precision at recall 0, 1/40, ..., 1, [3, 41] under the names that ``evaluate`` returns."""
    if len(truth) != len(detections):
        raise ValueError(f"labels of {len(truth)} frames and detections of {len(detections)}: give one of each a frame")
    if any(objects.score is None and len(objects) for objects in detections):
        raise ValueError("detections need scores: a 16th column")
    objects, answers = _flatten(truth), _flatten(detections)
    overlapping, hidden = _overlaps(objects, answers)
    has_angles = not (answers.alpha == UNKNOWN_ANGLE).any()
    result = {}
    for level, limits in OVERLAPS.items():
        for name in CLASSES:
            for metric in ("bbox", "bev", "3d"):
                least = limits[name][metric != "bbox"]
                pairs = overlapping[metric].select(overlapping[metric].overlap > least)
                is_hidden = hidden > least if metric == "bbox" else np.zeros(len(hidden), dtype=bool)
                found = [_curves(objects, answers, pairs, is_hidden, name, difficulty) for difficulty in range(3)]
                result[f"{level}/{name}/{metric}"] = np.stack([curve.precision for curve in found])
                if metric == "bbox" and has_angles:
                    result[f"{level}/{name}/aos"] = np.stack([curve.orientation for curve in found])
    return result


def count_objects(truth: Sequence[Objects]) -> dict[str, list[int]]:
    """How many objects must be found: {"Car": [easy, moderate, hard], ...}."""
    objects = _flatten(truth)
    return {name: [int((_status(objects, name, i) == 0).sum()) for i in range(3)] for name in CLASSES}


def _curves(objects: Flat, answers: Flat, pairs: Pairs, is_hidden: np.ndarray, name: str, difficulty: int) -> Curves:
    status = _status(objects, name, difficulty)
    # The height is looked at before the class: a small detection of any class may answer, without harm or gain.
    is_small = answers.height < MIN_HEIGHT[difficulty]
    is_valid = ~is_small & (answers.kind == name.lower())
    task = Task(
        frame=objects.frame,
        is_counted=status == 0,
        is_valid=is_valid,
        is_hidden=is_hidden,
        score=answers.score,
        truth_alpha=objects.alpha,
        alpha=answers.alpha,
    )
    return curves(task, pairs.select((status >= 0)[pairs.truth] & (is_small | is_valid)[pairs.detection]))


def _status(objects: Flat, name: str, difficulty: int) -> np.ndarray:
    """Of labels, int [N]: 0 must be found, 1 may be found, -1 does not exist for this class."""
    own, neighbour = name.lower(), (CLASSES[name] or "").lower()
    is_hard = (
        (objects.occluded > MAX_OCCLUSION[difficulty])
        | (objects.truncated > MAX_TRUNCATION[difficulty])
        | (objects.height < MIN_HEIGHT[difficulty])
    )
    return np.where(objects.kind == own, is_hard.astype(int), np.where(objects.kind == neighbour, 1, -1))


def _flatten(frames: Sequence[Objects]) -> Flat:
    empty = Objects([], *(np.zeros(0),) * 3, np.zeros((0, 4)), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    parts = [empty, *frames]
    counts = [len(objects) for objects in frames]
    size, location = (np.concatenate([getattr(p, name) for p in parts]) for name in ("size", "location"))
    height, width, length = size.T
    x, bottom, z = location.T
    turn = -np.concatenate([p.rotation_y for p in parts])  # about y, which points down
    scores = [np.zeros(len(p)) if p.score is None else p.score for p in parts]
    alpha, truncated, occluded, bbox = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("alpha", "truncated", "occluded", "bbox")
    )
    return Flat(
        frame=np.repeat(np.arange(len(frames)), counts),
        kind=np.array([name.lower() for p in parts for name in p.type], dtype=str),
        alpha=alpha,
        truncated=truncated,
        occluded=occluded,
        bbox=bbox,
        boxes=np.stack([x, z, bottom - height / 2, length, width, height, turn], 1),
        score=np.concatenate(scores),
    )


def _overlaps(objects: Flat, answers: Flat) -> tuple[dict[str, Pairs], np.ndarray]:
    """Pairs that overlap by more than 0.25 for each metric, and the share of each detection in a DontCare region."""
    hidden = np.zeros(len(answers.frame))
    found: dict[str, list[Pairs]] = {metric: [Pairs(*np.zeros((2, 0), int), np.zeros(0))] for metric in METRICS[:3]}
    for row, column in frame_pairs(objects.frame, answers.frame):
        is_region = objects.kind[row] == DONT_CARE.lower()
        share = _box_overlap(objects.bbox[row[is_region]], answers.bbox[column[is_region]], is_share=True)
        np.maximum.at(hidden, column[is_region], share)
        row, column = row[~is_region], column[~is_region]
        found["bbox"].append(Pairs(row, column, _box_overlap(objects.bbox[row], answers.bbox[column])))
        for metric, pairs in _space_overlaps(objects.boxes, answers.boxes, row, column).items():
            found[metric].append(pairs)
        for parts in found.values():
            parts[-1] = parts[-1].select(parts[-1].overlap > LEAST_OVERLAP)
    return {metric: Pairs(*map(np.concatenate, zip(*parts, strict=True))) for metric, parts in found.items()}, hidden


def _box_overlap(a: np.ndarray, b: np.ndarray, *, is_share: bool = False) -> np.ndarray:
    """IoU of rectangles [P, 4] in the image, or the share of ``b`` that lies in ``a``: [P]."""
    sides = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0)
    shared = sides.prod(1)
    whole = (b[:, 2:] - b[:, :2]).prod(1)
    if not is_share:
        whole = whole + (a[:, 2:] - a[:, :2]).prod(1) - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _space_overlaps(a: np.ndarray, b: np.ndarray, row: np.ndarray, column: np.ndarray) -> dict[str, Pairs]:
    """BEV and 3D IoU of boxes ``a[row]`` and ``b[column]``, of those pairs that may overlap at all."""
    import torch  # not at the top: bad input should be named before torch is loaded

    from worldmodels.geometry.overlap import bev_iou, iou_3d

    reach_a, reach_b = (np.hypot(boxes[:, 3], boxes[:, 4]) / 2 for boxes in (a, b))
    is_close = np.hypot(*(a[row, :2] - b[column, :2]).T) < reach_a[row] + reach_b[column]
    row, column = row[is_close], column[is_close]
    left, right = torch.from_numpy(a[row]), torch.from_numpy(b[column])
    functions = {"bev": bev_iou, "3d": iou_3d}
    return {name: Pairs(row, column, iou(left, right, paired=True).numpy()) for name, iou in functions.items()}


# --- command line -----------------------------------------------------------------------------------------------------
def read_frames(labels: Path, detections: Path, split: Path | None) -> tuple[list[Objects], list[Objects], list[str]]:
    """Labels, detections and names of the frames to evaluate: those that ``split`` lists, or all with a label file.

    Raises:
        FileNotFoundError: naming the folder, list or frame that is not there. A frame without detections needs an
            empty file: leaving it out would hide its misses.
        ValueError: naming file and line of what is wrong.
    """
    for folder in (labels, detections):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder")
    if split is None:
        names = sorted(path.stem for path in labels.glob("*.txt"))
    elif split.is_file():
        names = split.read_text().split()
    else:
        raise FileNotFoundError(f"{split}: there is no such file")
    if not names:
        raise ValueError(f"{split or labels} names no frame")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"{split} names {twice} twice")
    hint = {labels: "", detections: ". Give --split, or an empty file for a frame without detections"}
    for folder in (labels, detections):
        missing = [name for name in names if not (folder / f"{name}.txt").is_file()]
        if missing:
            more = f" and {len(missing) - 1} more of {len(names)} frames" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{folder} lacks {missing[0]}.txt{more}{hint[folder]}")
    truth = [read_objects(labels / f"{name}.txt", has_score=False) for name in names]
    return truth, [read_objects(detections / f"{name}.txt", has_score=True) for name in names], names


def table(result: dict[str, dict[str, list[float]]], counts: dict[str, list[int]]) -> str:
    """``evaluate``'s result as text: R40 first, R11 in brackets."""
    titles = {"bbox": "2D", "bev": "BEV", "3d": "3D", "aos": "orientation"}
    lines = []
    for level, limits in OVERLAPS.items():
        lines += ["", f"{level:<32}" + "".join(f"{name:>18}" for name in DIFFICULTIES)]
        for name in CLASSES:
            lines.append(f"{name:<14}{'objects':<18}" + "".join(f"{count:>18}" for count in counts[name]))
            for metric in METRICS:
                if level == "relaxed" and metric in ("bbox", "aos"):  # as above
                    continue
                found = result.get(f"{level}/{name}/{metric}")
                title = f"{titles[metric]}, IoU > {limits[name][metric in ('bev', '3d')]:g}"
                cells = ["-"] * 3
                if found:
                    cells = [f"{r40:.2f} ({r11:.2f})" for r40, r11 in zip(found["R40"], found["R11"], strict=True)]
                lines.append(f"{'':<10}{title:<22}" + "".join(f"{cell:>18}" for cell in cells))
    if any(0 < count < 41 for row in counts.values() for count in row):
        lines += ["", "Where n < 41 objects count, perfect detections score 100 (n - 1) / 40 (R40)."]
    if not any(name.endswith("/aos") for name in result):
        lines += ["", "No orientation: a detection's alpha is -10, not known."]
    return "\n".join(lines)


DESCRIPTION = "KITTI average precision: 2D, BEV, 3D, orientation; R11 and R40."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 after one line about what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m perception.detection.kitti_ap", description=DESCRIPTION)
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="label files, 15 columns")
    parser.add_argument("--detections", type=Path, required=True, metavar="DIR", help="result files, 16 columns")
    parser.add_argument("--split", type=Path, metavar="FILE", help="names of frames that count; default: all labels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    options = parser.parse_args(arguments)
    try:
        truth, detections, names = read_frames(options.labels, options.detections, options.split)
        result = evaluate(truth, detections)
        if options.json:
            atomic_write_json(options.json, result)
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(f"KITTI AP in per cent, R40 (R11), {len(names)} frames")
    print(table(result, count_objects(truth)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
