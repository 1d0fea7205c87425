"""The benchmark's environments, one task each: fixed goal, success judged before the action, an end on success."""

from __future__ import annotations

import atexit
import copy
import os
from typing import Any

import numpy as np

from envs import rendering
from envs.ogbench_names import Dataset
from envs.rendering import RenderError
from envs.stepping import Arrays

# What an arm's environment changes in its model while it runs: locks of the scene, colours, marks of targets.
_MUTABLE = ("dof_damping", "geom_rgba", "mat_rgba", "site_pos")


class OGBenchMaker:
    """Builds the single-task environments of one data set; a ``Maker`` of ``envs.stepping``.

    An arm takes 0.6 s and 95 MB to build, nearly all of it meshes that never change. So it is built once, and each
    environment is a twin of it with its own simulator data, attributes and random streams.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._template: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_template": None}  # another process builds its own

    @property
    def max_steps(self) -> int:
        """The benchmark's time limit, in steps."""
        import gymnasium

        self._register()
        limit = gymnasium.spec(self.dataset.task_id(1)).max_episode_steps
        assert limit is not None
        return limit

    def make(self, task: int) -> Any:
        """A new environment, without wrappers."""
        if self.dataset.is_maze:
            return self._build(task)
        if self._template is None:
            self._template = self._build(1)
            self._template.reset(seed=0)  # compiles the model
        return _twin(self._template, task)

    def enter(self, env: Any) -> None:
        """Write the twin's part of the shared model."""
        if not self.dataset.is_maze:
            for name, values in env.own_model.items():
                getattr(env._model, name)[:] = values

    def leave(self, env: Any) -> None:
        """Save the twin's part of the shared model."""
        if not self.dataset.is_maze:
            for name, values in env.own_model.items():
                values[:] = getattr(env._model, name)

    def physics(self, env: Any) -> Arrays:
        """The simulator's "qpos", "qvel" float64 and, where there are buttons, "button_states" int64."""
        found = {"qpos": env.data.qpos, "qvel": env.data.qvel}
        return found | ({"button_states": env._cur_button_states} if self.dataset.num_buttons else {})

    def is_solved(self, env: Any) -> bool:
        """Whether the present state solves the task: within the goal's radius; every object in place."""
        return bool(env.compute_success() if self.dataset.is_maze else env.compute_reward() == 0)

    def render(self, env: Any) -> np.ndarray:
        """A picture, uint8 [H, W, 3].

        Raises:
            RenderError: if MuJoCo has no renderer here.
        """
        rendering.ready()
        try:
            if not self.dataset.is_maze and env._renderer is None:
                # One renderer for all twins: each would hold a copy of the meshes on the graphics side.
                if self._template._renderer is None:
                    self._template._initialize_renderer()
                    atexit.register(self.finish)  # from here on, so that it comes before MuJoCo ends EGL itself
                env._renderer = self._template._renderer
            return np.asarray(env.render())
        except Exception as error:  # what a missing library or display raises depends on the backend
            raise RenderError(
                f"cannot draw {self.dataset.env_name}: {' '.join(str(error).split())}; {rendering.HINT}"
            ) from error

    def close(self, env: Any) -> None:
        """Free a maze's renderer and file; twins have nothing of their own."""
        if self.dataset.is_maze:
            renderer, env.custom_renderer = env.custom_renderer, None
            if renderer is not None:
                rendering.free(renderer)
            env.close()

    def finish(self) -> None:
        """Free what the twins share. Environments made before must not be used again."""
        template, self._template = self._template, None
        if template is not None and template._renderer is not None:
            rendering.free(template._renderer)

    def _build(self, task: int) -> Any:
        import gymnasium

        self._register()
        if self.dataset.is_visual:
            rendering.ready()
        env: Any = gymnasium.make(self.dataset.task_id(task), disable_env_checker=True).unwrapped
        if self.dataset.is_maze:
            os.unlink(env.fullpath)  # ogbench writes each maze to a temporary file and leaves it there
        else:
            _own_action_space(env)
        return env

    def _register(self) -> None:
        if self.dataset.is_maze:
            import ogbench.locomaze
        else:
            import ogbench.manipspace  # noqa: F401


def _own_action_space(env: Any) -> None:
    """Give an arm one action space that can be seeded.

    Its own is a property that makes a new, unseeded one at every access, and a reset takes random actions from it.
    """
    from gymnasium.spaces import Box

    if "own_action_space" not in vars(env):
        name, base = type(env).__name__, type(env)
        env.__class__ = type(name, (base,), {"action_space": property(lambda self: self.own_action_space)})
    env.own_action_space = Box(-1.0, 1.0, (5,), np.float32)


def _twin(template: Any, task: int) -> Any:
    """An environment with the template's model, but its own simulator data, arrays and random streams."""
    import mujoco

    twin = copy.copy(template)
    for name, value in vars(template).items():
        if isinstance(value, np.ndarray):
            setattr(twin, name, value.copy())
    twin._data = mujoco.MjData(template._model)
    twin._np_random = None
    twin._reward_task_id = task
    _own_action_space(twin)
    twin.own_model = {name: getattr(template._model, name).copy() for name in _MUTABLE}
    return twin
