"""Which columns of a table a representation lets a probe use, and whether trees use the same ones.

A column's relevance is what a probe loses on test rows when that column is shuffled among them: of a linear probe on
the representation, of one on the raw input, and of gradient-boosted trees, which see the labels.

Source: permutation importance (Breiman 2001), applied to T-JEPA's claim that its representation finds the columns that
matter (arXiv 2410.05016) as the sheet t_jepa, section 3.4, recommends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.stats import rankdata
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Embeds, Encoder, Objective
from worldmodels.evals.probes import fit_probe
from worldmodels.evals.results import in_chunks, judging, pack
from worldmodels.keys import CATEGORICAL, MISSING, NUMERICAL, POOLED


class ColumnRelevance:
    """Relevance of each column, in mean squared error in units of the label's variance, or in nats.

    Metrics: "<representation>/<column>", "raw/<column>", "trees/<column>", and "<...>/agrees_with_trees", Spearman's
    rank correlation with the trees'.

    Args:
        source: ``envs.tables``.
        every: steps between two looks; 0 looks at the end only.
        raw: factory of an encoder without weights.
        names: representations to look at; of what the objective's ``embed`` gives.
        penalties: of the probes, see ``LinearProbe``.
        seed: of the shuffles; name: of this evaluator in logs and files.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int = 0,
        raw: Callable[[Composite], Encoder],
        names: Sequence[str] = ("row",),
        penalties: Sequence[float] = (1e-5, 1e-3, 1e-1),
        seed: int = 0,
        name: str = "relevance",
    ) -> None:
        if not hasattr(source, "part") or not hasattr(source, "columns"):
            raise ValueError(f"{name} needs columns and labels; {type(source).__name__} has none. Use env=tables")
        self.source, self.every, self.name, self.names = source, every, name, tuple(names)
        self.penalties, self.seed, self.flat = tuple(penalties), seed, raw(source.spec)
        self._trees: Tensor | None = None

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Fit the probes and shuffle each column in turn."""
        if not isinstance(objective, Embeds):
            raise ValueError(f"{self.name} needs an objective with embed(obs); {type(objective).__name__} has none")
        reads: dict[str, Callable[[TensorDict], Tensor]] = {
            name: (lambda obs, name=name: in_chunks(objective.embed, obs)[name]) for name in self.names
        }
        reads["raw"] = lambda obs: self.flat(obs)[POOLED]
        found: dict[str, Tensor] = {}
        with judging(objective):
            for name, read in reads.items():
                found[name] = self.relevance(read, self._fitted(read, fit_probe, penalties=self.penalties))
        if self._trees is None:
            read = reads["raw"]
            self._trees = self.relevance(read, self._fitted(read, boosted_trees, seed=self.seed))
        metrics: dict[str, float] = {}
        for name, values in {**found, "trees": self._trees}.items():
            metrics |= {f"{name}/{c}": float(v) for c, v in zip(self.source.columns.names, values, strict=True)}
            if name != "trees":
                metrics[f"{name}/agrees_with_trees"] = spearman(values, self._trees)
        return pack(metrics)

    def relevance(self, read: Callable[[TensorDict], Tensor], predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Increase of the test loss for each column [N], numerical ones first."""
        part, generator = self.source.part("test"), Generator().manual_seed(self.seed)
        order = torch.randperm(len(part.target), generator=generator).to(part.target.device)
        whole = self._loss(predict(read(part.obs)), part.target)
        losses = [
            self._loss(predict(read(rows)), part.target)
            for rows in (shuffled(part.obs, c, order) for c in range(self.num))
        ]
        return torch.stack(losses) - whole

    @property
    def num(self) -> int:
        """Columns."""
        return len(self.source.columns.names)

    def _fitted(
        self, read: Callable[[TensorDict], Tensor], fit: Callable[..., Callable[[Tensor], Tensor]], **options: Any
    ) -> Callable[[Tensor], Tensor]:
        parts = [self.source.part(name) for name in ("train", "val")]
        features, targets = [read(part.obs) for part in parts], [part.target for part in parts]
        return fit(features, targets, num_classes=self.source.num_classes, **options)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        if self.source.num_classes:
            return F.cross_entropy(output, target)
        return (output - target).square().mean() / target.var()


def shuffled(obs: TensorDict, column: int, order: Tensor) -> TensorDict:
    """Rows whose ``column`` comes from the rows ``order`` [N]; numerical columns are counted first."""
    obs = obs.clone()
    numbers = obs[NUMERICAL].shape[1] if NUMERICAL in obs.keys() else 0
    names, at = ((NUMERICAL, MISSING), column) if column < numbers else ((CATEGORICAL,), column - numbers)
    for name in names:
        obs[name][:, at] = obs[name][order, at]
    return obs


def boosted_trees(
    features: Sequence[Tensor], targets: Sequence[Tensor], *, num_classes: int, seed: int
) -> Callable[[Tensor], Tensor]:
    """XGBoost on the first part, stopped early on the second; maps features to the target, or to log-probabilities.

    Raises:
        ImportError: without the tabular extra.
    """
    try:
        import xgboost
    except ImportError as error:
        raise ImportError("gradient-boosted trees need XGBoost: pip install 'worldmodels[tabular]'") from error
    kind = xgboost.XGBClassifier if num_classes else xgboost.XGBRegressor
    model = kind(
        n_estimators=2000,
        learning_rate=0.05,
        max_depth=6,
        subsample=0.8,
        colsample_bytree=0.5,
        early_stopping_rounds=50,
        n_jobs=torch.get_num_threads(),
        random_state=seed,
    )
    x, y = ([part.cpu().numpy() for part in parts] for parts in (features, targets))
    model.fit(x[0], y[0], eval_set=[(x[1], y[1])], verbose=False)

    def predict(rows: Tensor) -> Tensor:
        array = rows.cpu().numpy()
        if not num_classes:
            return torch.from_numpy(model.predict(array)).to(rows.device)
        return torch.from_numpy(model.predict_proba(array)).clamp_min(1e-12).log().to(rows.device)

    return predict


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors [N], on any device; equal values share the mean of their ranks."""
    ranks = torch.stack([torch.from_numpy(rankdata(values.cpu().numpy())) for values in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1]) if len(a) > 1 else float("nan")
