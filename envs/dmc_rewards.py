"""Rewards of the 20 tasks on DeepMind Control domains, as functions of physical quantities of many states at once.

A reward takes ``measured`` {name: [N] or [N, 2]}, as ``envs.dmc_models.Meter`` gives them, and the actions [N, A] that
led to these states, and returns float64 [N]. Numpy only: evaluation workers step environments with the same functions.

==========================  ============================================================================================
walker stand, walk, run     dm_control's own: upright at 1.2 m, times speed of 1 and 8 m/s
walker spin                 angular momentum about y of 10 kg m²/s or more; standing does not count
cheetah walk, run           speed of 2 and 10 m/s; ``_backward`` the other way
quadruped stand             the torso's z axis points up
quadruped walk, run         dm_control's own: upright, times forward speed of 0.5 and 5 m/s
quadruped jump              upright, times a centre of mass 1 m high
point_mass_maze reach_…     be within 1.5 cm of a place, with small actions
point_mass_maze …_long      bottom left; until there, moving clockwise along the outer walls pays, the other way costs
point_mass_maze loop        clockwise around a diamond through the four gaps
point_mass_maze square      clockwise along the outer walls, the faster the better
point_mass_maze fast_slow   counter-clockwise along the outer walls, slow along x and fast along y
==========================  ============================================================================================

Source: sheet td_jepa, section 3.1; TD-JEPA (arXiv 2510.00739), appendix on tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from envs.point_mass_maze import TARGETS

Measured = Mapping[str, np.ndarray]
Reward = Callable[[Measured, np.ndarray], np.ndarray]

_INF = float("inf")
_SIDE, _LANE = 0.2, 0.28  # of the maze: a lane along the outer walls begins, and ends
_FULL_SPEED = 0.1  # m/s, of the ball

# How far outside counts: functions of the distance in margins, and of the value they shall have at 1.
_SHAPES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "gaussian": lambda x, at_margin: np.exp(np.log(at_margin) * x**2),
    "linear": lambda x, at_margin: np.maximum(1 - (1 - at_margin) * x, 0.0),
    "quadratic": lambda x, at_margin: np.maximum(1 - (1 - at_margin) * x**2, 0.0),
}


def tolerance(
    x: np.ndarray,
    low: float | np.ndarray = 0.0,
    high: float | np.ndarray = 0.0,
    *,
    margin: float,
    shape: str = "gaussian",
    at_margin: float = 0.1,
) -> np.ndarray:
    """1 where ``low`` <= x <= ``high``, falling to ``at_margin`` a ``margin`` outside; dm_control's, vectorised.

    Args:
        x: any shape.
        low, high: of the wanted interval, which may be infinite on a side; broadcast against x.
        margin: greater than 0, in the unit of x.
        shape: "gaussian", "linear" or "quadratic"; the last two reach 0 and stay there.
        at_margin: 0 only for the last two.
    """
    outside = np.maximum(np.maximum(low - x, x - high), 0.0) / margin
    return _SHAPES[shape](outside, at_margin)


def _ramp(x: np.ndarray, wanted: float, *, margin: float, at_margin: float = 0.0) -> np.ndarray:
    """1 from ``wanted`` on, linear below."""
    return tolerance(x, wanted, _INF, margin=margin, shape="linear", at_margin=at_margin)


# --- walker ---------------------------------------------------------------------------------------------------------
def _walker_stand(measured: Measured, action: np.ndarray) -> np.ndarray:
    is_high = tolerance(measured["torso_height"], 1.2, _INF, margin=0.6)
    return (3 * is_high + (1 + measured["upright"]) / 2) / 4


def _walker_move(wanted: float) -> Reward:
    def reward(measured: Measured, action: np.ndarray) -> np.ndarray:
        is_fast = _ramp(measured["speed"], wanted, margin=wanted / 2, at_margin=0.5)
        return _walker_stand(measured, action) * (5 * is_fast + 1) / 6

    return reward


def _walker_spin(measured: Measured, action: np.ndarray) -> np.ndarray:
    return _ramp(measured["angular_momentum"], 10.0, margin=10.0)


# --- cheetah --------------------------------------------------------------------------------------------------------
def _cheetah(wanted: float, direction: int) -> Reward:
    return lambda measured, action: _ramp(direction * measured["speed"], wanted, margin=wanted)


# --- quadruped ------------------------------------------------------------------------------------------------------
def _quadruped_stand(measured: Measured, action: np.ndarray) -> np.ndarray:
    return _ramp(measured["upright"], 1.0, margin=2.0)


def _quadruped_move(wanted: float) -> Reward:
    def reward(measured: Measured, action: np.ndarray) -> np.ndarray:
        is_fast = _ramp(measured["speed"], wanted, margin=wanted, at_margin=0.5)
        return _quadruped_stand(measured, action) * is_fast

    return reward


def _quadruped_jump(measured: Measured, action: np.ndarray) -> np.ndarray:
    is_high = _ramp(measured["com_height"], 1.0, margin=1.0, at_margin=0.5)
    return _quadruped_stand(measured, action) * is_high


# --- point-mass maze ------------------------------------------------------------------------------------------------
def _reach(target: tuple[float, float]) -> Reward:
    def reward(measured: Measured, action: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm(measured["xy"] - np.array(target), axis=-1)
        is_near = tolerance(distance, 0.0, 0.015, margin=0.09)
        is_calm = tolerance(action, margin=1.0, shape="quadratic", at_margin=0.0).mean(-1)
        return is_near * (4 + is_calm) / 5

    return reward


def _clockwise(measured: Measured, begin: float, end: float = _INF) -> tuple[np.ndarray, np.ndarray]:
    """Speed clockwise along the side that a state is at, and which side: both [N, 4] for top, right, bottom, left.

    A side is where its coordinate lies between ``begin`` and ``end``. Corners are at two sides, hence at none.
    """
    (x, y), (vx, vy) = measured["xy"].T, measured["velocity"].T
    outward = np.stack([y, x, -y, -x], axis=-1)
    is_at = (begin < outward) & (outward < end)
    return np.stack([vx, -vy, -vx, vy], axis=-1), is_at & (is_at.sum(-1, keepdims=True) == 1)


def _reach_the_long_way(measured: Measured, action: np.ndarray) -> np.ndarray:
    goal = _reach(TARGETS["reach_bottom_left"])(measured, action)
    speed, is_at = _clockwise(measured, 0.15)
    speed = np.clip(speed, -_FULL_SPEED, _FULL_SPEED)
    path = (is_at * speed * np.where(speed >= 0, 5, 100)).sum(-1)
    return np.where(goal < 0.01, path, goal)


def _loop(measured: Measured, action: np.ndarray) -> np.ndarray:
    (x, y), (vx, vy) = measured["xy"].T, measured["velocity"].T
    off_path = abs(abs(x) + abs(y) - 0.24) / np.sqrt(2)
    is_on_path = tolerance(off_path, 0.0, 0.02, margin=0.02, shape="linear", at_margin=0.0)
    forward_x, forward_y = np.where(y >= 0, vx, -vx), np.where(x <= 0, vy, -vy)
    is_moving = [tolerance(v, 0.06, 0.1, margin=0.01, shape="linear", at_margin=0.0) for v in (forward_x, forward_y)]
    return (is_on_path + is_moving[0] + is_moving[1]) / 3


def _square(measured: Measured, action: np.ndarray) -> np.ndarray:
    speed, is_at = _clockwise(measured, _SIDE)
    return (is_at * np.clip(speed / _FULL_SPEED, 0.0, 1.0)).sum(-1)


def _fast_slow(measured: Measured, action: np.ndarray) -> np.ndarray:
    speed, is_at = _clockwise(measured, _SIDE, _LANE)
    low, high = np.array([0.04, 0.09, 0.04, 0.09]), np.array([0.05, 0.1, 0.05, 0.1])
    is_right = tolerance(-speed, low, high, margin=0.01, shape="linear", at_margin=0.0)  # -: counter-clockwise
    return (is_at * is_right).sum(-1)


REWARDS: dict[str, dict[str, Reward]] = {
    "walker": {
        "stand": _walker_stand,
        "walk": _walker_move(1.0),
        "run": _walker_move(8.0),
        "spin": _walker_spin,
    },
    "cheetah": {
        "walk": _cheetah(2.0, 1),
        "walk_backward": _cheetah(2.0, -1),
        "run": _cheetah(10.0, 1),
        "run_backward": _cheetah(10.0, -1),
    },
    "quadruped": {
        "stand": _quadruped_stand,
        "walk": _quadruped_move(0.5),
        "run": _quadruped_move(5.0),
        "jump": _quadruped_jump,
    },
    "point_mass_maze": {
        **{name: _reach(target) for name, target in TARGETS.items()},
        "reach_bottom_left_long": _reach_the_long_way,
        "loop": _loop,
        "square": _square,
        "fast_slow": _fast_slow,
    },
}
"""{domain: {task: reward}}, in the order of the benchmark."""
