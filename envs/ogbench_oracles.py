"""OGBench's arms: five tasks an environment, demonstrated by the oracles that ship with ogbench (arXiv 2410.20092).

The demonstrations are made on this machine; no file is downloaded. Unlike OGBench's own data, in which oracles pursue
random targets, they start where the benchmark's tasks start and end when these are solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from envs.ogbench_envs import OGBenchMaker
from envs.ogbench_names import ARM_STATE
from envs.ogbench_oracle_attempts import TASKS, GoalMaker, arm, make_expert
from envs.oracle_demonstrations import OracleDemonstrations
from envs.stepping import task_number


class OGBenchOracles(OracleDemonstrations):
    """Demonstrations of an environment's tasks, learned together: windows of those, or of others through ``split``.

    A row has "state" [19], the arm's own: angles and velocities of six joints, the gripper's x, y, z, cosine and sine
    of its yaw, how far it is closed, its contact; "environment_state", nine numbers a cube, four a button, two each of
    drawer and window, all as the benchmark shows them, and then the goal in the same units: x, y, z of every cube, the
    state of every button, the positions of drawer and window (9 + 3 numbers for cube-single); and "task_index".
    Actions [5] move the gripper along x, y, z, turn it, and open or close it. Episodes end as the benchmark's do, one
    step after the task is solved.

    Args:
        name: environment, such as "cube-single".
        tasks: of "task1" to "task5".
        noise: largest standard deviation of noise on the oracles' actions; "noisy" data of OGBench have 0.1.
        max_steps: end of an attempt, and of an episode of ``tasks``; None: the benchmark's.
        **options: see ``OracleDemonstrations``; data are kept in $OGBENCH_ORACLES_DATA_DIR, else in
            ~/.worldmodels/ogbench_oracles.

    Raises:
        ValueError: for an unknown environment or task, impossible numbers, damaged files, or an oracle that fails too
            often.
    """

    def __init__(
        self,
        *,
        name: str = "cube-single",
        tasks: Sequence[str] = TASKS,
        noise: int | float = 0.0,
        max_steps: int | None = None,
        **options: Any,
    ) -> None:
        dataset = arm(name)
        if not 0 <= noise <= 1:
            raise ValueError(f"env.noise={noise} must be within 0 and 1: actions are within [-1, 1]")
        for task in tasks:
            task_number(task, TASKS, of=name)
        settings = {"state_dim": ARM_STATE, "tasks": tasks}
        settings["max_steps"] = OGBenchMaker(dataset).max_steps if max_steps is None else max_steps
        super().__init__(make_expert(name, noise), partial(GoalMaker, dataset), **settings, **options)
