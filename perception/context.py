"""What an imitating policy sees at one moment: the task, the body's own state, the rest of the scene.

Source: ACT-JEPA (arXiv 2501.14622) and its code (sheet act_jepa, sections 1.2 and 1.3). Differs: the scene is a vector
where the paper has image tokens; no dropout (released: 0.1); states can be normalised by statistics of the training
data (released: raw on Meta-World and ManiSkill).
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from perception.normalize import FittedNorm
from worldmodels.core import Encoder
from worldmodels.keys import ENVIRONMENT_STATE, OBSERVATION, POOLED, STATE, TASK_INDEX, TOKENS
from worldmodels.nn.positions import sinusoids
from worldmodels.nn.transformer import Transformer


class ContextEncoder(Encoder):
    """A transformer over one token each of the task, the state and the environment's state, where the data have them.

    Tokens have no position codes: each kind has an embedding of its own.

    Args:
        spec: one step; needs ("observation", "state") [S], may have "environment_state" [E] and "task_index" [].
        dim: width C of tokens; depth, num_heads, hidden: of the post-norm blocks, which a LayerNorm follows.
        num_tasks: rows of the table of tasks.
        is_normalized: whether states are centred and scaled by what ``fit`` is given.

    Raises:
        ValueError: if the spec has no state, or more tasks than the table.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        hidden: int,
        num_tasks: int = 50,
        is_normalized: bool = True,
    ) -> None:
        super().__init__()
        self.norms = vector_norms(spec, "context")
        self.dim, self.is_normalized = dim, is_normalized
        self.embed_task = task_table(spec, dim, num_tasks)
        self.embed = nn.ModuleDict({name: nn.Linear(len(norm.mean), dim) for name, norm in self.norms.items()})
        self.grid = (len(self.norms) + (self.embed_task is not None),)
        self.blocks = Transformer(
            dim,
            depth=depth,
            num_heads=num_heads,
            hidden=hidden,
            is_pre_norm=False,
            activation=nn.ReLU,
            epsilon=1e-5,
            has_final_norm=True,
            is_init_truncated=False,
            has_feed_bias=False,
        )

    def fit(self, statistics: TensorDict) -> None:
        """Take "mean" and "std" of the training data's "state" and "environment_state", if normalising is wanted."""
        if self.is_normalized:
            fit_norms(self.norms, statistics)

    def embedded(self, obs: TensorDict) -> Tensor:
        """Tokens [B, N, C] of ``obs`` [B] before the blocks: task, state, environment's state."""
        tokens = [] if self.embed_task is None else [self.embed_task(obs[TASK_INDEX])]
        tokens += [self.embed[name](norm(obs[name])) for name, norm in self.norms.items()]
        return torch.stack(tokens, 1)

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, N, C] and "pooled" [B, C], their mean; ``keep`` must be None."""
        if keep is not None:
            raise ValueError("a context is seen as a whole: keep must be None")
        tokens = self.blocks(self.embedded(obs))
        return TensorDict({TOKENS: tokens, POOLED: tokens.mean(1)}, batch_size=obs.batch_size)


class FlatState(Encoder):
    """State and environment's state, normalised and joined, as one token; no weights.

    Args:
        spec: one step; needs ("observation", "state") [S], may have "environment_state" [E].
        is_normalized: whether they are centred and scaled by what ``fit`` is given.

    Raises:
        ValueError: if the spec has no state.
    """

    grid = ()

    def __init__(self, spec: Composite, *, is_normalized: bool = True) -> None:
        super().__init__()
        self.norms = vector_norms(spec, "flat_state")
        self.dim, self.is_normalized = sum(len(norm.mean) for norm in self.norms.values()), is_normalized

    def fit(self, statistics: TensorDict) -> None:
        """Take "mean" and "std" of the training data, if normalising is wanted."""
        if self.is_normalized:
            fit_norms(self.norms, statistics)

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, 1, S + E] and "pooled" [B, S + E]; ``keep`` must be None."""
        if keep is not None:
            raise ValueError("a state is a single token: keep must be None")
        flat = torch.cat([norm(obs[name]) for name, norm in self.norms.items()], -1)
        return TensorDict({TOKENS: flat[:, None], POOLED: flat}, batch_size=obs.batch_size)


def vector_norms(spec: Composite, encoder: str) -> nn.ModuleDict:
    """A normaliser each of the state and the environment's state, by name.

    Raises:
        ValueError: in the words of ``encoder``, if the spec has no state.
    """
    seen = spec[OBSERVATION] if OBSERVATION in spec.keys() else Composite()
    if STATE not in seen.keys():
        have = ", ".join(sorted(map(str, seen.keys()))) or "none"
        raise ValueError(
            f"encoder={encoder} needs observation/state in the data; observations have {have}. Use encoder=pixels for "
            "pictures."
        )
    found = [name for name in (STATE, ENVIRONMENT_STATE) if name in seen.keys()]
    return nn.ModuleDict({name: FittedNorm(seen[name].shape[-1]) for name in found})


def fit_norms(norms: nn.ModuleDict, statistics: TensorDict) -> None:
    """Give every normaliser its "mean" and "std"."""
    for name, norm in norms.items():
        norm.fit(statistics["mean", name], statistics["std", name])


def task_table(spec: Composite, dim: int, num_tasks: int) -> nn.Embedding | None:
    """A vector [dim] a task, where the data have tasks.

    Raises:
        ValueError: if they have more than ``num_tasks``.
    """
    if (OBSERVATION, TASK_INDEX) not in spec.keys(True):
        return None
    wanted = getattr(spec[OBSERVATION, TASK_INDEX], "n", 0)
    if wanted > num_tasks:
        raise ValueError(f"num_tasks={num_tasks}: the data have {wanted} tasks")
    return nn.Embedding(num_tasks, dim)


class StateSequence(nn.Module):
    """The same networks on a sequence of states: the path of ACT-JEPA's targets.

    Tokens are the task and every state, the latter with a fixed code of its place, which states in a context have not;
    all look at all.

    Args:
        encoder: whose networks are used.
        num: steps n of the longest sequence.
    """

    code: Tensor

    def __init__(self, encoder: ContextEncoder, num: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("code", sinusoids(num, encoder.dim, is_interleaved=True), persistent=False)  # [n, C]

    def forward(self, state: Tensor, task_index: Tensor | None = None, is_valid: Tensor | None = None) -> Tensor:
        """Latents of states.

        Args:
            state: [B, T, S], normalised; T at most n.
            task_index: int64 [B]; None where the data have no tasks.
            is_valid: bool [B, T], steps that others may look at; None: all.

        Returns:
            [B, T, C].
        """
        num = state.shape[1]
        tokens = self.encoder.embed[STATE](state) + self.code[:num]
        if task_index is not None and self.encoder.embed_task is not None:
            tokens = torch.cat([self.encoder.embed_task(task_index)[:, None], tokens], 1)  # [B, 1 + T, C]
            is_valid = None if is_valid is None else F.pad(is_valid, (1, 0), value=True)
        return self.encoder.blocks(tokens, is_valid)[:, -num:]
