"""How the oracles that ship with ogbench attempt a benchmark task of an arm, and environments that show its goal.

Numpy only, so that workers never load torch.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from envs.behavior import ARM_NOISE_SCALE, arm_oracles
from envs.ogbench_envs import OGBenchMaker
from envs.ogbench_names import ARM_CENTER, ARM_SCALE, DATASETS, DRAWER_SCALE, WINDOW_SCALE, Dataset, find_dataset
from envs.ogbench_targets import next_target
from envs.oracle_attempts import Attempt, Expert
from envs.stepping import EnvGroup, keeping_random_state
from worldmodels.spelling import did_you_mean

TASKS = ("task1", "task2", "task3", "task4", "task5")


class GoalMaker(OGBenchMaker):
    """Builds environments whose observations go on with the task's goal and end with its number.

    Args:
        dataset: which arm.
        names: tasks, in the order of their numbers.
        max_steps: end of an episode.
    """

    def __init__(self, dataset: Dataset, names: tuple[str, ...], max_steps: int) -> None:
        super().__init__(dataset)
        self.names, self._max_steps = names, max_steps

    @property
    def max_steps(self) -> int:
        """End of an episode."""
        return self._max_steps

    def make(self, task: int) -> Any:
        """A new environment for one task, counted from 1 among the names."""
        env = super().make(TASKS.index(self.names[task - 1]) + 1)
        plain = env.compute_observation
        env.compute_observation = lambda: np.concatenate([plain(), _goal(env, self.dataset), [task - 1]])
        return env


def _goal(env: Any, dataset: Dataset) -> np.ndarray:
    """Where cubes, buttons, drawer and window shall be, as observations show where they are."""
    places = (env._data.mocap_pos[: dataset.num_cubes] - ARM_CENTER) * ARM_SCALE
    parts = [places.ravel()]
    if dataset.num_buttons:
        parts.append(env._target_button_states)
    if "scene" in dataset.name:
        parts.append([env._target_drawer_pos * DRAWER_SCALE, env._target_window_pos * WINDOW_SCALE])
    return np.concatenate(parts)


def goal_width(dataset: Dataset) -> int:
    """Numbers of a goal: x, y, z of each cube; a state of each button; positions of drawer and window."""
    return 3 * dataset.num_cubes + dataset.num_buttons + 2 * ("scene" in dataset.name)


def arm(name: str) -> Dataset:
    """The facts of an arm's environment.

    Raises:
        ValueError: if there is none of this name.
    """
    arms = [dataset.env_name for dataset in DATASETS.values() if dataset.kind == "noisy" and not dataset.is_visual]
    if name not in arms:
        hint = did_you_mean(name, arms, num=2)
        raise ValueError(f"env.name={name}: OGBench has no such arm{hint or '.'} There are {', '.join(arms)}")
    return find_dataset(f"{name}-noisy-v0")


def make_expert(name: str, noise: float) -> Expert:
    """The oracles of one environment, as ``attempt`` lets them act."""
    dataset = arm(name)
    widths = (dataset.observation_shape[0] + goal_width(dataset), dataset.action_dim)
    setting = f"{name}-noise{noise:g}"
    return Expert("ogbench_oracles", partial(attempt, name, noise), widths, ("ogbench", "mujoco"), setting)


def attempt(name: str, noise: float, task: str, seed: int, max_steps: int) -> Attempt:
    """One episode from the task's own start, which ``EnvGroup`` derives from ``seed`` as it does for policies.

    Args:
        name: of the environment.
        noise: largest standard deviation of what is added to actions; each episode has its own.
        task: by name.
        seed: of everything random.
        max_steps: end of an episode.
    """
    dataset = arm(name)
    group = EnvGroup(_maker(name), TASKS.index(task) + 1, [seed], max_steps)
    seen, actions = [], []
    with keeping_random_state():
        np.random.seed(seed)  # the oracles draw from numpy's global generator
        now, (env,) = group.reset(), group.envs
        oracles = arm_oracles(env, name.partition("-")[0], is_noisy=True)
        scale = np.random.uniform(0, noise) * ARM_NOISE_SCALE
        oracle, target = None, next_target(env, dataset)
        while not (now["terminated"][0] or now["truncated"][0]):
            if oracle is None or oracle.done:
                target = next_target(env, dataset)
                oracle = oracles[target.kind]
                oracle.reset(None, None)
            action = oracle.select_action(None, env.compute_ob_info() | target.info) + np.random.normal(0, scale)
            actions.append(np.clip(action, -1, 1).astype(np.float32))
            seen.append(now["observation"][0, :-1])
            now = group.step(actions[-1][None])
    group.close()
    return Attempt(np.stack(seen).astype(np.float32), np.stack(actions), bool(now["success"][0]))


@lru_cache
def _maker(name: str) -> GoalMaker:
    """One a process: the model is built once."""
    return GoalMaker(arm(name), TASKS, 0)
