"""Encoder for rows of a table: one token a column, register tokens, a transformer.

Notable: columns that are not kept are dropped before the blocks; a missing number has a vector of its own; registers
are always there and belong to no column.

Source: T-JEPA (arXiv 2410.05016), whose tokens are those of FT-Transformer (Gorishniy et al. 2021). Differs: missing
values; no dropout.
"""

from __future__ import annotations

import functools
import math

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from worldmodels.core import Encoder
from worldmodels.keys import CATEGORICAL, MISSING, NUMERICAL, OBSERVATION, POOLED, REGISTERS, TOKENS
from worldmodels.masking import validity
from worldmodels.nn.positions import sinusoids
from worldmodels.nn.transformer import Transformer, gather_tokens, init_truncated

relu = functools.partial(nn.ReLU, inplace=True)  # of hidden layers, which nothing else reads


class ColumnTokens(nn.Module):
    """One token a column [B, N, D], numerical columns first.

    A number x of column j is x w_j + b_j, or a vector of j's own where it is missing; a category is a row of j's table,
    plus b_j.
    """

    offsets: Tensor

    def __init__(self, num_numerical: int, cardinalities: tuple[int, ...], dim: int) -> None:
        super().__init__()
        num, bound = num_numerical + len(cardinalities), 1 / math.sqrt(dim)
        self.num_numerical = num_numerical
        self.bias = nn.Parameter(torch.empty(num, dim).uniform_(-bound, bound))
        if num_numerical:
            self.weight = nn.Parameter(torch.empty(num_numerical, dim).uniform_(-bound, bound))
            self.missing = nn.Parameter(torch.zeros(num_numerical, dim))
        if cardinalities:  # all columns' tables in one, so that a batch is one look-up
            self.table = nn.Embedding(sum(cardinalities), dim)
            starts = torch.tensor((0, *cardinalities[:-1])).cumsum(0)
            self.register_buffer("offsets", starts, persistent=False)

    def forward(self, obs: TensorDict) -> Tensor:
        """Embed rows of batch size [B]."""
        parts = []
        if self.num_numerical:
            numbers = obs[NUMERICAL][..., None] * self.weight  # [B, Dn, D]
            parts.append(torch.where(obs[MISSING][..., None], self.missing, numbers))
        if hasattr(self, "table"):
            parts.append(self.table(obs[CATEGORICAL] + self.offsets))
        return torch.cat(parts, 1) + self.bias


class TabularEncoder(Encoder):
    """Tokens of columns and registers through a post-norm transformer, then LayerNorm, Linear, LayerNorm.

    Args:
        spec: one row; needs ("observation", "numerical") or ("observation", "categorical").
        dim: width H of tokens; depth, num_heads, hidden: of the transformer.
        num_registers: [REG] tokens, which belong to no column.
        has_type_embedding: whether numerical and categorical tokens get a vector of their kind.
        has_index_embedding: whether each column gets a learned vector beside its fixed position code.
        are_registers_columns: whether registers are the first columns of the grid, to be kept or not like any other: a
            slip of T-JEPA's released code, for comparisons with it.

    Raises:
        ValueError: if the spec has no columns.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        dim: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        hidden: int = 256,
        num_registers: int = 1,
        has_type_embedding: bool = True,
        has_index_embedding: bool = False,
        are_registers_columns: bool = False,
    ) -> None:
        super().__init__()
        numbers, cards = table_columns(spec, name="tabular")
        num = numbers + len(cards)
        self.dim, self.grid, self.num_registers = dim, (num,), num_registers
        self.are_registers_columns = are_registers_columns
        if are_registers_columns:
            self.grid, self.num_registers = (num_registers + num,), 0
        self.columns = ColumnTokens(numbers, cards, dim)
        bound = 1 / math.sqrt(dim)
        self.registers = nn.Parameter(torch.empty(num_registers, dim).uniform_(-bound, bound))
        self.register_buffer("positions", sinusoids(num_registers + num, dim, base=100.0, is_interleaved=True))
        self.types = nn.Embedding(2, dim) if has_type_embedding else None
        self.indices = nn.Embedding(num, dim) if has_index_embedding else None
        self.register_buffer("kind", (torch.arange(num) >= numbers).long(), persistent=False)
        self.blocks = Transformer(
            dim, depth=depth, num_heads=num_heads, hidden=hidden, is_pre_norm=False, activation=relu, epsilon=1e-5
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.LayerNorm(dim))
        for module in (self.columns, self.head, self.types, self.indices):
            if module is not None:
                module.apply(init_truncated)

    def tokens(self, obs: TensorDict) -> Tensor:
        """Embedded registers and columns [B, R + N, D], with positions and kinds, before the blocks."""
        tokens = self.columns(obs)
        if self.types is not None:
            tokens = tokens + self.types(self.kind)
        if self.indices is not None:
            tokens = tokens + self.indices.weight
        return torch.cat([self.registers.expand(len(tokens), -1, -1), tokens], 1) + self.positions

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Encode rows.

        Args:
            obs: batch size [B]; "numerical" [B, Dn] and "missing" [B, Dn], "categorical" [B, Dc].
            keep: int64 [B, K] columns to look at, -1 for padding; None looks at all of them.

        Returns:
            "tokens" [B, N or K, D] of columns (of padding: zero), "registers" [B, R, D], "pooled" [B, D], their mean.
        """
        x, mask, registers = self.tokens(obs), None, self.num_registers
        if keep is not None:
            x = torch.cat([x[:, :registers], gather_tokens(x[:, registers:], keep)], 1)
            is_valid = validity(keep)
            mask = None if is_valid is None else F.pad(is_valid, (registers, 0), value=True)
        x = self.head(self.blocks(x, mask))  # [B, R + N, D]
        if mask is None:
            pooled = x.mean(1)
        else:
            x = x * mask[..., None]
            pooled = x.sum(1) / mask.sum(1, keepdim=True)
        out = {TOKENS: x[:, registers:], REGISTERS: x[:, :registers], POOLED: pooled}
        return TensorDict(out, batch_size=obs.batch_size)


class FlatTable(Encoder):
    """Plain features, no weights: scaled numbers, marks of missing ones, one-hot categories. For raw-feature baselines.

    Args:
        spec: one row of a table.
    """

    grid = ()

    def __init__(self, spec: Composite) -> None:
        super().__init__()
        numbers, self.cardinalities = table_columns(spec, name="flat_table")
        self.dim = 2 * numbers + sum(self.cardinalities)

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, 1, F] and "pooled" [B, F]; ``keep`` must be None."""
        if keep is not None:
            raise ValueError("flat features are a single token: keep must be None")
        parts: list[Tensor] = []
        if NUMERICAL in obs.keys():
            parts += [obs[NUMERICAL], obs[MISSING].float()]
        if self.cardinalities:
            codes = obs[CATEGORICAL].unbind(-1)
            parts += [F.one_hot(c, num).float() for c, num in zip(codes, self.cardinalities, strict=True)]
        features = torch.cat(parts, -1)
        return TensorDict({TOKENS: features.unsqueeze(-2), POOLED: features}, batch_size=obs.batch_size)


def table_columns(spec: Composite, *, name: str) -> tuple[int, tuple[int, ...]]:
    """Numerical columns, and the number of codes of each categorical one.

    Raises:
        ValueError: if the spec has neither; ``name`` is the encoder that asks.
    """
    columns = spec[OBSERVATION] if OBSERVATION in spec.keys() else {}
    numbers = columns[NUMERICAL].shape[-1] if NUMERICAL in columns.keys() else 0
    cards = tuple(int(n) for n in columns[CATEGORICAL].nvec) if CATEGORICAL in columns.keys() else ()
    if not numbers and not cards:
        have = sorted(map(str, columns.keys()))
        raise ValueError(f"encoder={name} needs columns of a table; the data has {have}. Use encoder=state or =pixels.")
    return numbers, cards
