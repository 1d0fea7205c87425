"""Finished zero-shot runs as rows of a table: found in folders, grouped, and never mixed when they differ."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from worldmodels import checkpoint
from worldmodels.files import atomic_write, atomic_write_json

PUBLISHED = Path(__file__).resolve().parent / "published_zero_shot.csv"
RENAMED = {"sf_random": "sf", "td_jepa_symmetric": "td_jepa_sym"}  # runs of earlier versions
JUDGES = ("zero_shot", "policy")  # evaluators that play the tasks; "policy" for agents trained on one task
FLOORS = ("floor_random", "floor_idle")
RETURN_MAX = 1000.0  # of an episode on DMC
# Where and how something is computed, not what: whole sections, and keys of that name anywhere.
_FREE_SECTIONS = set(
    "seed steps run_dir resume device threads compile cuda_graph log_every eval_every checkpoint_every keep_best logger"
    " diagnostics".split()
)
_FREE_KEYS = {"data_dir", "download", "collect", "workers", "max_device_bytes", "every", "is_filmed"}
_TASKS = {"task", "tasks"}  # of agents trained on one task at a time: their runs are put together


class Score(NamedTuple):
    """An evaluation: success in [0, 1], or return where the data define no success."""

    metric: str
    tasks: dict[str, float]

    @property
    def mean(self) -> float:
        """Over tasks."""
        return statistics.mean(self.tasks.values())


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def data(self) -> tuple[str, str]:
        """Data set and kind of observation."""
        env = self.config["env"]
        name = env.get("domain") or env.get("dataset") or env["source"]["_target_"].rsplit(".", 1)[-1].lower()
        is_pixels = env.get("observation") == "pixels" or name.startswith("visual-")
        return name, "pixels" if is_pixels else "state"

    @property
    def agent(self) -> str:
        """The option of ``agent=``; earlier summaries tell it in their command only."""
        target = self.config["agent"]["_target_"].split(".")
        name = self._chosen("agent") or target[-2]
        return RENAMED.get(name, name)

    @property
    def scale(self) -> str:
        """The option of ``scale=``."""
        return self._chosen("scale") or ("paper" if self._chosen("experiment") else "small")

    def _chosen(self, group: str) -> str | None:
        if choices := self.summary.get("choices"):
            return choices.get(group)
        found = re.findall(rf"(?:^| )'?{group}=([\w./-]+)", self.summary.get("command", ""))
        return found[-1] if found else None

    @property
    def seed(self) -> int:
        """Of training."""
        return self.config["seed"]

    @property
    def steps(self) -> int:
        """Updates asked for."""
        return self.config["steps"]

    @property
    def reached(self) -> int:
        """Updates done, as the newest checkpoint says."""
        saved = checkpoint.steps(self.folder / "checkpoints")
        return saved[-1] if saved else 0

    @property
    def is_finished(self) -> bool:
        """Whether the last update was followed by an evaluation."""
        return bool(self.summary.get("is_finished")) and self.score(step=self.steps) is not None

    @property
    def hardware(self) -> str:
        """What it ran on."""
        return self.summary.get("hardware") or self.summary["device"]

    @property
    def judge(self) -> str:
        """Name of the evaluator that plays the tasks."""
        return next(name for name in JUDGES if name in self.config["eval"])

    def score(self, *, step: int | None = None) -> Score | None:
        """Of the last evaluation, or of that at ``step``; None if there is none."""
        history = self.summary.get("evaluations", {}).get(self.judge, [])
        blocks = [block for block in history if step is None or block["step"] == step]
        return score_of(blocks[-1]["metrics"]) if blocks else None

    def identity(self) -> dict[str, Any]:
        """What was computed, as {dotted key: value}: everything but the seed, the steps and where it ran."""
        kept = {k: v for k, v in self.config.items() if k not in _FREE_SECTIONS}
        kept["eval"] = {self.judge: self.config["eval"][self.judge]}
        flat = dict(_leaves(kept))
        # Choices of the data are copied into its source: told once.
        return {k: v for k, v in flat.items() if not (k.startswith("env.source.") and "env." + k[11:] in flat)}


def score_of(metrics: Mapping[str, float]) -> Score:
    """The tasks' means in an evaluation's metrics; tasks without a countable episode are left out."""
    metric = "success" if "success" in metrics else "return"
    found = {key.split("/")[0]: value for key, value in metrics.items() if key.endswith(f"/{metric}")}
    return Score(metric, {task: value for task, value in found.items() if value is not None and math.isfinite(value)})


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key not in _FREE_KEYS | _TASKS:
            yield f"{prefix}{key}", value


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All runs of zero-shot agents in ``folders`` and below, in order of their paths; each once.

    Raises:
        ValueError: if a folder holds none.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        here = {path.resolve(): run for path in sorted(folder.rglob("config.yaml")) if (run := _read(path))}
        if not here:
            raise ValueError(f"{folder} holds no run of a zero-shot agent")
        found = here | found
    return list(found.values())


def _read(path: Path) -> Run | None:
    config = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(config, dict) or not config.get("agent") or not set(JUDGES) & set(config.get("eval") or ()):
        return None
    summary = path.with_name("summary.json")
    return Run(path.parent, config, json.loads(summary.read_text()) if summary.is_file() else {})


def keep(runs: Iterable[Run], folder: Path) -> list[Path]:
    """Write what tables need of finished runs below ``folder``: a few kilobytes each, to outlast their checkpoints.

    Returns:
        the folders, DATA/AGENT-STEPS-seed-SEED-MARK, which ``read_runs`` takes for the runs themselves.
    """
    made = []
    for run in runs:
        if not run.is_finished:
            continue
        what = json.dumps([run.identity(), run.config["eval"][run.judge].get("tasks")], sort_keys=True, default=str)
        mark = hashlib.sha256(what.encode()).hexdigest()[:6]
        place = folder / "-".join(run.data) / f"{run.agent}-{run.steps}-seed-{run.seed}-{mark}"
        place.mkdir(parents=True, exist_ok=True)
        history = run.summary["evaluations"]
        short = {
            name: [{"step": block["step"], "metrics": block["metrics"]} for block in _ends(history[name])]
            for name in (run.judge, *FLOORS)
            if name in history
        }
        atomic_write_json(place / "summary.json", {**run.summary, "evaluations": short})
        atomic_write(place / "config.yaml", (run.folder / "config.yaml").read_text())
        made.append(place)
    return made


def _ends(blocks: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The first and the last."""
    return blocks if len(blocks) < 2 else [blocks[0], blocks[-1]]


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed only."""

    data: tuple[str, str]
    agent: str
    scale: str
    steps: int
    variant: str
    """What sets it apart from other rows of the same agent; "" if nothing does."""
    runs: list[Run] = field(repr=False)

    def by_seed(self) -> dict[int, dict[str, float]]:
        """{seed: {task: score}}; an agent trained on one task at a time has several runs a seed.

        Raises:
            ValueError: if two runs tell the same.
        """
        found: dict[int, dict[str, float]] = defaultdict(dict)
        for run in self.runs:
            score = run.score()
            assert score is not None
            if again := found[run.seed].keys() & score.tasks.keys():
                others = ", ".join(str(r.folder) for r in self.runs if r.seed == run.seed)
                raise ValueError(f"{self.agent}, seed {run.seed}, {min(again)} is there twice: {others}")
            found[run.seed] |= score.tasks
        return dict(found)

    def means(self, tasks: Sequence[str]) -> list[float]:
        """One mean over ``tasks`` a seed; seeds that lack some are left out."""
        seeds = self.by_seed().values()
        return [statistics.mean(scores[t] for t in tasks) for scores in seeds if scores.keys() >= set(tasks)]


def make_rows(runs: Sequence[Run], *, is_apart: bool = False) -> list[Row]:
    """Group finished runs by data, agent, scale and steps.

    Args:
        runs: finished ones.
        is_apart: make a row of each configuration, instead of refusing.

    Raises:
        ValueError: if runs of a group differ in more than their seed; the message says in what.
    """
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.data, run.agent, run.scale, run.steps].append(run)
    rows = []
    for (data, agent, scale, steps), members in groups.items():
        kinds: dict[str, list[Run]] = defaultdict(list)
        for run in members:
            kinds[json.dumps(run.identity(), sort_keys=True, default=str)].append(run)
        different = differing([run.identity() for run in members])
        if len(kinds) > 1 and not is_apart:
            folders = " and ".join(str(kind[0].folder) for kind in list(kinds.values())[:2])
            what = ", ".join(f"{k} ({' | '.join(map(str, v))})" for k, v in list(different.items())[:5])
            raise ValueError(
                f"{agent} on {data[0]}: {len(kinds)} configurations, for example {folders}; they differ in {what}. "
                "Give fewer folders, or --apart for a row of each"
            )
        for kind in kinds.values():
            own = kind[0].identity()
            rows.append(Row(data, agent, scale, steps, ", ".join(f"{k}={own.get(k)}" for k in different), kind))
    return rows


def differing(identities: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{key: its different values} of the keys in which configurations differ."""
    keys = sorted({key for one in identities for key in one})
    values = {key: list(dict.fromkeys(str(one.get(key)) for one in identities)) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def untrained(runs: Sequence[Run]) -> dict[str, dict[int, Score]]:
    """{agent: {seed: score}} at step 0, which runs with ``eval_every`` evaluate before their first update."""
    found: dict[str, dict[int, Score]] = defaultdict(dict)
    for run in runs:
        if score := run.score(step=0):
            found[run.agent][run.seed] = score
    return dict(found)


def floors(runs: Sequence[Run]) -> dict[str, list[Mapping[str, float]]]:
    """{evaluator: metrics} of policies that know nothing; runs that evaluated the same episodes tell the same once."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for name in FLOORS:
        blocks = [run.summary.get("evaluations", {}).get(name, []) for run in runs]
        unique = {json.dumps(history[-1]["metrics"]): history[-1]["metrics"] for history in blocks if history}
        if unique:
            found[name] = list(unique.values())
    return found


def published() -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """{(data, observation): {agent: (mean, standard error)}}: success in %, return on DMC.

    Source: TD-JEPA (arXiv 2510.00739), tables 1 to 3: 10 seeds on OGBench, 5 on DMC, at 1M and 2M updates.
    """
    with open(PUBLISHED, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        key = (row.pop("data"), row.pop("observation"))
        found[key] = {agent: (float(cell.split("±")[0]), float(cell.split("±")[1])) for agent, cell in row.items()}
    return found
