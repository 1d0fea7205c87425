"""Labelled sequences of views for evaluation: the same pictures for every objective, and what may be asked of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.core import Embeds, Objective, Views
from worldmodels.keys import ACTION, LABEL, LATENT, OBSERVATION, TRANSFORMATION

PARTS = ("train", "val", "test")


@runtime_checkable
class Aggregates(Protocol):
    """Makes one representation of several views of a sample."""

    def aggregate(self, views: TensorDict, *, has_actions: bool = True, has_pixels: bool = True) -> Tensor:
        """Representation [B, D'] of M views, from their "observation" [B, M, ...] and the M - 1 actions between them.

        Args:
            views: "observation" and "action" [B, M, A], of which the last is not used; "latent" [B, M, D], too, where
                it is known already what ``embed`` gives of each view.
            has_actions, has_pixels: False replaces the embeddings of actions, or the latents of pictures, by zeros.
        """
        ...


@runtime_checkable
class EmbedsActions(Protocol):
    """Has a representation of what leads from a view to the next."""

    def embed_action(self, action: Tensor) -> Tensor:
        """Embedding [B, E] of actions [B, A]."""
        ...


class ComparableViews(Views, Protocol):
    """Views of which any two can be compared."""

    def action_between(self, transformation_a: Tensor, transformation_b: Tensor) -> Tensor:
        """Action [..., A] that leads from views made by one transformation [..., P] to those made by another.

        From a transformation of zeros it is the second one, in the units of an action: a pose's own rotation.
        """
        ...


class ViewSequences:
    """Sequences of views of labelled pictures, drawn anew from the same seed whenever they are asked for.

    Args:
        source: with ``split(name)``; views: factory ``views(spec, num_views=...)``, the node of ``conf/views``.
        num: views of a sequence.
        num_train, num_test: sequences of "train", and of "val" and "test" each.
        batch_size: sequences at a time. The sequences depend on it.
        seed: of the sequences.
        name: the evaluator that asks.

    Raises:
        ValueError: if the source has no splits, there is no factory, its views cannot be compared, or a part has fewer
            of an object.
    """

    def __init__(
        self,
        source: Any,
        views: Callable[..., Views] | None,
        *,
        num: int,
        num_train: int,
        num_test: int,
        batch_size: int,
        seed: int,
        name: str,
    ) -> None:
        if not hasattr(source, "split"):
            raise ValueError(
                f"{name} draws labelled sequences; {type(source).__name__} has no split(name). "
                "Use env=images or env=rendered_objects"
            )
        if views is None:
            raise ValueError(
                f"{name} needs views of a sample; views is null. Use views=of_images or another of its group"
            )
        if min(num_train, num_test, batch_size) < 1:
            raise ValueError(
                f"{name}: num_train={num_train}, num_test={num_test} and batch_size={batch_size} must be at least 1"
            )
        made: Any = views(source.spec, num_views=num)
        if not hasattr(made, "action_between"):
            raise ValueError(f"{name} compares views, and {type(made).__name__} has no action_between(a, b)")
        self.views: ComparableViews = made
        self.sizes = {"train": num_train, "val": num_test, "test": num_test}
        self.parts = {part: source.split(part) for part in PARTS}
        for part, split in self.parts.items():
            if made.window > getattr(split, "num_views", made.window):
                raise ValueError(
                    f"{name} asks for sequences of {num} views, and objects have {split.num_views} in {part}: "
                    f"take shorter eval.{name}.lengths, or a greater env.views"
                )
        self.batch_size, self.seed, self.name = batch_size, seed, name

    def batches(self, part: str, device: torch.device) -> Iterator[TensorDict]:
        """All sequences of a part: "observation", "action", "transformation" [B, num, ...] and "label"."""
        generator = Generator(device).manual_seed(self.seed + PARTS.index(part))
        for start in range(0, self.sizes[part], self.batch_size):
            size = min(self.batch_size, self.sizes[part] - start)
            yield self.views(self.parts[part].sample(size, self.views.window, generator), generator)

    def read(
        self, part: str, device: torch.device, function: Callable[[TensorDict], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What ``function`` finds in the batches of a part, joined along the first dimension."""
        found = [function(batch) for batch in self.batches(part, device)]
        return {key: torch.cat([row[key] for row in found]) for key in found[0]}

    def between(self, batch: TensorDict, first: int, last: int) -> Tensor:
        """Action [B, A] that leads from view ``first`` to view ``last`` of every sequence."""
        made = batch[TRANSFORMATION]
        return self.views.action_between(made[:, first], made[:, last])

    def absolute(self, batch: TensorDict, index: int) -> Tensor:
        """How view ``index`` of every sequence was made, in the units of an action [B, A]."""
        made = batch[TRANSFORMATION][:, index]
        return self.views.action_between(torch.zeros_like(made), made)


def first_views(batch: TensorDict, num: int, latent: Tensor | None = None) -> TensorDict:
    """The first ``num`` views of every sequence, and their actions, the last of which leads out of them.

    ``latent`` [B, V, D], if given: of all views, so that nobody need encode them again.
    """
    obs = {str(key): leaf[:, :num] for key, leaf in batch[OBSERVATION].items()}
    size = batch.batch_size[0]
    views = TensorDict({OBSERVATION: TensorDict(obs, [size, num]), ACTION: batch[ACTION][:, :num]}, [size])
    return views if latent is None else views.set(LATENT, latent[:, :num])


def single_views(batch: TensorDict) -> TensorDict:
    """Observations [B V] of all views of all sequences."""
    obs = {str(key): leaf.flatten(0, 1) for key, leaf in batch[OBSERVATION].items()}
    return TensorDict(obs, [len(next(iter(obs.values())))])


def labels_of(batch: TensorDict) -> Tensor:
    """Class int64 [B] of every sequence."""
    return batch[LABEL].reshape(batch.batch_size[0], -1)[:, 0]


def latents(objective: Objective, batch: TensorDict, entry: str, name: str) -> Tensor:
    """Representation [B, V, D] of every view by itself.

    Raises:
        ValueError: if the objective has none, or none called ``entry``.
    """
    if not isinstance(objective, Embeds):
        raise ValueError(f"{name} needs an objective with embed(obs); {type(objective).__name__} has none")
    found = objective.embed(single_views(batch))
    if entry not in found.keys():
        have = ", ".join(sorted(map(str, found.keys())))
        raise ValueError(f"{name}: entry={entry} is not among what {type(objective).__name__} embeds: {have}")
    return found[entry].float().unflatten(0, (batch.batch_size[0], -1))
