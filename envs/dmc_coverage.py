"""Cells of a DMC body's states, so that one can count how many of them an explorer visited.

Of the maze the free squares of 2 cm, and its four rooms. Of the others boxes over a few quantities that tasks are made
of (``envs.dmc_models.Meter``), as wide as ``WIDTHS`` says: nobody knows how many can be reached, so only ratios mean
much.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from envs.dmc_domains import Domain, models
from envs.point_mass_maze import BOX, squares

WIDTHS = {"torso_height": 0.1, "upright": 0.2, "com_height": 0.1, "speed": 0.5}  # m, -, m, m/s
_ROOMS = ("top_left", "top_right", "bottom_left", "bottom_right")


class Cells:
    """Counts states of a domain in cells.

    Args:
        domain: facts.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain, self._is_maze = domain, domain.name == "point_mass_maze"
        walls, self._side, _ = squares()
        self.total: int | None = int((~walls).sum()) if self._is_maze else None
        """Cells that can be reached, if that is known."""

    @cached_property
    def _meter(self) -> Any:
        return models().Meter(self._domain)

    def __call__(self, physics: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """Where states [N, P] lie.

        Returns:
            int64 [N, D], a cell each; {name: share of the states} of the maze's rooms, {} for other bodies. The first
            two numbers of a cell are the axes of ``axes``.
        """
        measured = self._meter(physics)
        if not self._is_maze:
            return np.stack([self._bin(measured[name], WIDTHS[name]) for name in self.axes], axis=-1), {}
        x, y = measured["xy"].T
        room = 2 * (y < 0) + (x >= 0)
        shares = {f"time_{name}": float((room == number).mean()) for number, name in enumerate(_ROOMS)}
        return self._bin(measured["xy"] + BOX, self._side), shares

    @property
    def axes(self) -> tuple[str, ...]:
        """What the numbers of a cell count."""
        if self._is_maze:
            return "x", "y"
        names = {"cheetah": ("speed", "torso_height")}
        return names.get(self._domain.name, ("speed", "torso_height", "upright"))

    @property
    def corner(self) -> tuple[float, float]:
        """Where cell (0, 0, ...) begins on the first two axes."""
        return (-BOX, -BOX) if self._is_maze else (0.0, 0.0)

    @property
    def widths(self) -> tuple[float, float]:
        """Of a cell on the first two axes, in the axes' units."""
        if self._is_maze:
            return self._side, self._side
        return WIDTHS[self.axes[0]], WIDTHS[self.axes[1]]

    @staticmethod
    def _bin(values: np.ndarray, width: float) -> np.ndarray:
        return np.floor(values / width + 1e-9).astype(np.int64)
