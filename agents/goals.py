"""Goals for features that are learned as a goal-conditioned value function: HILP and ICVF*.

A goal lies in the future of the same trajectory (``envs.relabel.Futures``) or is any state of the batch. Drawing is a
transform's part and choosing is ``prepare``'s, so that a loss only compares.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.keys import OBSERVATION


def draw_goals(num: int, random_ratio: float, generator: Generator, device: torch.device) -> TensorDict:
    """Which of ``num`` goals are random, "is_random", and which states of the batch these are, "index"; both [num]."""
    like = {"generator": generator, "device": device}
    is_random = torch.rand(num, **like) < random_ratio
    return TensorDict({"is_random": is_random, "index": torch.randperm(num, **like)}, batch_size=[num])


def choose_goals(batch: TensorDict, future: str, drawn: TensorDict) -> TensorDict:
    """Goal observations [B]: the batch's own next states where random, else those under ``future``."""
    anywhere = batch[OBSERVATION][:, 1][drawn["index"]]
    return anywhere.where(drawn["is_random"], batch[future][OBSERVATION])


def arrival(is_goal: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """Target of a value that counts steps: 0 where the goal is here [B], else -1 + gamma ``next_value`` [..., B]."""
    return torch.where(is_goal, 0.0, discount * next_value - 1)


def is_same(one: TensorDict, other: TensorDict) -> Tensor:
    """Whether observations [B] are equal in every entry: bool [B]. Before encoders, whose rounding could differ."""
    equal = [(one[key] == other[key]).flatten(1).all(1) for key in one.keys(include_nested=True, leaves_only=True)]
    return torch.stack(equal).all(0)
