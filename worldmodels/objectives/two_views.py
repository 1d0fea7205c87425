"""What methods that compare two views of a sample share: views, latents, groups of parameters, signs of a collapse.

A method supplies its heads and its ``loss``; seq-JEPA, which looks at more than two views, builds on the same class.
The first two views of a batch are compared, whatever their number, and the first action leads from one to the other.
Negatives, variances and covariances are those of the local batch: of several processes, each compares within its own
share, and ``accumulate`` compares within a part.

Sources: sheet seq_jepa, 1.8; each method's file names its paper.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Encoder, Objective, Phase, Transform, Views
from worldmodels.keys import ACTION, LOSS, OBSERVATION, POOLED, STAT
from worldmodels.nn.parameters import matrices_and_vectors
from worldmodels.nn.projector import Projector


class ViewObjective(Objective):
    """An encoder and views of samples (abstract); a method adds its heads and ``loss``.

    Args:
        spec: one row of the source.
        encoder: perception with a pooled latent, a factory or a module shared with other objectives.
        views: factory of the views, ``views(spec)``.

    Raises:
        ValueError: if there are fewer than two views.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        views: Callable[[Composite], Views],
    ) -> None:
        super().__init__()
        self.make_views = views(spec)  # core.TwoViews calls something else views
        if self.make_views.num < 2:
            raise ValueError(
                f"views.num_views={self.make_views.num}: {type(self).__name__} needs at least 2 views of a sample"
            )
        self.window = self.make_views.window
        self.encoder: Any = encoder if isinstance(encoder, nn.Module) else encoder(self.make_views.spec)

    @property
    def action_dim(self) -> int:
        """Numbers of an action.

        Raises:
            ValueError: if the views tell of none.
        """
        if ACTION not in self.make_views.spec.keys():
            have = sorted(map(str, self.make_views.spec.keys()))
            raise ValueError(f"{type(self).__name__} needs the action between views; these views have {have}")
        return self.make_views.spec[ACTION].shape[-1]

    def phases(self) -> tuple[Phase, ...]:
        """A single one; biases and other vectors are groups of their own, to be kept from decay."""
        encoder = [*self.encoder.parameters()]
        known = {id(p) for p in encoder}
        heads = [p for p in self.parameters() if id(p) not in known and p.requires_grad]  # targets require none
        return (Phase("views", self.loss, matrices_and_vectors({"encoder": encoder, "heads": heads})),)

    def transforms(self) -> tuple[Transform, ...]:
        """The views of a batch."""
        return (self.make_views,)

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Move running statistics of the observations.

        Raises:
            ValueError: if the batch is a single sample, which has no variance and nothing to be compared with.
        """
        if batch.batch_size[0] < 2:
            raise ValueError(
                f"batch_size={batch.batch_size[0]}: {type(self).__name__} needs at least 2 samples a batch"
            )
        self.encoder.observe(rows(batch[OBSERVATION], slice(None)))
        return batch

    @abstractmethod
    def loss(self, batch: TensorDict) -> TensorDict:
        """The method's losses; ``batch`` has the rows of ``views``."""

    def encode(self, obs: TensorDict) -> Tensor:
        """Latents [B, D] of single views [B]: the representation that is evaluated."""
        return self.encoder(obs)[POOLED]

    def pair(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Latents [B, D] of the first two views, encoded one after the other: batch norms see one kind at a time."""
        first, second = (self.encode(rows(batch[OBSERVATION], slice(t, t + 1))) for t in (0, 1))
        return first, second

    def report(self, losses: Mapping[str, Tensor], latent: Tensor, **stats: Tensor) -> TensorDict:
        """What a phase returns: ``losses``, the spread of ``latent`` [N, D] and other ``stats``."""
        return TensorDict({LOSS: dict(losses), STAT: {**spread(latent), **stats}})

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """The encoder's latent of single pictures [B], resized if need be: "view" [B, D]."""
        return TensorDict({"view": self.encode(self.make_views.fitted(obs))}, batch_size=obs.batch_size)

    def views(self, batch: TensorDict) -> tuple[TensorDict, TensorDict]:
        """The first two views, which ``embed`` can encode as they are."""
        first, second = (rows(batch[OBSERVATION], slice(t, t + 1)) for t in (0, 1))
        return tuple(TensorDict({OBSERVATION: obs}, obs.batch_size) for obs in (first, second))


class ConditionalObjective(ViewObjective):
    """Predicts the second view's projection from the first one's and the action (abstract).

    Args:
        spec: one row of the source.
        projector: factory ``projector(dim)``.
        action_width: width of an embedded action.
        hidden: widths of the predictor's hidden layers; none is a linear predictor.
        has_last_norm: whether predictions go through a batch norm without scale and shift.
        shared: encoder and views, see ``ViewObjective``.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        projector: Callable[[int], Projector],
        action_width: int = 128,
        hidden: Sequence[int] = (),
        has_last_norm: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        self.projector = projector(self.encoder.dim)
        self.action_net = Projector(self.action_dim, [action_width], has_last_norm=True)
        in_dim, dim = self.projector.dim + action_width, self.projector.dim
        self.predictor = Projector(in_dim, [*hidden, dim], has_last_norm=has_last_norm)

    def predict(self, latent: Tensor, action: Tensor) -> Tensor:
        """The projection [B, P] that ``action`` [B, A] leads to from ``latent`` [B, D]."""
        return self.predictor(torch.cat([self.projector(latent), self.action_net(action)], -1))

    @torch.no_grad()
    def foresee(self, views: TensorDict) -> Tensor:
        """Predict the projection [B, P] of the view that the last action leads to from the last of the views."""
        obs, action = last_row(views)
        return self.predict(self.encode(obs), action)

    @torch.no_grad()
    def anchor(self, obs: TensorDict) -> Tensor:
        """The projection [B, P] of single views [B], which ``foresee`` predicts."""
        return self.projector(self.encode(obs))


def rows(obs: TensorDict, which: slice) -> TensorDict:
    """Some rows of observations, leaves [B, V, ...], as a batch of single ones, leaves [B V', ...]."""
    leaves = {key: leaf[:, which].flatten(0, 1) for key, leaf in obs.items()}
    return TensorDict(leaves, batch_size=[next(iter(leaves.values())).shape[0]])


def last_row(views: TensorDict) -> tuple[TensorDict, Tensor]:
    """The last picture of a sequence, batch size [B], and the action [B, A] that leads on from it."""
    num = next(iter(views[OBSERVATION].values())).shape[1]
    return rows(views[OBSERVATION], slice(num - 1, num)), views[ACTION][:, num - 1]


@torch.no_grad()
def spread(latent: Tensor) -> dict[str, Tensor]:
    """How far latents [N, D] differ: mean and least standard deviation of a feature, latent units; 0 is a collapse."""
    std = latent.float().std(0)
    return {"latent_std": std.mean(), "latent_std_least": std.amin()}


@torch.no_grad()
def goal_stats(prediction: Tensor, goal: Tensor) -> dict[str, Tensor]:
    """What shows a collapse of predictions [B, D] and goals [B, D].

    "cosine" of the two; "cosine_of_mean", what the one direction closest to all goals would reach: a cosine no higher
    says nothing was predicted; "target_variance" over samples, mean over features.
    """
    prediction, goal = prediction.float(), goal.float()
    return {
        "cosine": F.cosine_similarity(prediction, goal, dim=-1).mean(),
        "cosine_of_mean": F.normalize(goal, dim=-1).mean(0).norm(),
        "target_variance": goal.var(0).mean(),
    }
