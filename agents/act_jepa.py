"""ACT-JEPA: a chunk of actions and, from the same context, the latents of the states that they lead through.

    s_x  = E(observation at t)                    context tokens
    s_y  = E_bar(states t .. t + n - 1)           targets, of a moving average of E, no gradient
    s_y^ = P(queries; s_x)                        predicted latents; the predictor sees no actions
    a^   = D(queries; s_x)                        actions
    L    = mean |a^ - a| + mean |s_y^ - s_y|

The latent future is the one that the demonstrator's behaviour brings about: a world model of one policy, not one to
plan with. L_obs needs no actions, so rows without ("has_action") still teach it.

Paper: Vujinovic and Kovacevic, ACT-JEPA (arXiv 2501.14622 v4) and its code; sheet act_jepa, section 1. Differs: what
``perception/context.py`` and ``predictors/chunk.py`` say; rows without actions are an extension.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite

from agents.act import ACT
from agents.imitation import Factory, valid_steps
from perception.context import ContextEncoder, StateSequence
from worldmodels.core import Phase, Span, Target
from worldmodels.keys import LOSS, OBSERVATION, STAT, STATE, TASK_INDEX, TOKENS
from worldmodels.losses import masked_l1
from worldmodels.nn.parameters import matrices_and_vectors


class ACTJEPA(ACT):
    """ACT that also predicts latents of coming states; in one stage, or the latents first and then the actions.

    Args:
        spec: one step.
        predictor: factory ``predictor(dim, n, out_dim)``, as ``decoder``.
        target: factory of the target encoder, ``target(module)``.
        steps: of the run.
        pretrain_share: of the steps, in which L_obs alone trains the encoder; L_act alone follows. 0: both throughout.
            An encoder that both stages train has an optimizer state in each.
        has_raw_targets: whether normalised states are predicted instead of latents, a control.
        **options: see ``ACT``; ``is_encoder_trained`` says whether actions train the encoder after pre-training.

    Raises:
        ValueError: if the encoder is another, or settings contradict each other.
    """

    def __init__(
        self,
        spec: Composite,
        *,
        predictor: Factory,
        target: Factory,
        steps: int,
        pretrain_share: int | float = 0,
        has_raw_targets: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        if not isinstance(self.encoder, ContextEncoder):
            raise ValueError(
                f"act_jepa encodes sequences of states with its encoder; {type(self.encoder).__name__} cannot. "
                "Use encoder=context"
            )
        if not 0 <= pretrain_share < 1:
            raise ValueError(f"agent.pretrain_share={pretrain_share}: a share of the run lies within [0, 1)")
        if not (self.is_encoder_trained or pretrain_share):
            raise ValueError(
                "agent.is_encoder_trained=false: in one stage both losses train the encoder; set agent.pretrain_share, "
                "or use agent=act for a random encoder"
            )
        self.steps, self.turn = steps, round(pretrain_share * steps)
        state_dim = spec[OBSERVATION, STATE].shape[-1]
        self.predictor = predictor(self.encoder.dim, self.chunk, state_dim if has_raw_targets else self.encoder.dim)
        self.target: Target | None = None if has_raw_targets else target(StateSequence(self.encoder, self.chunk))

    # --- the update -----------------------------------------------------------------------------------------------
    def phases(self) -> tuple[Phase, ...]:
        """One phase of both losses, or one of each, one after the other."""
        jepa = matrices_and_vectors({"encoder": self.encoder.parameters(), "predictor": self.predictor.parameters()})
        if not self.turn:
            return (Phase("joint", self.joint_loss, {**jepa, **self.policy_groups()}),)
        return (
            Phase("pretraining", self.observation_loss, jepa, span=Span(0, self.turn, self.steps)),
            Phase("policy", self.action_loss, self.policy_groups(), span=Span(self.turn, self.steps, self.steps)),
        )

    def joint_loss(self, batch: TensorDict) -> TensorDict:
        """L_act and L_obs of one context."""
        context, valid = self.encoder(batch[OBSERVATION][:, 0])[TOKENS], valid_steps(batch)
        action, raw = self.action_errors(self.decoder(context, valid), batch)
        observation, stats = self.observation_error(context, batch)
        losses = {"action": action, "observation": observation}
        return TensorDict({LOSS: losses, STAT: {"action_error": raw, **stats}})

    def observation_loss(self, batch: TensorDict) -> TensorDict:
        """L_obs alone."""
        loss, stats = self.observation_error(self.encoder(batch[OBSERVATION][:, 0])[TOKENS], batch)
        return TensorDict({LOSS: {"observation": loss}, STAT: stats})

    def observation_error(self, context: Tensor, batch: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        """L_obs, the mean of |s_y^ - s_y| over valid steps and entries, and what shows a collapse."""
        obs, valid = batch[OBSERVATION], valid_steps(batch)
        goal = self.encoder.norms[STATE](obs[STATE])  # [B, n, S]
        if self.target is not None:
            goal = self.target(goal, obs[TASK_INDEX][:, 0] if TASK_INDEX in obs.keys() else None, valid)  # [B, n, C]
        prediction = self.predictor(context, valid)
        counts = torch.ones_like(goal[..., 0], dtype=torch.bool) if valid is None else valid
        loss = masked_l1(prediction, goal, counts)
        return loss, goal_stats(loss, goal, counts)

    # --- capabilities ---------------------------------------------------------------------------------------------
    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """Return "context" [B, C] and "target" [B, C], the target encoder's latent of the present state alone."""
        out = super().embed(obs)
        if self.target is None:
            return out
        state = self.encoder.norms[STATE](obs[STATE])[:, None]  # [B, 1, S]
        return out.set("target", self.target(state, obs.get(TASK_INDEX, None))[:, 0])


@torch.no_grad()
def goal_stats(loss: Tensor, goal: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """What a loss must be read against; of targets [B, n, X], steps that count [B, n].

    "target_std": their standard deviation, mean over entries, 0 after a collapse. "error_to_mean" and "error_to_copy":
    the loss over that of the mean target of the batch, and of the target of the first step: 1 says nothing was learned.
    """
    goal, share = goal.detach().float(), counts / counts.sum()  # [B, n]
    mean = (share[..., None] * goal).sum((0, 1))  # [X]
    std = (share[..., None] * (goal - mean).square()).sum((0, 1)).sqrt()
    of_mean, of_copy = (masked_l1(guess, goal, counts) for guess in (mean.expand_as(goal), goal[:, :1].expand_as(goal)))
    error = loss.detach()
    return {"target_std": std.mean(), "error_to_mean": error / of_mean, "error_to_copy": error / of_copy}
