"""Environments of ExoRL's tasks to try policies in: a thousand steps, no end before, no success, only a return."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.dmc_domains import EPISODE_STEPS, Domain, make, models
from envs.rendering import HINT, RenderError
from envs.stepping import Arrays


class DMCEnv:
    """One task with gymnasium's reset and step, its random stream its own.

    Args:
        domain, task: by name.
    """

    def __init__(self, domain: Domain, task: str) -> None:
        from gymnasium.spaces import Box

        self.domain = domain
        self.action_space = Box(-1.0, 1.0, (domain.action_dim,), np.float32)
        self._random = np.random.RandomState(0)
        self.inner = make(domain.name, task, random=self._random)
        self._flatten = models().flatten

    @property
    def physics(self) -> Any:
        """dm_control's simulator."""
        return self.inner.physics

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the episode of ``seed``; returns the observation float32 [S] and {}."""
        self._random.seed(seed)
        return self._flatten(self.inner.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act with [A]; returns observation, reward, False, False, {}: whoever steps counts the steps."""
        now = self.inner.step(action)
        return self._flatten(now.observation), now.reward, False, False, {}

    def state(self) -> np.ndarray:
        """The simulator's state, float64 [P], as ExoRL's "physics"."""
        return self.physics.get_state()

    def begin_from(self, physics: np.ndarray) -> np.ndarray:
        """Begin an episode in a given state [P]; returns the observation."""
        self.inner.reset()
        with self.physics.reset_context():
            self.physics.set_state(physics)
        return self._flatten(self.inner.task.get_observation(self.physics))


class DMCMaker:
    """Builds environments of one domain; a ``Maker`` of ``envs.stepping``."""

    max_steps = EPISODE_STEPS

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def make(self, task: int) -> DMCEnv:
        """A new environment for one task, counted from 1."""
        return DMCEnv(self.domain, self.domain.tasks[task - 1])

    def enter(self, env: DMCEnv) -> None:
        """Environments share nothing that changes."""

    def leave(self, env: DMCEnv) -> None:
        """Environments share nothing that changes."""

    def physics(self, env: DMCEnv) -> Arrays:
        """Positions "qpos", velocities "qvel" and, of the quadruped, "act", float64."""
        return self.domain.split(env.state())

    def is_solved(self, env: DMCEnv) -> None:
        """These tasks have no success."""

    def render(self, env: DMCEnv) -> np.ndarray:
        """A picture from the domain's camera, uint8 [240, 240, 3].

        Raises:
            RenderError: if MuJoCo has no renderer here.
        """
        try:
            return env.physics.render(height=240, width=240, camera_id=self.domain.camera)
        except Exception as error:  # what a missing library or display raises depends on the backend
            raise RenderError(f"cannot draw {self.domain.name}: {' '.join(str(error).split())}; {HINT}") from error

    def close(self, env: DMCEnv) -> None:
        """Free the simulator and its renderer."""
        env.inner.close()

    def finish(self) -> None:
        """Environments share nothing."""
