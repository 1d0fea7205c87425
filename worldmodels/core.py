"""The abstractions. Everything else in this package is an implementation of one of these, or the loop that joins them.

A **Source** gives windows of experience, **Transforms** add views to them, an **Objective** turns a window into named
losses in one or more **Phases**, the Learner applies them, **Targets** follow, **Evaluators** judge.

Three rules hold everywhere: a TensorDict crosses every boundary; nobody writes into a TensorDict they were given; every
random number comes from a generator that was passed in.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Composite

USE_DEMONSTRATIONS = "Use env=metaworld, ogbench_oracles, pusht or demonstrations"  # what errors advise without any


@runtime_checkable
class Policy(Protocol):
    """Chooses actions."""

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        """Return a new TensorDict with "action" [B, A] for the "observation" (and "z") in ``td`` of batch size [B]."""
        ...


@runtime_checkable
class Source(Protocol):
    """A dataset, replay store, vector environment, or a mixture of them."""

    spec: Composite
    """One step, without a batch dimension."""

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw windows: batch size [B], leaves [B, T, ...], on the source's device; depends on ``generator`` only."""
        ...

    def attach(self, policy: Policy | None) -> None:
        """Give interactive sources the policy to collect with; fixed data ignores it.

        An interactive source also has ``gathered() -> dict[str, Tensor]``, what it needs to go on from here, and
        ``restore(tensors)``: a checkpoint keeps the one and a resumed run calls the other.
        """
        ...


@runtime_checkable
class Transform(Protocol):
    """Masks, augmentation, action chunks, task sampling: whatever needs nothing but the batch and a generator."""

    def __call__(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Return a new TensorDict with more entries."""
        ...


class Views(Transform, Protocol):
    """A transform that makes several views of a sample, each a row; built as ``Views(spec, **choices)``.

    What it returns has "observation", "transformation" (how each view was made) and "action" (what leads from a view to
    the next; zero for the last), leaves [B, num, ...], and whatever else the rows of the sample had.
    """

    spec: Composite
    """One view, without a batch dimension."""
    window: int
    """Rows of experience a sample needs."""
    num: int
    """Views of a sample."""

    def fitted(self, obs: TensorDict) -> TensorDict:
        """Observations [B] of the source as an encoder of views takes them, without chance; views as they are."""
        ...


class Encoder(nn.Module, ABC):
    """Perception: turns an observation into tokens. Built as ``Encoder(spec, **choices)``."""

    dim: int
    """Width D of tokens and of the pooled latent."""
    grid: tuple[int, ...]
    """(T, H, W) for video, (H, W) for images and BEV, (columns,) for a table, () for a state."""

    def observe(self, obs: TensorDict) -> None:
        """Update running statistics from training observations, batch size [B]; called once an update."""

    @abstractmethod
    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Encode ``obs`` of batch size [B].

        Args:
            obs: the "observation" entry of a batch, leaves [B, ...].
            keep: int64 [B, K] token indices on ``grid`` to encode, -1 for padding; None encodes all of them.

        Returns:
            "tokens" [B, N or K, D] and "pooled" [B, D].
        """


class Target(nn.Module, ABC):
    """A module that follows another one and never gets a gradient. Built as ``Target(online, **choices)``."""

    is_static: bool
    """Whether ``update`` is the same computation on every step, so that a CUDA graph may contain it."""

    @abstractmethod
    def forward(self, *args: Any) -> Any:
        """Call the followed module: no gradient, and evaluation mode unless said otherwise."""

    @abstractmethod
    def update(self, step: int) -> None:
        """Follow the online module after optimizer step ``step``."""

    def restart(self) -> None:
        """Be told that the online module was given other weights before training began."""


class Span(NamedTuple):
    """Part of a run: its steps from ``first`` to before ``last``, of ``total``."""

    first: int
    last: int
    total: int

    def time(self, step: int) -> int:
        """Step of the whole run at which schedules are read: a part goes through all that is scheduled for a run."""
        return (step - self.first) * self.total // (self.last - self.first)


class Phase(NamedTuple):
    """One backward pass and one optimizer step."""

    name: str
    loss: Callable[[TensorDict], TensorDict]
    """Maps a batch to {"loss": {name: scalar}, "stat": {name: scalar}}."""
    params: dict[str, list[nn.Parameter]]
    """Named groups: each may have its own learning rate or weight decay in the config."""
    every: int = 1
    """Run this phase on every n-th step."""
    span: Span | None = None
    """Run it in this part of the run only, with schedules that fit; None: throughout."""

    def is_due(self, step: int) -> bool:
        """Whether this phase runs in ``step``."""
        return step % self.every == 0 and (self.span is None or self.span.first <= step < self.span.last)

    def num_runs(self, step: int) -> int:
        """How often it has run before ``step``."""
        first, last = (0, step) if self.span is None else (self.span.first, min(step, self.span.last))
        return max(0, -(-last // self.every) + first // -self.every)

    def time(self, step: int) -> int:
        """Step at which its schedules are read."""
        return step if self.span is None else self.span.time(step)


class Objective(nn.Module, ABC):
    """What is minimised: an agent, a self-supervised method, or several together. Built as ``Objective(spec, ...)``."""

    window: int
    """Rows of experience each sample needs."""

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The phases of one update, in order."""

    def transforms(self) -> tuple[Transform, ...]:
        """What this objective needs added to a batch: its noise, masks, chunks. Configured transforms run before."""
        return ()

    def prepare(self, batch: TensorDict) -> TensorDict:
        """Compute, without gradient and once an update, what all phases share and what needs the networks.

        TD-JEPA draws its task vectors here: the critic and the actor of one update must see the same ones.
        """
        return batch


@runtime_checkable
class StudiesData(Protocol):
    """An objective that must look at its data once, to choose what the spec cannot tell."""

    def study(self, source: Source) -> None:
        """Called when the objective is built and on its device, before a checkpoint of its own is loaded."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A source that prepares batches before they are asked for. What they are stays a function of their seeds."""

    ahead: int
    """Batches it wants to know of beside the one that is drawn next."""

    def announce(self, batch_size: int, window: int, seeds: Sequence[int]) -> None:
        """Be told how generators will be seeded, of the next batch and those after it, before each is drawn."""
        ...


@runtime_checkable
class Evaluator(Protocol):
    """Judges an objective. Owns its data and its generators; touches neither training state nor training randomness."""

    name: str
    every: int
    """Steps between two evaluations; 0 evaluates at the end only."""

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Return scalars under names like "task1/success"; pictures and tables go under "media"."""
        ...


TaskRule = Callable[[TensorDict], Tensor]  # task vectors [B, d] for observations [B], asked anew at every decision


# --- capabilities: what an evaluator may ask of an objective ------------------------------------------------------
@runtime_checkable
class Embeds(Protocol):
    """Has a representation that probes and monitors can look at."""

    def embed(self, obs: TensorDict) -> TensorDict:
        """Return one entry for each representation, each [B, D]."""
        ...


@runtime_checkable
class TwoViews(Protocol):
    """Learns from two views of a sample that are not simply consecutive steps: masked parts, crops, modalities."""

    def views(self, batch: TensorDict) -> tuple[TensorDict, TensorDict]:
        """Return the view that predicts and the view that is predicted, new TensorDicts of batch size [B].

        Args:
            batch: has passed the objective's transforms, which drew whatever is random.

        Returns:
            each with "observation" as in the batch, leaves [B, ...]; if the view shows only a part of it, "shown": bool
            leaves of the same names that broadcast to [B, ...]; and, where ``embed`` cannot encode such a part,
            "latent": the view's representations, [B, ...] each.
        """
        ...


@runtime_checkable
class Costed(Protocol):
    """Knows what its training costs, so that methods can be compared at equal cost."""

    def costs(self, batch_size: int) -> dict[str, float]:
        """Floating-point operations of one sample in one step, by the name of the phase."""
        ...


@runtime_checkable
class ZeroShot(Policy, Protocol):
    """Solves a task it was never trained on, given samples of its reward or a goal."""

    def infer_task(
        self,
        obs: TensorDict,
        reward: Tensor | None = None,
        goal: TensorDict | None = None,
        demonstration: TensorDict | None = None,
        weight: Tensor | None = None,
    ) -> Tensor | TaskRule:
        """Return the task vector z [d], or a rule; ValueError for a kind of task that the method cannot infer.

        Args:
            obs: [N] observations reached (next observations), which define the distribution of states.
            reward: [N] reward of reaching each of them, and ``weight`` [N], how much each counts (None: alike); or
            goal: one observation, batch size [], to be reached; or
            demonstration: [T] observations of the behaviour wanted.
        """
        ...


@runtime_checkable
class Dynamics(Protocol):
    """Predicts latents from actions."""

    def imagine(self, latent: Tensor, actions: Tensor) -> Tensor:
        """Roll out ``latent`` [B, D] under ``actions`` [B, S, H, A]; returns [B, S, H, D]."""
        ...
