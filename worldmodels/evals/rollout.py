"""Episodes in vectorised environments: all tasks and episodes step together, with one policy call a step.

What an environment must give: ``reset() -> td[N]`` and ``step(td) -> td[N]`` with "observation", "reward",
"terminated", "truncated" and where defined "success", "coverage" and "physics"; no automatic reset; ``render(i)``;
``close()``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodels.core import Policy, TaskRule
from worldmodels.keys import ACTION, NOISE, OBSERVATION, PHYSICS, REWARD, TASK, TERMINATED

Judge = Callable[[TensorDict], tuple[Tensor, Tensor | None]]
"""What replaces a benchmark's own judgement: td[E] -> (reward [E], success bool [E] or None where there is none)."""

SUCCESS, COVERAGE, TRUNCATED = "success", "coverage", "truncated"
NO_TIME_LIMIT = 100_000  # steps after which an environment without a limit is an error


@runtime_checkable
class DecidesAhead(Policy, Protocol):
    """A policy that decides several steps at a time, or remembers what it saw of an episode."""

    num_decided: int
    """Steps m that one answer decides: "action" is [N, m A], the steps' actions joined. They are played blindly."""
    num_noise: int
    """Random numbers that one call may want for each number of an action: "noise", "action" is [N, num_noise A]."""

    def begin(self, num: int) -> None:
        """Be told that ``num`` episodes begin: all calls of ``act`` see them in the same order until the next begin."""
        ...


@dataclass
class Episodes:
    """E episodes of one task, on the CPU."""

    returns: Tensor  # float64 [E], undiscounted sum of rewards until the end
    lengths: Tensor  # int64 [E], steps taken
    success: Tensor | None  # bool [E], whether any step was a success; None where the task defines none
    is_solved_at_start: Tensor  # bool [E]; such episodes say nothing about the policy
    paths: Tensor  # float64 [T + 1, E, 2], first two coordinates of qpos, NaN after the end; [0, E, 2] without physics
    frames: list[np.ndarray]  # uint8 [H, W, 3], of the first episode, if filmed
    note: str  # why there are no frames though they were asked for
    coverage: Tensor | None = None  # float64 [E], the greatest after any step; None where the task tells none


@dataclass(frozen=True)
class Film:
    """How the first episode of each task is filmed: one frame every ``every`` steps. A frame of an arm takes 0.2 s."""

    every: int

    @classmethod
    def of(cls, max_steps: int, *, frames: int = 24) -> Film:
        """About ``frames`` frames of an episode of ``max_steps`` steps."""
        return cls(every=max(1, max_steps // frames))


class _Task:
    """The running episodes of one environment."""

    def __init__(self, env: Any, judge: Judge | None, film: Film | None) -> None:
        self.env, self.judge, self.film = env, judge, film
        self.now: TensorDict = env.reset()
        num = self.now.batch_size[0]
        self.returns = torch.zeros(num, dtype=torch.float64)
        self.lengths = torch.zeros(num, dtype=torch.int64)
        _, solved, _ = self._judged()
        self.is_solved_at_start = torch.zeros(num, dtype=torch.bool) if solved is None else solved
        self.success: Tensor | None = None
        self.coverage: Tensor | None = None
        self.running = torch.ones(num, dtype=torch.bool)
        self.positions = [_position(self.now)]
        self.frames: list[np.ndarray] = []
        self.note = ""
        try:
            self._shoot()
        except Exception as error:  # whatever a missing renderer, library or driver raises; episodes matter more
            self.film, self.note = None, f"no video, rendering failed: {' '.join(str(error).split())[:200]}"

    def step(self, action: Tensor) -> None:
        if not bool(self.running.any()):
            return
        self.now = self.env.step(TensorDict({ACTION: action}, [action.shape[0]]))
        reward, success, has_ended = self._judged()
        self.returns += torch.where(self.running, reward, 0.0)
        self.lengths += self.running
        if success is not None:
            before = torch.zeros_like(self.running) if self.success is None else self.success
            self.success = before | (success & self.running)
        covered = self.now.get(COVERAGE, None)
        if covered is not None:
            before = torch.zeros_like(self.returns) if self.coverage is None else self.coverage
            self.coverage = before.maximum(torch.where(self.running, covered.cpu().double(), 0.0))
        position = _position(self.now)
        if position is not None:
            self.positions.append(torch.where(self.running[:, None], position, torch.nan))
        self.running &= ~has_ended
        self._shoot()

    def _judged(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Reward float64 [E], success and end bool [E] of the present rows. A judge's success ends an episode."""
        truncated = self.now[TRUNCATED].cpu()
        if self.judge is None:
            reward, success = self.now[REWARD], self.now.get(SUCCESS, None)
            has_ended = self.now[TERMINATED].cpu() | truncated
        else:
            reward, success = self.judge(self.now)
            has_ended = truncated if success is None else truncated | success.cpu().bool()
        return reward.cpu().double(), None if success is None else success.cpu().bool(), has_ended

    def _shoot(self) -> None:
        film, at = self.film, int(self.lengths[0])
        if film is not None and bool(self.running[0]) and at % film.every == 0:
            self.frames.append(self.env.render(0))

    def episodes(self) -> Episodes:
        paths = [position for position in self.positions if position is not None]
        empty = torch.zeros(0, len(self.returns), 2, dtype=torch.float64)
        path = torch.stack(paths) if paths else empty
        return Episodes(
            self.returns,
            self.lengths,
            self.success,
            self.is_solved_at_start,
            path,
            self.frames,
            self.note,
            self.coverage,
        )


def rollout(
    envs: Mapping[str, Any],
    policy: Policy,
    *,
    noise: Callable[[], Tensor],
    action_chunk: int = 1,
    device: torch.device,
    z: Mapping[str, Tensor | TaskRule] | None = None,
    judge: Judge | None = None,
    max_steps: int | None = None,
    film: Film | None = None,
) -> dict[str, Episodes]:
    """Play one episode in every row of every environment.

    Args:
        envs: {task: environment with E rows}; they are reset here and not closed.
        policy: called with "observation", "z" [N, d] if given, and "noise", "action" [N, A]: all the randomness that an
            actor may use; A is that of a whole chunk.
        noise: draws it, standard normal, on the CPU; so a rollout does not depend on the device.
        action_chunk: h, steps that one action of the data decides; they are played without looking. A policy that
            decides m actions at a time (``DecidesAhead``) is asked every m h steps.
        device: of the policy.
        z: {task: [d]}, the same for all episodes of a task, or a rule that gives it for what each of them sees.
        judge: replaces the environment's reward, success and end; called with what ``reset`` and ``step`` return. The
            environments must then not end on their own success.
        max_steps: end every episode after so many steps; None leaves it to the environment.
        film: films the first episode of each task; needs environments that render.

    Returns:
        {task: Episodes}.
    """
    tasks = {name: _Task(env, judge, film) for name, env in envs.items()}
    sizes = [task.running.shape[0] for task in tasks.values()]
    if isinstance(policy, DecidesAhead):
        policy.begin(sum(sizes))
        action_chunk *= policy.num_decided
    for step in range(max_steps or NO_TIME_LIMIT + 1):
        if not any(bool(task.running.any()) for task in tasks.values()):
            break
        if step == NO_TIME_LIMIT:
            raise ValueError(f"no end after {NO_TIME_LIMIT} steps: the environment has no time limit; give max_steps")
        if step % action_chunk == 0:
            observation = torch.cat([task.now[OBSERVATION] for task in tasks.values()])
            num = [len(observation)]
            td = TensorDict({OBSERVATION: observation, NOISE: TensorDict({ACTION: noise()}, num)}, num)
            td = td.to(device)
            if z is not None:
                seen = dict(zip(tasks, td[OBSERVATION].split(sizes), strict=True))
                td[TASK] = torch.cat([_task_vectors(z[name], obs) for name, obs in seen.items()])  # [N, d]
            plan = policy.act(td, explore=False)[ACTION].to("cpu").unflatten(-1, (action_chunk, -1))  # [N, h, A / h]
        for task, rows in zip(tasks.values(), plan[:, step % action_chunk].split(sizes), strict=True):
            task.step(rows)
    return {name: task.episodes() for name, task in tasks.items()}


def _task_vectors(z: Tensor | TaskRule, obs: TensorDict) -> Tensor:
    """[E, d] for the episodes that see ``obs`` [E]."""
    return z.to(obs.device).expand(len(obs), -1) if isinstance(z, Tensor) else z(obs)


def _position(td: TensorDict) -> Tensor | None:
    """First two coordinates of qpos [E, 2]; None where there is no physics."""
    qpos = td.get((PHYSICS, "qpos"), None)
    return None if qpos is None or qpos.shape[-1] < 2 else qpos[..., :2].cpu().double()
