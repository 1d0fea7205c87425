"""How Meta-World's scripted experts attempt a task: rows of hand and gripper (4), objects (14) and goal (3)."""

from __future__ import annotations

import numpy as np

from envs.metaworld_envs import ACTION_DIM, SCENE_DIM, STATE_DIM, MetaWorldEnv, expert
from envs.oracle_attempts import Attempt, Expert


def attempt(task: str, seed: int, max_steps: int) -> Attempt:
    """One episode of the task's expert, in an environment of its own: nothing of another episode is left in it."""
    env, act = MetaWorldEnv(task), expert(task)
    seen, actions = [env.reset(seed=seed)[0]], []
    for _ in range(max_steps):
        actions.append(act(env.whole))
        observation, _, is_solved, _, _ = env.step(actions[-1])
        if is_solved:
            break
        seen.append(observation)
    env.inner.close()
    rows = np.stack(seen)[: len(actions), : STATE_DIM + SCENE_DIM].astype(np.float32)
    return Attempt(rows, np.stack(actions), env.is_solved)


EXPERT = Expert("metaworld", attempt, (STATE_DIM + SCENE_DIM, ACTION_DIM), ("metaworld", "mujoco"))
