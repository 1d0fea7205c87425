"""Does T-JEPA collapse without its register token? Rank, spread and probe score over training, with and without it.

    python -m benchmarks.tabular_collapse --data-dir ../shared/data/tabular -- steps=1500 eval_every=250

Writes a table to benchmarks/results and a picture to docs/figures. Step 0 is the untrained encoder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.runs import (
    command,
    run_all,
    save_figure,
    save_table,
    spread,
    summary_of,
    table_parser,
    today,
    version_list,
)
from worldmodels.environment import device_name
from worldmodels.evals.pictures import new_figure, png

CURVES = {  # title: evaluator, metric
    "effective rank": ("collapse", "row/rankme"),
    "mean standard deviation": ("collapse", "row/std_mean"),
    "uniformity": ("collapse", "row/uniformity"),
}
COLORS = {1: "#1f4e9c", 0: "#d73027"}


def main() -> None:
    """Run what is missing, print, save and draw."""
    parser = table_parser(__doc__, runs="tabular_collapse")
    parser.add_argument("--data", default="california")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--registers", nargs="+", type=int, default=[1, 0])
    options = parser.parse_args()
    cells = [(num, seed) for seed in options.seeds for num in options.registers]
    summaries = {cell: found for cell, found in run_all(train, cells, options, jobs=options.jobs).items() if found}
    if not summaries:
        sys.exit("error: every run failed")
    probed = next(iter(summaries.values()))["evaluations"]["probe"][0]["metrics"]
    metric = "rmse" if "row/rmse" in probed else "accuracy"
    shown = {**CURVES, f"linear probe, {metric}": ("probe", f"row/{metric}")}
    curves = {title: {cell: series(s, *which) for cell, s in summaries.items()} for title, which in shown.items()}
    name = f"t_jepa_collapse_{options.data}"
    save_figure(name, picture(curves, options), out=options.out)
    save_table(name.replace("_", "-"), render(curves, options), out=options.out)


def train(num_registers: int, seed: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """Summary of one run."""
    folder = options.runs / f"{options.data}-{num_registers}-{seed}"
    where = [f"env.data_dir={options.data_dir.resolve()}"] if options.data_dir else []
    own = [f"encoder.num_registers={num_registers}", f"seed={seed}", "threads=1", "resume=true"]
    return summary_of(folder, "objective=t_jepa", f"env.dataset={options.data}", *where, *own, *options.settings)


def series(summary: dict[str, Any], evaluator: str, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric of a run."""
    blocks = summary["evaluations"][evaluator]
    return [block["step"] for block in blocks], [block["metrics"][metric] for block in blocks]


def picture(curves: dict[str, dict[tuple[int, int], Any]], options: argparse.Namespace) -> bytes:
    """One axes a quantity: every seed as a line, with and without registers."""
    figure = new_figure(3.1 * len(curves), 2.8)
    for axes, (title, cells) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for (num, seed), (steps, values) in cells.items():
            label = f"{num} [REG]" if seed == options.seeds[0] else None
            axes.plot(steps, values, color=COLORS.get(num, "#5b6472"), linewidth=1.2, label=label)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("updates", fontsize=8)
        axes.tick_params(labelsize=7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle(f"T-JEPA on {options.data}, {len(options.seeds)} seeds each", fontsize=10)
    return png(figure)


def render(curves: dict[str, dict[tuple[int, int], Any]], options: argparse.Namespace) -> str:
    """First and last values in Markdown."""
    lines = [
        f"# Collapse with and without [REG], {options.data}, {today()}",
        "",
        command("tabular_collapse"),
        "",
        f"- {device_name(torch.device('cpu'))}, one thread a run, {options.jobs} at a time.",
        f"- {version_list('python', 'torch')}; seeds {', '.join(map(str, options.seeds))}.",
        "- Of all tokens of a row joined, at step 0 (untrained) and at the end; mean over seeds (standard deviation).",
        "",
        "| | " + " | ".join(f"{num} [REG], untrained | {num} [REG], trained" for num in options.registers) + " |",
        "|---" * (1 + 2 * len(options.registers)) + "|",
    ]
    for title, cells in curves.items():
        row = []
        for num in options.registers:
            found = [values for (n, _), (_, values) in cells.items() if n == num]
            digits = 1 if statistics.mean(v[-1] for v in found) > 10 else 4
            row += [spread([values[at] for values in found], scale=1.0, digits=digits) for at in (0, -1)]
        lines.append(f"| {title} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
