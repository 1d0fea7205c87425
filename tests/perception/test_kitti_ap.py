"""KITTI AP against golden values of two public evaluators and a slow reading of the definition; its command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from perception.detection import kitti_ap, kitti_matching
from perception.detection.kitti_ap import count_objects, evaluate, main, precision_curves
from perception.detection.kitti_matching import Pairs, Task, curves, recall_thresholds
from worldmodels.formats.kitti_text import Objects, parse_objects

CASES = 17


def frames_of(case: dict) -> tuple[list[Objects], list[Objects]]:
    pairs = [(f["gt"], f["dt"]) for f in case["frames"]]
    return (
        [parse_objects(truth, has_score=False) for truth, _ in pairs],
        [parse_objects(found, has_score=True) for _, found in pairs],
    )


@pytest.fixture(scope="module")
def golden(shared_data) -> Path:
    folder = shared_data / "kitti_eval_golden"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/kitti_eval_golden")
    return folder


@pytest.fixture(scope="module")
def cases(golden) -> dict:
    return json.loads((golden / "cases.json").read_text())


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.data
@pytest.mark.parametrize("number", range(CASES))
def test_golden_cases(cases, number):
    assert len(cases) == CASES
    name = list(cases)[number]
    found, expected = evaluate(*frames_of(cases[name])), cases[name]["expected"]
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        for recalls in ("R11", "R40"):
            np.testing.assert_allclose(found[key][recalls], values[recalls], rtol=0, atol=1e-3, err_msg=f"{name} {key}")


@pytest.mark.data
def test_golden_curves(golden, cases):
    expected = np.load(golden / "precision41.npz", allow_pickle=False)
    names = {key.split("|")[0] for key in expected}
    assert len(names) == 2
    for name in names:
        found = precision_curves(*frames_of(cases[name]))
        for key, curve in found.items():
            np.testing.assert_allclose(curve, expected[f"{name}|{key}"], rtol=0, atol=1e-9, err_msg=f"{name} {key}")


def slow_curves(task: Task, pairs: Pairs) -> tuple[list[float], list[float]]:
    """The two passes as the sheet words them: one object, one detection, one threshold after another."""
    overlap = {(g, d): o for g, d, o in zip(*(array.tolist() for array in pairs), strict=True)}
    num, answers = len(task.frame), range(len(task.score))
    recorded, taken = [], set()
    for g in range(num):
        free = [d for d in answers if (g, d) in overlap and d not in taken]
        if free:
            best = max(free, key=lambda d: task.score[d])
            taken.add(best)
            if task.is_counted[g] and task.is_valid[best]:
                recorded.append(task.score[best])
    precision, orientation = [0.0] * 41, [0.0] * 41
    for i, threshold in enumerate(recall_thresholds(np.array(recorded), int(task.is_counted.sum()))):
        shown = [d for d in answers if task.score[d] >= threshold]
        hits, similarity, taken = 0, 0.0, set()
        for g in range(num):
            free = [d for d in shown if (g, d) in overlap and d not in taken]
            valid = [d for d in free if task.is_valid[d]]
            if not free:
                continue
            best = max(valid, key=lambda d: overlap[g, d]) if valid else free[0]
            taken.add(best)
            if task.is_counted[g] and valid:
                hits += 1
                similarity += (1 + np.cos(task.truth_alpha[g] - task.alpha[best])) / 2
        alarms = sum(1 for d in shown if task.is_valid[d] and d not in taken and not task.is_hidden[d])
        if hits + alarms:
            precision[i], orientation[i] = hits / (hits + alarms), similarity / (hits + alarms)
    return [max(precision[i:]) for i in range(41)], [max(orientation[i:]) for i in range(41)]


@pytest.mark.parametrize("seed", range(20))
def test_all_frames_and_thresholds_at_once_equal_one_by_one(seed):
    """With far more conflicts than golden frames have: several candidates an object, many of them ignored."""
    random = np.random.default_rng(seed)
    num, answers, frames = 60, 90, 8
    frame, of = np.sort(random.integers(0, frames, num)), random.integers(0, frames, answers)
    truth, detection = np.nonzero((frame[:, None] == of) & (random.random((num, answers)) < 0.4))
    task = Task(
        frame=frame,
        is_counted=random.random(num) < 0.7,
        is_valid=random.random(answers) < 0.7,
        is_hidden=random.random(answers) < 0.1,
        score=random.permutation(answers) / answers,
        truth_alpha=random.uniform(-3, 3, num),
        alpha=random.uniform(-3, 3, answers),
    )
    pairs = Pairs(truth, detection, random.random(len(truth)))
    found, (precision, orientation) = curves(task, pairs), slow_curves(task, pairs)
    assert max(precision) > 0.5
    np.testing.assert_allclose(found.precision, precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.orientation, orientation, rtol=0, atol=1e-12)


CAR = "Car 0.00 0 0.50 100 150 200 {bottom:.2f} 1.50 1.60 4.00 {x} 1.65 12.00 0.01"


def cars(num: int) -> tuple[list[Objects], list[Objects]]:
    """Frames of one car each, found exactly."""
    text = CAR.format(bottom=200, x=-6)
    return [parse_objects(text)] * num, [parse_objects(f"{text} {1 - i / 1000}") for i in range(num)]


@pytest.mark.parametrize(("num", "r40"), [(1, 0), (3, 5), (25, 60), (41, 100), (200, 100)])
def test_perfect_detections_reach_what_the_sheet_says(num, r40):
    found = evaluate(*cars(num))
    for metric in kitti_ap.METRICS:
        assert found[f"strict/Car/{metric}"]["R40"] == pytest.approx([r40] * 3)


def test_a_car_of_exactly_the_least_height_counts():
    for bottom, counts in ((190, [1, 1, 1]), (189.99, [0, 1, 1]), (174.99, [0, 0, 0])):
        assert count_objects([parse_objects(CAR.format(bottom=bottom, x=-6))])["Car"] == counts


def test_orientation_is_left_out_where_it_is_not_known():
    truth, detections = cars(2)
    detections[1].alpha[:] = -10
    found = evaluate(truth, detections)
    assert [name for name in found if name.endswith("aos")] == []
    assert len(found) == 18


def test_pairs_are_looked_at_in_parts(cases, monkeypatch):
    frames = frames_of(cases["synthetic_60"])
    whole = evaluate(*frames)
    monkeypatch.setattr(kitti_matching, "PART", 17)
    assert evaluate(*frames) == whole


def test_frames_must_correspond():
    truth, detections = cars(2)
    with pytest.raises(ValueError, match="labels of 2 frames and detections of 1"):
        evaluate(truth, detections[:1])
    with pytest.raises(ValueError, match="detections need scores"):
        evaluate(truth, truth)


def test_nothing_to_find_and_nothing_found():
    for frames in ([], [parse_objects("")]):
        found = evaluate(frames, frames)
        assert {value for row in found.values() for ap in row.values() for value in ap} == {0.0}


# --- command line -----------------------------------------------------------------------------------------------------
def write_case(folder: Path, case: dict) -> list[str]:
    """Label and result files of ``case``; the arguments that name them."""
    for part in ("labels", "results"):
        (folder / part).mkdir()
    for i, frame in enumerate(case["frames"]):
        (folder / f"labels/{i:06}.txt").write_text(frame["gt"])
        (folder / f"results/{i:06}.txt").write_text(frame["dt"])
    return ["--labels", str(folder / "labels"), "--detections", str(folder / "results")]


SMALL = {"frames": [{"gt": CAR.format(bottom=200, x=x), "dt": CAR.format(bottom=200, x=x) + " 0.9"} for x in (-6, 6)]}


@pytest.mark.data
def test_command_prints_a_table_and_writes_what_the_golden_file_holds(cases, tmp_path, capsys):
    case = cases["real_gt_13_jittered_dt"]
    arguments = write_case(tmp_path, case)
    assert main([*arguments, "--json", str(tmp_path / "ap.json")]) == 0
    found = json.loads((tmp_path / "ap.json").read_text())
    assert found.keys() == case["expected"].keys()
    for key, values in case["expected"].items():
        for recalls in ("R11", "R40"):
            np.testing.assert_allclose(found[key][recalls], values[recalls], rtol=0, atol=1e-3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "KITTI AP in per cent, R40 (R11), 13 frames"
    easy, moderate, hard = case["expected"]["strict/Car/3d"]["R40"]
    row = next(line for line in lines if line.split()[:3] == ["3D,", "IoU", ">"])
    assert [float(cell) for cell in row.split()[4::2]] == pytest.approx([easy, moderate, hard], abs=0.006)
    assert any("(n - 1) / 40" in line for line in lines)


def test_only_listed_frames_count(tmp_path, capsys):
    arguments = write_case(tmp_path, SMALL)
    (tmp_path / "results/000001.txt").unlink()
    (tmp_path / "val.txt").write_text("000000\n")
    assert main([*arguments, "--split", str(tmp_path / "val.txt")]) == 0
    assert "1 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"results/000001.txt": None}, "results lacks 000001.txt. Give --split, or an empty file"),
        ({"val.txt": "000000 000007 000008"}, "labels lacks 000007.txt and 1 more of 3 frames"),
        ({"val.txt": "000000 000000"}, "val.txt names 000000 twice"),
        ({"val.txt": "\n"}, "val.txt names no frame"),
        ({"labels/000000.txt": "Car 0 0 0"}, "labels/000000.txt, line 1: 4 columns; a label has 15"),
        ({"results/000001.txt": SMALL["frames"][0]["gt"]}, "results/000001.txt, line 1: 15 columns; a result has 16"),
        ({"results/000000.txt": SMALL["frames"][0]["dt"].replace("1.65", "x")}, "line 1: y=x is not a number"),
        ({"results/000000.txt": SMALL["frames"][0]["dt"].replace("1.60", "-1")}, "1.5 -1 4 of a Car must be positive"),
        ({"results": None}, "results: there is no such folder"),
    ],
)
def test_bad_input_costs_one_line(change, message, tmp_path, capsys):
    arguments = write_case(tmp_path, SMALL)
    for name, text in change.items():
        path = tmp_path / name
        if path.is_dir():
            path.rename(tmp_path / "elsewhere")
        elif text is None:
            path.unlink()
        else:
            path.write_text(text)
    split = ["--split", str(tmp_path / "val.txt")] if (tmp_path / "val.txt").exists() else []
    assert main([*arguments, *split]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_bad_input_is_named_before_torch_is_loaded(root):
    code = (
        "import sys; from perception.detection.kitti_ap import main\n"
        "code = main(['--labels', 'nowhere', '--detections', 'nowhere'])\n"
        "assert code == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "error: nowhere: there is no such folder\n"
