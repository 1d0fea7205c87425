"""Class attention: one token asks others, which do not change (Touvron et al. 2021, CaiT), as DMT-JEPA uses it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from worldmodels.nn.transformer import attend, gather_tokens, init_truncated


class ClassAttention(nn.Module):
    """One block: asking tokens attend to themselves and to a memory, then a feed-forward net; pre-norm residuals.

    Args:
        dim: width D; num_heads: of attention; hidden: width of the feed-forward net; epsilon: of the LayerNorms.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, *, num_heads: int, hidden: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"a width of {dim} does not divide among {num_heads} heads")
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(dim, epsilon), nn.LayerNorm(dim, epsilon)

    def of_all(self, tokens: Tensor, is_valid: Tensor | None) -> Tensor:
        """The mean of ``tokens`` [B, K, D] asks it and all of them; the answer is added to each of them."""
        asking = masked_mean(tokens, is_valid)
        seen = self.norm_attention(torch.cat([asking, tokens], 1))  # [B, 1 + K, D]
        parts = (self.query(seen[:, :1]), self.key(seen), self.value(seen))
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mask = None
        if is_valid is not None:
            mask = torch.cat([torch.ones_like(is_valid[:, :1]), is_valid], 1)[:, None, None]  # [B, 1, 1, 1 + K]
        answer = self.out(attend(query, key, value, mask).transpose(1, 2).flatten(2))  # [B, 1, D]
        return self._feed(tokens + answer)

    def of_few(self, asking: Tensor, memory: Tensor, index: Tensor, is_valid: Tensor) -> Tensor:
        """Each of ``asking`` [B, R, D] asks itself and the tokens ``index`` [B, R, k] of ``memory`` [B, N, D].

        Keys and values are computed once a token of the memory, not once for everyone who asks it.
        """
        seen, own = self.norm_attention(memory), self.norm_attention(asking)
        size, num_asking, num = index.shape
        key, value = (
            torch.cat(
                [of(own)[:, :, None], gather_tokens(of(seen), index.flatten(1)).view(size, num_asking, num, -1)], 2
            )
            for of in (self.key, self.value)
        )  # [B, R, 1 + k, D]
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in (self.query(own), key, value))
        # So few keys that products and sums cost less than a matrix product for every asking token and head.
        scores = (query[:, :, None] * key).sum(-1) * query.shape[-1] ** -0.5  # [B, R, 1 + k, heads]
        is_seen = torch.cat([torch.ones_like(is_valid[..., :1]), is_valid], 2)[..., None]
        share = scores.masked_fill(~is_seen, float("-inf")).softmax(2)
        return self._feed(asking + self.out((share[..., None] * value).sum(2).flatten(2)))

    def _feed(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(self.norm_feed_forward(x))


class AggregationHead(nn.Module):
    """A few blocks of class attention and a LayerNorm.

    Args:
        dim: width D; depth: blocks; num_heads, epsilon: see ``ClassAttention``.
        mlp_ratio: width of the feed-forward nets over D.
        is_init_by_width: see ``worldmodels.nn.transformer.init_truncated``.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        num_heads: int,
        mlp_ratio: int | float = 4,
        epsilon: float = 1e-6,
        is_init_by_width: bool = False,
    ) -> None:
        super().__init__()
        options = {"num_heads": num_heads, "hidden": round(mlp_ratio * dim), "epsilon": epsilon}
        self.blocks = nn.ModuleList(ClassAttention(dim, **options) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, epsilon)
        self.apply(partial(init_truncated, is_by_width=is_init_by_width))

    def forward(
        self,
        tokens: Tensor,
        is_valid: Tensor | None = None,
        memory: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """Let tokens ask, once a block.

        Args:
            tokens: [B, K, D]. Without ``memory`` their mean asks all of them and each gets the answer; the mean
                is taken anew in every block. With it each asks a few tokens of its own.
            is_valid: bool [B, K], which are no padding, or [B, K, k], which of those asked exist.
            memory: [B, N, D]; index: int64 [B, K, k], whom in the memory each token asks; any number where not valid.

        Returns:
            [B, K, D].
        """
        for block in self.blocks:
            if memory is None:
                tokens = block.of_all(tokens, is_valid)
            else:
                assert index is not None
                assert is_valid is not None
                tokens = block.of_few(tokens, memory, index, is_valid)
        return self.norm(tokens)


def masked_mean(tokens: Tensor, is_valid: Tensor | None) -> Tensor:
    """Mean [B, 1, D] of ``tokens`` [B, K, D] where ``is_valid`` [B, K]; of all if it is None."""
    if is_valid is None:
        return tokens.mean(1, keepdim=True)
    weight = is_valid[..., None].to(tokens.dtype)
    return (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)
