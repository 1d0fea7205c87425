"""How many labels does pre-training save? 3D detection from few labelled scans, from each start, over seeds.

Each cell is an ordinary run. A seed has one pre-training run an objective, on the scans of all training frames without
their labels. From its encoder (``init=``), or from scratch, a detector is trained on each share of the labels: the
first frames of the list, as published, so that all seeds have the same ones. Every share gets the same number of
updates: epochs grow as labels shrink. Finished cells are kept and stopped ones go on when the command is repeated.

    python -m benchmarks.label_efficiency --jobs 2 -- env.frames=1000
    python -m benchmarks.label_efficiency --only-render             # table and picture of the cells that are there

Labelled objects are pasted into scans, as published, with
``--finetune 'relabel={_target_:envs.paste.PastedObjects,_partial_:true,counts:{Car:20,Pedestrian:15,Cyclist:15}}'``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from benchmarks.runs import (
    command,
    devices_of,
    finish_axes,
    finished,
    last_metrics,
    mean_and_error,
    run_all,
    save_figure,
    save_table,
    standard_error,
    summary_of,
    table_parser,
    today,
)
from worldmodels import build
from worldmodels.evals.pictures import new_figure, png
from worldmodels.session import FREE_KEYS

SCRATCH = "scratch"
LABELS = {SCRATCH: "from scratch", "ad_l_jepa": "AD-L-JEPA", "occupancy_mae": "Occupancy-MAE"}
COLORS = {SCRATCH: "#5b6472", "ad_l_jepa": "#1f4e9c", "occupancy_mae": "#f2a900"}
MAIN = "moderate"
OWN = {"seed", "init", "env.label_fraction", "env.source.label_fraction"}  # in what runs of a table may differ


class Cell(NamedTuple):
    """One run; a fraction of None is pre-training."""

    seed: int
    init: str
    fraction: float | None


class Result(NamedTuple):
    """What a finished run found."""

    summary: dict[str, Any]
    config: DictConfig
    frames: int  # that it was trained on

    def ap(self, metric: str, suffix: str = "") -> dict[str, float]:
        """Moderate AP R40 in % of each class, "3d" or "bev"; with suffix "_of_truth" what perfect boxes score."""
        end = f"/{metric}/{MAIN}{suffix}"
        metrics = last_metrics(self.summary, "detection")
        return {name.removesuffix(end): value for name, value in metrics.items() if name.endswith(end)}

    def mean_ap(self, metric: str) -> float:
        """Mean over classes."""
        return statistics.mean(self.ap(metric).values())


Results = Mapping[Cell, Result]


def main() -> None:
    """Run what is missing, print, save and draw."""
    parser = table_parser(__doc__, runs="label_efficiency")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.05, 0.2, 1.0], help="shares of the labels")
    parser.add_argument("--inits", nargs="+", default=list(LABELS), choices=list(LABELS))
    parser.add_argument("--name", default="label_efficiency", help="of the two files")
    parser.add_argument("--pretrain", nargs="*", default=[], help="settings of every pre-training run: steps=1000 ...")
    parser.add_argument("--finetune", nargs="*", default=[], help="settings of every detection run")
    parser.add_argument("--only-render", action="store_true", help="run nothing: the table of the cells there are")
    options = parser.parse_args()
    cells = cells_of(options)
    if not options.only_render:
        run_all(train, cells, options, jobs=options.jobs, needs=lambda cell: pretraining_of(*cell))
    results = {cell: found for cell in cells if (found := result_of(cell, options))}
    if not any(cell.fraction for cell in results):
        sys.exit(f"error: no detection run in {options.runs} is finished")
    check_alike(results)
    save_figure(options.name, picture(results, options), out=options.out)
    save_table(options.name.replace("_", "-"), render(results, options), out=options.out)


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """All runs in order, a seed at a time, and in it all starts of a fraction together: a table soon has whole rows."""
    cells = []
    for seed in options.seeds:
        cells += [Cell(seed, init, None) for init in options.inits if init != SCRATCH]
        cells += [Cell(seed, init, fraction) for fraction in options.fractions for init in options.inits]
    return cells


def pretraining_of(seed: int, init: str, fraction: float | None) -> list[Cell]:
    """The runs that a cell starts from: one or none."""
    return [] if fraction is None or init == SCRATCH else [Cell(seed, init, None)]


def folder_of(cell: Cell, options: argparse.Namespace) -> Path:
    """Where the cell's run is."""
    name = cell.init if cell.fraction is None else f"{cell.init}-{cell.fraction:g}"
    return options.runs / f"seed{cell.seed}" / name


def train(seed: int, init: str, fraction: float | None, options: argparse.Namespace) -> None:
    """Make one run, if it is not there and what it starts from is."""
    started_from = [folder_of(cell, options) for cell in pretraining_of(seed, init, fraction)]
    if not all(finished(folder) for folder in started_from):
        return  # it failed or was stopped, which it told
    if fraction is None:
        own = [f"objective={init}", *options.settings, *options.pretrain, "env.label_fraction=1"]
    else:
        own = ["objective=lidar_detection", *options.settings, *options.finetune, f"env.label_fraction={fraction:g}"]
        own.append(f"init={started_from[0] if started_from else 'null'}")
    cell = Cell(seed, init, fraction)
    summary_of(folder_of(cell, options), "threads=1", "resume=true", *own, f"seed={seed}")


def result_of(cell: Cell, options: argparse.Namespace) -> Result | None:
    """What the cell's run found; None if it is not finished."""
    folder = folder_of(cell, options)
    summary = finished(folder)
    if summary is None:
        return None
    source = json.loads((folder / build.SOURCE_FILE).read_text())
    return Result(summary, build.load_config(folder), source["frames"]["train"])


def check_alike(results: Results) -> None:
    """Refuse runs that do not belong in one table.

    Raises:
        SystemExit: if detection runs, or pre-training runs of an objective, differ in more than seed, start and labels.
    """
    first: dict[str, Result] = {}
    free = (FREE_KEYS - {"steps"}) | OWN
    for cell, result in results.items():
        alike = first.setdefault(cell.init if cell.fraction is None else "detection", result)
        names = build.differences(build.to_dict(result.config), build.to_dict(alike.config))
        if different := [name for name in names if name not in free and name.split(".")[0] not in free]:
            folders = f"{alike.config.run_dir} and {result.config.run_dir}"
            sys.exit(f"error: {folders} differ in {', '.join(different[:5])}: remove those that are not of this table")


def render(results: Results, options: argparse.Namespace) -> str:
    """The table in Markdown."""
    classes = list(next(result for cell, result in results.items() if cell.fraction is not None).ap("3d"))
    header = ["labels", "frames", "start", *(f"{name} 3D" for name in classes), "mean 3D", "gain", "mean BEV", "seeds"]
    lines = [f"# 3D detection from few labels, {today()}", "", command("label_efficiency"), ""]
    lines += [*notes(results, options), "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for fraction in options.fractions:
        frames = next((str(result.frames) for cell, result in results.items() if cell.fraction == fraction), "-")
        for init in options.inits:
            mine = {seed: results[at] for seed in options.seeds if (at := Cell(seed, init, fraction)) in results}
            base = {seed: results[at] for seed in mine if (at := Cell(seed, SCRATCH, fraction)) in results}
            gains = [mine[seed].mean_ap("3d") - base[seed].mean_ap("3d") for seed in base if init != SCRATCH]
            columns = [[result.ap("3d")[name] for result in mine.values()] for name in classes]
            columns += [[result.mean_ap("3d") for result in mine.values()], gains]
            columns += [[result.mean_ap("bev") for result in mine.values()]]
            numbers = " | ".join(mean_and_error(values, digits=1) for values in columns)
            lines.append(f"| {100 * fraction:g} % | {frames} | {LABELS[init]} | {numbers} | {len(mine)} |")
    return "\n".join(lines) + "\n"


def notes(results: Results, options: argparse.Namespace) -> list[str]:
    """What the table's numbers are, from the runs themselves."""
    first = next(result for cell, result in results.items() if cell.fraction is not None)
    devices = devices_of(result.summary for result in results.values())
    versions = ", ".join(f"{name} {first.summary['versions'][name]}" for name in ("python", "torch"))
    seeds, num_val = ", ".join(map(str, options.seeds)), first.config.env.get("val_frames") or "all"
    lines = [
        f"- {devices}, {first.summary['threads']} thread(s) a run; {versions}; seeds {seeds}.",
        f"- {len(results)} of {len(cells_of(options))} runs are finished.",
        f"- Detection: {amount(first)} for every share of labels: the first frames of the list, for all seeds.",
    ]
    for init in options.inits:
        before = next((r for cell, r in results.items() if cell.init == init and cell.fraction is None), None)
        if before:
            use = "without labels" if before.config.get("relabel") is None else "with labelled objects pasted in"
            lines.append(f"- {LABELS[init]}: {amount(before)} on all {before.frames} training frames, {use}.")
    truth = first.ap("3d", "_of_truth")
    best = ", ".join(f"{name} {value:.1f}" for name, value in truth.items())
    return [
        *lines,
        f"- AP R40, {MAIN}, in %, after the last update, on {num_val} validation frames: mean over seeds, its standard "
        "error in brackets. gain: of the mean 3D AP over that from scratch with the same seed.",
        f"- The truth itself scores {best}, mean {statistics.mean(truth.values()):.1f}, in 3D and from above.",
    ]


def amount(result: Result) -> str:
    """How long a run was trained."""
    return f"{result.summary['steps']:,} updates of {result.config.batch_size} scans"


def picture(results: Results, options: argparse.Namespace) -> bytes:
    """Mean 3D AP over the share of labels: a line a start with its standard error, a dot a seed."""
    figure = new_figure(4.8, 3.4)
    axes = figure.add_subplot()
    for place, init in enumerate(options.inits):
        points = []
        for fraction in sorted(options.fractions):
            values = [r.mean_ap("3d") for c, r in results.items() if (c.init, c.fraction) == (init, fraction)]
            if values:
                x = fraction * 1.04 ** (place - (len(options.inits) - 1) / 2)  # beside each other
                axes.plot([x] * len(values), values, "o", color=COLORS[init], markersize=3, alpha=0.6)
                points.append((x, statistics.mean(values), standard_error(values)))
        if points:
            x, mean, error = zip(*points, strict=True)
            axes.errorbar(x, mean, error, color=COLORS[init], linewidth=1.4, capsize=3, label=LABELS[init])
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(options.fractions, [f"{100 * fraction:g} %" for fraction in options.fractions])
    finish_axes(axes, x="labelled training frames", y=f"mean 3D AP R40, {MAIN}, %")
    return png(figure)


if __name__ == "__main__":
    main()
