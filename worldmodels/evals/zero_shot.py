"""Ask a zero-shot agent for every task of the benchmark, without any training on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import Objective, TaskRule, ZeroShot
from worldmodels.evals.results import device_of, judging
from worldmodels.evals.tasks import choose_tasks, goal_positions, play, result_of, reward_task
from worldmodels.keys import OBSERVATION


class ZeroShotEvaluator:
    """Infer one z a task from labelled next-states or from the goal, then play all tasks and episodes at once.

    Labels, start states and action noise are the same at every call: they depend on ``seed`` only. Episodes solved at
    their start do not count; a note says how many.

    Args:
        source: data with ``tasks``.
        every: steps between two evaluations; 0 evaluates at the end only.
        episodes: a task.
        num_labelled: states whose rewards define a task.
        reward_shift: added to rewards before inference: without it OGBench's -1 and 0 hide the goal behind a constant.
        sharpness: labelled states count as softmax(sharpness * reward); 0 counts all alike, FB's other choice is 10.
        infer: "reward" or "goal".
        seed: of labels, start states and action noise.
        workers: processes that simulate; 0 simulates in this one.
        tasks: names; None takes all.
        max_steps: ends episodes early; None leaves it to the benchmark.
        is_filmed: whether one episode a task is filmed where there is no maze to draw.
        name: of this evaluator in logs and files.

    Source: TD-JEPA (arXiv 2510.00739) section 5 and its code: 10 000 labels, shift 1, 10 episodes a task.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        episodes: int = 10,
        num_labelled: int = 10_000,
        reward_shift: float = 1.0,
        sharpness: int | float = 0.0,
        infer: Literal["reward", "goal"] = "reward",
        seed: int = 0,
        workers: int = 0,
        tasks: Sequence[str] | None = None,
        max_steps: int | None = None,
        is_filmed: bool = True,
        name: str = "zero_shot",
    ) -> None:
        if infer not in ("reward", "goal"):
            raise ValueError(f"infer={infer}: a task is inferred from its reward or its goal; use reward or goal")
        if sharpness < 0:
            raise ValueError(f"sharpness={sharpness}: the best states count most with a positive one; 0 is off")
        if episodes < 1 or num_labelled < 1:
            raise ValueError(f"episodes={episodes} and num_labelled={num_labelled} must be at least 1")
        self.source, self.every, self.episodes, self.name = source, every, episodes, name
        self.num_labelled, self.infer = num_labelled, infer
        self.reward_shift, self.sharpness = reward_shift, sharpness
        self.seed, self.workers, self.max_steps, self.is_filmed = seed, workers, max_steps, is_filmed
        self.tasks = choose_tasks(source, tasks)

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Evaluate; returns what ``evals.tasks.score`` documents, with the evaluation list and pictures as media.

        Raises:
            ValueError: if the objective cannot infer tasks.
        """
        if not isinstance(objective, ZeroShot):
            raise ValueError(
                f"{self.name} needs an agent with infer_task and act; {type(objective).__name__} lacks them"
            )
        with judging(objective):
            z = self.infer_tasks(objective)
            played, notes = play(
                objective,
                self.source,
                self.tasks,
                episodes=self.episodes,
                seed=self.seed,
                device=device_of(objective),
                workers=self.workers,
                z=z,
                max_steps=self.max_steps,
                is_filmed=self.is_filmed,
            )
            goals = goal_positions(self.source, self.tasks)
            return result_of(self.source, played, notes, seed=self.seed, goals=goals)

    def infer_tasks(self, agent: Any) -> dict[str, Tensor | TaskRule]:
        """The task vector [d] of every task, or the rule that gives it where the agent steers to goals."""
        device, suite = device_of(agent), self.source.tasks
        labelled = self.source.labelled(self.num_labelled, Generator(device).manual_seed(self.seed))
        observation = labelled[OBSERVATION].to(device)
        if self.infer == "goal":
            return {task: agent.infer_task(observation, goal=suite.goal_of(task).to(device)) for task in self.tasks}
        rewards = {task: suite.reward(task, labelled).to(device) + self.reward_shift for task in self.tasks}
        return {task: reward_task(agent, observation, reward, self.sharpness) for task, reward in rewards.items()}
