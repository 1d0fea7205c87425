"""Predicts the latent of the next view from a sequence of views and the actions between them (seq-JEPA).

Each view is a token: its latent beside the embedded action that leads to the next view. A transformer without
positions aggregates the tokens; an MLP maps the aggregate and the last action to the latent of the view it leads to.

Source: Ghaemi et al., seq-JEPA (arXiv 2505.03176, NeurIPS 2025), section 3; sheet seq_jepa, 1.1 and 1.2. Differs:
no dropout (released: 0.1), for a loss is a function of its inputs here; actions between views are normalised by
statistics of their own, without the row that the released code overwrites.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from worldmodels.nn.projector import Projector
from worldmodels.nn.transformer import Transformer


class Aggregator(nn.Module):
    """Gathers any number of tokens in one: post-norm blocks with a learned [AGG] token, and a final LayerNorm.

    There are no positions: the result does not depend on the order of the tokens.

    Args:
        dim: width D of tokens and of the result; depth: blocks; num_heads.
        hidden_ratio: width of the feed-forward nets over D.
        activation: factory; epsilon: of the LayerNorms.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int = 3,
        num_heads: int = 4,
        hidden_ratio: int = 4,
        activation: Callable[[], nn.Module] = nn.ReLU,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(dim))
        self.blocks = Transformer(
            dim,
            depth=depth,
            num_heads=num_heads,
            hidden=hidden_ratio * dim,
            is_pre_norm=False,
            activation=activation,
            epsilon=epsilon,
            has_final_norm=True,
            is_init_truncated=False,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, M, D] to [B, D]."""
        token = self.token.to(tokens.dtype).expand(len(tokens), 1, -1)
        # [AGG] stands last, where the blocks need compute no other result; without positions that changes nothing.
        return self.blocks(torch.cat([tokens, token], 1), last=1)[:, 0]


class SequencePredictor(nn.Module):
    """Aggregates views and predicts the one that the last action leads to.

    A part without actions has no slot for them: its inputs are narrower by ``action_width``.

    Args:
        dim: width D of the views' latents, and of the prediction.
        action_dim: A, numbers of an action.
        aggregator: factory ``aggregator(width)`` of the aggregator of tokens.
        action_width: E, width of an embedded action.
        hidden: width of the predictor's hidden layer.
        has_actions_between: whether the aggregator sees the actions between views.
        has_last_action: whether the predictor sees the action that leads to the view it predicts.
    """

    def __init__(
        self,
        dim: int,
        action_dim: int,
        *,
        aggregator: Callable[[int], nn.Module] = Aggregator,
        action_width: int = 128,
        hidden: int = 1024,
        has_actions_between: bool = True,
        has_last_action: bool = True,
    ) -> None:
        super().__init__()
        self.has_actions_between, self.has_last_action = has_actions_between, has_last_action
        self.action_width = action_width if has_actions_between or has_last_action else 0
        self.dim = dim + (action_width if has_actions_between else 0)  # of the aggregate
        self.action_net = Projector(action_dim, [action_width], has_last_norm=True) if self.action_width else None
        self.aggregator = aggregator(self.dim)
        self.head = Projector(self.dim + (action_width if has_last_action else 0), [hidden, dim])

    def embed_action(self, action: Tensor) -> Tensor:
        """Embed actions [..., A] as [..., E]; E is 0 where no part sees any."""
        if self.action_net is None:
            return action.new_zeros(*action.shape[:-1], 0)
        return self.action_net(action.flatten(0, -2)).unflatten(0, action.shape[:-1])

    def aggregate(self, latent: Tensor, action: Tensor, *, has_actions: bool = True) -> Tensor:
        """Gather M views in one vector, [B, D + E] (or [B, D]).

        Args:
            latent: [B, M, D] of the views, M at least 1.
            action: [B, M - 1 or more, A]; only the first M - 1, which lie between the views, are looked at.
            has_actions: whether embedded actions are as they are, or zero: a control.

        Raises:
            ValueError: if there is no view.
        """
        num = latent.shape[1]
        if num < 1:
            raise ValueError("a sequence of views needs at least one; got none")
        if not self.has_actions_between:
            return self.aggregator(latent)
        slots = latent.new_zeros(*latent.shape[:2], self.action_width)  # the last view's stays zero: nobody sees a_M
        if has_actions and num > 1:
            between = self.embed_action(action[:, : num - 1]).to(latent.dtype)  # [B, M - 1, E]
            slots = torch.cat([between, slots[:, -1:]], 1)
        return self.aggregator(torch.cat([latent, slots], -1))

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """Predict [B, D], the latent of the view that the last of ``action`` [B, M, A] leads to from ``latent``'s last.

        Args:
            latent: [B, M, D] of the views seen.
            action: [B, M, A], each leads from a view to the next.
        """
        gathered = self.aggregate(latent, action)
        if self.has_last_action:
            gathered = torch.cat([gathered, self.embed_action(action[:, latent.shape[1] - 1]).to(gathered.dtype)], -1)
        return self.head(gathered)
