"""What suites of tasks share: environments to try policies in, walls to draw on, fields for reward expressions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from envs.stepping import EnvGroup, Maker, WorkerPool
from envs.vector import Entries, VectorEnv, as_state
from worldmodels.keys import ACTION, OBSERVATION, PHYSICS, STATE


class Maze(NamedTuple):
    """Walls and their place in the world, to draw on."""

    walls: np.ndarray
    """bool [rows, columns]; row i, column j is the square around (origin x + j unit, origin y + i unit)."""
    unit: float
    """Side of a square, metres."""
    origin: tuple[float, float]
    """Centre of square (0, 0), metres."""


class SimulatedTasks(ABC):
    """Tasks of one benchmark that are tried in simulators, in this process or in workers, which it keeps.

    Args:
        maker: builds environments.
        is_visual, frame_stack, entries: how they are seen, as in ``VectorEnv``.
        device: of observations.
    """

    def __init__(
        self,
        maker: Maker,
        *,
        is_visual: bool = False,
        frame_stack: int = 1,
        entries: Entries = as_state,
        device: torch.device | str = "cpu",
    ) -> None:
        self._maker, self._device = maker, torch.device(device)
        self._seen: dict[str, Any] = {"is_visual": is_visual, "frame_stack": frame_stack, "entries": entries}
        self._pools: dict[int, WorkerPool] = {}

    def make(
        self,
        task: str,
        *,
        num_envs: int,
        seed: int,
        workers: int = 0,
        max_steps: int | None = None,
        ends_on_success: bool = True,
    ) -> VectorEnv:
        """Environments of one task.

        Args:
            task: by name.
            num_envs: episodes, N; start states differ.
            seed: of the start states and of all randomness while they run.
            workers: processes to spread them over; 0 steps them in this one. The episodes are the same.
            max_steps: ends episodes early; None takes the benchmark's limit.
            ends_on_success: as in the benchmark; otherwise episodes go on, for rewards and goals other than its own.
                Has no effect where tasks have no success.
        """
        number = self._number(task)
        if num_envs < 1 or workers < 0:
            raise ValueError(
                f"num_envs={num_envs}, workers={workers}: at least one environment, no fewer workers than 0"
            )
        seeds = [int(state) for state in np.random.SeedSequence(seed).generate_state(num_envs)]
        if workers == 0:
            groups: list[Any] = [EnvGroup(self._maker, number, seeds, max_steps, ends_on_success)]
        else:
            if workers not in self._pools:
                self._pools[workers] = WorkerPool(self._maker, workers)
            groups = list(self._pools[workers].open(number, seeds, max_steps, ends_on_success))
        return VectorEnv(groups, device=self._device, **self._seen)

    def close(self) -> None:
        """Free environments and worker processes; tasks can be used again afterwards."""
        for pool in self._pools.values():
            pool.close()
        self._pools = {}
        self._maker.finish()

    @abstractmethod
    def _number(self, task: str) -> int:
        """Place of a task, from 1; raises a ValueError if there is none of this name."""


def plain_fields(td: TensorDict) -> dict[str, Tensor]:
    """What rows [N] have of "state", "action" and the simulator's state ("qpos", ...), each [N, ...], on the CPU."""
    found = {STATE: td[OBSERVATION].get(STATE, None), ACTION: td.get(ACTION, None)}
    found |= dict(td[PHYSICS].items()) if PHYSICS in td.keys() else {}
    return {name: values.cpu() for name, values in found.items() if values is not None}
