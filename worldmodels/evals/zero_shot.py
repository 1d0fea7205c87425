"""Ask a zero-shot agent for every task of the benchmark, without any training on it."""

from __future__ import annotations

from typing import Any, Literal

from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import Objective, TaskRule, ZeroShot
from worldmodels.evals.results import device_of, judging
from worldmodels.evals.tasks import TaskEvaluator, reward_task
from worldmodels.keys import OBSERVATION


class ZeroShotEvaluator(TaskEvaluator):
    """Infer one z a task from labelled next-states or from the goal, then play all tasks and episodes at once.

    Args:
        num_labelled: states whose rewards define a task; which ones depends on ``seed`` only.
        reward_shift: added to rewards before inference: without it OGBench's -1 and 0 hide the goal behind a constant.
        sharpness: labelled states count as softmax(sharpness * reward); 0 counts all alike, FB's other choice is 10.
        infer: "reward" or "goal".
        **playing: see ``TaskEvaluator``.

    Source: TD-JEPA (arXiv 2510.00739) section 5 and its code: 10 000 labels, shift 1, 10 episodes a task.
    """

    def __init__(
        self,
        *,
        num_labelled: int = 10_000,
        reward_shift: float = 1.0,
        sharpness: int | float = 0.0,
        infer: Literal["reward", "goal"] = "reward",
        name: str = "zero_shot",
        **playing: Any,
    ) -> None:
        if infer not in ("reward", "goal"):
            raise ValueError(f"infer={infer}: a task is inferred from its reward or its goal; use reward or goal")
        if sharpness < 0:
            raise ValueError(f"sharpness={sharpness}: the best states count most with a positive one; 0 is off")
        if num_labelled < 1:
            raise ValueError(f"num_labelled={num_labelled} must be at least 1")
        super().__init__(name=name, **playing)
        self.num_labelled, self.infer = num_labelled, infer
        self.reward_shift, self.sharpness = reward_shift, sharpness

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Evaluate; see ``TaskEvaluator.result``.

        Raises:
            ValueError: if the objective cannot infer tasks.
        """
        if not isinstance(objective, ZeroShot):
            raise ValueError(
                f"{self.name} needs an agent with infer_task and act; {type(objective).__name__} lacks them"
            )
        with judging(objective):
            return self.result(objective, device=device_of(objective), z=self.infer_tasks(objective))

    def infer_tasks(self, agent: Any) -> dict[str, Tensor | TaskRule]:
        """The task vector [d] of every task, or the rule that gives it where the agent steers to goals."""
        device, suite = device_of(agent), self.source.tasks
        labelled = self.source.labelled(self.num_labelled, Generator(device).manual_seed(self.seed))
        observation = labelled[OBSERVATION].to(device)
        if self.infer == "goal":
            return {task: agent.infer_task(observation, goal=suite.goal_of(task).to(device)) for task in self.tasks}
        rewards = {task: suite.reward(task, labelled).to(device) + self.reward_shift for task in self.tasks}
        return {task: reward_task(agent, observation, reward, self.sharpness) for task, reward in rewards.items()}
