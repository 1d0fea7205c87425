"""The inner part of KITTI's evaluation: which detection answers which object, for every score threshold at once.

Objects of a frame choose in the order of the file, frames do not know each other. So the n-th objects of all frames
choose at the same time, and for all thresholds. Only pairs that overlap enough take part. numpy only.

Source: sheet ad_l_jepa, section 3.3 (the definition, not its code).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RECALLS = 41  # recall 0, 1/40, ..., 1
PART = 1 << 18  # pairs looked at together, which bounds memory


class Pairs(NamedTuple):
    """Objects and detections of the same frame that overlap, sorted by object, then by detection."""

    truth: np.ndarray  # int [P]
    detection: np.ndarray  # int [P]
    overlap: np.ndarray  # [P]

    def select(self, flag: np.ndarray) -> Pairs:
        """Those with a true ``flag`` [P]."""
        return Pairs(self.truth[flag], self.detection[flag], self.overlap[flag])


class Curves(NamedTuple):
    """What the passes over the thresholds give, [recalls] each; zero beyond the last threshold."""

    precision: np.ndarray
    orientation: np.ndarray  # precision with every hit weighted by its (1 + cos of the angle's error) / 2


@dataclass(frozen=True, eq=False)
class Task:
    """One class at one difficulty: G objects and D detections of all frames, one after the other."""

    frame: np.ndarray  # int [G], ascending: frame of an object
    is_counted: np.ndarray  # bool [G], objects that must be found; the others may be found without harm
    is_valid: np.ndarray  # bool [D], detections that are right or wrong; the others may lie anywhere without harm
    is_hidden: np.ndarray  # bool [D], no false alarm even if unanswered (regions nobody labelled)
    score: np.ndarray  # [D]
    truth_alpha: np.ndarray  # [G]
    alpha: np.ndarray  # [D]


def frame_pairs(truth: np.ndarray, detection: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of objects and of detections of the same frame: all pairs, sorted, a bounded part at a time.

    Args:
        truth, detection: int [G] and [D], ascending: the frames they are from.
    """
    start, stop = (np.searchsorted(detection, truth, side=side) for side in ("left", "right"))
    end = (stop - start).cumsum()
    total = int(end[-1]) if len(end) else 0
    for first in range(0, total, PART):
        number = np.arange(first, min(first + PART, total))  # of a pair: those of the first object, of the second, ...
        row = np.searchsorted(end, number, side="right")
        yield row, stop[row] - (end[row] - number)


def recall_thresholds(scores: np.ndarray, num_counted: int) -> np.ndarray:
    """Scores at which recall comes closest to 0, 1/40, ..., 1: at most 41, falling.

    Args:
        scores: of detections that hit a counted object.
        num_counted: objects that recall refers to.
    """
    scores, kept, recall = np.sort(scores)[::-1], [], 0.0
    for i, score in enumerate(scores):
        is_last = i == len(scores) - 1
        here = (i + 1) / num_counted
        after = here if is_last else (i + 2) / num_counted
        if after - recall < recall - here and not is_last:
            continue
        kept.append(score)
        recall += 1 / (RECALLS - 1)
    return np.array(kept[:RECALLS])


def curves(
    task: Task,
    pairs: Pairs,
    *,
    thresholds_of: Callable[[np.ndarray, int], np.ndarray] = recall_thresholds,
    recalls: int = RECALLS,
) -> Curves:
    """Interpolated precision and orientation similarity, at 41 recalls or so many as another rule has.

    Args:
        task: what is counted.
        pairs: those above the overlap threshold, without objects and detections that the class does not know.
        thresholds_of: rule for the scores at which precision is read, see ``recall_thresholds``; at most ``recalls``.
    """
    choice = _Choice(task, pairs)
    thresholds = thresholds_of(choice.scores_of_hits(), int(task.is_counted.sum()))
    hits, similarity, is_assigned = choice.at(thresholds)
    blamed = task.is_valid & ~task.is_hidden
    order = np.sort(task.score[blamed])
    alarms = len(order) - np.searchsorted(order, thresholds)  # [T], with at least this score
    alarms = alarms - (is_assigned & blamed[choice.detections, None]).sum(0)
    return Curves(_interpolated(hits, hits + alarms, recalls), _interpolated(similarity, hits + alarms, recalls))


def _interpolated(part: np.ndarray, whole: np.ndarray, recalls: int) -> np.ndarray:
    """``part`` over ``whole`` [T], each raised to the greatest that follows; [recalls]."""
    ratio = np.zeros(recalls)
    np.divide(part, whole, out=ratio[: len(part)], where=whole > 0)
    return np.maximum.accumulate(ratio[::-1])[::-1]


class _Choice:
    """Objects with at least one candidate, in rows; their candidates, in columns."""

    def __init__(self, task: Task, pairs: Pairs) -> None:
        objects, start, count = np.unique(pairs.truth, return_index=True, return_counts=True)
        self.detections, local = np.unique(pairs.detection, return_inverse=True)
        column = np.arange(len(pairs.truth)) - np.repeat(start, count)
        row = np.repeat(np.arange(len(objects)), count)
        shape = (len(objects), int(count.max(initial=0)))
        self.candidate = np.full(shape, len(self.detections))  # [R, K]; the one past the end is never free
        self.candidate[row, column] = local
        self.overlap = np.full(shape, -1.0)
        self.overlap[row, column] = pairs.overlap
        self.is_counted = task.is_counted[objects]
        self.is_valid = np.append(task.is_valid[self.detections], False)
        self.score = np.append(task.score[self.detections], -np.inf)
        angle = task.truth_alpha[objects][:, None] - np.append(task.alpha[self.detections], 0)[self.candidate]
        self.similarity = (1 + np.cos(angle)) / 2  # [R, K]
        _, first, of_frame = np.unique(task.frame[objects], return_index=True, return_inverse=True)
        turn = np.arange(len(objects)) - first[of_frame]  # how many of its frame chose before
        self.turns = [np.flatnonzero(turn == n) for n in range(int(turn.max(initial=-1)) + 1)]

    def scores_of_hits(self) -> np.ndarray:
        """First pass: every object takes its free candidate of highest score; scores of counted objects' valid ones."""
        is_free, found = np.isfinite(self.score), []
        for rows in self.turns:
            candidate = self.candidate[rows]
            score = np.where(is_free[candidate], self.score[candidate], -np.inf)
            best = candidate[np.arange(len(rows)), score.argmax(1)]
            has_any = is_free[candidate].any(1)
            is_free[best[has_any]] = False
            found.append(self.score[best[has_any & self.is_counted[rows] & self.is_valid[best]]])
        return np.concatenate(found) if found else np.zeros(0)

    def at(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Second pass, with detections below each of T thresholds left out.

        Every object takes the free valid candidate it overlaps most, or else the first free one that is not valid.

        Returns:
            hits [T]; similarity of their orientations, summed [T]; which of ``detections`` are taken, bool [D', T].
        """
        is_shown = self.score[:, None] >= thresholds  # [D' + 1, T]
        is_free = is_shown.copy()
        hits, similarity = np.zeros(len(thresholds)), np.zeros(len(thresholds))
        for rows in self.turns:
            candidate = self.candidate[rows]
            free = is_free[candidate]  # [R, K, T]
            valid = free & self.is_valid[candidate][..., None]
            best = np.where(valid, self.overlap[rows][..., None], -1).argmax(1)  # [R, T]
            has_valid, has_any = valid.any(1), free.any(1)
            chosen = np.where(has_valid, best, free.argmax(1))  # without a valid one, the first that is free
            row, at = np.nonzero(has_any)
            is_free[candidate[row, chosen[row, at]], at] = False
            is_hit = has_valid & self.is_counted[rows][:, None]
            hits += is_hit.sum(0)
            similarity += (is_hit * np.take_along_axis(self.similarity[rows], best, 1)).sum(0)
        return hits, similarity, (is_shown & ~is_free)[:-1]
