"""How many different states an explorer visited, beside as many episodes of random actions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from tensordict import TensorDict

from worldmodels.core import Objective
from worldmodels.evals.pictures import new_figure, png
from worldmodels.evals.results import pack

Visits = Counter[tuple[int, ...]]


class CoverageEvaluator:
    """Counts the cells that the run's finished episodes passed through, since its beginning.

    For "explorer" and "random": "episodes", "cells" visited, their "share" of all where that is known, and what else
    the domain says, such as the share of time in each room. And a picture of the visits. An episode is looked at once.

    Args:
        source: interactive, with a ``recorder`` that has ``cells``, ``num_episodes``, ``explored(i)``, ``wandered(i)``
            (``envs.dmc_explore.EpisodeWriter``).
        every: steps between two evaluations; 0 evaluates at the end only.
        is_compared: whether as many random episodes are simulated for comparison: 40 ms each (maze) to 0.1 s (walker).
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source records nothing.
    """

    def __init__(self, *, source: Any, every: int, is_compared: bool = True, name: str = "coverage") -> None:
        recorder: Any = getattr(source, "recorder", None)
        if recorder is None:
            raise ValueError("coverage needs a source that records its episodes: agent=rnd env=dmc")
        self.recorder = recorder
        self.every, self.name = every, name
        sources = {"explorer": self.recorder.explored} | ({"random": self.recorder.wandered} if is_compared else {})
        self.tallies = {who: _Tally(self.recorder.cells, episode) for who, episode in sources.items()}

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Count; needs nothing of the objective."""
        metrics: dict[str, float] = {}
        for who, tally in self.tallies.items():
            tally.count(self.recorder.num_episodes)
            metrics |= {f"{who}/{name}": value for name, value in tally.metrics().items()}
        return pack(metrics, files={"visits.png": self._picture()} if self.recorder.num_episodes else {})

    def _picture(self) -> bytes:
        """Visits of the cells on the first two axes, on a logarithmic scale; random actions to the right."""
        from matplotlib.colors import LogNorm

        cells, flat = self.recorder.cells, {who: tally.flat() for who, tally in self.tallies.items()}
        seen = np.array([cell for visits in flat.values() for cell in visits])
        low, shape = seen.min(0), seen.max(0) - seen.min(0) + 1
        most = max(max(visits.values()) for visits in flat.values())
        figure = new_figure(3.8 * len(flat), 3.6)
        for axes, (who, visits) in zip(figure.subplots(1, len(flat), squeeze=False)[0], flat.items(), strict=True):
            image = np.zeros(shape)
            for cell, num in visits.items():
                image[cell[0] - low[0], cell[1] - low[1]] = num
            edges = [
                corner + width * np.array([first, first + num])
                for corner, width, first, num in zip(cells.corner, cells.widths, low, shape, strict=True)
            ]
            shown = np.ma.masked_equal(image.T, 0)
            options = {"origin": "lower", "extent": [*edges[0], *edges[1]], "aspect": "auto", "interpolation": "none"}
            axes.imshow(shown, norm=LogNorm(1, max(most, 2)), cmap="viridis", **options)
            axes.set_title(
                f"{who}: {self.tallies[who].num} episodes, {len(self.tallies[who].visits)} cells", fontsize=9
            )
            axes.set_xlabel(cells.axes[0])
            axes.set_ylabel(cells.axes[1])
        return png(figure)


class _Tally:
    """Visits of cells by episodes 0, 1, ...; ``episode(i)`` gives physics [T + 1, P]."""

    def __init__(self, cells: Any, episode: Callable[[int], np.ndarray]) -> None:
        self.cells, self.episode, self.num = cells, episode, 0
        self.visits: Visits = Counter()
        self.shares: Counter[str] = Counter()  # summed over episodes

    def count(self, num: int) -> None:
        """Look at episodes up to ``num``, those that are new."""
        for index in range(self.num, num):
            found, shares = self.cells(self.episode(index))
            places, times = np.unique(found, axis=0, return_counts=True)
            self.visits.update(dict(zip(map(tuple, places.tolist()), times.tolist(), strict=True)))
            self.shares.update(shares)
        self.num = max(num, self.num)

    def metrics(self) -> dict[str, float]:
        """Counts, and means over episodes."""
        found: dict[str, float] = {"episodes": float(self.num), "cells": float(len(self.visits))}
        if self.cells.total is not None:
            found["share"] = len(self.visits) / self.cells.total
        return found | {name: total / self.num for name, total in self.shares.items()}

    def flat(self) -> Visits:
        """Visits on the first two axes only."""
        out: Visits = Counter()
        for cell, num in self.visits.items():
            out[cell[:2]] += num
        return out
