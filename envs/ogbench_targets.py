"""What an oracle of OGBench's arms has to do next towards the goal of a benchmark task.

The oracles that ship with ogbench move one thing to one place: a cube, a button, the drawer, the window. The tasks are
several such steps in an order that works, which is found here from the state of the simulator, one step at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from envs.ogbench_names import Dataset

_TOLERANCE = 0.04  # m; the benchmark's own, for cubes, drawer and window
_NEAR = 0.03  # m; cubes less than this apart, seen from above, stand on each other
_CLEAR = 0.06  # m; a place with no cube so near, seen from above, is free
_LEVEL = 0.02  # m; half a cube: cubes less than this apart in height stand side by side
_OPEN = -0.12  # m; a drawer this far out takes a cube
_OUT = -0.16  # m; as far as it goes


class Target(NamedTuple):
    """One thing to move."""

    kind: str  # cube, button, drawer, window
    info: dict[str, Any]  # what its oracle must know besides the simulator's state


def next_target(env: Any, dataset: Dataset) -> Target:
    """What comes next.

    Args:
        env: an arm's single-task environment.
        dataset: what it is.
    """
    if "puzzle" in dataset.name:
        return _button(env, _next_press(env))
    cubes = np.array([env._data.joint(f"object_joint_{i}").qpos[:3] for i in range(dataset.num_cubes)])
    goals = env._data.mocap_pos[env._cube_target_mocap_ids]
    if "scene" in dataset.name:
        return _next_of_scene(env, cubes[0], goals[0])
    return _cube(*next_cube(cubes, goals))


def next_cube(cubes: np.ndarray, goals: np.ndarray) -> tuple[int, np.ndarray]:
    """The cube to move next, and where to: into its place if that can be, else aside.

    Args:
        cubes: where they are, [n, 3] metres.
        goals: where they shall be, likewise.
    """
    num = len(cubes)
    others = ~np.eye(num, dtype=bool)
    is_missed = np.linalg.norm(cubes - goals, axis=-1) > _TOLERANCE
    covers = others & (_apart(cubes, cubes) < _NEAR) & (cubes[:, 2] > cubes[:, None, 2])  # [i, j]: j stands on i
    is_top = ~covers.any(1)
    is_level = np.abs(goals[:, None, 2] - cubes[:, 2]) < _LEVEL
    occupies = others & (_apart(goals, cubes) < _CLEAR) & is_level  # [i, j]: j is in i's place
    carries = others & (_apart(goals, goals) < _NEAR) & (goals[:, 2] < goals[:, None, 2])  # j shall be below i
    can_go = is_missed & is_top & ~occupies.any(1) & ~(carries & is_missed).any(1)
    if can_go.any():
        index = int(np.flatnonzero(can_go)[0])
        return index, goals[index]
    is_in_the_way = ((occupies | covers) & is_missed[:, None]).any(0)
    index = int(np.argmax(is_top & (is_missed | is_in_the_way)))
    x, y = np.meshgrid(np.linspace(0.3, 0.55, 6), np.linspace(-0.3, 0.3, 13))
    places = np.stack([x.ravel(), y.ravel(), np.full(x.size, 0.02)], -1)
    room = _apart(places, np.concatenate([cubes, goals])).min(1)
    return index, places[room.argmax()]


def presses(missed: np.ndarray) -> np.ndarray:
    """Buttons to press, bool [rows, columns], so that exactly those ``missed`` [rows, columns] change.

    A press changes a button and its neighbours; the equations are solved modulo 2.

    Raises:
        ValueError: if no presses do.
    """
    rows, columns = missed.shape
    num = missed.size
    row, column = np.divmod(np.arange(num), columns)
    steps = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
    table = np.concatenate([steps <= 1, missed.reshape(num, 1).astype(bool)], 1)  # [num, num + 1]
    pivots: list[int] = []
    for variable in range(num):
        found = np.flatnonzero(table[len(pivots) :, variable])
        if len(found) == 0:
            continue
        first, second = len(pivots), len(pivots) + int(found[0])
        table[[first, second]] = table[[second, first]]
        reduced = table[:, variable].copy()
        reduced[first] = False
        table[reduced] ^= table[first]
        pivots.append(variable)
    if table[len(pivots) :, -1].any():
        raise ValueError("no presses of buttons lead to this goal")
    solution = np.zeros(num, bool)
    solution[pivots] = table[: len(pivots), -1]
    return solution.reshape(rows, columns)


def _next_press(env: Any) -> int:
    missed = (env._cur_button_states != env._target_button_states).reshape(env._num_rows, env._num_cols)
    return int(presses(missed).argmax())


def _next_of_scene(env: Any, cube: np.ndarray, goal: np.ndarray) -> Target:
    """Cube first, into the open drawer if it shall be in the closed one; drawer and window, unlocked; then buttons."""
    drawer, window = (float(env._data.joint(f"{name}_slide").qpos[0]) for name in ("drawer", "window"))
    is_missed = np.linalg.norm(cube - goal) > _TOLERANCE
    is_for_drawer = goal[2] > 0.05
    if is_missed and not (is_for_drawer and env._is_in_drawer(cube)):
        if not is_for_drawer:
            return _cube(0, goal)
        return _cube(0, env._drawer_center) if drawer < _OPEN else _slide(env, "drawer", drawer, _OUT)
    for name, now, wanted in (("drawer", drawer, env._target_drawer_pos), ("window", window, env._target_window_pos)):
        if abs(now - wanted) > _TOLERANCE:
            return _slide(env, name, now, wanted)
    return _button(env, int((env._cur_button_states != env._target_button_states).argmax()))


def _slide(env: Any, name: str, now: float, wanted: float) -> Target:
    """Move drawer or window along its rail; unlock it first."""
    lock = ("drawer", "window").index(name)
    if not env._cur_button_states[lock]:
        return _button(env, lock)
    site = env._drawer_site_id if name == "drawer" else env._window_site_id
    place = env._data.site_xpos[site] + (wanted - now) * env._data.joint(f"{name}_slide").xaxis
    return Target(name, {f"privileged/target_{name}_handle_pos": place})


def _cube(index: int, place: np.ndarray) -> Target:
    info = {"target_block": index, "target_block_pos": place.copy(), "target_block_yaw": np.zeros(1)}
    return Target("cube", {f"privileged/{key}": value for key, value in info.items()})


def _button(env: Any, index: int) -> Target:
    info = {
        "target_button": index,
        "target_button_state": 1 - env._cur_button_states[index],
        "target_button_top_pos": env._data.site_xpos[env._button_site_ids[index]].copy(),
    }
    return Target("button", {f"privileged/{key}": value for key, value in info.items()})


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances seen from above, [len(a), len(b)]."""
    return np.linalg.norm(a[:, None, :2] - b[:, :2], axis=-1)
