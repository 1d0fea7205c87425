"""Sources of stored episodes: windows of them, and what a reward may depend on in each of their rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded

from envs.replay import TrajectoryStore
from worldmodels.core import Policy
from worldmodels.keys import ACTION, IS_PADDED, OBSERVATION, PHYSICS, PIXELS, STATE, TERMINATED


class StoredEpisodes(ABC):
    """Windows of one body's episodes, held on the training device and sampled there.

    A subclass reads the episodes, gives them to ``keep``, and knows the simulator's state in every row. ``spec`` is
    there before any is read.

    Args:
        shape: of one observation: a state [S], or a picture [C, H, W]; or specs of its entries by name, as in batches.
        action_dim: of one step, A; actions are within [-1, 1].
        device: where batches are wanted.
        frame_stack: pictures joined along channels; states have 1.
        action_chunk: steps an action decides: see ``TrajectoryStore``.
        is_padded: whether windows begin at every row and say where they are padded: see ``TrajectoryStore``.

    Raises:
        ValueError: if states are stacked, or less than one picture or step is asked for.
    """

    def __init__(
        self,
        shape: tuple[int, ...] | Mapping[str, TensorSpec],
        action_dim: int,
        *,
        device: torch.device | str,
        frame_stack: int = 1,
        action_chunk: int = 1,
        is_padded: bool = False,
    ) -> None:
        is_visual = PIXELS in shape if isinstance(shape, Mapping) else len(shape) == 3
        if frame_stack < 1 or (frame_stack > 1 and not is_visual):
            raise ValueError(f"frame_stack={frame_stack}: states have 1; only pictures are stacked, at least 1")
        if action_chunk < 1:
            raise ValueError(f"action_chunk={action_chunk}: an action decides at least one step")
        self.device = torch.device(device)
        self.frame_stack, self.action_chunk, self.is_padded = frame_stack, action_chunk, is_padded
        if isinstance(shape, Mapping):
            seen = dict(shape)
        elif is_visual:
            stacked = (shape[0] * frame_stack, *shape[1:])
            seen = {PIXELS: Bounded(0, 255, stacked, dtype=torch.uint8, device=self.device)}
        else:
            seen = {STATE: Unbounded(shape, device=self.device)}
        self.spec = Composite(
            {
                OBSERVATION: Composite(seen, device=self.device),
                ACTION: Bounded(-1.0, 1.0, (action_chunk * action_dim,), device=self.device),
                TERMINATED: Categorical(2, shape=(), dtype=torch.bool, device=self.device),
            },
            device=self.device,
        )
        if is_padded:
            self.spec[IS_PADDED] = Categorical(2, shape=(), dtype=torch.bool, device=self.device)
        self._store: TrajectoryStore | None = None

    def keep(self, rows: TensorDict, ends: Tensor) -> None:
        """Store episodes: ``rows`` [N], and ``ends`` bool [N], true on the last row of each."""
        options = {name: getattr(self, name) for name in ("frame_stack", "action_chunk", "is_padded")}
        self._store = TrajectoryStore(rows, ends, device=self.device, **options)

    @property
    def store(self) -> TrajectoryStore:
        """The episodes.

        Raises:
            ValueError: if none were read.
        """
        if self._store is None:
            raise ValueError("env.max_episodes=0 reads no episodes, but this needs some: env.max_episodes=null")
        return self._store

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw windows [B, T] uniformly; see ``TrajectoryStore.sample``."""
        return self.store.sample(batch_size, window, generator)

    def attach(self, policy: Policy | None) -> None:  # noqa: B027 (every subclass is fixed data)
        """Fixed data needs no policy."""

    def labelled(self, num: int, generator: Generator) -> TensorDict:
        """Draw states that transitions led to, with what a reward may depend on.

        Args:
            num: states, N.
            generator: on any device; the draw is a function of its state.

        Returns:
            batch size [N]: "observation" reached and "action" that led there [N, A], on the device; "physics" in that
            state, as ``physics_at`` gives it.
        """
        reached = self.store.draw(num, 2, generator) + 1
        return self.physics_of(reached).set(OBSERVATION, self.store.rows(reached)[OBSERVATION])

    def physics_of(self, rows: Tensor) -> TensorDict:
        """What a reward may depend on, without the observation: "physics", and "action", the step that led there.

        Args:
            rows: int [n] of the store; the first row of a trajectory was led to by nothing, its action means nothing.

        Returns:
            batch size [n]; entries as ``labelled`` documents them.
        """
        out = TensorDict({ACTION: self.store.rows((rows - 1).clamp(min=0), [ACTION])[ACTION]}, batch_size=rows.shape)
        physics = self.physics_at(rows)
        return out if physics is None else out.set(PHYSICS, physics)

    @abstractmethod
    def physics_at(self, rows: Tensor) -> TensorDict | None:
        """The simulator's state in these rows [n] of the store, on the CPU; None if the data do not tell it."""
