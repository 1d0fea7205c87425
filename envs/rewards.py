"""Fixed data with the reward of one task: a Source that wraps a Source and adds "reward" to every row."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Composite, Unbounded

from envs.relabel import Wrapper
from worldmodels.keys import ACTION, REWARD

CHUNK = 65_536  # rows relabelled at a time


class Rewards(Wrapper):
    """Adds "reward" [B, T]: what ``task`` pays for the state that the action of each row led to.

    ::

        row         0    1    2    3          a trajectory of three transitions
        state       s0   s1   s2   s3
        action      a0   a1   a2   (-)
        reward      r1   r2   r3   (r3)       r_i is the reward of being in s_i, having come by a_(i-1)

    With ``action_chunk`` = h a row's action leads to the state h rows on, and that one's reward is its own: what lies
    between is not paid. Zero-shot agents count alike, Q = sum of gamma^k psi . z over states a decision apart. A row
    whose action leads beyond its trajectory has the reward of the last state; it is the last row of a window.

    Rewards of all rows are computed once, when this is built, and kept beside the store.

    Args:
        source: fixed data with ``store``, ``tasks``, and ``physics_of(rows)``: what a reward may depend on.
        task: one of the source's.
        shift: added to every reward. 1 on OGBench: its -1 and 0 become 0 and 1, as for the inference of tasks. No
            episode of the data terminates, so this changes no optimal policy; but an actor whose Q is divided by its
            mean magnitude would see nothing of a goal beside a constant -1 / (1 - gamma). 0 on DMC.

    Raises:
        ValueError: if the source cannot be relabelled or has no such task; the message suggests near names.

    Source: sheet td_jepa, section 1.8 (relabelled data), 2 (shift), 3.2 (the reward is that of the next state).
    """

    def __init__(self, source: Any, *, task: str, shift: int | float) -> None:
        if not (hasattr(source, "store") and hasattr(source, "tasks") and hasattr(source, "physics_of")):
            raise ValueError(
                f"rewards of {task} need fixed data with physics and tasks; {type(source).__name__} is none. "
                "Use env=ogbench."
            )
        super().__init__(source)
        self.task, self.shift, self.spec = task, float(shift), with_reward(source.spec)
        store = source.store
        rows = torch.arange(store.num_rows, device=store.starts(1).device)
        parts = [source.tasks.reward(task, source.physics_of(part)) for part in rows.split(CHUNK)]
        self.rewards: Tensor = torch.cat(parts).to(rows.device, torch.float32) + self.shift  # [N], of being there
        if not bool(torch.isfinite(self.rewards).all()):
            wrong = int(torch.nonzero(~torch.isfinite(self.rewards))[0])
            raise ValueError(f"the reward of {task} is {float(self.rewards[wrong])} in row {wrong} of the data")

    @property
    def max_reward(self) -> float:
        """The largest reward in the data."""
        return float(self.rewards.max())

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw windows as the store does, each with "reward" [B, T]."""
        store = self.source.store
        first = store.draw(batch_size, window, generator)  # [B]
        ahead = torch.arange(1, window + 1, device=first.device, dtype=first.dtype) * store.action_chunk
        reached = torch.minimum(first[:, None] + ahead, store.last_rows(first)[:, None])  # [B, T]
        batch = store.windows(first, window)
        return batch.set(REWARD, self.rewards[reached].to(batch[ACTION].device))


def with_reward(spec: Composite) -> Composite:
    """The spec of a step that also has a reward."""
    out = spec.clone()
    out[REWARD] = Unbounded((), device=spec.device)
    return out
