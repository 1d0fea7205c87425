"""Reach goals through a model: several policies play the same episodes from the same starts, and their time is taken.

Two sets of goals. The benchmark's, which are far away; and near ones, where recorded actions, played from an episode's
start, lead: a model that cannot reach these has nothing to plan with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Composite

from worldmodels.core import Objective
from worldmodels.evals.results import device_of, judging, pack
from worldmodels.evals.rollout import DecidesAhead, Episodes
from worldmodels.evals.tasks import TaskEvaluator, draw, env_seeds, episode_list, goal_positions, play, score
from worldmodels.keys import ACTION, OBSERVATION, PHYSICS

NEAR = "near/"


class ReachesGoals(DecidesAhead, Protocol):
    """A policy that is told its goal as "z"."""

    def goal(self, obs: TensorDict) -> Tensor:
        """What "z" has to be [B, D] for observations to be reached [B]."""
        ...


class PlanningEvaluator(TaskEvaluator):
    """Every policy plays all tasks towards the benchmark's goals, then towards near ones.

    Metrics: "<policy>/success" with its interval, "<policy>/<task>/success", "<policy>/length"; and
    "<policy>/seconds_a_plan", the time of one decision for one episode. For near goals "near/<policy>/success", ...

    Args:
        policies: factories ``policy(spec, objective)`` by name.
        near_steps: environment steps of recorded actions that lead to near goals; 0 leaves these out. They are judged
            by position, so they need a maze.
        near_patience: episodes towards near goals may take this many times ``near_steps``.
        **playing: see ``TaskEvaluator``; every policy plays the same episodes.

    Raises:
        ValueError: if there is no policy; if near goals are wanted where there is no maze, or no patience for them.
    """

    def __init__(
        self,
        *,
        policies: Mapping[str, Callable[[Composite, Objective], Any]],
        near_steps: int = 0,
        near_patience: int = 2,
        name: str = "planning",
        **playing: Any,
    ) -> None:
        super().__init__(name=name, **playing)
        if not policies:
            raise ValueError(f"eval.{name}.policies is empty: name at least one")
        if near_steps < 0 or near_patience < 1:
            raise ValueError(f"{near_steps=}, {near_patience=}: at least 0 and 1")
        if near_steps and self.source.tasks.maze() is None:
            raise ValueError(
                f"near goals are judged by position, and {type(self.source).__name__} has no maze here: use "
                f"eval.{name}.near_steps=0"
            )
        self.policies, self.near_steps, self.near_patience = policies, near_steps, near_patience

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Evaluate."""
        metrics: dict[str, float] = {}
        files: dict[str, bytes] = {}
        notes: list[str] = []
        positions = goal_positions(self.source, self.tasks)
        with judging(objective):
            near = self._near_goals() if self.near_steps else None
            for name, make in self.policies.items():
                policy = _Timed(make(self.source.spec, objective), device_of(objective))
                goals = {task: self.source.tasks.goal_of(task)[None] for task in self.tasks}
                played, more = self._play(policy, goals, max_steps=self.max_steps, is_filmed=self.is_filmed)
                found, excluded = _scores(played, seed=self.seed)
                metrics |= {f"{name}/{key}": value for key, value in found.items()}
                metrics[f"{name}/seconds_a_plan"] = policy.seconds / policy.num_plans
                seeds = env_seeds(self.source, played, self.seed)
                files |= {f"{name}_episodes.json": episode_list(played, seeds=seeds)}
                files |= {f"{name}_{file}": content for file, content in draw(self.source, played, positions).items()}
                notes += [*more, *excluded]
                if near is not None:
                    found, excluded = _scores(self._play_near(policy, near), seed=self.seed)
                    metrics |= {f"{NEAR}{name}/{key}": value for key, value in found.items()}
                    notes += [f"near goals: {note}" for note in excluded]
        return pack(metrics, files=files, notes=list(dict.fromkeys(notes)))

    def _play(
        self, policy: _Timed, goals: Mapping[str, TensorDict], **options: Any
    ) -> tuple[dict[str, Episodes], list[str]]:
        """Play towards observations [1 or E] of each task."""
        z = {task: policy.goal(obs.to(policy.device)) for task, obs in goals.items()}
        common = {"episodes": self.episodes, "seed": self.seed, "workers": self.workers, "device": policy.device}
        return play(policy, self.source, self.tasks, z=z, **common, **options)

    def _near_goals(self) -> dict[str, TensorDict]:
        """Rows [E] that recorded actions lead to from the starts of each task's episodes."""
        goals: dict[str, TensorDict] = {}
        chunks = -(-self.near_steps // self.source.action_chunk)
        for task, seed in env_seeds(self.source, self.tasks, self.seed).items():
            generator = Generator(self.source.spec.device or "cpu").manual_seed(seed)
            actions = self.source.sample(self.episodes, chunks + 1, generator)[ACTION][:, :chunks]  # [E, n, h A]
            actions = actions.cpu().unflatten(-1, (self.source.action_chunk, -1)).flatten(1, 2)[:, : self.near_steps]
            env = self.source.tasks.make(task, num_envs=self.episodes, seed=seed, ends_on_success=False)
            try:
                goals[task] = env.reset()
                for action in actions.unbind(1):
                    goals[task] = env.step(TensorDict({ACTION: action}, [self.episodes]))
            finally:
                env.close()
        return goals

    def _play_near(self, policy: _Timed, goals: Mapping[str, TensorDict]) -> dict[str, Episodes]:
        """Episodes whose success is to have come within the benchmark's tolerance of their goal."""
        limit, tolerance = self.near_steps * self.near_patience, self.source.tasks.tolerance
        seen = {task: row[OBSERVATION] for task, row in goals.items()}
        played, _ = self._play(policy, seen, max_steps=limit, judge=lambda td: (torch.zeros(len(td)), None))
        judged: dict[str, Episodes] = {}
        for task, episodes in played.items():
            distance = (episodes.paths - goals[task][PHYSICS, "qpos"][:, :2].cpu()).norm(dim=-1)  # [T + 1, E]
            is_there = distance <= tolerance
            has_arrived = is_there.any(0)
            lengths = torch.where(has_arrived, is_there.int().argmax(0), episodes.lengths)
            judged[task] = replace(episodes, success=has_arrived, is_solved_at_start=is_there[0], lengths=lengths)
        return judged


class _Timed:
    """A policy whose decisions are counted and timed."""

    def __init__(self, policy: ReachesGoals, device: torch.device) -> None:
        self.policy, self.device = policy, device
        self.num_decided, self.num_noise = policy.num_decided, policy.num_noise
        self.begin, self.goal = policy.begin, policy.goal
        self.seconds, self.num_plans = 0.0, 0

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        self._synchronize()
        began = time.perf_counter()
        out = self.policy.act(td, explore)
        self._synchronize()
        self.seconds += time.perf_counter() - began
        self.num_plans += len(td)
        return out

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _scores(played: Mapping[str, Episodes], *, seed: int) -> tuple[dict[str, float], list[str]]:
    """What ``score`` says of success and length."""
    found, notes = score(played, seed=seed)
    return {name: value for name, value in found.items() if "return" not in name}, notes
