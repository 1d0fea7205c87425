import io
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.disk import small_disk
from worldmodels.files import DiskFullError, atomic_write, atomic_write_json
from worldmodels.logging import Logger, Progress, read_metrics


def test_rows_come_back_exactly(tmp_path):
    logger = Logger(tmp_path, tensorboard=False)
    logger.log(100, {"loss/a": 0.1, "loss/b": 1e-30})
    logger.log(200, {"loss/a": 1 / 3, "eval/success": 1.0})  # a new column
    logger.log(200, {"loss/b": float("nan")})
    logger.close()
    curves = read_metrics(tmp_path / "metrics.csv")
    assert curves["loss/a"] == ([100, 200], [0.1, 1 / 3])
    assert curves["eval/success"] == ([200], [1.0])
    assert curves["loss/b"][0] == [100, 200]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,loss/a,loss/b,eval/success"


def test_resume_drops_what_will_be_written_again(tmp_path):
    logger = Logger(tmp_path, tensorboard=False)
    for step in (0, 100, 200, 300):
        logger.log(step, {"loss": float(step)})
    logger.close()
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("400,7")  # killed while writing
    logger = Logger(tmp_path, tensorboard=False, start_step=200)
    logger.log(300, {"loss": 3.0})
    logger.close()
    assert read_metrics(tmp_path / "metrics.csv")["loss"] == ([0, 100, 200, 300], [0.0, 100.0, 200.0, 3.0])
    Logger(tmp_path, tensorboard=False).close()
    assert read_metrics(tmp_path / "metrics.csv") == {}


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match="first column must be 'step'"):
        Logger(tmp_path, tensorboard=False, start_step=1)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    logger = Logger(tmp_path)
    logger.log(1, {"loss": 2.0})
    logger.log(5, {"loss": 0.5})
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (5, 0.5)]


def test_wandb_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an absent package looks like
    with pytest.raises(ValueError, match=r"pip install 'worldmodels\[wandb\]'"):
        Logger(tmp_path, tensorboard=False, wandb={"project": "worldmodels"})


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the wandb extra")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = Logger(tmp_path, tensorboard=False, wandb={"project": "worldmodels", "mode": "offline"})
    logger.log(1, {"loss": 1.0})
    logger.close()
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_full_disk_is_one_clear_line(tmp_path):
    logger = Logger(tmp_path, tensorboard=False)

    def fill():
        for step in range(1000):
            logger.log(step, {"loss": step / 3})

    with (
        small_disk(4096),
        pytest.raises(DiskFullError, match=r"metrics\.csv: File too large\. Free some space") as error,
    ):
        fill()
    assert "\n" not in str(error.value)
    steps, _ = read_metrics(tmp_path / "metrics.csv")["loss"]
    assert steps == list(range(len(steps)))  # what fitted is whole


def test_atomic_write_keeps_the_old_file(tmp_path):
    atomic_write(tmp_path / "a" / "file.txt", "old")
    with small_disk(4096), pytest.raises(DiskFullError):
        atomic_write(tmp_path / "a" / "file.txt", b"x" * 10_000)
    assert (tmp_path / "a" / "file.txt").read_text() == "old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.txt"]


def test_json_has_no_nan(tmp_path):
    atomic_write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5], "b": {"c": float("inf")}})
    assert (tmp_path / "x.json").read_text().replace(" ", "").replace("\n", "") == '{"a":[null,1.5],"b":{"c":null}}'


def test_progress_writes_plain_lines_without_a_terminal():
    stream = io.StringIO()
    with Progress(10, 2, every_seconds=0.0, stream=stream) as progress:
        progress.update(
            4, {"loss/td": 0.123456, "stat/q": 1.0, "zero_shot/success": 0.5, "zero_shot/task1/success": 0.3}
        )
        progress.message("saved [step 4]")
        progress.update(10)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("step 4/10  ")
    assert "td 0.123  zero_shot/success 0.5" in lines[0]
    assert "task1" not in lines[0]
    assert "GB" in lines[0]
    assert lines[1] == "saved [step 4]"
    assert "td 0.123" in lines[2]  # the newest number stays
    assert "eta 0:00" in lines[2]


def test_progress_is_quiet_between_lines():
    stream = io.StringIO()
    progress = Progress(1000, every_seconds=1000.0, stream=stream)
    for step in range(1, 900):
        progress.update(step)
    assert len(stream.getvalue().splitlines()) == 1


def test_progress_draws_a_bar_in_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(10, stream=stream) as progress:
        progress.update(10, "success 0.9")
        progress.message("done")
    assert "10/10" in stream.getvalue()
    assert "success 0.9" in stream.getvalue()
    assert "done" in stream.getvalue()
