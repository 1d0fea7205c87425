"""Zero-shot success of several agents over seeds, in one table with its controls.

Each cell is an ordinary run (``python -m worldmodels.run``) in its own folder; finished runs are not repeated, so the
command can be stopped and started again. The untrained agent is a run of zero steps. Usage:

    python -m benchmarks.zero_shot_table --agents td_jepa fb hilp sf_random --seeds 0 1 2 --jobs 2 -- steps=20000
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch

from benchmarks.runs import (
    command,
    last_metrics,
    run_all,
    save_table,
    spread,
    summary_of,
    table_parser,
    today,
    version_list,
)
from worldmodels.environment import device_name

UNTRAINED = "untrained"


def main() -> None:
    """Run what is missing, print and save the table."""
    parser = table_parser(__doc__, runs="zero_shot_table")
    parser.add_argument("--agents", nargs="+", default=["td_jepa", "sf_random"])
    parser.add_argument("--name", default="zero-shot", help="of the file in benchmarks/results")
    options = parser.parse_args()

    cells = [(agent, seed) for seed in options.seeds for agent in [*options.agents, UNTRAINED]]
    summaries = run_all(run_cell, cells, options, jobs=options.jobs)
    table = render({cell: summary for cell, summary in summaries.items() if summary is not None}, options)
    save_table(options.name, table, out=options.out)


def run_cell(agent: str, seed: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """Summary of one run, made if it is not there yet; None if it failed."""
    folder = options.runs / f"{agent}-{seed}"
    is_untrained = agent == UNTRAINED
    own = [f"agent={options.agents[0] if is_untrained else agent}", f"seed={seed}"]
    own += ["steps=0"] if is_untrained else ["resume=true"]
    threads = ["threads=1"] if options.jobs > 1 else []
    return summary_of(folder, *options.settings, *threads, *own)


def render(summaries: dict[tuple[str, int], dict[str, Any]], options: argparse.Namespace) -> str:
    """The table in Markdown."""
    first = next(iter(summaries.values()))
    threads = " or ".join(sorted({str(s["threads"]) for s in summaries.values()}))
    tasks = sorted(k.split("/")[0] for k in final(first) if k.endswith("/success"))
    lines = [
        f"# {options.name}: zero-shot success, {today()}",
        "",
        command("zero_shot_table"),
        "",
        f"- {device_name(torch.device('cpu'))}, {threads} thread(s) a run, {options.jobs} at a time.",
        f"- {version_list('python', 'torch', 'ogbench', 'mujoco')}.",
        "- Success in %, mean over seeds (standard deviation of the seed means); final checkpoint.",
        "",
        "| agent | mean | " + " | ".join(tasks) + " | seeds | updates | updates/s |",
        "|---" * (len(tasks) + 5) + "|",
    ]
    for agent in [*options.agents, UNTRAINED]:
        runs = [s for (a, _), s in summaries.items() if a == agent]
        if runs:
            cells = [spread([final(s)["success"] for s in runs])]
            cells += [spread([final(s)[f"{task}/success"] for s in runs]) for task in tasks]
            speed = statistics.mean(s["updates_per_second"] for s in runs)
            lines.append(f"| {agent} | {' | '.join(cells)} | {len(runs)} | {runs[0]['steps']} | {speed:.1f} |")
    return "\n".join(lines) + "\n"


def final(summary: dict[str, Any]) -> dict[str, float]:
    """Metrics of the last zero-shot evaluation."""
    return last_metrics(summary, "zero_shot")


if __name__ == "__main__":
    main()
