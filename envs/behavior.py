"""The policies that made OGBench's data, for the families whose policy needs no trained expert.

Mazes: a point walks along the shortest path towards a goal cell, with noise. Arms: scripted oracles of the ogbench
package pick up, press, open and close, either along a plan ("play") or in closed loop with noise ("noisy").

Everything here draws from numpy's global generator, because the environments and oracles of ogbench do. It therefore
runs in processes of its own, and every episode starts from a seed: ``seed_episode``.

Source: the generation scripts of OGBench (MIT); distributions, constants and the order of events are theirs.
"""

from __future__ import annotations

import zlib
from collections import deque
from typing import Any

import numpy as np

from envs.ogbench_names import Dataset

Cell = tuple[int, int]
_NEIGHBORS = ((-1, 0), (0, -1), (1, 0), (0, 1))
_MAZE_NOISE = 0.5  # standard deviation, as a fraction of the largest action
_STITCH_DISTANCE = 4  # cells between start and goal
_RANDOM_ACTIONS = {"cube": 0.1, "scene": 0.1, "puzzle": 0.2}  # chance of a random action, "noisy" only
_MIN_NORM = 0.4  # m; closed-loop oracles never aim closer than this
_ARM_NOISE = 0.1
ARM_NOISE_SCALE = np.array([1, 1, 1, 3, 10])  # of x, y, z, yaw and gripper
_PLAN_SMOOTHING = 0.5  # standard deviation of the filter over the plan's noise, in steps
_STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}


def seed_episode(env: Any, dataset: str, *, seed: int, split: str, index: int) -> int:
    """Seed numpy's global generator and the environment's action space for one episode.

    Returns:
        the seed for the environment's first reset. All are a function of the arguments only.
    """
    key = [seed, zlib.crc32(f"{dataset}/{split}".encode()), index]
    first, second, third = (int(state) for state in np.random.SeedSequence(key).generate_state(3))
    np.random.seed(first)
    env.action_space.seed(second)
    return third


def make_behavior(dataset: Dataset) -> MazeBehavior | ArmBehavior:
    """Build the environment of ``dataset`` and the policy that made its data."""
    return MazeBehavior(dataset) if dataset.is_maze else ArmBehavior(dataset)


class MazeBehavior:
    """Walks a point through a maze, cell by cell along the shortest path, with Gaussian noise.

    "navigate" draws a new goal when one is reached; "stitch" goes to one goal four cells away and stays.
    """

    def __init__(self, dataset: Dataset) -> None:
        import gymnasium
        import ogbench.locomaze  # noqa: F401 - registers the environments

        self.name, self._kind = dataset.name, dataset.kind
        self.env: Any = gymnasium.make(dataset.env_id, terminate_at_goal=False, disable_env_checker=True).unwrapped
        free = self.env.maze_map == 0
        self._cells: list[Cell] = [(int(i), int(j)) for i, j in np.argwhere(free)]
        self._corners = [cell for cell in self._cells if not _is_corridor(free, cell)]
        self._routes: dict[Cell, np.ndarray] = {}

    def episode(self, steps: int, *, seed: int) -> dict[str, np.ndarray]:
        """Walk ``steps`` transitions; returns the arrays of one trajectory, ``steps`` + 1 rows."""
        env, kind = self.env, self._kind
        start = _draw(self._cells)
        goal = self._nearby(start) if kind == "stitch" else _draw(self._corners)
        observation, _ = env.reset(seed=seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})
        rows = _Rows(steps + 1)
        for _ in range(steps + 1):
            xy = env.get_xy()
            direction = self._waypoint(xy, env.cur_goal_xy) - xy
            direction /= np.linalg.norm(direction) + 1e-6
            action = np.clip(direction + np.random.normal(0, _MAZE_NOISE, 2), -1, 1)
            after, _, _, _, info = env.step(action)
            rows.add(observations=observation, actions=action, qpos=info["prev_qpos"], qvel=info["prev_qvel"])
            if info["success"] and kind == "navigate":
                env.set_goal(goal_xy=env.add_noise(env.ij_to_xy(_draw(self._corners))))
            observation = after
        return rows.arrays()

    def _nearby(self, start: Cell) -> Cell:
        distance = _distances(self.env.maze_map == 0, start)
        cells = [cell for cell in self._cells if distance[cell] == _STITCH_DISTANCE]
        return _draw(cells) if cells else start

    def _waypoint(self, xy: np.ndarray, goal_xy: tuple[float, float] | np.ndarray) -> np.ndarray:
        """Centre of the cell to go to next [2], in metres."""
        goal = self.env.xy_to_ij(goal_xy)
        if goal not in self._routes:  # one map a goal cell, instead of a search at every step
            self._routes[goal] = self._route(goal)
        return self._routes[goal][self.env.xy_to_ij(xy)]

    def _route(self, goal: Cell) -> np.ndarray:
        """For each cell of the maze, the centre of the next one on the shortest path to ``goal`` [H, W, 2]."""
        free = self.env.maze_map == 0
        distance = _distances(free, goal)
        route = np.zeros((*free.shape, 2))
        for cell in np.ndindex(*free.shape):
            best = cell
            for neighbor in _free_neighbors(free, cell):
                if distance[neighbor] < distance[best]:
                    best = neighbor
            route[cell] = self.env.ij_to_xy(best)
        return route


class ArmBehavior:
    """Lets the scripted oracles of ogbench act, one random target after another."""

    def __init__(self, dataset: Dataset) -> None:
        import gymnasium
        import ogbench.manipspace  # noqa: F401 - registers the environments

        self.name = dataset.name
        self._family, _, size = dataset.env_name.partition("-")
        self._stacking = _STACKING.get(size, (0.5, 0.5))
        self._is_noisy = dataset.kind == "noisy"
        self._random_actions = _RANDOM_ACTIONS[self._family] if self._is_noisy else 0.0
        self.env: Any = gymnasium.make(
            dataset.env_id, terminate_at_goal=False, mode="data_collection", disable_env_checker=True
        ).unwrapped
        self._oracles = arm_oracles(self.env, self._family, is_noisy=self._is_noisy)

    def episode(self, steps: int, *, seed: int) -> dict[str, np.ndarray]:
        """Act for ``steps`` transitions; returns the arrays of one trajectory, ``steps`` + 1 rows.

        A scene in which the cube left the view is thrown away and begun again, as in the published data.
        """
        first: int | None = seed
        while True:
            arrays = self._attempt(steps, seed=first)
            first = None  # go on with the same random stream
            if self._family != "scene" or _is_cube_visible(arrays["qpos"]):
                return arrays

    def _attempt(self, steps: int, *, seed: int | None) -> dict[str, np.ndarray]:
        env = self.env
        observation, info = env.reset(seed=seed)
        stacking = np.random.uniform(*self._stacking)
        scale = np.random.uniform(0, _ARM_NOISE) * ARM_NOISE_SCALE if self._is_noisy else None
        oracle = self._oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        rows = _Rows(steps + 1)
        for _ in range(steps + 1):
            action = self._action(oracle, observation, info, scale)
            after, _, _, _, info = env.step(action)
            if oracle.done:
                seen, target = env.set_new_target(p_stack=stacking)
                oracle = self._oracles[target["privileged/target_task"]]
                oracle.reset(seen, target)
            physics = {"qpos": info["prev_qpos"], "qvel": info["prev_qvel"]}
            if "prev_button_states" in info:
                physics["button_states"] = info["prev_button_states"]
            rows.add(observations=observation, actions=action, **physics)
            observation = after
        return rows.arrays()

    def _action(self, oracle: Any, observation: np.ndarray, info: dict, scale: np.ndarray | None) -> np.ndarray:
        if np.random.rand() < self._random_actions:
            return np.random.uniform(-1, 1, 5)
        action = np.asarray(oracle.select_action(observation, info))
        if scale is not None:
            action = action + np.random.normal(0, scale)
        return np.clip(action, -1, 1)


class _Rows:
    """Gathers the rows of one trajectory in the types of the published files."""

    _TYPES = {"terminals": np.bool_, "button_states": np.int64}  # noqa: RUF012 - never changed

    def __init__(self, count: int) -> None:
        self._count, self._used = count, 0
        self._columns: dict[str, np.ndarray] = {}

    def add(self, **values: np.ndarray) -> None:
        for key, value in values.items():
            if key not in self._columns:
                shape = (self._count, *np.shape(value))
                self._columns[key] = np.empty(shape, self._TYPES.get(key, np.float32))
            self._columns[key][self._used] = value
        self._used += 1

    def arrays(self) -> dict[str, np.ndarray]:
        """All columns, with "terminals" true on the last row."""
        terminals = np.zeros(self._count, np.bool_)
        terminals[-1] = True
        return {**self._columns, "terminals": terminals}


def arm_oracles(env: Any, family: str, *, is_noisy: bool) -> dict[str, Any]:
    """One scripted policy for each kind of target of the environment."""
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
    from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    targets = {"cube": ("cube",), "puzzle": ("button",), "scene": ("cube", "button", "drawer", "window")}[family]
    closed = {
        "cube": CubeMarkovOracle,
        "button": ButtonMarkovOracle,
        "drawer": DrawerMarkovOracle,
        "window": WindowMarkovOracle,
    }
    planned = {
        "cube": CubePlanOracle,
        "button": ButtonPlanOracle,
        "drawer": DrawerPlanOracle,
        "window": WindowPlanOracle,
    }
    options: dict[str, Any] = {"min_norm": _MIN_NORM} if is_noisy else {"noise": _ARM_NOISE}
    if not is_noisy:
        options["noise_smoothing"] = _PLAN_SMOOTHING
    if family == "puzzle":
        options["gripper_always_closed"] = True
    oracles = {target: (closed if is_noisy else planned)[target](env=env, **options) for target in targets}
    if family == "scene" and is_noisy:
        oracles["cube"] = CubeMarkovOracle(env=env, max_step=100, **options)
    return oracles


def _is_cube_visible(qpos: np.ndarray) -> bool:
    """Whether the cube of a scene stayed where goal pictures show it: not far right; far left only in the drawer."""
    y, z = qpos[:, 15], qpos[:, 16]
    is_left_behind = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not bool((y >= 0.29).any() or is_left_behind.any())


def _draw(cells: list[Cell]) -> Cell:
    return cells[np.random.randint(len(cells))]


def _free_neighbors(free: np.ndarray, cell: Cell) -> list[Cell]:
    around = [(cell[0] + di, cell[1] + dj) for di, dj in _NEIGHBORS]
    return [(i, j) for i, j in around if 0 <= i < free.shape[0] and 0 <= j < free.shape[1] and free[i, j]]


def _is_corridor(free: np.ndarray, cell: Cell) -> bool:
    """Whether a cell is open on two opposite sides only, where a goal would be no decision."""
    i, j = cell
    vertical, horizontal = (free[i - 1, j], free[i + 1, j]), (free[i, j - 1], free[i, j + 1])
    return (all(vertical) and not any(horizontal)) or (all(horizontal) and not any(vertical))


def _distances(free: np.ndarray, start: Cell) -> np.ndarray:
    """Steps between neighbouring free cells from ``start`` [H, W]; -1 where no path leads."""
    distance = np.full(free.shape, -1)
    distance[start] = 0
    queue = deque([start])
    while queue:
        cell = queue.popleft()
        for neighbor in _free_neighbors(free, cell):
            if distance[neighbor] < 0:
                distance[neighbor] = distance[cell] + 1
                queue.append(neighbor)
    return distance
