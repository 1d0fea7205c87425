"""ONCE's average precision: cases that can be done by hand, and a slow reference on random scenes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from perception.detection.once_ap import RANGES, Boxes, Group, evaluate, score_thresholds
from worldmodels.geometry.overlap import iou_3d

CAR, BUS, PEDESTRIAN = range(3)
GROUPS = {"Vehicle": Group([CAR, BUS], 0.7), "Pedestrian": Group([PEDESTRIAN], 0.3)}


def boxes(*rows: tuple[float, ...]) -> Boxes:
    """Rows of frame, class, x, y, heading, score; four metres long, two wide and high, on the ground."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    frame, kind, x, y, heading, score = table.T
    size = np.broadcast_to((4.0, 2.0, 2.0), (len(table), 3))
    place = np.column_stack([x, y, np.zeros(len(table)), size, heading])
    return Boxes(frame.astype(int), place, kind.astype(int), score)


def test_perfect_detections_score_100_however_few():
    for num in (1, 2, 3, 60):
        rows = [(i, CAR, 5 + 0.1 * i, 0, 0.3, 0.9 - 0.01 * i) for i in range(num)]
        found = evaluate(boxes(*rows), boxes(*rows), GROUPS)
        assert found["Vehicle"] == {"overall": pytest.approx(100), "0-30": pytest.approx(100)}
        assert found["Pedestrian"] == {}, "there is none"
        assert found["mean"]["overall"] == pytest.approx(100)


def test_a_miss_and_a_false_alarm():
    truth = boxes((0, CAR, 10, 0, 0, 1), (1, CAR, 10, 0, 0, 1))
    hit = (0, CAR, 10, 0, 0, 0.9)
    # One of two is found: precision 1 at recalls 1/50 ... 25/50.
    assert evaluate(truth, boxes(hit), GROUPS)["Vehicle"]["overall"] == pytest.approx(50)
    # A surer false alarm halves it, one that is less sure costs nothing.
    assert evaluate(truth, boxes(hit, (1, CAR, 20, 0, 0, 0.95)), GROUPS)["Vehicle"]["overall"] == pytest.approx(25)
    assert evaluate(truth, boxes(hit, (1, CAR, 20, 0, 0, 0.85)), GROUPS)["Vehicle"]["overall"] == pytest.approx(50)
    # The same place in another frame is no hit; twice the same place is one hit and one false alarm.
    assert evaluate(truth, boxes((2, CAR, 10, 0, 0, 0.9)), GROUPS)["Vehicle"]["overall"] == 0
    twice = evaluate(truth, boxes(hit, (0, CAR, 10.1, 0, 0, 0.95)), GROUPS)["Vehicle"]["overall"]
    assert twice == pytest.approx(50), "the surer one is the hit at its own score"
    assert evaluate(truth, boxes(), GROUPS)["Vehicle"]["overall"] == 0


def test_heading_counts_within_90_degrees():
    truth = boxes((0, PEDESTRIAN, 10, 0, 3.0, 1))
    for turn, expected in ((0.0, 100), (2 * math.pi, 100), (0.5, 100), (1.6, 0), (math.pi, 0), (-1.6, 0)):
        found = evaluate(truth, boxes((0, PEDESTRIAN, 10, 0, 3.0 + turn, 0.5)), GROUPS)
        assert found["Pedestrian"]["overall"] == pytest.approx(expected), turn


def test_classes_of_a_group_are_one_and_others_are_apart():
    truth = boxes((0, BUS, 10, 0, 0, 1))
    assert evaluate(truth, boxes((0, CAR, 10, 0, 0, 0.5)), GROUPS)["Vehicle"]["overall"] == pytest.approx(100)
    assert evaluate(truth, boxes((0, PEDESTRIAN, 10, 0, 0, 0.5)), GROUPS)["Vehicle"]["overall"] == 0


def test_ranges_look_at_their_own_objects_only():
    truth = boxes((0, CAR, 10, 0, 0, 1), (0, CAR, 0, 40, 0, 1), (0, CAR, -60, 0, 0, 1), (1, CAR, 29.95, 0, 0, 1))
    found = evaluate(truth, boxes((0, CAR, 0, 40, 0, 0.9), (0, CAR, -60, 20, 0, 0.95)), GROUPS)["Vehicle"]
    assert found["0-30"] == 0
    assert found["30-50"] == pytest.approx(100), "the false alarm is further away"
    assert found["50+"] == 0
    assert found["overall"] == pytest.approx(100 * 0.5 * 12 / 50), "one of four: recalls up to 12/50 at precision 1/2"
    # A detection beyond the limit of an object just before it neither hits nor harms.
    found = evaluate(truth, boxes((1, CAR, 30.05, 0, 0, 0.9)), GROUPS)["Vehicle"]
    assert found["0-30"] == 0
    assert found["30-50"] == 0
    assert found["overall"] == pytest.approx(100 * 12 / 50)


def test_thresholds_by_hand():
    scores = np.array([0.5, 0.9, 0.7])
    # Of four objects: middles 3/8, 5/8, and 3/4 for the last: 0..18, 19..31, 32..37 of 50.
    np.testing.assert_array_equal(score_thresholds(scores, 4), [0.9] * 19 + [0.7] * 13 + [0.5] * 6)
    assert len(score_thresholds(scores, 3)) == 51
    assert score_thresholds(np.array([0.4]), 1000).tolist() == [0.4], "kept at least once"
    assert len(score_thresholds(np.zeros(0), 5)) == 0


def slow_ap(truth: Boxes, found: Boxes, group: Group, limits: tuple[float, float]) -> float | None:
    """The definition, one object at a time."""
    far_a, far_b = (np.linalg.norm(b.boxes[:, :3], axis=1) for b in (truth, found))
    inside_a, inside_b = ((limits[0] <= far) & (far < limits[1]) for far in (far_a, far_b))
    mine_a, mine_b = (np.isin(b.kind, group.classes) for b in (truth, found))
    num = int((mine_a & inside_a).sum())
    if not num:
        return None
    iou = iou_3d(torch.from_numpy(truth.boxes), torch.from_numpy(found.boxes)).numpy()

    def fits(i: int, j: int) -> bool:
        turn = abs((truth.boxes[i, 6] - found.boxes[j, 6] + math.pi) % (2 * math.pi) - math.pi)
        return bool(truth.frame[i] == found.frame[j] and turn <= math.pi / 2 and iou[i, j] > group.overlap)

    def match(least: float, is_by_score: bool) -> tuple[list[float], int]:
        taken, hits = set(), []
        for i in np.flatnonzero(mine_a):
            free = [j for j in np.flatnonzero(mine_b) if j not in taken and found.score[j] >= least and fits(i, j)]
            if not is_by_score:
                free = [j for j in free if inside_b[j]] or free[:1]
            if free:
                best = max(free, key=lambda j: found.score[j] if is_by_score else iou[i, j])
                taken.add(best)
                if inside_a[i] and inside_b[best]:
                    hits.append(found.score[best])
        alarms = [j for j in np.flatnonzero(mine_b & inside_b) if j not in taken and found.score[j] >= least]
        return hits, len(alarms)

    scores = sorted(match(-1.0, True)[0], reverse=True)
    thresholds: list[float] = []
    for i, score in enumerate(scores):
        is_last = i == len(scores) - 1
        middle = (i + 1 if is_last else i + 1.5) / num
        if is_last and middle < len(thresholds) / 50 - 1e-9:
            thresholds.append(score)
        while len(thresholds) / 50 <= middle + 1e-9:
            thresholds.append(score)
    precision = [0.0] * 51
    for i, least in enumerate(thresholds[:51]):
        hits, alarms = match(least, False)
        precision[i] = len(hits) / max(1, len(hits) + alarms)
    return 100 * sum(max(precision[i:]) for i in range(1, 51)) / 50


def test_random_scenes_equal_the_slow_reference():
    random = np.random.default_rng(0)
    compared = 0
    for _ in range(12):
        rows = [
            (frame, random.integers(3), *random.uniform(-55, 55, 2), random.uniform(-3, 3), 1.0)
            for frame in range(3)
            for _ in range(6)
        ]
        guesses = []
        for frame, kind, x, y, heading, _ in rows:
            for _ in range(random.integers(0, 3)):
                moved = (x + random.normal(0, 0.2), y + random.normal(0, 0.1), heading + random.choice([0, 0, 0, 3.1]))
                guesses.append((frame, kind if random.random() < 0.8 else CAR, *moved, random.random()))
        truth, found = boxes(*rows), boxes(*guesses)
        result = evaluate(truth, found, GROUPS)
        for name, group in GROUPS.items():
            for key, limits in RANGES.items():
                expected = slow_ap(truth, found, group, limits)
                assert result[name].get(key) == (None if expected is None else pytest.approx(expected)), (name, key)
                compared += bool(expected)
    assert compared > 40, "most scenes have hits"
