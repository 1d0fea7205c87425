"""Updates a second of imitating policies and episodes a minute of their evaluation, with where the time goes.

    python -m benchmarks.imitation_speed                                    # Meta-World at scale=small, one thread
    python -m benchmarks.imitation_speed env=pusht env.path=../shared/data/pusht env.observation=pixels
    python -m benchmarks.imitation_speed --device cuda scale=paper

Arguments without dashes are settings of ``worldmodels.run``. ``--updates`` are timed, and all episodes of the
evaluation are played once, untrained: to their time limit. Demonstrations are made first, where there are none.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping

from benchmarks.bench import WARMUP, Bench, arguments, conditions, show, span
from benchmarks.runs import command, today
from benchmarks.update_speed import hardware
from benchmarks.watch import Part, Place, Spent, Watch
from envs.vector import VectorEnv
from worldmodels import build
from worldmodels.evals.results import judging
from worldmodels.evals.tasks import choose_tasks, play

AGENTS = ("act", "act_jepa", "act_cvae", "bc", "diffusion_policy")
LEAST = 0.01  # share of the time from which on a part is listed


def updates(bench: Bench, num: int) -> tuple[list[float], str]:
    """Milliseconds of ``num`` updates, and where the time of as many others went."""
    for _ in range(WARMUP):
        bench.update()
    whole, watch = [bench.once(bench.update) for _ in range(num)], Watch(bench.device)
    parts = [Part(name, child, "forward") for name, child in bench.objective.named_children()]
    parts += [Part("windows", bench.source, "sample"), Part("clipping and optimizer", bench.learner, "_step")]
    parts += [Part("moving average", target, "update") for target in bench.learner.targets]
    with watch.on(parts):
        for _ in range(num):
            bench.update()
    return whole, shares(watch.read())


def episodes(bench: Bench) -> tuple[int, float, str]:
    """Episodes of an evaluation, its seconds, and where they went."""
    options, watch = bench.cfg.eval.policy, Watch(bench.device)
    tasks = choose_tasks(bench.source, options.tasks)
    parts = [Part("policy", bench.objective, "act")]
    parts += [Part("simulator", VectorEnv, name) for name in ("reset", "step")]
    started = time.perf_counter()
    with judging(bench.objective), watch.on(parts):
        play(bench.objective, bench.source, tasks, episodes=options.episodes, seed=0, device=bench.device)
    return len(tasks) * options.episodes, time.perf_counter() - started, shares(watch.read())


def shares(spent: Mapping[Place, Spent]) -> str:
    """Parts by their share, the largest first; "rest" is outside of all, and what is too small to list."""
    found: dict[str, float] = defaultdict(float)
    whole = sum(seconds for seconds, _ in spent.values())
    for place, (seconds, _) in spent.items():
        found[place.path[0] if place.path else "rest"] += seconds / whole
    listed = {name: share for name, share in found.items() if name != "rest" and share >= LEAST}
    listed["rest"] = 1 - sum(listed.values())
    return ", ".join(f"{name} {share:.0%}" for name, share in sorted(listed.items(), key=lambda item: -item[1]))


def report(args: argparse.Namespace, settings: list[str]) -> str:
    """Markdown: how it was measured, and both tables."""
    learned = ["| agent | parameters | ms an update | updates/s | forward and backward |", "|---|---|---|---|---|"]
    played = ["| agent | episodes | episodes/minute | where the time goes |", "|---|---|---|---|"]
    data = [] if any(setting.startswith("env=") for setting in settings) else ["env=metaworld"]
    for agent in AGENTS:
        bench = Bench([f"agent={agent}", *data, *settings], args.device, args.updates)
        whole, parts = updates(bench, args.updates)
        rate, size = 1e3 / statistics.median(whole), build.num_parameters(bench.objective)
        learned.append(f"| {agent} | {size:,} | {span(whole)} | {rate:.2f} | {parts} |")
        if bench.cfg.diagnostics.get("policy", True):  # where there is a simulator
            num, seconds, parts = episodes(bench)
            played.append(f"| {agent} | {num} | {60 * num / seconds:.0f} | {parts} |")
            bench.source.tasks.close()
    head = [
        f"# Imitation, {' '.join([*data, *settings])}, {hardware(args.device)}, {today()}",
        "",
        command("imitation_speed"),
        "",
        f"- {conditions(args)}. Updates: processor time, on a GPU wall time; median of {args.updates} [least, "
        f"greatest] after {WARMUP} to warm up, of {bench.cfg.batch_size} windows; parts of as many others.",
        "- Episodes: wall time of all of an evaluation's episodes side by side in one process, played by untrained "
        "policies to the time limit, with building the environments.",
        "",
    ]
    return "\n".join([*head, *learned, "", *played, ""])


def main() -> None:
    """Measure, print and save."""
    args, settings = arguments(__doc__)
    show(report(args, settings), f"imitation_speed_{'_'.join(settings) or 'metaworld'}", args)


if __name__ == "__main__":
    main()
