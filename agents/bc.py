"""Behaviour cloning by an autoregressive transformer: one action a call, from the last steps and what was done in them.

    tokens   [task, o_1, a_1, o_2, a_2, ..., o_h]       each looks at those before it
    a^_t     read off o_t;  L = mean (a^_t - a_t)^2

Paper: the "AR Transformer" that ACT-JEPA is compared with (arXiv 2501.14622; sheet act_jepa, section 1.6). Differs: an
observation is a vector where the paper has a picture behind three convolutions; blocks are pre-norm with GELU, which
the sheet does not tell; no dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from agents.imitation import ImitationPolicy, known_actions
from perception.context import task_table
from worldmodels.core import Phase
from worldmodels.keys import ACTION, LOSS, OBSERVATION, POOLED, STAT, TASK_INDEX
from worldmodels.losses import masked_l1, masked_mean
from worldmodels.nn.parameters import matrices_and_vectors
from worldmodels.nn.transformer import Transformer


class HistoryTransformer(nn.Module):
    """Causal blocks over observations and actions in turn, a learned place a step, the task's token in front.

    Args:
        in_dim: width X of an observation; action_dim: A; num: h, steps at most.
        embed_task: table of tasks; None where the data have none.
        dim: width; depth, num_heads, hidden: of the blocks.
    """

    is_before: Tensor

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        num: int,
        *,
        embed_task: nn.Embedding | None,
        dim: int,
        depth: int,
        num_heads: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.embed_task = embed_task
        self.embed_observation, self.embed_action = nn.Linear(in_dim, dim), nn.Linear(action_dim, dim)
        self.place = nn.Parameter(0.02 * torch.randn(num, dim))
        self.blocks = Transformer(dim, depth=depth, num_heads=num_heads, hidden=hidden, is_init_by_width=True)
        self.outward = nn.Linear(dim, action_dim)
        size = 2 * num - 1 + (embed_task is not None)
        is_before = torch.ones(1, size, size, dtype=torch.bool).tril()
        self.register_buffer("is_before", is_before, persistent=False)

    def forward(self, x: Tensor, action: Tensor, task_index: Tensor | None) -> Tensor:
        """What is known at each step, after the last block.

        Args:
            x: [B, T, X] of observations, T from 1 to h.
            action: [B, T - 1, A], normalised, each taken after the observation of its place.
            task_index: int64 [B].

        Returns:
            [B, T, dim]; ``outward`` reads actions off it.
        """
        num = x.shape[1]
        seen = self.embed_observation(x) + self.place[:num]  # [B, T, dim]
        done = self.embed_action(action) + self.place[: num - 1]
        tokens = torch.cat([torch.stack([seen[:, :-1], done], 2).flatten(1, 2), seen[:, -1:]], 1)  # [B, 2 T - 1, dim]
        first = 0
        if self.embed_task is not None and task_index is not None:
            tokens, first = torch.cat([self.embed_task(task_index)[:, None], tokens], 1), 1
        size = tokens.shape[1]
        return self.blocks(tokens, self.is_before[:, :size, :size])[:, first::2]


class BC(ImitationPolicy):
    """Clones behaviour step by step.

    Args:
        spec: one step.
        history: h, steps that are looked back on, and rows of a window.
        network: sizes of the ``HistoryTransformer``.
        num_tasks: rows of the table of tasks.
        **options: see ``ImitationPolicy``; the encoder sees one observation at a time.

    Raises:
        ValueError: if there is no step to look at.
    """

    num_decided = 1

    def __init__(
        self,
        spec: Composite,
        *,
        history: int,
        network: Mapping[str, int],
        num_tasks: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        if history < 1:
            raise ValueError(f"agent.history={history}: the policy sees the present at least")
        self.history = self.window = history
        table = task_table(spec, network["dim"], num_tasks)
        self.network = HistoryTransformer(self.encoder.dim, self.action_dim, history, embed_task=table, **network)
        self._seen: Tensor | None = None  # [N, t, X], features of the last observations of running episodes
        self._done: Tensor | None = None  # [N, t, A], actions taken after each

    def phases(self) -> tuple[Phase, ...]:
        """A single one; biases, norms and other vectors are groups of their own, to be kept from decay."""
        parts = {"encoder": self.encoder.parameters(), "network": self.network.parameters()}
        return (Phase("policy", self.loss, matrices_and_vectors(parts)),)

    def loss(self, batch: TensorDict) -> TensorDict:
        """Mean of (a^ - a)^2 over known actions and their entries."""
        obs, size = batch[OBSERVATION], batch[ACTION].shape[:2]
        rows = TensorDict({key: leaf.flatten(0, 1) for key, leaf in obs.items()}, [size.numel()])
        x = self.encoder(rows)[POOLED].unflatten(0, size)  # [B, h, X]
        goal, counts = self.action_norm(batch[ACTION]), known_actions(batch)
        task = obs[TASK_INDEX][:, 0] if TASK_INDEX in obs.keys() else None
        prediction = self.network.outward(self.network(x, goal[:, :-1], task)).float()  # [B, h, A]
        loss = masked_mean((prediction - goal).square().mean(-1), counts)
        with torch.no_grad():
            raw = masked_l1(self.action_norm.inverse(prediction), batch[ACTION], counts)
        return TensorDict({LOSS: {"action": loss}, STAT: {"action_error": raw}})

    # --- capabilities ---------------------------------------------------------------------------------------------
    def begin(self, num: int) -> None:
        """Forget the past: ``num`` episodes begin."""
        self._seen = self._done = None

    @torch.no_grad()
    def act(self, td: TensorDict, explore: bool = False) -> TensorDict:
        """Return "action" [N, A], within [-1, 1], and remember it.

        Raises:
            ValueError: if another number of episodes runs than before.
        """
        obs = td[OBSERVATION]
        x = self.encoder(obs)[POOLED][:, None]  # [N, 1, X]
        done = x.new_zeros(len(x), 0, self.action_dim)
        if self._seen is not None and self._done is not None:
            if len(self._seen) != len(x):
                raise ValueError(f"{len(self._seen)} episodes run, {len(x)} observations came; begin(num) first")
            first = max(0, self._seen.shape[1] - (self.history - 1))
            x, done = torch.cat([self._seen[:, first:], x], 1), self._done[:, first:]
        latent = self.network(x, done, obs.get(TASK_INDEX, None))[:, -1]  # [N, dim]
        action = self.action_norm.inverse(self.network.outward(latent).float()).clamp(-1, 1)
        self._seen, self._done = x, torch.cat([done, self.action_norm(action)[:, None]], 1)
        return TensorDict({ACTION: action}, batch_size=td.batch_size)

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """Return "context" [B, dim]: what is known when an episode begins with ``obs`` [B]."""
        x = self.encoder(obs)[POOLED][:, None]
        latent = self.network(x, x.new_zeros(len(x), 0, self.action_dim), obs.get(TASK_INDEX, None))[:, 0]
        return TensorDict({"context": latent}, batch_size=obs.batch_size)
