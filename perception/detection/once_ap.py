"""ONCE average precision: 3D overlap with heading, 50 recalls, near, middle and far; for any boxes without a camera.

Objects choose as in KITTI's evaluation (``kitti_matching``): the detection of highest score for the recall thresholds,
then at each threshold the one they overlap most. Differs from it: a match whose headings differ by more than 90 degrees
overlaps by nothing; precision is read at 51 recalls, and a hit also stands for the recalls up to the next one, so that
perfect detections score 100 however few objects there are; there are ranges of distance in place of difficulties. What
lies outside a range may be found, or be a detection, without harm or gain.

The benchmark's own program also lets boxes of OTHER classes outside the range take part without harm; here they do
not, as nothing published says so.

Source: Mao et al., ONCE, NeurIPS 2021 Datasets; sheet ad_l_jepa, section 3.5; the rule of the recalls, which neither
tells, from the behaviour of the benchmark's program (Apache-2.0; read, not copied). There are no golden files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from perception.detection.kitti_matching import Pairs, Task, curves, frame_pairs
from worldmodels.geometry.overlap import iou_3d

RECALLS = 51  # 0, 1/50, ..., 1; the first one is not averaged
RANGES = {"overall": (0.0, np.inf), "0-30": (0.0, 30.0), "30-50": (30.0, 50.0), "50+": (50.0, np.inf)}  # metres
MEAN = "mean"
_CLOSE = 5e-7  # what a recall may lack


class Group(NamedTuple):
    """Classes that are scored as one."""

    classes: Sequence[int]
    overlap: float  # 3D IoU that a hit exceeds


class Boxes(NamedTuple):
    """Boxes of all frames, one frame after the other; N in all."""

    frame: np.ndarray  # int [N], ascending
    boxes: np.ndarray  # float64 [N, 7]
    kind: np.ndarray  # int [N], a class
    score: np.ndarray  # [N]; objects' are not looked at


def evaluate(truth: Boxes, found: Boxes, groups: Mapping[str, Group]) -> dict[str, dict[str, float]]:
    """AP in per cent.

    Returns:
        {"Vehicle": {"overall": ..., "0-30": ..., "30-50": ..., "50+": ...}, ..., "mean": {...}}; ranges without an
        object of the group are missing. The mean is over the groups that have one.
    """
    pairs, result = _overlapping(truth, found), {}
    for name, group in groups.items():
        is_object, is_answer = np.isin(truth.kind, group.classes), np.isin(found.kind, group.classes)
        own = pairs.select(is_object[pairs.truth] & is_answer[pairs.detection] & (pairs.overlap > group.overlap))
        result[name] = {}
        for key, limits in RANGES.items():
            is_counted = is_object & _lies_within(truth.boxes, limits)
            if is_counted.any():
                task = _task(truth, found, is_counted, is_answer & _lies_within(found.boxes, limits))
                precision = curves(task, own, thresholds_of=score_thresholds, recalls=RECALLS).precision
                result[name][key] = 100 * float(precision[1:].mean())
    per_range = {key: [found[key] for found in result.values() if key in found] for key in RANGES}
    return result | {MEAN: {key: float(np.mean(values)) for key, values in per_range.items() if values}}


def score_thresholds(scores: np.ndarray, num_counted: int) -> np.ndarray:
    """The score of the hit that stands for recall 0, 1/50, ..., 1: at most 51, falling.

    A recall belongs to the first hit for which the middle between its own recall and that of the next hit comes up to
    it. Recalls beyond the last hit belong to none; but that one is kept at least once.

    Args:
        scores: of detections that hit a counted object. num_counted: objects that recall refers to.
    """
    if not len(scores):
        return np.zeros(0)
    scores, last = np.sort(scores)[::-1], len(scores) - 1
    middle = (np.arange(len(scores)) + 1.5) / num_counted
    middle[-1] -= 0.5 / num_counted
    hit = np.searchsorted(middle, np.arange(RECALLS) / (RECALLS - 1) - _CLOSE)
    hit = hit[hit <= last]
    return scores[hit if hit[-1] == last else np.append(hit, last)][:RECALLS]


def _overlapping(truth: Boxes, found: Boxes) -> Pairs:
    """Pairs of a frame that share some space and point the same way, within 90 degrees."""
    parts = [Pairs(*np.zeros((2, 0), int), np.zeros(0))]
    for row, column in frame_pairs(truth.frame, found.frame):
        a, b = truth.boxes[row], found.boxes[column]
        gap = np.hypot(*(a[:, :2] - b[:, :2]).T)
        reach = (np.hypot(*a[:, 3:5].T) + np.hypot(*b[:, 3:5].T)) / 2
        may_match = (gap < reach) & (np.cos(a[:, 6] - b[:, 6]) >= 0)
        a, b = torch.from_numpy(a[may_match]), torch.from_numpy(b[may_match])
        part = Pairs(row[may_match], column[may_match], iou_3d(a, b, paired=True).numpy())
        parts.append(part.select(part.overlap > 0))
    return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def _lies_within(boxes: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Whether the centres of boxes [N, 7] are so far from the sensor, upper limit excluded."""
    distance = np.linalg.norm(boxes[:, :3], axis=1)
    return (distance >= limits[0]) & (distance < limits[1])


def _task(truth: Boxes, found: Boxes, is_counted: np.ndarray, is_valid: np.ndarray) -> Task:
    no_angle = np.zeros(len(truth.frame)), np.zeros(len(found.frame))
    is_hidden = np.zeros(len(found.frame), dtype=bool)
    return Task(truth.frame, is_counted, is_valid, is_hidden, found.score, *no_angle)
