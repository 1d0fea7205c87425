"""Judge a policy on the tasks of a benchmark: roll out, count, draw. Shared by all evaluators that act."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import Objective, Policy, TaskRule
from worldmodels.evals.bootstrap import bootstrap_interval
from worldmodels.evals.pictures import film, maze_picture
from worldmodels.evals.results import pack
from worldmodels.evals.rollout import DecidesAhead, Episodes, Film, Judge, rollout
from worldmodels.keys import ACTION, STATE
from worldmodels.spelling import did_you_mean


class TaskEvaluator(ABC):
    """Plays all episodes of the tasks at once and scores them. Who plays is a subclass's business.

    Start states and action noise are the same at every call: they depend on ``seed`` only. Episodes solved at their
    start do not count; a note says how many.

    Args:
        source: data with ``tasks``.
        every: steps between two evaluations; 0 evaluates at the end only.
        name: of this evaluator in logs and files.
        tasks: names; None takes all.
        episodes: a task.
        seed: of start states and action noise.
        workers: processes that simulate; 0 simulates in this one.
        max_steps: ends episodes early; None leaves it to the benchmark.
        is_filmed: whether one episode a task is filmed where there is no maze to draw.

    Raises:
        ValueError: if the source has no tasks, or not these; if there are no episodes.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        name: str,
        tasks: Sequence[str] | None = None,
        episodes: int = 10,
        seed: int = 0,
        workers: int = 0,
        max_steps: int | None = None,
        is_filmed: bool = True,
    ) -> None:
        if episodes < 1:
            raise ValueError(f"episodes={episodes} must be at least 1")
        self.source, self.every, self.name, self.episodes = source, every, name, episodes
        self.seed, self.workers, self.max_steps, self.is_filmed = seed, workers, max_steps, is_filmed
        self.tasks = choose_tasks(source, tasks)

    @abstractmethod
    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Evaluate; see ``result``."""

    def result(
        self,
        policy: Any,
        *,
        device: torch.device,
        z: Mapping[str, Tensor | TaskRule] | None = None,
        is_drawn: bool = True,
    ) -> TensorDict:
        """What ``score`` documents of ``policy``, with the evaluation list and, if wanted, pictures as media."""
        played, notes = play(
            policy,
            self.source,
            self.tasks,
            episodes=self.episodes,
            seed=self.seed,
            device=device,
            workers=self.workers,
            z=z,
            max_steps=self.max_steps,
            is_filmed=self.is_filmed,
        )
        goals = goal_positions(self.source, self.tasks) if is_drawn else None
        return result_of(self.source, played, notes, seed=self.seed, goals=goals)


def choose_tasks(source: Any, tasks: Sequence[str] | None) -> list[str]:
    """The benchmark's tasks, or those asked for.

    Raises:
        ValueError: if the source has no tasks, or not these; the message suggests the nearest name.
    """
    suite = getattr(source, "tasks", None)
    if suite is None:
        raise ValueError(
            f"{type(source).__name__} has no tasks to evaluate; use a source with tasks, such as env=ogbench"
        )
    known, elsewhere = list(suite.names), getattr(suite, "names_elsewhere", {})  # {task: data that have it}
    for task in tasks or ():
        if task not in known:
            hint = f"; it belongs to {elsewhere[task]}." if task in elsewhere else did_you_mean(task, known) or "."
            raise ValueError(f"there is no task {task}{hint} This data set has {', '.join(known)}")
    return list(tasks or known)


def reward_task(agent: Any, labelled: TensorDict, reward: Tensor, sharpness: int | float = 0.0) -> Tensor:
    """The task vector [d] of a reward [N] of ``labelled`` states, each weighted by softmax(sharpness * reward)."""
    if sharpness == 0:
        return agent.infer_task(labelled, reward=reward)
    return agent.infer_task(labelled, reward=reward, weight=torch.softmax(sharpness * reward, 0))


def play(
    policy: Policy,
    source: Any,
    tasks: Sequence[str],
    *,
    episodes: int,
    seed: int,
    device: torch.device,
    workers: int = 0,
    z: Mapping[str, Tensor | TaskRule] | None = None,
    judge: Judge | None = None,
    max_steps: int | None = None,
    is_filmed: bool = False,
) -> tuple[dict[str, Episodes], list[str]]:
    """Roll out ``episodes`` episodes of every task, all at once.

    Start states and action noise of a task depend on ``seed`` only, not on the other tasks played.

    Returns:
        ({task: Episodes}, notes for the report).
    """
    envs: dict[str, Any] = {}
    suite, generator, width = list(source.tasks.names), Generator().manual_seed(seed), source.spec[ACTION].shape[-1]
    chosen = [suite.index(task) for task in tasks]
    if isinstance(policy, DecidesAhead):
        width *= policy.num_noise

    def noise() -> Tensor:
        whole = torch.randn(len(suite), episodes, width, generator=generator)  # a task's is its own, whoever plays too
        return whole[chosen].flatten(0, 1)

    try:
        for task, env_seed in env_seeds(source, tasks, seed).items():
            options = {} if judge is None else {"ends_on_success": False}  # the judge decides instead
            make = source.tasks.make
            envs[task] = make(task, num_envs=episodes, seed=env_seed, workers=workers, **options)
        played = rollout(
            envs,
            policy,
            noise=noise,
            action_chunk=source.action_chunk,
            device=device,
            z=z,
            judge=judge,
            max_steps=max_steps,
            film=Film.of(max_steps or source.tasks.max_steps) if is_filmed and source.tasks.maze() is None else None,
        )
    finally:
        for env in envs.values():
            env.close()
    return played, list(dict.fromkeys(episodes.note for episodes in played.values() if episodes.note))


def env_seeds(source: Any, tasks: Iterable[str], seed: int) -> dict[str, int]:
    """Seed of the environments of each task, from its place in the benchmark."""
    suite = list(source.tasks.names)
    return {task: seed + 1_000 * (suite.index(task) + 1) for task in tasks}


def score(played: Mapping[str, Episodes], *, seed: int) -> tuple[dict[str, float], list[str]]:
    """Metrics and notes of episodes.

    Episodes that were solved before the first action are left out and counted in a note. Means over tasks weigh tasks
    equally; a task without a counted episode is NaN and left out of them.

    Returns:
        "<task>/success", "<task>/return" and their means over tasks "success", "return", each with a 95 % bootstrap
        interval "_low", "_high"; success, and "coverage" (of a goal, the greatest of an episode), only where they are
        defined; "length" likewise, without interval.
    """
    metrics: dict[str, float] = {}
    generator = Generator().manual_seed(seed)
    counted = {task: ~episodes.is_solved_at_start for task, episodes in played.items()}
    for name, field in {"success": "success", "coverage": "coverage", "return": "returns"}.items():
        groups: dict[str, Tensor] = {}
        for task, episodes in played.items():
            values = getattr(episodes, field)
            if values is not None:
                groups[task] = values.double()[counted[task]]
        if not groups:
            continue
        for task, group in groups.items():
            metrics |= _mean(f"{task}/{name}", [group], generator)
        metrics |= _mean(name, list(groups.values()), generator)
    lengths = torch.cat([episodes.lengths[counted[task]] for task, episodes in played.items()])
    metrics["length"] = float(lengths.double().mean()) if len(lengths) else float("nan")
    excluded = {task: int((~rows).sum()) for task, rows in counted.items() if not bool(rows.all())}
    notes = [f"{task}: {num} episodes were solved at the start and do not count" for task, num in excluded.items()]
    return metrics, notes


def _mean(name: str, groups: list[Tensor], generator: Generator) -> dict[str, float]:
    means = [float(group.mean()) for group in groups if group.numel()]
    low, high = bootstrap_interval(groups, generator)
    return {name: float(np.mean(means)) if means else float("nan"), f"{name}_low": low, f"{name}_high": high}


def draw(source: Any, played: Mapping[str, Episodes], goals: Mapping[str, Sequence[float]]) -> dict[str, bytes]:
    """Pictures of mazes, with marks at ``goals``, and films of the rest, as {file name: content}."""
    files: dict[str, bytes] = {}
    maze = source.tasks.maze()
    for task, episodes in played.items():
        if maze is not None and len(episodes.paths):
            share = "" if episodes.success is None else f", {int(episodes.success.sum())} of {len(episodes.success)}"
            title, success = f"{task}{share}", episodes.success
            picture = maze_picture(
                maze.walls,
                episodes.paths,
                unit=maze.unit,
                origin=maze.origin,
                success=success,
                goal=goals.get(task),
                title=title,
            )
            files[f"maze_{task}.png"] = picture
        if episodes.frames:
            ending, content = film(episodes.frames)
            files[f"{task}{ending}"] = content
    return files


def episode_list(played: Mapping[str, Episodes], *, seeds: Mapping[str, int]) -> bytes:
    """The evaluation list as JSON: one entry an episode with its task, seed, start and outcome."""
    rows = []
    for task, episodes in played.items():
        for i in range(len(episodes.returns)):
            row: dict[str, Any] = {"task": task, "seed": seeds[task], "row": i}
            if len(episodes.paths):
                row["start"] = episodes.paths[0, i].tolist()
            if episodes.success is not None:
                row["success"] = bool(episodes.success[i])
            if episodes.coverage is not None:
                row["coverage"] = float(episodes.coverage[i])
            row |= {"return": float(episodes.returns[i]), "length": int(episodes.lengths[i])}
            rows.append(row | {"is_solved_at_start": bool(episodes.is_solved_at_start[i])})
    return ("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n").encode()


def result_of(
    source: Any,
    played: Mapping[str, Episodes],
    notes: Sequence[str],
    *,
    seed: int,
    goals: Mapping[str, Sequence[float]] | None,
) -> TensorDict:
    """An evaluator's result: scores, the evaluation list, and pictures with these goals; None leaves pictures out."""
    metrics, more = score(played, seed=seed)
    files = {"episodes.json": episode_list(played, seeds=env_seeds(source, played, seed))}
    if goals is not None:
        files |= draw(source, played, goals)
    return pack(metrics, files=files, notes=[*notes, *more])


def goal_positions(source: Any, tasks: Sequence[str]) -> dict[str, list[float]]:
    """Where the goals of a maze's tasks are, in metres; {} where there is no maze, or where it is seen as pixels.

    Tasks that want a motion have no goal.
    """
    if source.tasks.maze() is None:
        return {}
    goals = {task: source.tasks.goal_of(task) for task in tasks if task in source.tasks.goal_names}
    return {task: goal[STATE][:2].tolist() for task, goal in goals.items() if STATE in goal.keys()}
