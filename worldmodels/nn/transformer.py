"""Transformer blocks for tokens, with padding. No dropout: a loss is a function of its inputs (resume, CUDA graphs)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from worldmodels.keys import REGISTERS, TOKENS
from worldmodels.nn.rotary import rotated

_SHORT = 400  # tokens: from here on torch's own attention is faster on CPUs, too, and its memory does not grow


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention.

    torch's kernel for CPUs goes through the heads of a batch one by one: for few tokens, all at once is many times
    faster (``benchmarks.attention_speed``).

    Args:
        query: [B, H, N, D]. key, value: [B, H, M, D].
        mask: bool, true where attended to, broadcast to [B, H, N, M]; None: everywhere.

    Returns:
        [B, H, N, D].
    """
    if query.device.type != "cpu" or key.shape[-2] > _SHORT:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, D] to [B, N, D]; padded tokens are not attended to.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"a width of {dim} does not divide among {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        is_valid: Tensor | None = None,
        last: int | None = None,
        rotations: Tensor | None = None,
    ) -> Tensor:
        """Attend within each row of ``x`` [B, N, D] to tokens where ``is_valid`` [B, N] (None: to all).

        With ``is_valid`` [B or 1, N, M] each of N tokens has its own: a causal mask.

        ``last``: only so many of the last tokens ask; the result is theirs, [B, last, D]. ``rotations``: of queries and
        keys, by the places of the N tokens (``worldmodels/nn/rotary.py``).
        """
        if last is None:
            parts = self.qkv(x).chunk(3, -1)
        else:  # the rows of the weight are those of queries, keys and values, in this order
            dim, weight, bias = x.shape[-1], self.qkv.weight, self.qkv.bias
            query = F.linear(x[:, -last:], weight[:dim], bias[:dim])
            parts = (query, *F.linear(x, weight[dim:], bias[dim:]).chunk(2, -1))
        # [B, heads, N, D / heads] each; a chunk a part costs fewer copies in the backward pass than one permutation
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in parts)
        if rotations is not None:
            query = rotated(query, rotations if last is None else rotations[:, -last:])
            key = rotated(key, rotations)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        return self.out(attend(query, key, value, _per_head(is_valid)).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of asking tokens [B, N, D] to a memory [B, M, D].

    Raises:
        ValueError: if ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"a width of {dim} does not divide among {num_heads} heads")
        self.num_heads = num_heads
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """What ``x`` [B, N, D] finds in ``memory`` [B, M, D]: [B, N, D]."""
        parts = (self.query(x), *self.key_value(memory).chunk(2, -1))
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return self.out(attend(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward net, each with a residual; LayerNorm before (pre-norm) or after each (post-norm).

    Without ``has_feed_bias`` the linear maps of the feed-forward net have no bias.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        hidden: int,
        is_pre_norm: bool = True,
        activation: Callable[[], nn.Module] = nn.GELU,
        epsilon: float = 1e-6,
        has_feed_bias: bool = True,
    ) -> None:
        super().__init__()
        self.is_pre_norm = is_pre_norm
        self.attention = Attention(dim, num_heads)
        self.feed_forward = _feed_forward(dim, hidden, activation, has_bias=has_feed_bias)
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(dim, epsilon), nn.LayerNorm(dim, epsilon)

    def forward(
        self,
        x: Tensor,
        is_valid: Tensor | None = None,
        last: int | None = None,
        rotations: Tensor | None = None,
    ) -> Tensor:
        """Map [B, N, D] to [B, N, D], or to [B, last, D]: the last tokens only."""
        rest = x if last is None else x[:, -last:]
        if self.is_pre_norm:
            x = rest + self.attention(self.norm_attention(x), is_valid, last, rotations)
            return x + self._feed(self.norm_feed_forward(x))
        x = self.norm_attention(rest + self.attention(x, is_valid, last, rotations))
        return self.norm_feed_forward(x + self._feed(x))

    def _feed(self, x: Tensor) -> Tensor:
        """The feed-forward net on rows: of 3D input Linear gives a view, and overwriting it costs a copy."""
        return self.feed_forward(x.flatten(0, 1)).view_as(x)


class DecoderBlock(nn.Module):
    """Tokens look at each other, then at a memory, then a feed-forward net; post-norm residuals.

    x = LN(x + attention(x)); x = LN(x + cross-attention(x, memory)); x = LN(x + feed-forward(x)).

    Args:
        dim: width D; num_heads: of both attentions; hidden: width of the feed-forward net; activation, epsilon,
            has_feed_bias: see ``Block``.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        hidden: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        epsilon: float = 1e-5,
        has_feed_bias: bool = True,
    ) -> None:
        super().__init__()
        self.attention, self.cross_attention = Attention(dim, num_heads), CrossAttention(dim, num_heads)
        self.feed_forward = _feed_forward(dim, hidden, activation, has_bias=has_feed_bias)
        self.norm_attention, self.norm_cross, self.norm_feed_forward = (nn.LayerNorm(dim, epsilon) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, is_valid: Tensor | None = None) -> Tensor:
        """Map [B, N, D] to [B, N, D].

        Args:
            x: [B, N, D].
            memory: [B, M, D].
            is_valid: of ``x``, see ``Attention``.
        """
        x = self.norm_attention(x + self.attention(x, is_valid))
        x = self.norm_cross(x + self.cross_attention(x, memory))
        return self.norm_feed_forward(x + self.feed_forward(x))


class Transformer(nn.Module):
    """A stack of blocks, and a final LayerNorm where they are pre-norm.

    Args:
        dim: width D; depth: blocks; num_heads; hidden: width of the feed-forward nets.
        is_pre_norm, has_feed_bias: see ``Block``; activation: factory; epsilon: of the LayerNorms.
        has_final_norm: whether a LayerNorm follows the blocks; None: where they are pre-norm, for post-norm ones end
            in one (seq-JEPA has both).
        is_init_truncated: whether linear weights start normal of standard deviation 0.02, cut at two of them, and
            biases zero; or as torch starts them, by the width of their input, which suits narrow ones better.
        is_init_by_width: whether that standard deviation grows for narrow inputs, see ``init_truncated``.
        is_init_scaled: whether the weights that lead into the residuals of block l = 1, 2, ... start divided by
            sqrt(2 l), so that residuals do not grow with the depth.
        is_checkpointed: whether the backward pass computes every block again instead of keeping what it computed: less
            memory, a third more time.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        num_heads: int,
        hidden: int,
        is_pre_norm: bool = True,
        activation: Callable[[], nn.Module] = nn.GELU,
        epsilon: float = 1e-6,
        has_final_norm: bool | None = None,
        is_init_truncated: bool = True,
        is_init_by_width: bool = False,
        is_init_scaled: bool = False,
        is_checkpointed: bool = False,
        has_feed_bias: bool = True,
    ) -> None:
        super().__init__()
        self.is_checkpointed = is_checkpointed
        options = {"num_heads": num_heads, "hidden": hidden, "is_pre_norm": is_pre_norm, "has_feed_bias": has_feed_bias}
        self.blocks = nn.ModuleList(Block(dim, **options, activation=activation, epsilon=epsilon) for _ in range(depth))
        has_norm = is_pre_norm if has_final_norm is None else has_final_norm
        self.norm = nn.LayerNorm(dim, epsilon) if has_norm else nn.Identity()
        if is_init_truncated:
            self.apply(partial(init_truncated, is_by_width=is_init_by_width))
        if is_init_scaled:
            with torch.no_grad():
                for number, block in enumerate(self.blocks, 1):
                    for weight in (block.attention.out.weight, block.get_parameter("feed_forward.2.weight")):
                        weight.div_(math.sqrt(2 * number))

    def forward(
        self,
        x: Tensor,
        is_valid: Tensor | None = None,
        last: int | None = None,
        rotations: Tensor | None = None,
    ) -> Tensor:
        """Map [B, N, D] to [B, N, D]; rows of padded tokens mean nothing.

        ``last``: only so many of the last tokens are needed; the last block computes no others, [B, last, D].
        ``rotations``: of queries and keys in every block, see ``Attention``.
        """
        for number, block in enumerate(self.blocks, 1):
            few = last if number == len(self.blocks) else None
            if self.is_checkpointed and torch.is_grad_enabled():
                x = checkpoint(block, x, is_valid, few, rotations, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, is_valid, few, rotations)
        return self.norm(x)


def _feed_forward(dim: int, hidden: int, activation: Callable[[], nn.Module], *, has_bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden, bias=has_bias), activation(), nn.Linear(hidden, dim, bias=has_bias))


def _per_head(is_valid: Tensor | None) -> Tensor | None:
    """A mask of keys [B, M], or of keys by query [B or 1, N, M], as ``attend`` takes it."""
    if is_valid is None:
        return None
    return is_valid[:, None, None] if is_valid.ndim == 2 else is_valid[:, None]


def init_truncated(module: nn.Module, *, is_by_width: bool = False) -> None:
    """Draw the weights of a Linear or Embedding from a truncated normal of standard deviation 0.02; zero its bias.

    0.02 suits an input of 768 entries, that of ViT-B. Of a narrow one it makes little: tokens start as small beside the
    codes of their positions, attention sees no differences, and targets of latents collapse (docs/images.md).
    ``is_by_width`` draws with 0.02 sqrt(768 / entries), so that outputs are as large as in ViT-B.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        std = 0.02 * math.sqrt(768 / module.weight.shape[-1]) if is_by_width else 0.02
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens [B, K, D] at ``index`` [B, K] of ``tokens`` [B, N, D]; where the index is -1 (padding), the first."""
    index = index.clamp_min(0)
    return torch.gather(tokens, 1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def all_tokens(out: TensorDict) -> Tensor:
    """Registers, if there are any, and tokens of an encoder's output as one sequence, [B, R + N, D]."""
    return torch.cat([out[name] for name in (REGISTERS, TOKENS) if name in out.keys()], 1)
