"""Path integration: does an aggregate of views and actions know where the next action leads, as seen from view 1?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from worldmodels.core import Objective, Views
from worldmodels.evals.line_picture import lines_picture
from worldmodels.evals.regression import Regressor, r2_metrics
from worldmodels.evals.results import device_of, judging, pack
from worldmodels.evals.view_sequences import PARTS, Aggregates, EmbedsActions, ViewSequences, first_views, latents
from worldmodels.keys import ACTION

ROWS = ("aggregate", "no_actions", "no_pixels", "last_action")


class PathIntegration:
    """R2 of the transformation from view 1 to view M + 1, from the aggregate of M views and the embedding of action M.

    Metrics "<row>/views_M": the mean over outputs that vary; all outputs are in "path_integration.json", the curves in
    a picture. Rows: "aggregate"; "no_actions", the M - 1 actions inside the aggregate embedded as zeros; "no_pixels",
    the latents of pictures zeros; "last_action", the embedding of action M alone, which every row has. With M = 1 that
    one is the answer. The untrained network, which scores high wherever actions add up, is the row of step 0: choose
    ``every`` so that there is one.

    Args:
        source: with ``split(name)``.
        every: steps between two looks; 0 looks at the end only.
        views: factory of the sequences, ``views(spec, num_views=...)``.
        regressor: see ``evals.regression``.
        lengths: views seen, M.
        num_train, num_test: sequences to fit on, and to choose and to judge on.
        batch_size: sequences at a time.
        seed: of the sequences.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no splits or the views cannot be compared.

    Source: seq-JEPA (arXiv 2505.03176), sheet sections 1.6 and 5.2.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        views: Callable[..., Views] | None,
        regressor: Regressor,
        lengths: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8),
        num_train: int = 1000,
        num_test: int = 500,
        batch_size: int = 64,
        seed: int = 0,
        name: str = "path_integration",
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"{name}: lengths={list(lengths)} must be lengths of at least 1")
        self.lengths = sorted(set(lengths))
        sizes = {"num_train": num_train, "num_test": num_test, "batch_size": batch_size}
        self.sequences = ViewSequences(source, views, num=self.lengths[-1] + 1, seed=seed, name=name, **sizes)
        self.every, self.name, self.regressor = every, name, regressor

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Aggregate the sequences at every length and regress."""
        if not isinstance(objective, Aggregates) or not isinstance(objective, EmbedsActions):
            raise ValueError(
                f"{self.name} needs an objective with aggregate(views) and embed_action(action); "
                f"{type(objective).__name__} has not both"
            )
        device, found = device_of(objective), {}
        with judging(objective):
            rows = [self.sequences.read(part, device, lambda b: self.represent(objective, b)) for part in PARTS]
            for num in self.lengths:
                targets = [row[f"target_{num}"] for row in rows]
                for name in ROWS:
                    features = [row[f"{name}_{num}"] for row in rows]
                    if not features[0].shape[1]:  # a method that embeds no actions
                        continue
                    predict = self.regressor(features[:2], targets[:2])
                    found[f"{name}/views_{num}"] = r2_metrics(predict(features[2]), targets[2])
        metrics = {key: scores["r2"] for key, scores in found.items()}
        curves = {row: [metrics.get(f"{row}/views_{num}", math.nan) for num in self.lengths] for row in ROWS}
        finite = {k: {n: v for n, v in scores.items() if not math.isnan(v)} for k, scores in found.items()}
        title = f"path integration, step {step}" + ("" if step else " (untrained)")
        files = {
            "path_integration.json": json.dumps(finite, indent=1).encode(),
            "path_integration.png": lines_picture(
                self.lengths, curves, title=title, x="views M", y="R2 of view 1 to M + 1"
            ),
        }
        return pack(metrics, files=files)

    def represent(self, objective: Any, batch: TensorDict) -> dict[str, Tensor]:
        """Features of every row and the target, at every length, of a batch of sequences."""
        found, latent = {}, latents(objective, batch, "view", self.name)
        for num in self.lengths:
            views, action = first_views(batch, num, latent), objective.embed_action(batch[ACTION][:, num - 1]).float()
            rows = {
                "aggregate": objective.aggregate(views),
                "no_actions": objective.aggregate(views, has_actions=False),
                "no_pixels": objective.aggregate(views, has_pixels=False),
            }
            for name, aggregate in rows.items():
                found[f"{name}_{num}"] = torch.cat([aggregate.float(), action], -1)
            found[f"last_action_{num}"] = action
            found[f"target_{num}"] = self.sequences.between(batch, 0, num)
        return found
