"""The domains in dm_control, and what is measured of their states. The one file that loads dm_control."""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import mujoco
import numpy as np
from dm_control.mujoco import Physics
from dm_control.rl.control import Environment
from dm_control.suite import base, cheetah, common, quadruped, walker

from envs.dmc_domains import Domain
from envs.dmc_rewards import REWARDS, Measured
from envs.point_mass_maze import MODEL, START_X, START_Y

Random: TypeAlias = np.random.RandomState | int | None


class MazeTask(base.Task):
    """Starts and observations of the point-mass maze."""

    def initialize_episode(self, physics: Any) -> None:
        """Put the ball somewhere in the top left room, at rest."""
        physics.data.qpos[:] = self.random.uniform(*zip(START_X, START_Y, strict=True))
        super().initialize_episode(physics)

    def get_observation(self, physics: Any) -> OrderedDict[str, np.ndarray]:
        """Position [2] in metres and velocity [2]."""
        return OrderedDict(position=physics.position(), velocity=physics.velocity())

    def get_reward(self, physics: Any) -> float:
        """The maze has no reward of its own."""
        return 0.0


_MODELS: dict[str, Callable[[], Any]] = {
    "point_mass_maze": lambda: Physics.from_xml_string(MODEL, common.ASSETS),
    "walker": lambda: walker.Physics.from_xml_string(*walker.get_model_and_assets()),
    "cheetah": lambda: cheetah.Physics.from_xml_string(*cheetah.get_model_and_assets()),
    "quadruped": lambda: quadruped.Physics.from_xml_string(quadruped.make_model(floor_size=100), common.ASSETS),
}
# Where episodes start and what is observed; their own rewards are not used.
_TASKS: dict[str, Callable[[Random], Any]] = {
    "point_mass_maze": lambda random: MazeTask(random=random),
    "walker": lambda random: walker.PlanarWalker(move_speed=0, random=random),
    "cheetah": lambda random: cheetah.Cheetah(random=random),
    "quadruped": lambda random: quadruped.Move(desired_speed=0, random=random),
}
_TORSO, _ZZ = 1, 8  # the first body after the world; of a rotation matrix, how far z points up
_VELOCIMETER = 6  # of the quadruped's sensors, after accelerometer and gyro
# {domain: (names, their values in a simulator's present state)}; the maze needs no simulator
_MEASURED: dict[str, tuple[tuple[str, ...], Callable[[Any], tuple[float, ...]]]] = {
    "walker": (
        ("torso_height", "upright", "speed", "angular_momentum"),
        lambda d: (d.xpos[_TORSO, 2], d.xmat[_TORSO, _ZZ], d.sensordata[0], d.subtree_angmom[_TORSO, 1]),
    ),
    "cheetah": (("torso_height", "speed"), lambda d: (d.xpos[_TORSO, 2], d.sensordata[0])),
    "quadruped": (
        ("torso_height", "upright", "com_height", "speed"),
        lambda d: (d.xpos[_TORSO, 2], d.xmat[_TORSO, _ZZ], d.subtree_com[_TORSO, 2], d.sensordata[_VELOCIMETER]),
    ),
}


@functools.cache
def _template(domain: str) -> Any:
    """The domain's compiled model, once a process: environments share it and have simulator data of their own."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)  # dm_control's cheetah uses an attribute that newer MuJoCo calls deprecated
    try:
        return _MODELS[domain]()
    finally:
        log.setLevel(level)


class Meter:
    """Physical quantities that rewards depend on, for many states of a domain.

    Positions and velocities determine them, so neither contacts nor forces are computed: a tenth of ``mj_forward``.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        if domain.name in _MEASURED:
            self._model = _template(domain.name).model.ptr
            self._data = mujoco.MjData(self._model)

    def __call__(self, physics: np.ndarray) -> Measured:
        """Measure states [N, P], as ``physics.get_state`` gives them.

        Returns:
            float64 [N] each: "torso_height", "com_height" in metres; "speed", m/s along x of the world, of the
            quadruped along its own; "upright", the z component of the torso's z axis; "angular_momentum" about y,
            kg m²/s. Of the maze "xy" [N, 2], "velocity" [N, 2].
        """
        parts = self._domain.split(physics)
        if self._domain.name not in _MEASURED:
            return {"xy": parts["qpos"], "velocity": parts["qvel"]}
        (names, read), model, data = _MEASURED[self._domain.name], self._model, self._data
        out = np.empty((len(physics), len(names)))
        for row, qpos, qvel in zip(out, parts["qpos"], parts["qvel"], strict=True):
            data.qpos, data.qvel = qpos, qvel
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_comVel(model, data)
            mujoco.mj_subtreeVel(model, data)
            mujoco.mj_sensorVel(model, data)
            row[:] = read(data)
        return dict(zip(names, out.T, strict=True))


def measure(domain: Domain, physics: Any) -> Measured:
    """What ``Meter`` gives, [1] each, of a running simulator: it is up to date in positions and velocities."""
    if domain.name not in _MEASURED:
        return {"xy": physics.data.qpos[None].copy(), "velocity": physics.data.qvel[None].copy()}
    names, read = _MEASURED[domain.name]
    data = physics.data.ptr
    mujoco.mj_subtreeVel(physics.model.ptr, data)
    return {name: np.array([value]) for name, value in zip(names, read(data), strict=True)}


class DomainTask(base.Task):
    """One of our tasks: starts and observations of dm_control's domain, rewards of ``envs.dmc_rewards``."""

    def __init__(self, domain: Domain, task: str, *, random: Random) -> None:
        super().__init__(random=random)
        self._domain, self._reward = domain, REWARDS[domain.name][task]
        self._suite = _TASKS[domain.name](self.random)

    def initialize_episode(self, physics: Any) -> None:
        """Draw a start state."""
        self._suite.initialize_episode(physics)

    def get_observation(self, physics: Any) -> OrderedDict[str, Any]:
        """dm_control's observation of the domain, by name."""
        return self._suite.get_observation(physics)

    def get_reward(self, physics: Any) -> float:
        """The task's reward of the state and of the action that led there."""
        return float(self._reward(measure(self._domain, physics), physics.control()[None])[0])


def build(domain: Domain, task: str, *, random: Random = None) -> Environment:
    """See ``envs.dmc_domains.make``."""
    return Environment(
        _template(domain.name).copy(share_model=True),
        DomainTask(domain, task, random=random),
        time_limit=float("inf"),
        control_timestep=domain.control_timestep,
    )


def flatten(observation: OrderedDict[str, Any]) -> np.ndarray:
    """Entries of an observation in their order, float32 [S]: as ExoRL's files hold them."""
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)


class Observer:
    """What an environment would show in given states: the entries that "physics" determines.

    The quadruped's forces and accelerations are those of the substep before, which its state does not tell.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._physics = _template(domain.name).copy(share_model=True)
        self._task = _TASKS[domain.name](0)

    def __call__(self, physics: np.ndarray) -> np.ndarray:
        """Observations float32 [N, domain.num_exact] of states [N, P]."""
        model, data = self._physics.model.ptr, self._physics.data.ptr
        rows = []
        for state in physics:
            self._physics.set_state(state)
            for compute in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_comVel, mujoco.mj_sensorVel):
                compute(model, data)
            rows.append(flatten(self._task.get_observation(self._physics))[: self._domain.num_exact])
        return np.stack(rows)
