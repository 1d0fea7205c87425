"""The five tasks of an OGBench environment: rewards, goals, named fields, and environments to try policies in."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from envs import rendering
from envs.ogbench_envs import OGBenchMaker
from envs.ogbench_names import ARM_CENTER, ARM_SCALE
from envs.stepping import EnvGroup, task_number
from envs.suite import Maze, SimulatedTasks, plain_fields
from worldmodels.keys import OBSERVATION, PHYSICS, PIXELS, STATE

if TYPE_CHECKING:
    from envs.ogbench import OGBench

_ARM_TOLERANCE = 0.04  # m; for drawer and window too
_FIRST_OBJECT, _CUBE = 14, 7  # entries of qpos before the first object, and of a cube: position and quaternion
_EFFECTOR, _YAW, _GRIPPER, _CONTACT = slice(12, 15), slice(15, 17), 17, 18  # where an arm's observation has them
_GRIPPER_SCALE = 3.0


class _Goal(NamedTuple):
    """What one task wants; None where the environment has no such thing."""

    observation: np.ndarray
    xy: np.ndarray | None  # [2]
    cubes: np.ndarray | None  # [cubes, 3]
    buttons: np.ndarray | None  # [buttons]
    handles: np.ndarray | None  # [2], drawer and window


class OGBenchTasks(SimulatedTasks):
    """Tasks of one data set's environment. Environments are built when first needed.

    They have a fixed goal, judge success before each action, and end on success.

    Args:
        source: the data, for goals that only data can show.

    Raises:
        RenderError: if observations are pictures and there is no renderer; better now than after hours of training.
    """

    names = goal_names = ("task1", "task2", "task3", "task4", "task5")

    def __init__(self, source: OGBench) -> None:
        self._source, self._facts = source, source.facts
        options = {"is_visual": source.facts.is_visual, "frame_stack": source.frame_stack, "device": source.device}
        super().__init__(OGBenchMaker(source.facts), **options)
        if self._facts.is_visual:
            rendering.ready()
        self._goals: dict[int, _Goal] = {}
        self._maze: Maze | None = None
        self._tolerance = _ARM_TOLERANCE

    @property
    def max_steps(self) -> int:
        """The benchmark's time limit, in steps."""
        return self._maker.max_steps

    @property
    def tolerance(self) -> float:
        """How near counts as reached, in metres."""
        self._goal(1)
        return self._tolerance

    def reward(self, task: str, labelled: TensorDict) -> Tensor:
        """The benchmark's reward for being in each state: 0 when all is as wanted, -1 for each thing that is not.

        Args:
            task: one of ``names``.
            labelled: [N] with "physics", as ``OGBench.labelled`` gives; an environment's rows will do too.

        Returns:
            float32 [N], on the source's device.
        """
        goal, physics = self._goal(self._number(task)), self._physics(labelled)
        qpos = physics["qpos"]
        missed: list[Tensor] = []  # each bool [N]
        if goal.xy is not None:
            at = 15 if "soccer" in self._facts.name else 0  # of the ball, else of the body
            missed.append(_distance(qpos[:, at : at + 2], goal.xy) > self._tolerance)
        if goal.cubes is not None:
            missed += [
                _distance(self._cube(qpos, i)[:, :3], target) > self._tolerance for i, target in enumerate(goal.cubes)
            ]
        if goal.buttons is not None:
            missed += list((physics["button_states"] != torch.from_numpy(goal.buttons)).unbind(-1))
        if goal.handles is not None:
            missed += list(((self._handles(qpos) - torch.from_numpy(goal.handles)).abs() > self._tolerance).unbind(-1))
        return -torch.stack(missed).sum(0).float().to(self._source.device)

    def fields(self, td: TensorDict) -> dict[str, Tensor]:
        """Named arrays [N, ...] for reward expressions, on the CPU.

        "qpos", "qvel", "button_states" of the simulator, "state" as observed, "action"; and in metres or radians: "xy"
        of a maze; of an arm "effector_pos", "effector_yaw", "gripper_opening", "gripper_contact", "cube0_pos",
        "cube0_quat", …, "drawer", "window".

        Args:
            td: [N], from ``OGBench.labelled`` or an environment.
        """
        found = plain_fields(td)
        if "state" in found and not self._facts.is_maze:
            found |= _arm_fields(found["state"].double())
        return found | (self._object_fields(found["qpos"]) if "qpos" in found else {})

    def goal_of(self, task: str) -> TensorDict:
        """The observation in which a task is solved, batch size [], on the source's device."""
        return self._observation(self._goal(self._number(task)).observation)

    def goal_observation(self, values: Sequence[float]) -> TensorDict:
        """An observation of a goal given by numbers, batch size [], on the source's device.

        Args:
            values: x, y of a maze in metres; x, y, z of every cube of an arm; the states of a puzzle's buttons.

        Returns:
            for a point in a maze, that very state. Otherwise the observation in the data that comes nearest; a line on
            stderr says how near.

        Raises:
            ValueError: wrong count of numbers, not finite, or inside a wall.
        """
        wanted = torch.tensor([float(value) for value in values], dtype=torch.float64)
        meaning = self._goal_meaning()
        if len(wanted) != len(meaning) or not bool(torch.isfinite(wanted).all()):
            raise ValueError(
                f"goal {list(values)}: {self._facts.env_name} needs {len(meaning)} numbers, {', '.join(meaning)}"
            )
        if self._facts.is_maze:
            self._check_free(wanted)
        if self._facts.name.startswith("pointmaze"):
            return self._observation(wanted.numpy())
        physics = self._source.physics
        if physics is None:
            raise ValueError(f"{self._source.path} has no qpos, so no row can be chosen by position; use a task's goal")
        distance = (self._goal_values(physics) - wanted).norm(dim=-1)
        row = int(distance.argmin())
        print(
            f"goal {list(values)}: taking row {row} of the data, at a distance of {distance[row]:.3g}", file=sys.stderr
        )
        return self._source.store.rows(torch.tensor([row], device=self._source.store.starts(1).device))[0][OBSERVATION]

    def maze(self) -> Maze | None:
        """Walls to draw rollouts on; None where there is no maze."""
        if self._facts.is_maze:
            self._goal(1)
        return self._maze

    def _number(self, task: str) -> int:
        return task_number(task, self.names, of=self._facts.env_name)

    def _goal(self, number: int) -> _Goal:
        """What a task wants, asked from the environment once."""
        if number not in self._goals:
            group = EnvGroup(self._maker, number, seeds=[0])
            group.reset()
            (env,), (observation,) = group.envs, group.goals
            if self._facts.is_maze:
                goal = _Goal(observation, np.asarray(env.cur_goal_xy, float), None, None, None)
                self._tolerance = float(env._goal_tol)
                corner = tuple(float(value) for value in env.ij_to_xy((0, 0)))
                self._maze = Maze(env.maze_map == 1, float(env._maze_unit), (corner[0], corner[1]))
            else:
                cubes, buttons = self._facts.num_cubes, self._facts.num_buttons
                has_handles = hasattr(env, "_target_drawer_pos")
                goal = _Goal(
                    observation,
                    None,
                    env._data.mocap_pos[:cubes].copy() if cubes else None,
                    env._target_button_states.copy() if buttons else None,
                    np.array([env._target_drawer_pos, env._target_window_pos], float) if has_handles else None,
                )
            group.close()
            self._goals[number] = goal
        return self._goals[number]

    def _observation(self, values: np.ndarray) -> TensorDict:
        device = self._source.device
        if self._facts.is_visual:
            picture = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))
            entries = {PIXELS: picture.repeat(self._source.frame_stack, 1, 1).to(device)}
        else:
            entries = {STATE: torch.as_tensor(values, dtype=torch.float32).to(device)}
        return TensorDict(entries, batch_size=[])

    def _goal_meaning(self) -> list[str]:
        if self._facts.is_maze:
            return ["x", "y"]
        if self._facts.num_cubes:
            return [f"{axis} of cube {i}" for i in range(self._facts.num_cubes) for axis in "xyz"]
        return [f"state of button {i}" for i in range(self._facts.num_buttons)]

    def _goal_values(self, physics: TensorDict) -> Tensor:
        """The numbers of ``_goal_meaning`` in every row [N, n]."""
        if "soccer" in self._facts.name:
            return physics["qpos"][:, 15:17]
        if self._facts.is_maze:
            return physics["qpos"][:, :2]
        if self._facts.num_cubes:
            return torch.cat([self._cube(physics["qpos"], i)[:, :3] for i in range(self._facts.num_cubes)], dim=-1)
        return physics["button_states"].double()

    def _check_free(self, xy: Tensor) -> None:
        maze = self.maze()
        assert maze is not None
        column, row = (int(torch.floor((xy[k] - maze.origin[k]) / maze.unit + 0.5)) for k in (0, 1))
        is_inside = 0 <= row < maze.walls.shape[0] and 0 <= column < maze.walls.shape[1]
        if not is_inside or maze.walls[row, column]:
            raise ValueError(
                f"goal {xy.tolist()} lies {'in a wall' if is_inside else 'outside the maze'} of {self._facts.env_name}"
            )

    def _physics(self, td: TensorDict) -> TensorDict:
        if PHYSICS not in td.keys():
            raise ValueError(f"{self._source.path} has no qpos, which rewards of {self._facts.env_name} depend on")
        return td[PHYSICS]

    def _object_fields(self, qpos: Tensor) -> dict[str, Tensor]:
        if self._facts.is_maze:
            ball = {"ball_xy": qpos[:, 15:17]} if "soccer" in self._facts.name else {}
            return {"xy": qpos[:, :2], **ball}
        cubes = [self._cube(qpos, i) for i in range(self._facts.num_cubes)]
        found = {f"cube{i}_pos": cube[:, :3] for i, cube in enumerate(cubes)}
        found |= {f"cube{i}_quat": cube[:, 3:] for i, cube in enumerate(cubes)}
        if "scene" in self._facts.name:
            found["drawer"], found["window"] = self._handles(qpos).unbind(-1)
        return found

    def _cube(self, qpos: Tensor, index: int) -> Tensor:
        start = _FIRST_OBJECT + _CUBE * index
        return qpos[:, start : start + _CUBE]

    def _handles(self, qpos: Tensor) -> Tensor:
        """Positions of drawer and window [N, 2], which come after cubes and buttons."""
        start = _FIRST_OBJECT + _CUBE * self._facts.num_cubes + self._facts.num_buttons
        return qpos[:, start : start + 2]


def _arm_fields(state: Tensor) -> dict[str, Tensor]:
    cos, sin = state[:, _YAW].unbind(-1)
    return {
        "effector_pos": state[:, _EFFECTOR] / ARM_SCALE + torch.tensor(ARM_CENTER, dtype=state.dtype),
        "effector_yaw": torch.atan2(sin, cos),
        "gripper_opening": state[:, _GRIPPER] / _GRIPPER_SCALE,
        "gripper_contact": state[:, _CONTACT],
    }


def _distance(points: Tensor, target: np.ndarray) -> Tensor:
    return (points - torch.from_numpy(np.asarray(target, float))).norm(dim=-1)
