"""seq-JEPA: from views seen and the actions between them, predict the latent of the view that the next action leads to.

M views are encoded and gathered in one aggregate, together with the actions between them; from it and the next action
a predictor gives the latent of view M + 1 in an encoder that follows by moving average. The loss is 1 - cosine.
The encoder keeps what transformations change, the aggregate what they do not.

Paper: Ghaemi et al., seq-JEPA (arXiv 2505.03176, NeurIPS 2025). Differs from its released code (sheet seq_jepa, 1 and
4.3): no dropout in the aggregator (a loss is a function of its inputs); the target's momentum moves every step, not
every epoch; see ``worldmodels.predictors.sequence`` for the batch norm of actions. ``has_latent_norm`` is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Target
from worldmodels.keys import ACTION, LATENT, OBSERVATION, POOLED
from worldmodels.losses import cosine_distance
from worldmodels.objectives.two_views import ViewObjective, goal_stats, rows


class SeqJEPA(ViewObjective):
    """Predicts the latent of the last view from the others.

    Args:
        spec: one row of the source.
        predictor: factory ``predictor(dim, action_dim)``, such as ``SequencePredictor``.
        target: factory of the target encoder.
        has_latent_norm: whether latents go through a batch norm without scale and shift. The paper has none; short
            runs collapse to the mean direction without it (sheet seq_jepa, pitfall 5).
        shared: encoder and views; of these the last is predicted, M = num - 1 are seen.

    Raises:
        ValueError: if there are fewer than two views, or one is seen and only actions between views are used.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        predictor: Callable[..., nn.Module],
        target: Callable[[nn.Module], Target],
        has_latent_norm: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        dim = self.encoder.dim
        self.norm = nn.BatchNorm1d(dim, affine=False) if has_latent_norm else nn.Identity()
        self.predictor = predictor(dim, self.action_dim)
        if self.make_views.num == 2 and self.predictor.has_actions_between and not self.predictor.has_last_action:
            raise ValueError(
                "views.num_views=2 shows one view, so no action lies between views and none would be used: take more, "
                "or set has_last_action=true or has_actions_between=false of objective.predictor"
            )
        self.target, self.target_norm = target(self.encoder), target(self.norm)

    def loss(self, batch: TensorDict) -> TensorDict:
        """Mean over samples of 1 - cos(prediction, target) (sheet section 1.1)."""
        obs, num = batch[OBSERVATION], batch[ACTION].shape[1] - 1
        latent = self.encode(rows(obs, slice(0, num)))  # [B M, D]
        prediction = self.predictor(latent.unflatten(0, (-1, num)), batch[ACTION][:, :num])  # [B, D]
        goal = self.anchor(rows(obs, slice(num, num + 1)))  # [B, D]
        losses = {"prediction": cosine_distance(prediction, goal)}
        return self.report(losses, latent, **goal_stats(prediction, goal))

    # --- what evaluators ask for ----------------------------------------------------------------------------------
    def encode(self, obs: TensorDict) -> Tensor:
        """Latents z [B, D] of single views [B]."""
        return self.norm(self.encoder(obs)[POOLED])

    @torch.no_grad()
    def aggregate(self, views: TensorDict, *, has_actions: bool = True, has_pixels: bool = True) -> Tensor:
        """Gather M views in one vector, z_AGG [B, D'].

        Args:
            views: "observation" leaves [B, M, ...] and "action" [B, M, A], of which the last is not looked at; M may
                differ from that of training. "latent" [B, M, D], what ``embed`` gives of each view, saves encoding.
            has_actions: whether embedded actions are as they are, or zero.
            has_pixels: whether latents of views are as they are, or zero.
        """
        latent = self._latents(views)
        return self.predictor.aggregate(
            latent if has_pixels else torch.zeros_like(latent), views[ACTION], has_actions=has_actions
        )

    @torch.no_grad()
    def embed_action(self, action: Tensor) -> Tensor:
        """Embed actions [B, A] as [B, E]; E is 0 where the method is without actions."""
        return self.predictor.embed_action(action)

    @torch.no_grad()
    def foresee(self, views: TensorDict) -> Tensor:
        """Predict the latent [B, D] of the view that the last of "action" [B, M, A] leads to from the M views."""
        return self.predictor(self._latents(views), views[ACTION])

    def imagine(self, latent: Tensor, actions: Tensor) -> Tensor:
        """See ``core.Dynamics``: predicted views are seen from then on. Only directions mean something."""
        views = latent[:, None].expand(-1, actions.shape[1], -1).flatten(0, 1)[:, None]  # [B S, 1, D]
        for step in range(1, actions.shape[2] + 1):
            following = self.predictor(views, actions.flatten(0, 1)[:, :step])  # [B S, D]
            views = torch.cat([views, following[:, None]], 1)
        return views[:, 1:].unflatten(0, actions.shape[:2])  # [B, S, H, D]

    @torch.no_grad()
    def anchor(self, obs: TensorDict) -> Tensor:
        """The target encoder's latents [B, D] of single views [B], which ``foresee`` predicts."""
        return self.target_norm(self.target(obs)[POOLED])

    def _latents(self, views: TensorDict) -> Tensor:
        num = next(iter(views[OBSERVATION].values())).shape[1]
        if num < 1:
            raise ValueError("a sequence of views needs at least one; got none")
        if LATENT in views.keys():
            return views[LATENT]
        return self.encode(rows(views[OBSERVATION], slice(None))).unflatten(0, (-1, num))  # [B, M, D]
