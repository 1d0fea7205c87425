"""What each OGBench data set is called, how it was made, and how large it is. Facts only; imports nothing heavy.

A name is ENVIRONMENT-KIND-VERSION: cube-single-play-v0 was made in the environment cube-single-v0 by playing.

Source: the commands published with OGBench (Park et al., ICLR 2025, MIT licence).
"""

from __future__ import annotations

from typing import NamedTuple

from worldmodels.spelling import did_you_mean

_MAZES = {"medium": 1000, "large": 1000, "giant": 500, "teleport": 1000}  # trajectories of "navigate"
_BODIES = {"point": (2, 2), "ant": (29, 8), "humanoid": (69, 21), "antsoccer": (42, 8)}  # observation, action
ARM_STATE, _CUBE, _BUTTON = 19, 9, 4  # observation entries: of the arm, of each cube, of each button
ARM_CENTER, ARM_SCALE = (0.425, 0.0, 0.0), 10.0  # how an arm's observation shifts and scales positions
DRAWER_SCALE, WINDOW_SCALE = 18.0, 15.0
_ARMS = {
    "cube-single": 1000,
    "cube-double": 1000,
    "cube-triple": 3000,
    "cube-quadruple": 5000,
    "scene": 1000,
    "puzzle-3x3": 1000,
    "puzzle-4x4": 1000,
    "puzzle-4x5": 3000,
    "puzzle-4x6": 5000,
}


class Dataset(NamedTuple):
    """One published data set."""

    name: str
    kind: str
    """navigate, stitch, explore (mazes); play, noisy (arms)."""
    steps: int
    """Transitions of a trajectory; it has one row more."""
    trajectories: int
    """Trajectories of the published training file; validation has a tenth of them."""

    @property
    def env_name(self) -> str:
        """The environment, without version: "pointmaze-medium"."""
        return self.name.rsplit("-", 2)[0]

    @property
    def env_id(self) -> str:
        """What gymnasium calls the environment: "pointmaze-medium-v0"."""
        return f"{self.env_name}-{self.name.rsplit('-', 1)[1]}"

    def task_id(self, task: int) -> str:
        """The environment with the reward and the goal of one benchmark task, counted from 1."""
        return f"{self.env_name}-singletask-task{task}-{self.name.rsplit('-', 1)[1]}"

    @property
    def is_maze(self) -> bool:
        """Whether the task is to move through a maze (a ball, in antsoccer)."""
        return "maze" in self.name or "soccer" in self.name

    @property
    def is_visual(self) -> bool:
        """Whether observations are pictures, 64 x 64 x 3."""
        return self.name.startswith("visual-")

    @property
    def is_collectable(self) -> bool:
        """Whether the ogbench package has the policy that made the data, and states are enough."""
        return not self.is_visual and (self.name.startswith("pointmaze-") or not self.is_maze)

    @property
    def num_cubes(self) -> int:
        """Cubes on the table."""
        counts = {"single": 1, "double": 2, "triple": 3, "quadruple": 4}
        return int("scene" in self.name) or counts.get(self.env_name.rsplit("-", 1)[-1], 0)

    @property
    def num_buttons(self) -> int:
        """Buttons with a state: two lock the scene's drawer and window, a puzzle is made of them."""
        if "puzzle" not in self.name:
            return 2 * int("scene" in self.name)
        rows, columns = self.env_name.rsplit("-", 1)[-1].split("x")
        return int(rows) * int(columns)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Of one row in the file: [S], or height, width and channels of a picture."""
        if self.is_visual:
            return (64, 64, 3)
        if self.is_maze:
            return (self._body[0],)
        handles = 4 * int("scene" in self.name)  # position and velocity of drawer and window
        return (ARM_STATE + _CUBE * self.num_cubes + _BUTTON * self.num_buttons + handles,)

    @property
    def action_dim(self) -> int:
        """Actions are within [-1, 1]."""
        return self._body[1] if self.is_maze else 5

    @property
    def _body(self) -> tuple[int, int]:
        name = self.env_name.removeprefix("visual-").split("-")[0]
        return _BODIES[name.removesuffix("maze")]

    @property
    def transitions(self) -> int:
        """Transitions of the published training file."""
        return self.steps * self.trajectories


def _all() -> dict[str, Dataset]:
    rows: list[tuple[str, str, int, int]] = []
    for maze, count in _MAZES.items():
        length = 2000 if maze == "giant" else 1000
        for body in ("pointmaze", "antmaze", "visual-antmaze"):
            rows += [(f"{body}-{maze}", "navigate", length, count), (f"{body}-{maze}", "stitch", 200, 5000)]
            if body != "pointmaze" and maze != "giant":
                rows.append((f"{body}-{maze}", "explore", 500, 10000))
        if maze != "teleport":
            for body in ("humanoidmaze", "visual-humanoidmaze"):
                rows.append((f"{body}-{maze}", "navigate", 4000 if maze == "giant" else 2000, 1000))
                rows.append((f"{body}-{maze}", "stitch", 400, 10000 if maze == "giant" else 5000))
    rows += [("antsoccer-arena", "navigate", 1000, 1000), ("antsoccer-medium", "navigate", 1000, 4000)]
    rows += [("antsoccer-arena", "stitch", 200, 5000), ("antsoccer-medium", "stitch", 500, 8000)]
    rows += [
        (prefix + arm, kind, 1000, count)
        for prefix in ("", "visual-")
        for arm, count in _ARMS.items()
        for kind in ("play", "noisy")
    ]
    found = [Dataset(f"{env}-{kind}-v0", kind, steps, count) for env, kind, steps, count in rows]
    return {dataset.name: dataset for dataset in found}


DATASETS = _all()


def find_dataset(name: str) -> Dataset:
    """Look up a data set.

    Raises:
        ValueError: if OGBench has none of this name; names that come near are suggested.
    """
    if name in DATASETS:
        return DATASETS[name]
    if "powderworld" in name:
        raise ValueError(f"{name}: powderworld has discrete actions; only continuous ones within [-1, 1] are supported")
    hint = did_you_mean(name, DATASETS, num=3, cutoff=0.5) or "; for example pointmaze-medium-navigate-v0"
    raise ValueError(f"unknown data set {name!r}{hint}")
