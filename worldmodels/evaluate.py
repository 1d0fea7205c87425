"""Ask a finished run for a task, or for a goal, a reward or a demonstration of your own.

    python -m worldmodels.evaluate run_dir=runs/a                                          # all tasks of the benchmark
    python -m worldmodels.evaluate run_dir=runs/a task=task3
    python -m worldmodels.evaluate run_dir=runs/a goal="[12.0, 16.0]"
    python -m worldmodels.evaluate run_dir=runs/a reward="exp(-norm(qpos[:2] - [4, 8]))"
    python -m worldmodels.evaluate run_dir=runs/a demonstration=shown.npz                  # array "state" [T, S]

Keys, with their defaults:
    checkpoint=newest    newest, best, or a step
    episodes=10          a task (for a question of your own: from the start states of each task)
    seed=0               of labels, start states and action noise
    num_labelled=10000   states of the data set whose rewards define the task
    sharpness=0          states count as softmax(sharpness * reward) in the inference; 10 is usual with FB
    max_steps=           ends episodes early; the benchmark's limit if left out
    workers=0            processes that simulate
    device=auto          auto, cpu or cuda

The result goes to run_dir/evaluations/<what was asked>/; nothing else in run_dir is touched. Rewards are written in the
language of worldmodels/expressions.py; their names are the observation and physics fields of the data.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodels.cli import choose_renderer, one_line_errors
from worldmodels.spelling import did_you_mean

if TYPE_CHECKING:  # torch takes a second; --help and a misspelt key need none
    from omegaconf import DictConfig
    from tensordict import TensorDict


QUESTIONS = ("task", "reward", "goal", "demonstration")


@dataclass(frozen=True)
class Options:
    """The command line."""

    run_dir: str
    task: str | None = None
    reward: str | None = None
    goal: str | None = None
    demonstration: str | None = None
    checkpoint: str = "newest"
    episodes: int = 10
    seed: int = 0
    num_labelled: int = 10_000
    sharpness: int = 0
    max_steps: int | None = None
    workers: int = 0
    device: str = "auto"

    @property
    def asked(self) -> str:
        """What is evaluated, as given."""
        given = {name: getattr(self, name) for name in QUESTIONS}
        what = next((f"{name}={value}" for name, value in given.items() if value is not None), "all tasks")
        return f"{what} sharpness={self.sharpness}" if self.sharpness else what

    @property
    def name(self) -> str:
        """The same, as the name of a folder."""
        slug = re.sub(r"[^A-Za-z0-9.\-]+", "_", self.asked).strip("_.")[:50]
        # Different expressions and paths may read the same without their signs, so their folders end in a checksum.
        is_ambiguous = self.reward is not None or self.demonstration is not None
        return f"{slug}_{zlib.crc32(self.asked.encode()):08x}" if is_ambiguous else slug


def parse(arguments: list[str]) -> Options:
    """Read key=value arguments.

    Raises:
        ValueError: one line, for an unknown, repeated or malformed key, and if more than one question is asked.
    """
    known = {field.name: str(field.type) for field in fields(Options)}
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"'{argument}' is not key=value; python -m worldmodels.evaluate --help lists the keys")
        if key not in known:
            raise ValueError(f"there is no key {key}{did_you_mean(key, known)} (keys: {', '.join(known)})")
        if key in given:
            raise ValueError(f"{key} is given twice")
        given[key] = _integer(key, value) if known[key].startswith("int") else value
    if "run_dir" not in given:
        raise ValueError("run_dir is missing: which run shall be evaluated? For example run_dir=runs/a")
    questions = [key for key in QUESTIONS if key in given]
    if len(questions) > 1:
        one_of = f"{', '.join(QUESTIONS[:-1])} and {QUESTIONS[-1]}"
        raise ValueError(f"{' and '.join(questions)} are given; ask for one of {one_of} at a time")
    if given.get("sharpness") and ("goal" in given or "demonstration" in given):
        raise ValueError(f"sharpness weighs rewards; {' and '.join(questions)} has none")
    return Options(**given)


def _integer(key: str, value: str) -> int:
    least = 0 if key in ("seed", "workers", "sharpness") else 1
    if not re.fullmatch(r"\d{1,12}", value.replace("_", "")) or int(value) < least:
        raise ValueError(f"{key}={value}: a whole number of at least {least} is needed")
    return int(value)


def parse_goal(text: str) -> list[float]:
    """Read "[12.0, 16.0]".

    Raises:
        ValueError: if it is no list of finite numbers.
    """
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, list) or not values or not all(_is_number(value) for value in values):
        raise ValueError(f'goal={text}: a list of numbers is needed, such as goal="[12.0, 16.0]"')
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def find_checkpoint(run_dir: Path, which: str) -> Path:
    """The folder of the newest, the best or a numbered checkpoint.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    from worldmodels import checkpoint

    folder = run_dir / "checkpoints"
    steps = checkpoint.steps(folder)
    if not steps:
        raise ValueError(f"{run_dir} has no checkpoint yet: there is none in {folder}")
    if which == "newest":
        return checkpoint.path_of(folder, steps[-1])
    if which == "best":
        best = checkpoint.read_state(checkpoint.path_of(folder, steps[-1])).get("best")
        if not best:
            raise ValueError(f"{run_dir} marked no best checkpoint (its keep_best was null); use checkpoint=newest")
        which = str(best[1])
    if not which.isascii() or not which.isdigit() or int(which) not in steps:
        raise ValueError(f"checkpoint={which}: there is newest, best, and step {', '.join(map(str, steps))}")
    return checkpoint.path_of(folder, int(which))


def evaluate(options: Options, *, command: str = "") -> Path:
    """Answer one question about a run; prints a table and returns the folder of the result."""
    from worldmodels import build, checkpoint
    from worldmodels.core import ZeroShot
    from worldmodels.evals.demonstrations import load
    from worldmodels.evals.question import Question
    from worldmodels.evals.results import judging
    from worldmodels.expressions import compile_reward

    run_dir = Path(options.run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"run_dir={run_dir} does not exist")
    cfg = build.load_config(run_dir)
    path = find_checkpoint(run_dir, options.checkpoint)
    reward = compile_reward(options.reward) if options.reward is not None else None
    goal = parse_goal(options.goal) if options.goal is not None else None
    device = build.choose_device(options.device)
    source = build.build_source(cfg, device)
    question = Question(
        source,
        task=options.task,
        goal=goal,
        reward=reward,
        demonstration=load(Path(options.demonstration), source.spec) if options.demonstration is not None else None,
        sharpness=options.sharpness,
        seed=options.seed,
        num=options.num_labelled,
    )
    agent = build.build_objective(cfg, source, device)
    checkpoint.load_model(path, agent)
    if not isinstance(agent, ZeroShot):
        raise ValueError(f"{run_dir} trained {type(agent).__name__}, which infers no tasks; use a zero-shot agent")
    with judging(agent):
        result = question.answer(
            agent,
            episodes=options.episodes,
            workers=options.workers,
            max_steps=options.max_steps,
            reward_shift=_reward_shift(cfg),
        )
    return _write(options, result, run_dir / "evaluations" / options.name, path.name, command=command)


def _reward_shift(cfg: DictConfig) -> float:
    """What the run's own evaluation adds to a benchmark's rewards; 1, OGBench's, if it had none."""
    shifts = [node.reward_shift for node in cfg.eval.values() if node is not None and "reward_shift" in node]
    return float(shifts[0]) if shifts else 1.0


def _write(options: Options, result: TensorDict, folder: Path, checkpoint: str, *, command: str) -> Path:
    """Fill ``folder`` and print the table."""
    from worldmodels.environment import versions
    from worldmodels.evals.results import unpack
    from worldmodels.files import atomic_write, atomic_write_json
    from worldmodels.report import tabulate

    metrics, files, _, notes = unpack(result)
    for name, content in files.items():
        atomic_write(folder / name, content)
    summary = {"title": options.asked, "command": command, "checkpoint": checkpoint, "options": asdict(options)}
    summary |= {"versions": versions(), "metrics": metrics, "notes": notes, "media": sorted(files)}
    atomic_write_json(folder / "summary.json", summary)
    print(f"{options.asked}: {checkpoint}, {options.episodes} episodes a task, 95 % bootstrap intervals")
    rows, columns = tabulate(metrics)
    table = [["", *columns], *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(*notes, str(folder), sep="\n")
    return folder


def main(arguments: list[str]) -> None:
    """Entry point."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        sys.exit(0 if arguments else 2)
    choose_renderer()
    with one_line_errors():
        options = parse(arguments)
        evaluate(options, command=shlex.join(["python", "-m", "worldmodels.evaluate", *arguments]))


if __name__ == "__main__":
    main(sys.argv[1:])
