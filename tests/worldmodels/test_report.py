import json
import math
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
import torch

from worldmodels.charts import compact, line_chart
from worldmodels.environment import device_name, git_commit, memory_bytes, peak_memory_bytes, versions
from worldmodels.evals.results import pack
from worldmodels.files import atomic_write_json
from worldmodels.logging import Logger
from worldmodels.report import save_evaluation, write_report

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


class Balance(HTMLParser):
    """Fails on a tag that is closed in the wrong place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run_dir(tmp_path):
    """A finished run, written with the real parts."""
    logger = Logger(tmp_path, tensorboard=False)
    for step in range(0, 5000, 50):
        logger.log(step, {"loss/td": math.exp(-step / 500), "stat/q": float(step)})
    blocks = {"zero_shot": []}
    for step in (2500, 5000):
        metrics = {"task1/success": 0.5, "task1/success_low": 0.2, "task1/success_high": 0.8, "task1/return": -12.5}
        metrics |= {"success": 0.5, "success_low": 0.2, "success_high": 0.8}
        result = pack(metrics, files={"maze.png": PIXEL, "episodes.json": b"[]"}, notes=["no renderer <here>"])
        blocks["zero_shot"].append(save_evaluation(tmp_path, "zero_shot", step, result))
        logger.log(step, {f"zero_shot/{name}": value for name, value in metrics.items()})
    floor = pack({"success": 0.0, "task1/success": 0.0})
    blocks["floor_random"] = [save_evaluation(tmp_path, "floor_random", 5000, floor)]
    collapsed = pack({"state/rankme": 1.0}, warnings=["state is collapsing"])
    blocks["collapse"] = [save_evaluation(tmp_path, "collapse", 5000, collapsed)]
    logger.close()
    summary = {
        "command": ["python", "-m", "worldmodels.run", "agent=td_jepa"],
        "versions": versions(),
        "steps": 5000,
        "updates_per_second": 81.25,
        "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")),
        "evaluations": blocks,
    }
    atomic_write_json(tmp_path / "summary.json", summary)
    (tmp_path / "config.yaml").write_text("env: {dataset: <pointmaze>}\nagent: {_target_: agents.td_jepa.TDJEPA}\n")
    return tmp_path


def test_page_shows_everything_and_needs_nothing(run_dir):
    path = write_report(run_dir)
    page = path.read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    wanted = ["TDJEPA on <pointmaze>", "agent=td_jepa", "50% [20%, 80%]", "-12.5", "no renderer <here>", "TDJEPA"]
    wanted += ["collapse: state is collapsing", "floor random", "81.2", "step 2500", "loss", "rankme"]
    assert [piece for piece in wanted if piece not in parser.text] == []
    assert "<pointmaze>" not in page  # escaped
    assert "<script" not in page
    outside = [link for link in parser.links if not link.startswith(("data:", "media/"))]
    assert outside == []
    for link in parser.links:
        assert link.startswith("data:") or (run_dir / link).exists()


def test_an_empty_folder_gives_an_empty_report(tmp_path):
    parser = Balance()
    parser.feed(write_report(tmp_path).read_text())
    assert parser.open == []


def test_success_that_is_undefined_is_a_dash(tmp_path):
    block = save_evaluation(tmp_path, "zero_shot", 1, pack({"task1/success": float("nan"), "success": float("nan")}))
    atomic_write_json(tmp_path / "summary.json", {"evaluations": {"zero_shot": [block]}})
    assert (
        json.loads((tmp_path / "summary.json").read_text())["evaluations"]["zero_shot"][0]["metrics"]["success"] is None
    )
    assert "<td>–</td>" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0, 0.0, 0.0], [1.0, float("nan"), 3.0], [1e-6, 1.0, 1e6], [-1e9, 1e9], [5.0] * 2000, [1e-300, 1e300]],
)
def test_any_curve_gives_a_drawing_inside_its_frame(values):
    svg = ET.fromstring(line_chart(list(range(len(values))), values))
    for circle in svg.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 340
        assert 0 <= float(circle.attrib["cy"]) <= 170


def test_nothing_finite_is_said():
    assert "no finite value" in line_chart([1, 2], [float("nan"), float("inf")])


def test_band_and_long_curves():
    steps = list(range(1000))
    svg = line_chart(steps, [math.sin(s / 50) for s in steps])
    assert 'class="raw"' in svg
    assert len(svg) < 20_000
    banded = line_chart([0, 10], [0.5, 0.6], band=([0.4, 0.5], [0.6, 0.9]))
    assert 'class="band"' in banded


@pytest.mark.parametrize(("low", "high"), [(0.9887, 0.9905), (12345.0, 12349.0), (0.0, 1.0), (-25.1, -23.4)])
def test_ticks_can_be_told_apart(low, high):
    drawing = ET.fromstring(line_chart([0, 1], [low, high]))
    labels = [text.text for text in drawing.iter("text") if text.get("text-anchor") == "end"][:-1]  # the last is a step
    assert len(labels) >= 2
    assert len(set(labels)) == len(labels)


def test_compact_numbers():
    given = [0.0, 0.7123, 999.4, 1234.0, 12_500, 3e-5, 2_000_000, float("nan")]
    assert [compact(v) for v in given] == ["0", "0.712", "999", "1234", "12.5k", "3e-05", "2M", "nan"]


def test_environment_facts():
    cpu = torch.device("cpu")
    assert versions()["torch"] == torch.__version__
    assert len((git_commit() or "0" * 40).split("+")[0]) == 40
    assert peak_memory_bytes(cpu)["process"] >= memory_bytes()["process"] * 0.9 > 1e7
    assert device_name(cpu).startswith("cpu: ")
