"""Numbers of a run: ``metrics.csv``, TensorBoard, W&B, and what the terminal shows. Only the main process has these."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
import uuid
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from worldmodels.environment import memory_bytes
from worldmodels.files import atomic_write, disk_errors

STEP = "step"


class Logger:
    """Writes metrics to ``run_dir/metrics.csv``, to ``run_dir/tensorboard`` and, if asked, to W&B.

    Args:
        run_dir: folder of the run.
        tensorboard: whether to write TensorBoard event files.
        wandb: arguments of ``wandb.init`` such as {"project": "worldmodels", "mode": "offline"}; None leaves W&B out.
        start_step: step of the checkpoint a run continues from. Rows after it are dropped, they will be written again;
            0 starts new files.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
        start_step: int = 0,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / "metrics.csv"
        self._columns = [STEP]
        rows: list[dict[str, str]] = []
        if start_step > 0 and self.path.exists():
            self._columns, rows = _read_rows(self.path)
            rows = [row for row in rows if int(row[STEP]) <= start_step]
        self._rewrite(rows)
        self._tensorboard = _tensorboard(self.run_dir / "tensorboard", start_step) if tensorboard else None
        self._wandb = _wandb(self.run_dir, dict(wandb), start_step) if wandb is not None else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row. New names get a new column, empty in the rows before.

        Raises:
            DiskFullError: if there is no room for the row; what was written before stays readable.
        """
        new = [name for name in metrics if name not in self._columns]
        if new:
            _, rows = _read_rows(self.path)
            self._columns += new
            self._rewrite(rows)
        values = {name: repr(float(value)) for name, value in metrics.items()}
        with disk_errors(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
            file.write(_line([str(step), *(values.get(name, "") for name in self._columns[1:])]))
        if self._tensorboard is not None:
            with disk_errors(self.run_dir / "tensorboard"):
                for name, value in metrics.items():
                    self._tensorboard.add_scalar(name, float(value), step)
                self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log({STEP: step, **{name: float(value) for name, value in metrics.items()}})

    def close(self) -> None:
        """Close TensorBoard and W&B; a second call does nothing."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        lines = [_line(self._columns), *(_line([row.get(name, "") for name in self._columns]) for row in rows)]
        atomic_write(self.path, "".join(lines))


def read_metrics(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read a ``metrics.csv`` into {name: (steps, values)}, without the empty cells; {} if the file does not exist."""
    if not Path(path).exists():
        return {}
    columns, rows = _read_rows(Path(path))
    curves: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in columns[1:]}
    for row in rows:
        for name in columns[1:]:
            if row[name] != "":
                curves[name][0].append(int(row[STEP]))
                curves[name][1].append(float(row[name]))
    return curves


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows; a row cut short by a kill is left out."""
    with open(path, newline="", encoding="utf-8") as file:
        content = file.read()
    complete = content[: content.rfind("\n") + 1]  # the last line counts only if it was finished
    table = list(csv.reader(io.StringIO(complete)))
    if not table or table[0][:1] != [STEP]:
        raise ValueError(f"{path} is not a metrics file: its first column must be '{STEP}'. Use another run_dir")
    columns = table[0]
    return columns, [dict(zip(columns, row, strict=True)) for row in table[1:] if len(row) == len(columns)]


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _tensorboard(folder: Path, start_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow import; only here

    with disk_errors(folder):
        return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)


def _wandb(run_dir: Path, options: dict[str, Any], start_step: int) -> Any:
    try:
        import wandb  # an extra
    except ImportError:
        raise ValueError("logger=wandb needs the wandb package: pip install 'worldmodels[wandb]'") from None
    identity = run_dir / "wandb_id.txt"
    if not (start_step and identity.exists()):
        atomic_write(identity, uuid.uuid4().hex[:16] + "\n")
    options = {"id": identity.read_text().strip(), "resume": "allow", "name": run_dir.name} | options
    run = wandb.init(dir=str(run_dir), **options)
    run.define_metric("*", step_metric=STEP)
    return run


class Progress:
    """Step, rate, time left, memory and the newest numbers: a live bar in a terminal, plain lines elsewhere.

    Args:
        total: steps of the whole run.
        start: steps done before this process began.
        device: also shows the memory in use there, if it is a GPU.
        every_seconds: seconds between two plain lines where there is no terminal.
        stream: text stream to write to; the standard output if None.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        *,
        device: torch.device | None = None,
        every_seconds: float = 20.0,
        stream: Any = None,
    ) -> None:
        self.total, self.device, self.every_seconds = total, device, every_seconds
        self.stream = stream or sys.stdout
        self._newest: dict[str, float] = {}
        self._text = ""
        self._recent = deque([(time.monotonic(), start)], maxlen=64)  # the rate is that of the last seconds
        self._shown = -math.inf
        self._bar = _bar(total, start, self.stream) if self.stream.isatty() else None

    def update(self, step: int, postfix: str | Mapping[str, float] = "") -> None:
        """Show that ``step`` steps are done. Cheap to call.

        Args:
            step: done so far.
            postfix: text, or metrics of which the losses and mean success rates or returns are shown; each stays until
                replaced.
        """
        if isinstance(postfix, str):
            self._text = postfix or self._text
        else:
            self._newest |= {name: value for name, value in postfix.items() if _is_headline(name, postfix)}
        now = time.monotonic()
        pause = 0.2 if self._bar is not None else self.every_seconds
        if now - self._shown < pause and step < self.total:
            return
        self._shown = now
        self._recent.append((now, step))
        rate = self.rate
        parts = [
            _rate(rate),
            f"eta {_eta(self.total - step, rate)}",
            _memory(self.device),
            _numbers(self._newest),
            self._text,
        ]
        text = "  ".join(part for part in parts if part)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, text=text)
        else:
            print(f"step {step}/{self.total}  {text}", file=self.stream, flush=True)

    @property
    def rate(self) -> float:
        """Steps a second, lately."""
        (first, begin), (last, end) = self._recent[0], self._recent[-1]
        return (end - begin) / (last - first) if last > first else 0.0

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bar(total: int, start: int, stream: Any) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    bar = RichProgress(*columns, console=Console(file=stream), refresh_per_second=5)
    bar.add_task("train", total=total, completed=start, text="")
    bar.start()
    return bar


def _is_headline(name: str, metrics: Mapping[str, float]) -> bool:
    first, *rest = name.split("/")
    is_judged = rest == ["success"] or (rest == ["return"] and f"{first}/success" not in metrics)
    return first == "loss" or is_judged


def _numbers(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name.removeprefix('loss/')} {value:.3g}" for name, value in values.items())


def _rate(rate: float) -> str:
    return f"{rate:.3g}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.3g} s/step"


def _eta(remaining: int, rate: float) -> str:
    if rate <= 0:
        return "?"
    seconds = round(remaining / rate)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


def _memory(device: torch.device | None) -> str:
    used = memory_bytes(device)
    names = {"process": "ram", "device": "gpu"}
    return " ".join(f"{names[name]} {size / 1e9:.2f} GB" for name, size in used.items())
