"""Ask a trained zero-shot agent something: a task of the benchmark, or a goal, reward or demonstration of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import TaskRule
from worldmodels.evals.demonstrations import Likeness
from worldmodels.evals.results import device_of
from worldmodels.evals.tasks import choose_tasks, goal_positions, play, result_of, reward_task
from worldmodels.expressions import Reward
from worldmodels.keys import ACTION, OBSERVATION


class Question:
    """A task, a goal, a reward, a demonstration, or all tasks: how z is inferred, and how an episode is judged.

    Args:
        source: data with tasks.
        task: name of a benchmark's task; or
        goal: the numbers of ``tasks.goal_observation``; or
        reward: of reaching a state; or
        demonstration: [T] observations (``demonstrations.load``). None of the four asks all tasks.
        sharpness: labelled states count as softmax(sharpness * reward); 0 counts all alike.
        seed: of labels, start states and action noise.
        num: states that are labelled.

    Raises:
        ValueError: for an unknown task, a goal of the wrong length, or a reward that does not fit the data.
    """

    def __init__(
        self,
        source: Any,
        *,
        task: str | None = None,
        goal: list[float] | None = None,
        reward: Reward | None = None,
        demonstration: TensorDict | None = None,
        sharpness: int | float = 0.0,
        seed: int = 0,
        num: int = 10_000,
    ) -> None:
        self.source, self.goal, self.reward, self.seed = source, goal, reward, seed
        self.demonstration, self.sharpness = demonstration, sharpness
        self.tasks = choose_tasks(source, None if task is None else [task])
        self.goal_observation = source.tasks.goal_observation(goal) if goal is not None else None
        device = source.spec.device or torch.device("cpu")
        self.labelled = source.labelled(num, Generator(device).manual_seed(seed))
        self.labels = reward(self.fields(self.labelled)) if reward is not None else None
        self.likeness = None if demonstration is None else Likeness(demonstration, self.labelled[OBSERVATION])

    def answer(
        self, agent: Any, *, episodes: int, workers: int = 0, max_steps: int | None = None, reward_shift: float = 1.0
    ) -> TensorDict:
        """Infer z, play, score: an evaluator's result. ``reward_shift`` is added to a benchmark's rewards only."""
        device = device_of(agent)
        played, notes = play(
            agent,
            self.source,
            self.tasks,
            episodes=episodes,
            seed=self.seed,
            device=device,
            workers=workers,
            z=self.task_vectors(agent, device, reward_shift),
            judge=self.judge if self.is_own else None,
            max_steps=max_steps,
            is_filmed=True,
        )
        goals = goal_positions(self.source, self.tasks)
        if self.is_own:
            notes = [*notes, f"rows are the start states of {', '.join(self.tasks)}"]
            goals = {task: self.goal for task in self.tasks if self.goal is not None and goals}
        return result_of(self.source, played, notes, seed=self.seed, goals=goals)

    @property
    def is_own(self) -> bool:
        """Whether the question is not one of the benchmark's."""
        return self.reward is not None or self.goal is not None or self.demonstration is not None

    def task_vectors(self, agent: Any, device: torch.device, reward_shift: float) -> dict[str, Tensor | TaskRule]:
        """One z [d] for every set of start states, the same for all if the question is the user's own; or its rule."""
        observation = self.labelled[OBSERVATION].to(device)
        if self.demonstration is not None:
            z = agent.infer_task(observation, demonstration=self.demonstration.to(device))
            return dict.fromkeys(self.tasks, z)
        if self.goal_observation is not None:
            return dict.fromkeys(self.tasks, agent.infer_task(observation, goal=self.goal_observation.to(device)))
        if self.labels is not None:
            z = reward_task(agent, observation, self.labels.to(device), self.sharpness)
            return dict.fromkeys(self.tasks, z)
        rewards = {task: self.source.tasks.reward(task, self.labelled).to(device) + reward_shift for task in self.tasks}
        return {task: reward_task(agent, observation, reward, self.sharpness) for task, reward in rewards.items()}

    def fields(self, td: TensorDict) -> dict[str, Tensor]:
        """What a reward may name, [N, ...]: all but the action, for a reward here belongs to a state."""
        return {name: values for name, values in self.source.tasks.fields(td).items() if name != ACTION}

    def judge(self, td: TensorDict) -> tuple[Tensor, Tensor | None]:
        """Reward [E] of the states reached, and success bool [E] for a goal.

        A goal pays like the benchmark, -1 until it is reached, which ends the episode; a reward has no success, nor has
        a demonstration, which pays minus the distance to what it shows.
        """
        if self.likeness is not None:
            return self.likeness(td[OBSERVATION]), None
        fields = self.fields(td)
        if self.reward is not None:
            return self.reward(fields), None
        has_reached = reached(fields, self.goal or [], self.source.tasks.tolerance)
        return has_reached.float() - 1, has_reached


def reached(fields: Mapping[str, Tensor], goal: Sequence[float], tolerance: float) -> Tensor:
    """Whether states [N] are at a goal: the ball or body of a maze, every cube, or every button where it should be."""
    wanted = torch.tensor(goal, dtype=torch.float64)
    for name in ("ball_xy", "xy"):
        if name in fields:
            return (fields[name].double() - wanted).norm(dim=-1) <= tolerance
    cubes = sorted(name for name in fields if re.fullmatch(r"cube\d+_pos", name))
    if cubes:
        places = torch.stack([fields[name].double() for name in cubes], dim=1)  # [N, cubes, 3]
        return ((places - wanted.view(len(cubes), 3)).norm(dim=-1) <= tolerance).all(-1)
    return (fields["button_states"] == wanted).all(-1)
