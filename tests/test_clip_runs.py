"""Commands on clips: a teacher and its student in one run, and a student of a teacher from another run."""

from __future__ import annotations

import json

import pytest

from tests.commands import launch

pytest.importorskip("skimage", reason="needs the images extra: pip install 'worldmodels[images]'")

TINY = "env.size=32 env.num_frames=4 encoder.dim=24 encoder.depth=1 encoder.num_heads=2 encoder.patch=4".split()
TINY += "objective.predictor.width=16 objective.predictor.depth=1 objective.predictor.num_heads=2".split()
TINY += "steps=6 batch_size=4 threads=1 log_every=2 eval_every=3 eval.collapse.num=16".split()
FEW = [f"eval.clip_probe.num_{name}" for name in ("train=12", "val=6", "test=6")]
FEW += ["eval.clip_probe.attentive.epochs=1", "eval.held_out.num_batches=1", "eval.held_out.batch_size=4"]
FEW += ["eval.clip_pictures.num_pool=8", "eval.clip_pictures.num_neighbours=2", "eval.clip_pictures.num=2"]
COLLAPSE = [f"eval.{name}=null" for name in ("clip_probe", "held_out", "clip_pictures")]  # the only evaluation left
TEACHER = [f"objective.teacher.{name}" for name in ("dim=16", "depth=1", "num_heads=2", "patch=4")]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a finished V-Pixel."""
    folder = tmp_path_factory.mktemp("clips") / "teacher"
    done = launch(*["objective=v_pixel", *TINY, *COLLAPSE], f"run_dir={folder}", module="worldmodels.run")
    assert done.returncode == 0, done.stderr
    return folder


def test_one_run_trains_teacher_and_student_and_counts_operations(tmp_path):
    settings = ["objective=salt", *TINY, *FEW, *TEACHER, "objective.teacher_share=0.5"]
    done = launch(*settings, f"run_dir={tmp_path / 'run'}", module="worldmodels.run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    (first, turn), (begins, last) = summary["phases"]["teacher"], summary["phases"]["student"]
    assert (first, last) == (0, 6)
    assert 0 < turn == begins < 6
    blocks = summary["evaluations"]["collapse"]
    assert [block["step"] for block in blocks] == [0, 3, 6]
    operations = [block["operations"] for block in blocks]
    assert operations[0] == 0 < operations[1] < operations[2] == summary["operations"]
    assert {"clip/rankme", "teacher/rankme"} <= blocks[-1]["metrics"].keys()
    assert "floating-point operations" in (tmp_path / "run/report.html").read_text()


def test_a_student_of_another_runs_teacher(teacher, tmp_path):
    another = ["encoder@objective.teacher=pretrained", f"objective.teacher.run_dir={teacher}"]
    kept = ["objective.teacher.part=encoder", "objective.teacher_share=0"]
    settings = ["objective=salt", *TINY, *COLLAPSE, *another, *kept]
    done = launch(*settings, f"run_dir={tmp_path / 'run'}", module="worldmodels.run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["phases"] == {"teacher": [0, 0], "student": [0, 6]}
    taught = json.loads((teacher / "summary.json").read_text())["evaluations"]["collapse"][-1]["metrics"]
    mine = [block["metrics"] for block in summary["evaluations"]["collapse"]]
    for name in ("rankme", "std_mean"):  # it is that teacher, and stays so
        assert mine[0][f"teacher/{name}"] == mine[-1][f"teacher/{name}"] == pytest.approx(taught[f"clip/{name}"])
        assert mine[0][f"clip/{name}"] != mine[-1][f"clip/{name}"]


def test_a_teacher_of_another_patch_size_is_refused_in_one_line(teacher, tmp_path):
    another = ["encoder@objective.teacher=pretrained", f"objective.teacher.run_dir={teacher}"]
    other = ["objective.teacher.part=encoder", "encoder.patch=8"]
    settings = ["objective=salt", *TINY, *COLLAPSE, *another, *other]
    done = launch(*settings, f"run_dir={tmp_path / 'run'}", module="worldmodels.run")
    assert done.returncode == 2
    assert "the teacher cuts a clip into (2, 8, 8) tokens, the student into (2, 4, 4)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
