"""The results page of zero-shot agents, from the folders of their runs.

    python -m benchmarks.zero_shot_results runs/zero_shot --out docs/results/zero_shot.md

Any folders, any depth: what is there is grouped by data set, agent, scale and steps. Runs of a group may differ in
their seed only, else the command refuses and says in what they differ (``--apart`` makes a row of each). Runs that have
not reached their last step are listed and not averaged. ``--remarks FILE`` puts Markdown of yours after the summary.
``--keep FOLDER`` keeps what the page needs of these runs there, some kilobytes each, so that a page can be made from
runs of several machines: benchmarks/results/zero_shot holds those of docs/results/zero_shot.md.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator

from benchmarks.runs import command, standard_error, today
from benchmarks.zero_shot_runs import (
    RETURN_MAX,
    Row,
    Run,
    Score,
    differing,
    floors,
    keep,
    make_rows,
    published,
    read_runs,
    score_of,
    untrained,
)
from worldmodels.cli import one_line_errors
from worldmodels.evals.aggregate import Estimate, interquartile_score, mean_score, probability_of_improvement
from worldmodels.files import atomic_write

METHODS = {  # in the order of tables; others follow
    "td_jepa": "TD-JEPA",
    "td_jepa_sym": "TD-JEPA, symmetric",
    "c_td_jepa_sym": "C-TD-JEPA, symmetric",
    "fb": "FB",
    "rldp": "RLDP",
    "byol_gamma": "BYOL-γ*",
    "byol": "BYOL*",
    "hilp": "HILP",
    "icvf": "ICVF*",
    "laplacian": "Laplacian",
    "sf": "random features",
}
ORACLE = {"td3": "TD3 on the true reward (oracle)"}
LABELS = METHODS | ORACLE
OURS = "td_jepa"
FLOOR_LABELS = {"floor_random": "random actions", "floor_idle": "no action"}
WINS = {  # published P(TD-JEPA beats X) on a random domain, same paper
    "pixels": dict(byol_gamma=0.62, byol=0.67, rldp=0.70, fb=0.70, hilp=0.81, icvf=0.87, laplacian=0.82),
    "state": dict(byol_gamma=0.65, byol=0.77, rldp=0.76, fb=0.55, hilp=0.57, icvf=0.65, laplacian=0.93),
}
HEADER = """\
# Zero-shot results, {date}

{command} made this page from the runs' `summary.json`; do not edit it.

A command a data set makes all methods and seeds with their controls, another one TD3 on each task. Both take up what
was stopped (`docs/sweeps.md`):

```sh
{commands}
```

- Final checkpoint. A method infers each task from 10,000 labelled states; it is trained on none.
- Intervals: 95 % percentile bootstrap over seeds, drawn within each data set. With two or three seeds they are too
  narrow, and a single run has none. s.e.: standard error of the mean over seeds, as the paper prints.
- Controls: the untrained agent (step 0), random actions and no action (intervals over episodes), and TD3 trained on
  each task's true reward.
- Published: TD-JEPA (arXiv 2510.00739), tables 1 to 3, at 1M (OGBench) or 2M (DMC) updates of the full sizes; 10 or 5
  seeds, mean ± s.e.
- IQM: interquartile mean of the seeds' scores on all data sets, where all have equally many seeds.
"""
SWEEPS = "pointmaze-medium cube-single point_mass_maze walker".split()


class Line(NamedTuple):
    """A line of a data set's table."""

    label: str
    seeds: dict[int, dict[str, float]]
    updates: str
    scale: str
    agent: str | None = None
    interval: Estimate | None = None
    """Given where the spread over seeds is not the point."""


class DataSet:
    """Everything there is about one data set."""

    def __init__(self, data: tuple[str, str], rows: list[Row], runs: list[Run]) -> None:
        self.data, self.rows, self.runs = data, sorted(rows, key=_order), runs
        scores = [score for run in runs for score in (run.score(),) if score]
        self.metric = scores[0].metric
        if any(score.metric != self.metric for score in scores):
            raise ValueError(f"{data[0]}: some runs tell success and some return; give them apart")
        self.tasks = sorted({task for score in scores for task in score.tasks})

    @property
    def title(self) -> str:
        """Name and kind of observation."""
        return f"{self.data[0]}, {self.data[1]}"

    @property
    def unit(self) -> float:
        """What scores are multiplied with: success is told in %."""
        return 100.0 if self.metric == "success" else 1.0

    def row_of(self, agent: str) -> Row | None:
        """The agent's row with the most updates; None if there is none, or several."""
        mine = [row for row in self.rows if row.agent == agent and row.means(self.tasks)]
        best = [row for row in mine if row.steps == max(r.steps for r in mine)]
        return best[0] if len(best) == 1 else None

    def normalized(self, agent: str) -> torch.Tensor | None:
        """Scores in [0, 1], one a seed."""
        row = self.row_of(agent)
        if row is None:
            return None
        return torch.tensor(row.means(self.tasks), dtype=torch.float64) / (
            1 if self.metric == "success" else RETURN_MAX
        )

    def lines(self) -> list[Line]:
        """Methods, then controls."""
        found = []
        for row in self.rows:
            label = LABELS.get(row.agent, row.agent)
            if len({other.steps for other in self.rows if other.agent == row.agent}) > 1:
                label += f", {row.steps:,}"
            if row.variant:
                label += f" ({row.variant})"
            found.append(Line(label, row.by_seed(), f"{row.steps:,}", row.scale, row.agent))
        start = untrained(self.runs)
        if start:
            agent = OURS if OURS in start else min(start)
            scores = {seed: score.tasks for seed, score in sorted(start[agent].items())}
            found.append(Line(f"untrained {LABELS.get(agent, agent)}", scores, "0", ""))
        for name, blocks in floors(self.runs).items():
            seeds = {i: score_of(metrics).tasks for i, metrics in enumerate(blocks)}
            ends = [blocks[0].get(f"{self.metric}_{end}") for end in ("low", "high")]
            own = Estimate(Score(self.metric, seeds[0]).mean, *ends) if len(blocks) == 1 and None not in ends else None
            found.append(Line(FLOOR_LABELS[name], seeds, "", "", None, own))
        return found


def _order(row: Row) -> tuple[Any, ...]:
    known = list(LABELS)
    return known.index(row.agent) if row.agent in known else len(known), row.agent, -row.steps, row.variant


def generator() -> Generator:
    """Of every bootstrap: the page is a function of the runs."""
    return Generator().manual_seed(0)


def estimate(line: Line, tasks: Sequence[str]) -> tuple[Estimate, list[float]] | None:
    """Mean over seeds with its interval, and the seeds' means; None if no seed has all tasks."""
    complete = [scores for scores in line.seeds.values() if scores.keys() >= set(tasks)]
    means = [sum(scores[task] for task in tasks) / len(tasks) for scores in complete]
    if not means:
        return None
    return line.interval or mean_score([torch.tensor(means, dtype=torch.float64)], generator()), means


def told(found: Estimate, *, scale: float = 1.0, digits: int = 1, is_single: bool = False) -> str:
    """Text of an estimate: value [low, high]; a single run has no interval."""
    value, low, high = (f"{scale * number:.{digits}f}" for number in found)
    return value if is_single else f"{value} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def section(data: DataSet) -> list[str]:
    """A data set's tables and what to know about them."""
    known = published().get(data.data, {})
    main, tasks = [], []
    for line in data.lines():
        found = estimate(line, data.tasks)
        if found is None:
            missing = max(len(scores) for scores in line.seeds.values())
            main.append([line.label, f"{missing} of {len(data.tasks)} tasks", "", "", line.updates, line.scale, ""])
        else:
            value, means = found
            is_single = len(means) == 1 and line.interval is None
            error = f"± {data.unit * standard_error(means):.1f}" if len(means) > 1 else ""
            paper = "{:g} ± {:g}".format(*known[line.agent]) if line.agent in known else ""
            cell = told(value, scale=data.unit, is_single=is_single)
            seeds = str(len(means)) if line.interval is None else "-"
            main.append([line.label, cell, error, seeds, line.updates, line.scale, paper])
        tasks.append([line.label, *(_task_cell(line, task, data.unit) for task in data.tasks)])
    unit = "success in %" if data.metric == "success" else f"return, at most {RETURN_MAX:g}"
    head = ["", f"{unit}, mean [95 %]", "s.e.", "seeds", "updates", "scale", "published"]
    lines = [f"## {data.title}", "", *table(head, main), "", "By task, mean over seeds:", ""]
    return [*lines, *table(["", *data.tasks], tasks), "", *_notes(data, known), ""]


def _task_cell(line: Line, task: str, unit: float) -> str:
    values = [scores[task] for scores in line.seeds.values() if task in scores]
    return f"{unit * sum(values) / len(values):.0f}" if values else "-"


def _notes(data: DataSet, known: dict[str, tuple[float, float]]) -> list[str]:
    notes = []
    if order := _orders(data, known):
        notes.append(order)
    methods = [row for row in data.rows if row.agent not in ORACLE]
    if different := differing([_shared(row) for row in methods]):
        what = "; ".join(f"{key}: {' | '.join(values)}" for key, values in different.items())
        notes.append(f"- Not the same for all methods: {what}.")
    episodes = sorted({str(run.config["eval"][run.judge].get("episodes")) for run in data.runs})
    hardware = ", ".join(sorted({run.hardware for run in data.runs}))
    torches = ", ".join(sorted({run.summary["versions"]["torch"] for run in data.runs}))
    notes.append(f"- {' or '.join(episodes)} episodes a task. Ran on {hardware}; torch {torches}.")
    return notes


def _shared(row: Row) -> dict[str, Any]:
    """What methods should have in common for a comparison; the rest is their own."""
    own = row.runs[0].identity()
    kept = {key: value for key, value in own.items() if key.startswith(("env.", "eval.", "encoder.", "batch_size"))}
    return kept | {"steps": row.steps, "scale": row.scale, "agent.discount": own.get("agent.discount")}


def _orders(data: DataSet, known: dict[str, tuple[float, float]]) -> str:
    """Ours and the published order of the methods that both have, and how many pairs agree."""
    both = [agent for agent in METHODS if agent in known and data.row_of(agent)]
    if len(both) < 2:
        return ""
    ours = {
        agent: data.unit * sum(m := row.means(data.tasks)) / len(m) for agent in both if (row := data.row_of(agent))
    }
    theirs = {agent: known[agent][0] for agent in both}
    pairs = list(itertools.combinations(both, 2))
    agree = sum((ours[a] - ours[b]) * (theirs[a] - theirs[b]) > 0 for a, b in pairs)
    here, there = (
        " > ".join(f"{LABELS[a]} {s[a]:.1f}" for a in sorted(both, key=lambda a: -s[a])) for s in (ours, theirs)
    )
    return f"- Order here: {here}. Published: {there}. {agree} of {len(pairs)} pairs agree."


def overview(sets: Sequence[DataSet]) -> list[str]:
    """Methods by data sets, then aggregates over those that all methods have."""
    agents = list(dict.fromkeys(row.agent for data in sets for row in sorted(data.rows, key=_order)))
    agents.sort(key=lambda agent: list(LABELS).index(agent) if agent in LABELS else len(LABELS))
    rows = [[LABELS.get(agent, agent), *_scores(agent, sets), *_aggregates(agent, sets)] for agent in agents]
    head = ["", *(data.title for data in sets), "all, mean", "all, IQM"]
    lines = ["## All data sets", "", "Score [95 %] (seeds); in the last columns 100 is full success or return.", ""]
    return [*lines, *table(head, rows), "", *_improvement(sets, agents), ""]


def _scores(agent: str, sets: Sequence[DataSet]) -> list[str]:
    """A method's cell of every data set."""
    cells = []
    for data in sets:
        row = data.row_of(agent)
        found = estimate(Line("", row.by_seed(), "", ""), data.tasks) if row else None
        num = len(found[1]) if found else 0
        cells.append(f"{told(found[0], scale=data.unit, is_single=num == 1)} ({num})" if found else "-")
    return cells


def _aggregates(agent: str, sets: Sequence[DataSet]) -> list[str]:
    """Mean and interquartile mean over all data sets, where the method has them all."""
    scores = [s for data in sets if (s := data.normalized(agent)) is not None]
    if len(scores) < len(sets):
        return ["-", "-"]
    sizes = {len(s) for s in scores}
    cells = [told(mean_score(scores, generator()), scale=100, is_single=sizes == {1})]
    if len(sizes) > 1:
        return [*cells, "-"]
    return [*cells, told(interquartile_score(scores, generator()), scale=100, is_single=sizes == {1})]


def _improvement(sets: Sequence[DataSet], agents: Sequence[str]) -> list[str]:
    rows = []
    for agent in agents:
        if agent == OURS or agent in ORACLE:
            continue
        both = [(ours, theirs) for data in sets if (ours := data.normalized(OURS)) is not None
                and (theirs := data.normalized(agent)) is not None]  # fmt: skip
        if not both:
            continue
        found = probability_of_improvement(*(list(side) for side in zip(*both, strict=True)), generator())
        is_single = all(len(x) == 1 and len(y) == 1 for x, y in both)
        paper = [f"{WINS[kind][agent]:.2f}" if agent in WINS[kind] else "" for kind in ("state", "pixels")]
        rows.append([LABELS.get(agent, agent), told(found, digits=2, is_single=is_single), str(len(both)), *paper])
    if not rows:
        return []
    head = ["X", "P(TD-JEPA beats X) [95 %]", "data sets", "published, state", "published, pixels"]
    return [
        "How likely a run of TD-JEPA beats a run of X, on a data set drawn at random (ties count half):",
        "",
        *table(head, rows),
    ]


def incomplete(runs: Sequence[Run]) -> list[str]:
    """Runs that are in no table."""
    if not runs:
        return []
    rows = [[str(r.folder), r.agent, r.data[0], str(r.seed), f"{r.reached:,} of {r.steps:,}"] for r in runs]
    head = ["run", "agent", "data", "seed", "updates"]
    return ["## Not finished", "", "These are in no table above.", "", *table(head, rows), ""]


def header() -> str:
    """What the page is and how its numbers are made."""
    launcher = "hydra/launcher=joblib hydra.launcher.n_jobs=2 resume=true"
    commands = [f"python -m worldmodels.run -m sweep={kind}/{name} run_dir=runs/{kind}/{name} {launcher}"
                for name in SWEEPS for kind in ("zero_shot", "oracle")]  # fmt: skip
    return HEADER.format(date=today(), command=command("zero_shot_results"), commands="\n".join(commands))


def page(folders: Sequence[Path], *, is_apart: bool = False, remarks: str = "") -> str:
    """The whole page.

    Raises:
        ValueError: if runs cannot be put together; the message says why.
    """
    runs = read_runs(folders)
    done = [run for run in runs if run.is_finished]
    if not done:
        raise ValueError(f"none of {len(runs)} runs is finished")
    trained = [run for run in done if run.steps]
    sets = []
    for data in sorted({run.data for run in done}):
        rows = [row for row in make_rows(trained, is_apart=is_apart) if row.data == data]
        sets.append(DataSet(data, rows, [run for run in done if run.data == data]))
    lines = [header(), *overview(sets), *([remarks.strip(), ""] if remarks else [])]
    lines += [line for data in sets for line in section(data)]
    return "\n".join([*lines, *incomplete([run for run in runs if not run.is_finished])]).rstrip() + "\n"


def main() -> None:
    """Read runs, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs or of folders of runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results/zero_shot.md"))
    parser.add_argument("--apart", action="store_true", help="a row of each configuration instead of refusing")
    parser.add_argument("--remarks", type=Path, help="Markdown to put after the summary")
    parser.add_argument("--keep", type=Path, help="folder for configuration and scores of these runs")
    options = parser.parse_args()
    with one_line_errors():
        remarks = options.remarks.read_text() if options.remarks else ""
        atomic_write(options.out, page(options.runs, is_apart=options.apart, remarks=remarks))
        if options.keep:
            keep(read_runs(options.runs), options.keep)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
