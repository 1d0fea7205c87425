"""Methods side by side: the runs that a file in ``benchmarks/comparisons`` lists, over seeds, as a table and a picture.

    python -m benchmarks.compare --of views --seeds 0 1 --jobs 2
    python -m benchmarks.compare --of camvid -- env.path=../shared/data/camvid_240x180/camvid_240x180.tar

Each cell is an ordinary run, in ``runs/<comparison>/seed<N>/<run>``. Finished cells are kept and stopped ones go on
when the command is repeated. A comparison is a file of data (see ``Comparison``): a new one needs no code.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.runs import (
    command,
    devices_of,
    finish_axes,
    finished,
    mean_and_error,
    run_all,
    save_figure,
    save_table,
    standard_error,
    summary_of,
    table_parser,
    today,
    version_list,
)
from worldmodels.evals.pictures import new_figure, png

FOLDER = Path(__file__).resolve().parent / "comparisons"
Summaries = Mapping[tuple[str, int], dict[str, Any]]  # of runs, by name and seed


@dataclass(frozen=True, kw_only=True)
class Column:
    """A number of an evaluation, "evaluator/metric", or of the summary, "operations"; times ``scale``, with digits."""

    metric: str
    scale: int | float = 100
    digits: int = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """Which run a row shows, and what of it."""

    run: str
    is_untrained: bool = False  # the evaluation of step 0 instead of the last one
    # how metrics begin instead, {patches: raw} shows pixels; or another evaluator: {policy: floor_random}
    of: Mapping[str, str] = field(default_factory=dict)
    minus: str | None = None  # another run, subtracted seed by seed


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the picture: "evaluator/metric" of a run, with {} where x goes in either."""

    run: str
    metric: str
    is_untrained: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a file in ``benchmarks/comparisons`` says.

    Args:
        title: of the table. settings: of every run. runs: the settings of each by name.
        columns, rows: by their titles. notes: what a reader must know.
        needs: a setting that the command has to give, as an example: where data are.
        picture: "x" with "title" and "values", "y", its title, and "lines" by their labels.
    """

    title: str
    settings: Sequence[str]
    runs: Mapping[str, Sequence[str]]
    columns: Mapping[str, Column]
    rows: Mapping[str, Row]
    notes: Sequence[str] = ()
    needs: str | None = None
    picture: Mapping[str, Any] | None = None


def main() -> None:
    """Run what is missing, print, save and draw."""
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    parser = table_parser(__doc__, runs="<comparison>")
    parser.add_argument(
        "--of", dest="comparison", required=True, choices=names, help="a file of benchmarks/comparisons"
    )
    parser.add_argument("--only-render", action="store_true", help="run nothing: the table of the cells there are")
    options = parser.parse_args()
    comparison = load(options.comparison)
    if options.runs == parser.get_default("runs"):
        options.runs = Path("runs") / options.comparison
    needed = (comparison.needs or "").partition("=")[0]
    if needed and not options.only_render and not any(s.startswith(f"{needed}=") for s in options.settings):
        parser.error(f"{options.comparison} needs {comparison.needs} after --")
    cells = [(name, seed) for seed in options.seeds for name in comparison.runs]
    if not options.only_render:
        run_all(train, cells, options, jobs=options.jobs)
    summaries = {cell: found for cell in cells if (found := finished(folder_of(*cell, options)))}
    if not summaries:
        sys.exit(f"error: no run in {options.runs} is finished")
    if comparison.picture:
        save_figure(options.comparison, picture(comparison, summaries, options.seeds), out=options.out)
    save_table(options.comparison, render(comparison, summaries, options), out=options.out)


def load(name: str) -> Comparison:
    """The comparison of that name.

    Raises:
        ValueError: if a row or a line shows a run that is not there.
    """
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    kinds = {"columns": Column, "rows": Row}
    made = {key: {title: kind(**entry) for title, entry in content[key].items()} for key, kind in kinds.items()}
    if drawn := content.get("picture"):
        drawn["lines"] = {label: Line(**entry) for label, entry in drawn["lines"].items()}
    asked = {name for row in made["rows"].values() for name in (row.run, row.minus) if name}
    if drawn:
        asked |= {line.run.format(x) for line in drawn["lines"].values() for x in drawn["x"]["values"]}
    if unknown := sorted(asked - content["runs"].keys()):
        raise ValueError(f"{name}.yaml shows {unknown[0]}, which is none of its runs: {', '.join(content['runs'])}")
    return Comparison(**(content | made))


def folder_of(name: str, seed: int, options: argparse.Namespace) -> Path:
    """Where a run is."""
    return options.runs / f"seed{seed}" / name


def train(name: str, seed: int, options: argparse.Namespace) -> None:
    """Make one run, if it is not there."""
    comparison = load(options.comparison)
    own = [*comparison.runs[name], *comparison.settings, *options.settings, f"seed={seed}"]
    summary_of(folder_of(name, seed, options), *own, "threads=1", "resume=true")


def number(summary: Mapping[str, Any], metric: str, *, is_untrained: bool = False) -> float | None:
    """The last or the first value of "evaluator/metric", or an entry of the summary; None if there is none.

    Raises:
        ValueError: if the first one is asked for and is not of step 0.
    """
    evaluator, _, name = metric.partition("/")
    if not name:
        return 0.0 if is_untrained else summary.get(metric)
    blocks = summary["evaluations"].get(evaluator)
    if not blocks:
        return None
    block = blocks[0 if is_untrained else -1]
    if is_untrained and block["step"]:
        raise ValueError(f"{evaluator} was first run at step {block['step']}, not before training")
    return block["metrics"].get(name)


def values(row: Row, column: Column, summaries: Summaries, seeds: Sequence[int]) -> list[float]:
    """What a row shows in a column, of every seed that has it."""
    evaluator, _, metric = column.metric.partition("/")
    for old, new in row.of.items():
        evaluator = new if evaluator == old else evaluator
        metric = new + metric.removeprefix(old) if metric.startswith(old) else metric
    asked, found = f"{evaluator}/{metric}" if metric else evaluator, []
    if row.of and asked == column.metric:
        return []  # a control that this metric does not have
    names = [name for name in (row.run, row.minus) if name]
    for seed in seeds:
        pair = [summaries[cell] for name in names if (cell := (name, seed)) in summaries]
        numbers = [number(summary, asked, is_untrained=row.is_untrained) for summary in pair]
        known = [value for value in numbers if value is not None]
        if len(known) == len(names):
            found.append(known[0] - sum(known[1:]))
    return found


def render(comparison: Comparison, summaries: Summaries, options: argparse.Namespace) -> str:
    """The table in Markdown."""
    lines = [f"# {comparison.title}, {today()}", "", command("compare"), "", *facts(comparison, summaries, options)]
    lines += [f"- {' '.join(note.split())}" for note in comparison.notes]
    lines += ["", f"| | {' | '.join(comparison.columns)} | seeds |", "|---" * (len(comparison.columns) + 2) + "|"]
    for title, row in comparison.rows.items():
        cells = {name: values(row, column, summaries, options.seeds) for name, column in comparison.columns.items()}
        shown = [
            mean_and_error(cells[name], scale=column.scale, digits=column.digits)
            for name, column in comparison.columns.items()
        ]
        lines.append(f"| {title} | {' | '.join(shown)} | {max(map(len, cells.values()))} |")
    return "\n".join(lines) + "\n"


def facts(comparison: Comparison, summaries: Summaries, options: argparse.Namespace) -> list[str]:
    """What the numbers are, from the runs themselves."""
    first = next(iter(summaries.values()))
    steps = " or ".join(f"{steps:,}" for steps in sorted({summary["steps"] for summary in summaries.values()}))
    minutes = statistics.mean(summary["seconds"] for summary in summaries.values()) / 60
    settings = " ".join([*comparison.settings, *options.settings])
    return [
        f"- {devices_of(summaries.values())}, {first['threads']} thread(s) a run; {version_list('python', 'torch')}.",
        f"- {len(summaries)} of {len(comparison.runs) * len(options.seeds)} runs are finished, of {steps} updates and "
        f"{minutes:.0f} minutes with evaluations. Every run: `{settings}`.",
        "- Mean over seeds, its standard error in brackets.",
    ]


def picture(comparison: Comparison, summaries: Summaries, seeds: Sequence[int]) -> bytes:
    """A line a row of the file: mean over seeds and its standard error."""
    drawn = comparison.picture or {}
    figure = new_figure(4.8, 3.4)
    axes = figure.add_subplot()
    at = drawn["x"]["values"]
    for label, line in drawn["lines"].items():
        found = {}
        for x in at:
            row = Row(run=line.run.format(x), is_untrained=line.is_untrained)
            found[x] = values(row, Column(metric=line.metric.format(x), scale=1), summaries, seeds)
        if points := [(x, statistics.mean(v), standard_error(v)) for x, v in found.items() if v]:
            x, mean, error = zip(*points, strict=True)
            axes.errorbar(x, mean, error, marker="o", markersize=3, linewidth=1.3, capsize=3, label=label)
    axes.set_xticks(at, [str(x) for x in at])
    finish_axes(axes, x=drawn["x"]["title"], y=drawn["y"])
    return png(figure)


if __name__ == "__main__":
    main()
