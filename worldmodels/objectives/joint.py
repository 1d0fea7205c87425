"""Several objectives on one encoder in one loop: an agent and a self-supervised method, say.

Each objective keeps its own phases, losses and targets; the encoder is built once and trained by each of them in turn.
A parameter that two phases train, here the encoder, has one optimizer state for each of these phases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Encoder, Objective, Phase, StudiesData, TaskRule, Transform


class Joint(Objective):
    """Routes the sub-batch of each name to the objective of that name.

    Args:
        spec: of a mixture, one entry a name.
        encoder: factory of the shared encoder, built on the first entry's spec.
        objectives: factories by name, each called as ``objective(spec, encoder=encoder)``.

    Raises:
        ValueError: if two objectives have a phase or a parameter group of the same name.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder],
        objectives: Mapping[str, Callable[..., Objective]],
    ) -> None:
        super().__init__()
        shared = encoder(spec[next(iter(objectives))])
        self.parts = nn.ModuleDict({name: make(spec[name], encoder=shared) for name, make in objectives.items()})
        self.window = max(part.window for part in self.objectives.values())
        names = [phase.name for phase in self.phases()]
        if len(set(names)) < len(names):
            raise ValueError(f"two of the joint objectives {sorted(objectives)} have a phase of the same name: {names}")

    @property
    def objectives(self) -> dict[str, Any]:
        """The objectives by name."""
        return dict(self.parts.items())

    def phases(self) -> tuple[Phase, ...]:
        """All phases, objective by objective."""

        def routed(name: str, phase: Phase, batch: TensorDict) -> TensorDict:
            return phase.loss(batch[name])

        return tuple(
            phase._replace(loss=partial(routed, name, phase))
            for name, part in self.objectives.items()
            for phase in part.phases()
        )

    def transforms(self) -> tuple[Transform, ...]:
        """Those of every objective, applied to its own sub-batch."""

        def routed(name: str, transform: Transform, batch: TensorDict, generator: Generator) -> TensorDict:
            return batch.copy().set(name, transform(batch[name], generator))

        return tuple(partial(routed, name, t) for name, part in self.objectives.items() for t in part.transforms())

    def prepare(self, batch: TensorDict) -> TensorDict:
        """Let every objective prepare its own sub-batch."""
        return TensorDict({name: part.prepare(batch[name]) for name, part in self.objectives.items()}, batch_size=[])

    def embed(self, obs: TensorDict) -> TensorDict:
        """Representations of every objective that has some, under "name/representation"."""
        found: dict[str, Tensor] = {}
        for name, part in self.objectives.items():
            if hasattr(part, "embed"):
                found |= {f"{name}/{key}": value for key, value in part.embed(obs).items()}
        return TensorDict(found, batch_size=obs.batch_size)

    def act(self, td: TensorDict, explore: bool = False) -> TensorDict:
        """Act as the agent among the objectives."""
        return self.objectives["agent"].act(td, explore)

    @property
    def num_decided(self) -> int:
        """Steps that an answer of the agent decides."""
        return getattr(self.objectives.get("agent"), "num_decided", 1)

    @property
    def num_noise(self) -> int:
        """Random numbers that the agent wants for each number of an action."""
        return getattr(self.objectives.get("agent"), "num_noise", 1)

    def begin(self, num: int) -> None:
        """Tell an agent that remembers what it saw that ``num`` episodes begin."""
        agent = self.objectives["agent"]
        if hasattr(agent, "begin"):
            agent.begin(num)

    def study(self, source: Any) -> None:
        """Let every objective that must look at its data look at its part of ``source``, a mixture."""
        for name, part in self.objectives.items():
            if isinstance(part, StudiesData):
                part.study(source.sources[name])

    def infer_task(self, obs: TensorDict, **question: Any) -> Tensor | TaskRule:
        """Infer a task as the agent among the objectives, of whose ``infer_task`` these are the arguments."""
        return self.objectives["agent"].infer_task(obs, **question)
