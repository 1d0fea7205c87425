"""What an imitating policy sees at one moment: the task, the body's own state, the scene, as numbers or as a picture.

Source: ACT-JEPA (arXiv 2501.14622) and its code (sheet act_jepa, sections 1.2 and 1.3). Differs: where the data have no
pictures the scene is a vector; codes of places are in cells of the map (released: in shares of it); no dropout
(released: 0.1); states can be normalised by statistics of the training data (released: raw on Meta-World, ManiSkill).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from perception.normalize import FittedNorm
from worldmodels.core import Encoder
from worldmodels.keys import ENVIRONMENT_STATE, OBSERVATION, PIXELS, POOLED, STATE, TASK_INDEX, TOKENS
from worldmodels.nn.positions import SinusoidalPositions, sinusoids
from worldmodels.nn.transformer import Transformer


class ContextEncoder(Encoder):
    """A transformer over tokens of the task, the state, and of the scene: one of its numbers, or those of a picture.

    Only a picture's tokens have codes of their places; of the others, each kind has an embedding of its own.

    Args:
        spec: one step; needs ("observation", "state") [S], may have "environment_state" [E], "pixels" [C, H, W] and
            "task_index" [].
        dim: width C of tokens; depth, num_heads, hidden: of the post-norm blocks, which a LayerNorm follows.
        picture: factory ``picture(spec)`` of the encoder that makes tokens of "pixels"; needed where they are seen.
        sees: names of the entries that are looked at besides the task. None: the state, and pictures where the data
            have them, else the environment's state. What is not looked at can still be asked of the latents.
        num_tasks: rows of the table of tasks.
        is_normalized: whether states are centred and scaled by what ``fit`` is given.

    Raises:
        ValueError: if the spec has no state, lacks what is to be seen, or has more tasks than the table; if pictures
            are to be seen without ``picture``.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        hidden: int,
        picture: Callable[[Composite], Encoder] | None = None,
        sees: Sequence[str] | None = None,
        num_tasks: int = 50,
        is_normalized: bool = True,
    ) -> None:
        super().__init__()
        seen = entries_seen(spec, sees)
        self.norms = vector_norms(spec, "context", seen)
        self.dim, self.is_normalized = dim, is_normalized
        self.embed_task = task_table(spec, dim, num_tasks)
        self.embed = nn.ModuleDict({name: nn.Linear(len(norm.mean), dim) for name, norm in self.norms.items()})
        self.picture: PictureTokens | None = None
        if PIXELS in seen:
            if picture is None:
                raise ValueError("encoder.picture=null: pictures are to be seen, but nothing makes tokens of them")
            self.picture = PictureTokens(picture(spec), dim)
        num_picture = 0 if self.picture is None else self.picture.num
        self.grid = (len(self.norms) + (self.embed_task is not None) + num_picture,)
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

    def observe(self, obs: TensorDict) -> None:
        """Move running statistics, of pictures' encoders that have some."""
        if self.picture is not None:
            self.picture.encoder.observe(obs)

    def embedded(self, obs: TensorDict) -> Tensor:
        """Tokens [B, N, C] of ``obs`` [B] before the blocks: task, state, environment's state, picture."""
        tokens = [] if self.embed_task is None else [self.embed_task(obs[TASK_INDEX])]
        tokens += [self.embed[name](norm(obs[name])) for name, norm in self.norms.items()]
        single = torch.stack(tokens, 1)
        return single if self.picture is None else torch.cat([single, self.picture(obs)], 1)

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, N, C] and "pooled" [B, C], their mean; ``keep`` must be None."""
        if keep is not None:
            raise ValueError("a context is seen as a whole: keep must be None")
        tokens = self.blocks(self.embedded(obs))
        return TensorDict({TOKENS: tokens, POOLED: tokens.mean(1)}, batch_size=obs.batch_size)


class PictureTokens(nn.Module):
    """Tokens of a picture, in the width of the others.

    Args:
        encoder: of pictures; where its tokens are cells of a map, they are told their places.
        dim: width C.
    """

    def __init__(self, encoder: Encoder, dim: int) -> None:
        super().__init__()
        self.encoder, self.project = encoder, nn.Linear(encoder.dim, dim)
        self.num = math.prod(encoder.grid)  # a single token has the grid ()
        self.places = SinusoidalPositions(encoder.grid, dim) if len(encoder.grid) == 2 else nn.Identity()

    def forward(self, obs: TensorDict) -> Tensor:
        """Tokens [B, N, C] of "pixels" [B, C, H, W]."""
        return self.places(self.project(self.encoder(obs)[TOKENS]))


class FlatState(Encoder):
    """State and environment's state, normalised and joined, as one token; no weights.

    Args:
        spec: one step; needs ("observation", "state") [S], may have "environment_state" [E].
        is_normalized: whether they are centred and scaled by what ``fit`` is given.

    Raises:
        ValueError: if the spec has no state, or pictures, which would not be seen.
    """

    grid = ()

    def __init__(self, spec: Composite, *, is_normalized: bool = True) -> None:
        super().__init__()
        if (OBSERVATION, PIXELS) in spec.keys(True):
            raise ValueError("encoder=flat_state sees no pictures, and these data have some. Use encoder=context")
        self.norms = vector_norms(spec, "flat_state", entries_seen(spec))
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


def entries_seen(spec: Composite, sees: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the entries that an encoder looks at; see ``ContextEncoder``.

    Raises:
        ValueError: if the data lack one that is named, or it cannot be looked at.
    """
    have = list(spec[OBSERVATION].keys()) if OBSERVATION in spec.keys() else []
    known = [name for name in (STATE, ENVIRONMENT_STATE, PIXELS) if name in have]
    if sees is None:
        return tuple(name for name in known if name != ENVIRONMENT_STATE or PIXELS not in known)
    if lacking := [name for name in sees if name not in known]:
        raise ValueError(f"encoder.sees={list(sees)}: the data have no {lacking[0]} to see; they have {known}")
    return tuple(sees)


def vector_norms(spec: Composite, encoder: str, seen: Sequence[str]) -> nn.ModuleDict:
    """A normaliser each of the state and the environment's state, by name, where they are ``seen``.

    Raises:
        ValueError: in the words of ``encoder``, if the state is not among them.
    """
    if STATE not in seen:
        have = ", ".join(sorted(map(str, spec[OBSERVATION].keys()))) if OBSERVATION in spec.keys() else ""
        raise ValueError(
            f"encoder={encoder} needs observation/state in the data, and must see it; observations have "
            f"{have or 'none'}. Use encoder=pixels for pictures."
        )
    found = [name for name in (STATE, ENVIRONMENT_STATE) if name in seen]
    return nn.ModuleDict({name: FittedNorm(spec[OBSERVATION, name].shape[-1]) for name in found})


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
    all look at all. Of the encoder only what states go through is held, so that a target copies no more.

    Args:
        encoder: whose networks are used.
        num: steps n of the longest sequence.
    """

    code: Tensor

    def __init__(self, encoder: ContextEncoder, num: int) -> None:
        super().__init__()
        self.embed, self.embed_task, self.blocks = encoder.embed[STATE], encoder.embed_task, encoder.blocks
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
        tokens = self.embed(state) + self.code[:num]
        if task_index is not None and self.embed_task is not None:
            tokens = torch.cat([self.embed_task(task_index)[:, None], tokens], 1)  # [B, 1 + T, C]
            is_valid = None if is_valid is None else F.pad(is_valid, (1, 0), value=True)
        return self.blocks(tokens, is_valid)[:, -num:]
