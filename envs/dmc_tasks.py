"""The tasks of an ExoRL domain: rewards by relabelling, named fields, and environments to try policies in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from envs import rendering
from envs.dmc_domains import EPISODE_STEPS, Domain, models
from envs.dmc_envs import DMCMaker
from envs.dmc_pixels import PictureMaker, Pictures
from envs.dmc_rewards import REWARDS, Measured
from envs.point_mass_maze import RADIUS, REACH, TARGETS, is_in_cross, squares
from envs.suite import Maze, SimulatedTasks, plain_fields
from worldmodels.keys import ACTION, PHYSICS, PIXELS, STATE


class DMCTasks(SimulatedTasks):
    """Tasks of one domain, as ``OGBenchTasks`` offers them for its own. Their metric is the return, at most 1000.

    Evaluation steps environments with the same reward functions, so a relabelled reward is the one that was paid.

    Args:
        domain: facts.
        device: of observations.
        pictures: how environments and goals are seen; None is by states.

    Raises:
        RenderError: if pictures are wanted and there is no renderer; better now than after hours of training.
    """

    max_steps = EPISODE_STEPS
    tolerance = 0.03
    """How near, in metres, counts as reached when a user asks for a goal in the maze."""

    def __init__(self, domain: Domain, device: torch.device | str = "cpu", *, pictures: Pictures | None = None) -> None:
        self._domain, self._pictures = domain, pictures
        maker, seen = DMCMaker(domain), {}
        if pictures is not None:
            rendering.ready()
            maker = PictureMaker(maker, domain, is_fast=pictures.is_fast)
            seen = {"is_visual": True, "frame_stack": pictures.frame_stack}
        super().__init__(maker, device=device, **seen)
        self._last: tuple[list[Tensor], Measured] = [], {}  # measured last: all tasks ask about the same states

    @property
    def names(self) -> tuple[str, ...]:
        """The benchmark's tasks, in its order."""
        return self._domain.tasks

    @property
    def names_elsewhere(self) -> dict[str, str]:
        """Tasks that other domains have, and which: for errors."""
        return self._domain.tasks_elsewhere

    @property
    def goal_names(self) -> tuple[str, ...]:
        """Tasks that want a state."""
        return tuple(TARGETS) if self._is_maze else ()

    def reward(self, task: str, labelled: TensorDict) -> Tensor:
        """The benchmark's reward for being in each state after the action that led there.

        Args:
            task: one of ``names``.
            labelled: [N] with "physics" and "action", as ``DMC.labelled`` gives; only the maze's tasks read the action.

        Returns:
            float32 [N], on the source's device.
        """
        self._number(task)
        action = labelled.get(ACTION, None)
        if action is None and self._is_maze:
            raise ValueError(f"{task} also rewards small actions, and these states come without the action before them")
        num = labelled.batch_size[0]
        actions = np.zeros((num, self._domain.action_dim)) if action is None else action.cpu().numpy()
        found = REWARDS[self._domain.name][task](self.measure(labelled[PHYSICS]), actions)
        return torch.from_numpy(found).float().to(self._device)

    def measure(self, physics: TensorDict) -> Measured:
        """What rewards depend on: see ``envs.dmc_models.Meter``. Computed once for the states asked about last."""
        parts = [physics[key] for key in ("qpos", "qvel", "act") if key in physics.keys()]
        last, measured = self._last
        if len(parts) != len(last) or any(part is not old for part, old in zip(parts, last, strict=True)):
            measured = self._meter(np.concatenate([part.cpu().numpy() for part in parts], axis=-1))
            self._last = parts, measured
        return measured

    def fields(self, td: TensorDict) -> dict[str, Tensor]:
        """Named arrays [N, ...] for reward expressions, on the CPU.

        "qpos", "qvel" (and "act" of the quadruped) of the simulator, "state" as observed, "action"; and what rewards
        are made of, by domain: "torso_height", "upright", "speed", "angular_momentum", "com_height"; "xy", "velocity".

        Args:
            td: [N], from ``DMC.labelled`` or an environment.
        """
        measured = self.measure(td[PHYSICS])
        return plain_fields(td) | {key: torch.from_numpy(value) for key, value in measured.items()}

    def goal_of(self, task: str) -> TensorDict:
        """The observation in which a task is solved, at rest at its target: batch size [], on the source's device.

        Raises:
            ValueError: if the task wants no state, but a motion.
        """
        self._number(task)
        if task not in self.goal_names:
            have = f"only {', '.join(TARGETS)} of point_mass_maze have one"
            raise ValueError(f"{self._domain.name} {task} has no goal state ({have}); infer it from its reward")
        return self._at_rest(*TARGETS[task])

    def goal_observation(self, values: Sequence[float]) -> TensorDict:
        """An observation of a goal given by numbers, batch size [], on the source's device.

        Args:
            values: x, y of the maze in metres.

        Raises:
            ValueError: another domain, another count of numbers, not finite, outside or in a wall.
        """
        if not self._is_maze:
            raise ValueError(f"goal {list(values)}: {self._domain.name} has no goals by position; ask with reward=...")
        if len(values) != 2 or not np.isfinite(values).all():
            raise ValueError(f"goal {list(values)}: point_mass_maze needs 2 numbers, x, y")
        x, y = (float(value) for value in values)
        if max(abs(x), abs(y)) > REACH or is_in_cross(np.array([x]), np.array([y]), RADIUS).any():
            raise ValueError(f"goal {list(values)} lies in a wall of point_mass_maze, or outside: |x|, |y| <= {REACH}")
        return self._at_rest(x, y)

    def maze(self) -> Maze | None:
        """Walls to draw rollouts on; None where there is no maze."""
        return Maze(*squares()) if self._is_maze else None

    def _number(self, task: str) -> int:
        return self._domain.number(task)

    @property
    def _is_maze(self) -> bool:
        return self._domain.name == "point_mass_maze"

    @cached_property
    def _meter(self) -> Any:
        return models().Meter(self._domain)

    def _at_rest(self, x: float, y: float) -> TensorDict:
        if isinstance(self._maker, PictureMaker) and self._pictures is not None:
            picture = torch.from_numpy(self._maker.paint(np.array([x, y]))).to(self._device)
            return TensorDict({PIXELS: picture.repeat(self._pictures.frame_stack, 1, 1)}, batch_size=[])
        state = torch.tensor([x, y, 0.0, 0.0], dtype=torch.float32, device=self._device)
        return TensorDict({STATE: state}, batch_size=[])
