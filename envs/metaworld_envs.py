"""Meta-World's environments with seeds that work and goals that are seen, and the scripted experts that ship with them.

Numpy only, so that workers never load torch. Four habits of the package are mended here, all in ``MetaWorldEnv``: a
reset ignores its seed, it shows objects where they were before it (by up to 20 cm in seven tasks; window-close then
counts as solved), the goal is hidden by zeros, and an episode never ends on success.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from envs import rendering
from envs.rendering import HINT, RenderError
from envs.stepping import Arrays

STATE_DIM, SCENE_DIM, ACTION_DIM = 4, 17, 4
HORIZON = 500  # the simulator refuses to step on after so many
_VERSION = "-v3"
_WELD_NUMBERS = 11  # that Meta-World writes into each weld of MuJoCo's model
_PICTURE = 240  # pixels a side
_CAMERA = {"distance": 1.5, "azimuth": 20.0, "elevation": -30.0, "lookat": (0.0, 0.5, 0.1)}  # the authors' own


def task_names() -> tuple[str, ...]:
    """All tasks there are, without the "-v3" of their names."""
    return tuple(name.removesuffix(_VERSION) for name in _package()[0])


def expert(task: str) -> Callable[[np.ndarray], np.ndarray]:
    """The scripted policy of a task: ``MetaWorldEnv.whole`` float64 [39] -> action float32 [4] within [-1, 1]."""
    policy = _package()[1][task + _VERSION]()

    def act(whole: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():  # it says at every step that it asks for more than 1, which is then cut off
            warnings.simplefilter("ignore", UserWarning)
            return np.clip(policy.get_action(whole), -1.0, 1.0).astype(np.float32)

    return act


class MetaWorldEnv:
    """One task with gymnasium's reset and step; an episode is a function of its seed and ends on success.

    An observation is float64 [22]: hand x, y, z and gripper [4]; objects [14] and the goal [3], as the simulator gives
    them; the number of the task. The simulator's previous observation is left out.

    Args:
        task: by name.
        number: of the task, as observations tell it.
    """

    def __init__(self, task: str, number: int = 0) -> None:
        self.inner: Any = _package()[0][task + _VERSION]()
        self.inner._partially_observable = False
        vars(self.inner).pop("sawyer_observation_space", None)  # steps would clip the goal to the hidden one's limits
        self.inner._freeze_rand_vec, self.inner.seeded_rand_vec, self.inner._set_task_called = False, True, True
        self.action_space = self.inner.action_space
        self.whole = np.zeros(39)  # what the expert sees, float64 [39]
        self.is_solved = False
        self.renderer: Any = None
        self._number = float(number)

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the episode of ``seed``."""
        import mujoco

        self.inner.seed(seed)  # places come from the environment's own generator, not numpy's global one
        self.inner.reset()
        mujoco.mj_forward(self.inner.model, self.inner.data)  # bodies go where the reset put their joints
        self.inner._prev_obs = self.inner._get_curr_obs_combined_no_goal()
        self.whole = self.inner._get_obs()
        _, info = self.inner.evaluate_state(self.whole, np.zeros(ACTION_DIM, np.float32))
        self.is_solved = bool(info["success"])
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action [4] within [-1, 1]: at most 1 cm a step, and the gripper's effort."""
        self.whole, reward, _, truncated, info = self.inner.step(np.asarray(action, np.float32))
        self.is_solved = bool(info["success"])
        return self._seen(), float(reward), self.is_solved, truncated, {"success": float(self.is_solved)}

    def _seen(self) -> np.ndarray:
        return np.concatenate([self.whole[: STATE_DIM + 14], self.whole[-3:], [self._number]])


class MetaWorldMaker:
    """Builds environments of chosen tasks; a ``Maker`` of ``envs.stepping``.

    Args:
        names: tasks, in the order of their numbers.
        max_steps: end of an episode; the published evaluations take 200, the simulator allows 500.
    """

    def __init__(self, names: tuple[str, ...], max_steps: int) -> None:
        self.names, self.max_steps = names, max_steps

    def make(self, task: int) -> MetaWorldEnv:
        """A new environment for one task, counted from 1."""
        return MetaWorldEnv(self.names[task - 1], task - 1)

    def enter(self, env: MetaWorldEnv) -> None:
        """Environments share nothing."""

    def leave(self, env: MetaWorldEnv) -> None:
        """Environments share nothing."""

    def physics(self, env: MetaWorldEnv) -> Arrays:
        """The simulator's "qpos", "qvel", float64."""
        return {"qpos": env.inner.data.qpos, "qvel": env.inner.data.qvel}

    def is_solved(self, env: MetaWorldEnv) -> bool:
        """Whether the present state solves the task."""
        return env.is_solved

    def render(self, env: MetaWorldEnv) -> np.ndarray:
        """A picture from the authors' camera, uint8 [240, 240, 3].

        Without shadows, reflections and smooth edges, which take 0.1 s a frame where there is no GPU.

        Raises:
            RenderError: if MuJoCo has no renderer here.
        """
        rendering.ready()
        import mujoco

        try:
            if env.renderer is None:
                quality = env.inner.model.vis.quality
                quality.shadowsize = quality.offsamples = 0
                env.renderer = mujoco.Renderer(env.inner.model, _PICTURE, _PICTURE)
                for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                    env.renderer.scene.flags[flag] = 0
            env.renderer.update_scene(env.inner.data, _camera(mujoco))
            picture = env.renderer.render()
        except Exception as error:  # what a missing library or driver raises depends on the backend
            raise RenderError(f"cannot draw Meta-World: {' '.join(str(error).split())}; {HINT}") from error
        return rendering.check_picture(picture, "Meta-World")

    def close(self, env: MetaWorldEnv) -> None:
        """Free the simulator and its renderer."""
        renderer, env.renderer = env.renderer, None
        if renderer is not None:
            rendering.free(renderer)
        env.inner.close()

    def finish(self) -> None:
        """Environments share nothing."""


def _camera(mujoco: Any) -> Any:
    camera = mujoco.MjvCamera()
    for name, value in _CAMERA.items():
        setattr(camera, name, value)
    return camera


def _package() -> tuple[dict[str, Any], dict[str, Any]]:
    """Environments and scripted policies by name.

    Raises:
        ImportError: if Meta-World is not installed, or MuJoCo is too new for it.
    """
    try:
        import mujoco
        from metaworld.env_dict import ENV_CLS_MAP
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise ImportError(f"env=metaworld needs Meta-World ({error}): pip install 'worldmodels[imitation]'") from error
    if mujoco.mjNEQDATA != _WELD_NUMBERS:
        raise ImportError(
            f"Meta-World cannot use MuJoCo {mujoco.__version__}, whose welds have {mujoco.mjNEQDATA} numbers and not "
            f"{_WELD_NUMBERS}: pip install 'worldmodels[imitation]' in a fresh environment, which takes mujoco<3.17"
        )
    return ENV_CLS_MAP, ENV_POLICY_MAP
