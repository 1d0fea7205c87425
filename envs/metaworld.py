"""Meta-World: fifty tasks of one robot arm, demonstrated by the scripted experts that ship with it (arXiv 1910.10897).

The demonstrations are made on this machine; no file is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envs.metaworld_collect import EXPERT
from envs.metaworld_envs import HORIZON, STATE_DIM, MetaWorldMaker, task_names
from envs.oracle_demonstrations import OracleDemonstrations
from envs.stepping import task_number


class MetaWorld(OracleDemonstrations):
    """Demonstrations of some tasks, learned together: windows of those for training, or of others through ``split``.

    A row has "state" [4], the hand's x, y, z in metres and how far the gripper is open (0..1); "environment_state"
    [17], up to two objects' positions and quaternions, zero where there is none, and the goal's position; and
    "task_index". Actions move the hand by at most 1 cm along x, y, z, and close the gripper. Episodes end at their
    first success.

    Args:
        tasks: names, such as "door-open".
        max_steps: end of an attempt, and of an episode of ``tasks``; at most 500.
        **options: see ``OracleDemonstrations``; data are kept in $METAWORLD_DATA_DIR, else in ~/.worldmodels/metaworld.

    Raises:
        ImportError: if Meta-World is not installed.
        ValueError: for unknown tasks, impossible numbers, damaged files, or an expert that fails too often.
    """

    def __init__(self, *, tasks: Sequence[str], max_steps: int = 200, **options: Any) -> None:
        names = tuple(name.removesuffix("-v3") for name in tasks)
        if not 1 <= max_steps <= HORIZON:
            raise ValueError(f"env.max_steps={max_steps}: Meta-World's episodes have 1 to {HORIZON} steps")
        for name in names:
            task_number(name, task_names(), of="Meta-World")
        settings = {"state_dim": STATE_DIM, "tasks": names, "max_steps": max_steps}
        super().__init__(EXPERT, MetaWorldMaker, **settings, **options)
