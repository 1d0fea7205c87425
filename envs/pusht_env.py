"""Push-T's environment: a disc pushes a T-shaped block over a table, to where a T is drawn.

Written on pymunk from what is known of the benchmark (Florence et al., IBC, arXiv 2109.00137; Chi et al., Diffusion
Policy, arXiv 2303.04137; gym-pusht): lengths in units of its 512 x 512 picture, y downwards. Numpy and pymunk only, so
that workers never load torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from envs.stepping import Arrays

SIZE = 512.0
STATE_DIM, SCENE_DIM, ACTION_DIM = 2, 18, 2
HORIZON = 300  # steps at 10 Hz
SUCCESS = 0.95  # share of the goal that must be covered
GOAL = (256.0, 256.0, math.pi / 4)  # x, y, angle
KEYPOINTS = np.array(
    [
        [9.2698, 90.041],
        [-60.9835, -1.1867],
        [60.9128, -1.3934],
        [-0.2705, 25.5436],
        [-14.0649, 122.8159],
        [39.0027, 32.8574],
        [-39.9664, 32.7297],
        [-16.8243, 62.8632],
        [23.5415, -1.7003],
    ]
)
"""On the block, in its own coordinates: those of the human demonstrations' files, fitted to them."""

Polygon = list[tuple[float, float]]
"""Corners of a convex polygon, all in the order in which x turns towards y."""

_BOXES = ((0.0, 15.0, 60.0, 15.0), (0.0, 75.0, 15.0, 45.0))  # of the T: its bar and its stem, centre and half sides
_DRAWN = (_BOXES[0], (0.0, 67.5, 15.0, 52.5))  # the same, the stem up to the bar's middle, so that no edge is inside
_RADIUS = 15.0  # of the agent
_WALLS = (5.0, 506.0)  # left and right, upper and lower
_TIME_STEP, _SUBSTEPS = 0.01, 10
_STIFFNESS, _DAMPING = 100.0, 20.0  # of the agent's controller
_PICTURE = 240  # pixels a side
_AT_ONCE = 8  # pictures drawn together: what is computed of them stays in the processor's caches
_COLOURS = {"table": (255, 255, 255), "goal": (144, 238, 144), "block": (119, 136, 153), "agent": (65, 105, 225)}


def keypoints(pose: np.ndarray) -> np.ndarray:
    """Where the nine keypoints are, x and y in turn [..., 18], of blocks at x, y, angle [..., 3]."""
    cos, sin = np.cos(pose[..., 2:]), np.sin(pose[..., 2:])  # [..., 1]
    x, y = KEYPOINTS.T
    placed = np.stack([pose[..., :1] + cos * x - sin * y, pose[..., 1:2] + sin * x + cos * y], -1)  # [..., 9, 2]
    return placed.reshape(*pose.shape[:-1], SCENE_DIM)


def coverage(pose: Sequence[int | float]) -> float:
    """Share of the goal's area that a block at x, y, angle covers, 0..1."""
    block = [_placed(part, pose) for part in _parts()]
    goal = [_placed(part, GOAL) for part in _parts()]
    area = sum(4 * width * height for _, _, width, height in _BOXES)
    return min(sum(overlap(part, drawn) for part in block for drawn in goal) / area, 1.0)  # parts do not overlap


def overlap(first: Polygon, second: Polygon) -> float:
    """Area of the intersection of two polygons: the first is cut along the edges of the second."""
    kept = first
    for (x0, y0), (x1, y1) in zip(second, [*second[1:], second[0]], strict=True):
        inside = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in kept]  # above 0 on the polygon's side
        cut: Polygon = []
        for i, ((x, y), side) in enumerate(zip(kept, inside, strict=True)):
            (before_x, before_y), before = kept[i - 1], inside[i - 1]
            if (side > 0) != (before > 0):
                share = before / (before - side)
                cut.append((before_x + share * (x - before_x), before_y + share * (y - before_y)))
            if side > 0:
                cut.append((x, y))
        kept = cut
    return sum(kept[i - 1][0] * y - x * kept[i - 1][1] for i, (x, y) in enumerate(kept)) / 2


def pictures(states: np.ndarray, size: int, *, is_smooth: bool = True) -> np.ndarray:
    """The table from above, uint8 [N, size, size, 3], for agent x, y and block x, y, angle [N, 5].

    Args:
        states: of each picture.
        size: pixels a side.
        is_smooth: whether pixels on an edge mix the colours of both sides, as small pictures want it.
    """
    return np.concatenate(
        [_pictures(some, size, is_smooth) for some in np.split(states, range(_AT_ONCE, len(states), _AT_ONCE))]
    )


class PushTEnv:
    """The task with gymnasium's reset and step; an episode is a function of its seed and ends on success.

    An observation is ``state``, float64 [5]: the agent's x, y, and the block's x, y, angle. An action
    within [-1, 1] is where the agent is sent, from one edge of the table to the other; it is drawn there for 0.1 s. The
    reward is the coverage over the wanted one, at most 1. ``info`` has "coverage" and "success".

    Args:
        success_coverage: share of the goal to be covered for success.
    """

    def __init__(self, success_coverage: float = SUCCESS) -> None:
        self.pymunk = _package()
        self.success_coverage, self.action_space = success_coverage, Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the episode of ``seed``: places are drawn as those that the human demonstrations begin in."""
        random = np.random.default_rng(seed)
        agent, centre = random.integers(50, 450, 2), random.integers((100, 145), (400, 445))
        angle = random.uniform(-math.pi, math.pi)
        block = centre - 45 * np.array([-math.sin(angle), math.cos(angle)])  # its origin, on the edge of the bar
        return self.begin(np.array([*agent, *block, angle]))

    def begin(self, state: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin with agent x, y and block x, y, angle [5], all at rest. A new world: no contact is left of another."""
        self.world, self.agent, self.block = self._world()
        agent_x, agent_y, x, y, angle = state.tolist()
        self.agent.position = agent_x, agent_y
        self.block.angle = angle  # first: it turns the block about its centre, which moves its position
        self.block.position = x, y
        self.world.step(_TIME_STEP)  # what overlaps is pushed apart
        return self.state, self._judged()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Send the agent to ``action`` [2] for 0.1 s."""
        target = self.pymunk.Vec2d(*((np.asarray(action, np.float64) + 1) * SIZE / 2).tolist())
        for _ in range(_SUBSTEPS):
            acceleration = _STIFFNESS * (target - self.agent.position) - _DAMPING * self.agent.velocity
            self.agent.velocity += acceleration * _TIME_STEP
            self.world.step(_TIME_STEP)
        info = self._judged()
        reward = min(info["coverage"] / self.success_coverage, 1.0)
        return self.state, reward, bool(info["success"]), False, info

    @property
    def state(self) -> np.ndarray:
        """Agent x, y and block x, y, angle, float64 [5]."""
        return np.array([*self.agent.position, *self.block.position, self.block.angle])

    def _judged(self) -> dict[str, float]:
        covered = coverage(self.state[2:].tolist())
        return {"coverage": covered, "success": float(covered > self.success_coverage)}

    def _world(self) -> tuple[Any, Any, Any]:
        pymunk = self.pymunk
        world = pymunk.Space()
        world.damping = 0  # what is not pushed stands still
        low, high = _WALLS
        corners = [(low, low), (high, low), (high, high), (low, high)]
        world.add(*(pymunk.Segment(world.static_body, corners[i - 1], corners[i], 2) for i in range(4)))
        agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        world.add(agent, pymunk.Circle(agent, _RADIUS))
        bar, stem = _parts()
        block = pymunk.Body(1, 2 * pymunk.moment_for_poly(1, bar))  # the benchmark's own: its stem counts as a bar
        parts = [pymunk.Poly(block, bar), pymunk.Poly(block, stem)]
        block.center_of_gravity = sum((part.center_of_gravity for part in parts), pymunk.Vec2d(0, 0)) / 2  # likewise
        world.add(block, *parts)
        return world, agent, block


class PushTMaker:
    """Builds environments; a ``Maker`` of ``envs.stepping``.

    Args:
        max_steps: end of an episode.
        success_coverage: see ``PushTEnv``.

    Raises:
        ImportError: if pymunk is not installed.
    """

    def __init__(self, max_steps: int = HORIZON, success_coverage: float = SUCCESS) -> None:
        _package()  # where it is missing that is said before training
        self.max_steps, self.success_coverage = max_steps, success_coverage

    def make(self, task: int) -> PushTEnv:
        """A new environment; there is one task."""
        return PushTEnv(self.success_coverage)

    def enter(self, env: PushTEnv) -> None:
        """Environments share nothing."""

    def leave(self, env: PushTEnv) -> None:
        """Environments share nothing."""

    def physics(self, env: PushTEnv) -> Arrays:
        """Agent x, y and block x, y, angle as "qpos" [5], float64."""
        return {"qpos": env.state}

    def is_solved(self, env: PushTEnv) -> bool:
        """Whether enough of the goal is covered now."""
        return coverage(env.state[2:].tolist()) > env.success_coverage

    def render(self, env: PushTEnv) -> np.ndarray:
        """A picture, uint8 [240, 240, 3]."""
        return pictures(env.state[None], _PICTURE)[0]

    def close(self, env: PushTEnv) -> None:
        """Nothing is held."""

    def finish(self) -> None:
        """Environments share nothing."""


def _parts() -> list[Polygon]:
    """Corners of the T's two parts in its own coordinates."""
    return [[(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)] for x, y, w, h in _BOXES]


def _placed(part: Polygon, pose: Sequence[int | float]) -> Polygon:
    """A part of a T at x, y, angle."""
    x, y, angle = pose
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in part]


def _pictures(states: np.ndarray, size: int, is_smooth: bool) -> np.ndarray:
    """As ``pictures``, all at once: block and agent over the empty table."""
    table, place = _table(size, is_smooth), _places(size)
    agent, pose = np.split(states.astype(np.float32)[:, None, None], [2], -1)  # [N, 1, 1, ...]
    x, y = place[..., 0] - agent[..., 0], place[..., 1] - agent[..., 1]
    layers = {"block": _distance_to_block(place, pose), "agent": np.sqrt(x * x + y * y) - _RADIUS}
    image = np.repeat(table[None], len(states), 0)
    for name, distance in layers.items():
        _lay(image, name, distance, SIZE / size, is_smooth)
    return (np.moveaxis(image, 1, -1) + 0.5).astype(np.uint8)


@functools.cache
def _table(size: int, is_smooth: bool) -> np.ndarray:
    """Table and goal, float32 [3, size, size]."""
    image = np.empty((1, 3, size, size), np.float32)
    image[:] = np.array(_COLOURS["table"])[:, None, None]
    distance = _distance_to_block(_places(size), np.array([GOAL], np.float32)[:, None, None])
    _lay(image, "goal", distance, SIZE / size, is_smooth)
    return image[0]


@functools.cache
def _places(size: int) -> np.ndarray:
    """Where the pixels' centres are, x and y, float32 [size, size, 2]."""
    ticks = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(SIZE / size)
    return np.stack(np.meshgrid(ticks, ticks), -1)


def _lay(image: np.ndarray, name: str, distance: np.ndarray, unit: float, is_smooth: bool) -> None:
    """Paint a shape over ``image`` [N, 3, S, S], by how far pixels of ``unit`` are from its edge [N, S, S]."""
    share = np.clip(0.5 - distance / np.float32(unit), 0, 1) if is_smooth else (distance <= 0).astype(np.float32)
    for channel, level in enumerate(_COLOURS[name]):
        image[:, channel] += share * (np.float32(level) - image[:, channel])


def _distance_to_block(place: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """How far places [..., 2] are outside a block at x, y, angle [..., 3], along its sides; negative inside: [...]."""
    cos, sin = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    x, y = np.moveaxis(place - pose[..., :2], -1, 0)
    own_x, own_y = cos * x + sin * y, cos * y - sin * x
    parts = [np.maximum(np.abs(own_x - a) - w, np.abs(own_y - b) - h) for a, b, w, h in _DRAWN]
    return np.minimum(*parts)


def _package() -> Any:
    """The simulator.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import pymunk
    except ImportError as error:
        raise ImportError(f"env=pusht needs pymunk ({error}): pip install 'worldmodels[imitation]'") from error
    return pymunk
