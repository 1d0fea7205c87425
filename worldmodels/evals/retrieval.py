"""Is the predicted latent of the next view nearest to that view, among all views of the same object?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F

from worldmodels.core import Objective, Views
from worldmodels.evals.results import device_of, judging, pack
from worldmodels.evals.view_sequences import first_views, single_views
from worldmodels.keys import ACTION

TIE = 1e-6  # cosines that differ by less are equal: what rounding makes of equal latents

MADE = 20  # candidates, where views are made and nothing says how many


@runtime_checkable
class Foresees(Protocol):
    """Predicts the latent of the view that an action leads to."""

    def foresee(self, views: TensorDict) -> Tensor:
        """Latent [B, D] of the view that ``action[:, M - 1]`` leads to from the last of M views.

        Args:
            views: "observation" [B, M, ...] and "action" [B, M, A].
        """
        ...

    def anchor(self, obs: TensorDict) -> Tensor:
        """Latents [B, D] that predictions are compared with."""
        ...


class Retrieval:
    """Mean reciprocal rank, Hit@1 and Hit@5 of the view that follows M views, among all views of its object by cosine.

    Metrics "<row>/mrr", "/hit_1" and "/hit_5". Rows: "foresee_M"; "shuffled_M", the same with the last action of
    another object, which shows what the action brings; "copy", the latent of view 1 instead of a prediction; "chance".
    Candidates are all views of the object, those seen included. Equal similarities share their ranks: the metrics are
    means over their orders, so that a collapsed latent scores what chance does.

    Args:
        source: with ``split(name)``.
        every: steps between two looks; 0 looks at the end only.
        views: factory of the sequences, ``views(spec, num_views=...)``.
        lengths: views seen, M.
        num_candidates: views of an object; null takes as many as the objects of the part have (``num_views`` of the
            split), or 20 where views are made of single pictures, of which there can be any number.
        num: objects, drawn with repetition.
        part: "train", "val" or "test".
        batch_size: objects at a time.
        seed: of the objects and their views.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no splits, no number of candidates, or too few of them.

    Source: the protocol of Garrido et al. 2023 (arXiv 2302.10283), as seq-JEPA (arXiv 2505.03176) uses it. Differs:
    equal similarities share their ranks.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        views: Callable[..., Views] | None,
        lengths: Sequence[int] = (1,),
        num_candidates: int | None = None,
        num: int = 500,
        part: str = "test",
        batch_size: int = 16,
        seed: int = 0,
        name: str = "retrieval",
    ) -> None:
        if not hasattr(source, "split") or views is None:
            what = f"{type(source).__name__} has no split(name)" if views is not None else "views is null"
            raise ValueError(f"{name} draws views of objects, but {what}. Use env=rendered_objects or env=images")
        self.lengths = tuple(sorted(set(lengths)))
        split = source.split(part)
        candidates = num_candidates or num_of_views(split, views(source.spec, num_views=2), name)
        if not self.lengths or self.lengths[0] < 1 or self.lengths[-1] >= candidates:
            raise ValueError(
                f"{name}: lengths={list(lengths)} must be lengths from 1 to {candidates - 1}, one less than the "
                f"{candidates} views of an object"
            )
        self.views, self.source = views(source.spec, num_views=candidates), split
        self.every, self.name, self.num, self.num_candidates = every, name, num, candidates
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Rank the view that follows."""
        if not isinstance(objective, Foresees):
            raise ValueError(
                f"{self.name} needs an objective with foresee(views) and anchor(obs); "
                f"{type(objective).__name__} has not both"
            )
        generator = Generator(device_of(objective)).manual_seed(self.seed)
        found: dict[str, list[Tensor]] = {}
        with judging(objective):
            for start in range(0, self.num, self.batch_size):
                size = min(self.batch_size, self.num - start)
                batch = self.views(self.source.sample(size, self.views.window, generator), generator)
                for name, scores in self.ranked(objective, batch).items():
                    found.setdefault(name, []).append(scores)
        metrics = dict(zip(("chance/mrr", "chance/hit_1", "chance/hit_5"), self.chance(), strict=True))
        for name, parts in found.items():
            means = torch.cat(parts).mean(0).tolist()
            metrics |= {f"{name}/{key}": mean for key, mean in zip(("mrr", "hit_1", "hit_5"), means, strict=True)}
        return pack(metrics)

    def ranked(self, objective: Foresees, batch: TensorDict) -> dict[str, Tensor]:
        """Scores [B, 3] of every row for a batch of objects."""
        size = batch.batch_size[0]
        anchors = objective.anchor(single_views(batch)).float().unflatten(0, (size, -1))  # [B, V, D]
        found = {"copy": scores_of(anchors[:, 0], anchors, 1)}
        for num in self.lengths:
            views = first_views(batch, num)
            found[f"foresee_{num}"] = scores_of(objective.foresee(views).float(), anchors, num)
            if size > 1:  # the last objects may be a batch of one, which has no other's action
                action = views[ACTION].clone()
                action[:, -1] = action[:, -1].roll(1, 0)
                found[f"shuffled_{num}"] = scores_of(objective.foresee(views.set(ACTION, action)).float(), anchors, num)
        return found

    def chance(self) -> tuple[float, float, float]:
        """Scores of equal similarities."""
        same = torch.zeros(1, self.num_candidates)
        mrr, first, fifth = reciprocal_ranks(same, 0)[0].tolist()
        return mrr, first, fifth


def num_of_views(split: Any, views: Views, name: str) -> int:
    """How many views the objects of a part have; ``MADE`` where ``views`` makes them of one row.

    Raises:
        ValueError: if the source does not say.
    """
    if hasattr(split, "num_views"):
        return split.num_views
    if views.window > 1:
        raise ValueError(
            f"{name}: {type(split).__name__} does not say how many views an object has; set eval.{name}.num_candidates"
        )
    return MADE


def scores_of(predicted: Tensor, anchors: Tensor, index: int) -> Tensor:
    """Reciprocal rank, Hit@1, Hit@5 [B, 3] of candidate ``index`` for predictions [B, D] and candidates [B, V, D]."""
    similarity = torch.einsum("bd,bvd->bv", F.normalize(predicted, dim=-1), F.normalize(anchors, dim=-1))
    return reciprocal_ranks(similarity, index)


def reciprocal_ranks(similarity: Tensor, index: int) -> Tensor:
    """Expected reciprocal rank, Hit@1 and Hit@5 [B, 3] of candidate ``index`` by ``similarity`` [B, V].

    Candidates within ``TIE`` of it are in random order with it: if g are better and t are equal, itself included, its
    rank is each of g + 1 to g + t with probability 1 / t.
    """
    own = similarity[:, index, None]
    better = (similarity > own + TIE).sum(1)
    equal = ((similarity - own).abs() <= TIE).sum(1)
    harmonic = torch.arange(1, similarity.shape[1] + 1, device=similarity.device).double().reciprocal().cumsum(0)
    harmonic = F.pad(harmonic, (1, 0))  # [V + 1], sums of the first n reciprocals
    mrr = (harmonic[better + equal] - harmonic[better]) / equal
    hits = [(k - better).clamp_min(0).minimum(equal) / equal for k in (1, 5)]
    return torch.stack([mrr, *(hit.double() for hit in hits)], 1)
