"""What a loss says of accuracy, and what accuracy costs: runs of ``benchmarks.compare --of video``, read again.

    python -m benchmarks.loss_and_accuracy --runs runs/video --seeds 0 1 2 --labels identity direction

SALT's claim is that a student's loss, whose target stands still, predicts its accuracy, and that the loss of V-JEPA,
whose target moves, does not (arXiv 2509.24317; sheet salt_video, section 1.6). Every evaluation after a phase has begun
is a point: its held-out loss and the attentive probe's score. R2 is the squared correlation of the points of a run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.runs import (
    command,
    devices_of,
    finish_axes,
    finished,
    mean_and_error,
    save_figure,
    save_table,
    table_parser,
    today,
    version_list,
)
from worldmodels.evals.pictures import new_figure, png

METHODS = {  # run: phase and its loss
    "v_jepa": ("v_jepa", "prediction"),
    "salt": ("student", "prediction"),
    "v_pixel": ("v_pixel", "pixels"),
}


class Point(NamedTuple):
    """An evaluation."""

    step: int
    operations: float
    loss: float
    score: float


def main() -> None:
    """Read, print, save and draw."""
    parser = table_parser(__doc__, runs="video", settings="nothing")
    parser.add_argument("--labels", nargs="+", default=["identity", "direction"], help="what probes read")
    options = parser.parse_args()
    points = {
        (name, label): found
        for label in options.labels
        for name in METHODS
        if (found := [points_of(summary, name, label) for summary in summaries(options, name)])
    }
    if not points:
        sys.exit(f"error: no run of {', '.join(METHODS)} in {options.runs} is finished")
    save_table("loss-and-accuracy", render(points, options), out=options.out)
    save_figure("loss_and_accuracy", picture(points, options.labels), out=options.out)


def summaries(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Those of the finished runs of a method."""
    found = [finished(options.runs / f"seed{seed}" / name) for seed in options.seeds]
    return [summary for summary in found if summary]


def points_of(summary: Mapping[str, Any], name: str, label: str) -> list[Point]:
    """Evaluations after the phase that trains what is judged has begun."""
    phase, loss = METHODS[name]
    begins = summary["phases"][phase][0]
    losses = {block["step"]: block["metrics"][f"{phase}/{loss}"] for block in summary["evaluations"]["held_out"]}
    return [
        Point(block["step"], block["operations"], losses[block["step"]], block["metrics"][f"clip/{label}/attentive"])
        for block in summary["evaluations"]["clip_probe"]
        if block["step"] > begins
    ]


def r2(points: Sequence[Point]) -> float | None:
    """Squared correlation of loss and score; None for fewer than three points, or if one of them never changes."""
    losses, scores = [p.loss for p in points], [p.score for p in points]
    if len(points) < 3 or len(set(losses)) == 1 or len(set(scores)) == 1:
        return None
    return statistics.correlation(losses, scores) ** 2


def slope_sign(points: Sequence[Point]) -> str:
    """Whether the score falls with the loss, as it should, or rises."""
    return "falls" if statistics.correlation([p.loss for p in points], [p.score for p in points]) < 0 else "rises"


def render(points: Mapping[tuple[str, str], Sequence[Sequence[Point]]], options: argparse.Namespace) -> str:
    """The table in Markdown."""
    first = next(summary for name in METHODS for summary in summaries(options, name))
    lines = [
        f"# Held-out loss against an attentive probe, {today()}",
        "",
        command("loss_and_accuracy"),
        "",
        f"- {devices_of([first])}, {first['threads']} thread(s) a run; {version_list('python', 'torch')}.",
        "- R2: squared correlation over the evaluations of a run; mean over runs, standard error in brackets.",
        "- Losses of different methods are not comparable: their targets differ.",
        "",
        "| | label | R2 of loss and score | score with the loss | points a run | runs |",
        "|---|---|---|---|---|---|",
    ]
    for (name, label), runs in points.items():
        found = [value for value in map(r2, runs) if value is not None]
        signs = "/".join(slope_sign(run) for run in runs if r2(run) is not None)
        nums = "/".join(str(len(run)) for run in runs)
        lines.append(
            f"| {name} | {label} | {mean_and_error(found, digits=2)} | {signs or '-'} | {nums} | {len(runs)} |"
        )
    return "\n".join(lines) + "\n"


def picture(points: Mapping[tuple[str, str], Sequence[Sequence[Point]]], labels: Sequence[str]) -> bytes:
    """A row a label: score against operations, and against the held-out loss, one line a run."""
    figure = new_figure(7.2, 2.8 * len(labels))
    colors = dict(zip(METHODS, ("#1f4e9c", "#d1495b", "#8a8a8a"), strict=True))
    for row, label in enumerate(labels):
        for column, title in enumerate(("floating-point operations", "held-out loss")):
            axes = figure.add_subplot(len(labels), 2, 2 * row + column + 1)
            for name, color in colors.items():
                for number, run in enumerate(points.get((name, label), ())):
                    across = [p.loss if column else p.operations for p in run]
                    options = {"color": color, "marker": "o", "markersize": 3, "linewidth": 0.0 if column else 1.2}
                    axes.plot(across, [p.score for p in run], label=None if number else name, **options)
            finish_axes(axes, x=title, y=f"{label}, attentive probe")
    return png(figure)


if __name__ == "__main__":
    main()
