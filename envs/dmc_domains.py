"""The four domains of ExoRL: sizes, times, tasks. Importing this loads no simulator; ``make`` does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from envs import rendering
from envs.dmc_rewards import REWARDS
from envs.stepping import task_number
from worldmodels.spelling import did_you_mean

EPISODE_STEPS = 1000


@dataclass(frozen=True)
class Domain:
    """Facts of one domain."""

    name: str
    observation_dim: int
    num_exact: int
    """Entries from the start of an observation that "physics" determines. The others are forces and accelerations of
    the last substep before it."""
    action_dim: int
    num_qpos: int
    num_qvel: int
    num_act: int
    """States of actuators; only the quadruped's have any."""
    control_timestep: float
    """Seconds between actions."""
    camera: int
    """The one that ExoRL's pictures are taken with."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names, in the benchmark's order."""
        return tuple(REWARDS[self.name])

    @property
    def physics_dim(self) -> int:
        """Entries of "physics": positions, velocities, actuator states."""
        return self.num_qpos + self.num_qvel + self.num_act

    def split(self, physics: np.ndarray) -> dict[str, np.ndarray]:
        """Views "qpos" [N, nq], "qvel" [N, nv] and, for the quadruped, "act" [N, na] of physics [N, P]."""
        parts = np.split(physics, [self.num_qpos, self.num_qpos + self.num_qvel], axis=-1)
        return {key: part for key, part in zip(("qpos", "qvel", "act"), parts, strict=True) if part.shape[-1]}

    @property
    def tasks_elsewhere(self) -> dict[str, str]:
        """Tasks of other domains only, and which domains these are."""
        names = {task for tasks in REWARDS.values() for task in tasks} - set(self.tasks)
        return {name: " and ".join(domain for domain, tasks in REWARDS.items() if name in tasks) for name in names}

    def number(self, task: str) -> int:
        """Place of a task, from 1.

        Raises:
            ValueError: if this domain has no such task; says which domain has it.
        """
        return task_number(task, self.tasks, of=self.name, elsewhere=self.tasks_elsewhere)


DOMAINS: Mapping[str, Domain] = MappingProxyType(
    {
        domain.name: domain
        for domain in (
            Domain("point_mass_maze", 4, 4, 2, 2, 2, 0, 0.02, 0),
            Domain("walker", 24, 24, 6, 9, 9, 0, 0.025, 0),
            Domain("cheetah", 17, 17, 6, 9, 9, 0, 0.01, 0),
            Domain("quadruped", 78, 48, 12, 23, 22, 12, 0.02, 2),
        )
    }
)


def find_domain(name: str) -> Domain:
    """Facts of a domain by name.

    Raises:
        ValueError: for an unknown name; suggests the nearest.
    """
    if name in DOMAINS:
        return DOMAINS[name]
    hint = did_you_mean(name, DOMAINS, cutoff=0.4) or "."
    raise ValueError(f"there is no domain {name!r}{hint} ExoRL has {', '.join(DOMAINS)}")


def make(domain: str, task: str, *, random: np.random.RandomState | int | None = None) -> Any:
    """A dm_control ``Environment`` of a task. It never ends by itself: an episode is ``EPISODE_STEPS`` steps.

    Rewards are those of ``envs.dmc_rewards``, of the state after the step. A start state is drawn from ``random``.

    Raises:
        ValueError: unknown domain or task.
        ImportError: without dm_control; says what to install.
    """
    facts = find_domain(domain)
    facts.number(task)
    return models().build(facts, task, random=random)


def models() -> Any:
    """The module ``envs.dmc_models``, which loads dm_control (3 s, 60 MB).

    Raises:
        ImportError: if it is not installed, or cannot load its renderer.
        RenderError: if MUJOCO_GL names a renderer that is not there.
    """
    rendering.choose()
    try:
        import envs.dmc_models as found
    except ModuleNotFoundError as error:
        raise ImportError(f"env=dmc needs dm_control ({error}): pip install 'dm_control>=1.0.34'") from error
    except (ImportError, AttributeError) as error:  # what a missing graphics library raises depends on the backend
        raise ImportError(
            f"dm_control cannot load its renderer, MUJOCO_GL={os.environ['MUJOCO_GL']} ({error}); states need none: "
            f"set MUJOCO_GL=disabled"
        ) from error
    return found
