"""TD3 on the true reward of one task: the upper reference that a zero-shot agent is held against.

Twin critics learn Q of the task from relabelled data, an actor climbs it: a Gaussian one (TD3), or a one-step actor
tied to a behaviour flow (TD3 + flow-BC). Nothing is learned for other tasks; there is no z.

Paper: Fujimoto et al. 2018 (TD3); Park et al. 2025 (flow Q-learning) for the tie; layout and rates as the baseline of
TD-JEPA's comparison (sheet td_jepa, section 1.8). Differs from TD3 as all agents here: no target copy of the actor, an
actor step at every critic step, and the actor climbs the mean of the critics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Composite

from agents.actors import Actor
from worldmodels.core import Encoder, Objective, Phase, Target, Transform
from worldmodels.keys import ACTION, LOSS, NOISE, OBSERVATION, POOLED, REWARD, STAT, TERMINATED
from worldmodels.nn.mlp import MLP
from worldmodels.predictors.successor import ensemble_mean
from worldmodels.targets import frozen

Factory = Callable[..., Any]


class Critic(nn.Module):
    """An ensemble of values Q(x, a). Built as ``Critic(obs_dim, action_dim, ...)``.

    Args:
        width, depth: hidden layers; num_members: K.
        is_normalized: whether every hidden layer ends with LayerNorm, which keeps values of unseen actions in bounds.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, *, width: int, depth: int, num_members: int = 2, is_normalized: bool = True
    ) -> None:
        super().__init__()
        shape = {"width": width, "depth": depth, "num_members": num_members}
        self.layers = MLP(obs_dim + action_dim, 1, is_normalized=is_normalized, **shape)

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        """Values [K, B] of actions [B, A] for features ``x`` [B, X]."""
        return self.layers(torch.cat([x, action], dim=-1)).squeeze(-1)


class TD3(Objective):
    """One policy for the reward in the data.

    Args:
        spec: one step; needs observation, action and reward (``envs.rewards.Rewards``, ``envs.online.Online``).
        encoder: perception, a factory ``encoder(spec)`` or a module shared with other objectives. It has no target
            copy; where it has weights the critic trains them.
        critic: factory ``critic(obs_dim, action_dim)``; actor: factory ``actor(obs_dim, 1, action_dim)``.
        target: factory of EMA targets.
        discount: gamma.
        pessimism: how much of the critics' disagreement is taken from the mean in targets. With two critics 0.5 is
            their minimum, as in TD3; 0 is their mean.
    """

    window = 2

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Factory | Encoder,
        critic: Factory,
        actor: Factory,
        target: Factory,
        discount: float,
        pessimism: float = 0.5,
    ) -> None:
        super().__init__()
        require_reward(self, spec)
        self.discount, self.pessimism = discount, pessimism
        action_dim = spec[ACTION].shape[-1]
        self.encoder = encoder if isinstance(encoder, nn.Module) else encoder(spec)
        self.critic: Critic = critic(self.encoder.dim, action_dim)
        self.actor: Actor = actor(self.encoder.dim, 1, action_dim)
        self.target: Target = target(self.critic)

    # --- the update ---------------------------------------------------------------------------------------------
    def phases(self) -> tuple[Phase, ...]:
        """The critics first, then the actor against the updated critics."""
        groups = {"critic": [*self.encoder.parameters(), *self.critic.parameters()]}
        return Phase("critic", self.critic_loss, groups), Phase("actor", self.actor_loss, self.actor.groups())

    def transforms(self) -> tuple[Transform, ...]:
        """Every random number of an update, drawn before it."""
        return (self.draw_noise,)

    def draw_noise(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add "noise": that of the actor's actions now and next, and what else the actor wants."""
        return batch.copy().set(NOISE, self.actor.update_noise(batch[ACTION][:, 0], generator))

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Move running statistics."""
        self.encoder.observe(batch[OBSERVATION][:, 0])
        self.encoder.observe(batch[OBSERVATION][:, 1])
        return batch

    def critic_loss(self, batch: TensorDict) -> TensorDict:
        """Mean over critics and batch of (Q(s, a) - r - gamma Q^-(s', a'))^2, a' of the actor in s'."""
        obs, next_obs = batch[OBSERVATION][:, 0], batch[OBSERVATION][:, 1]
        with torch.no_grad():
            next_x = self.encoder(next_obs)[POOLED]
            next_action = self.actor(next_x, only_task(next_x), batch[NOISE, "next_action"])
            future = ensemble_mean(self.target(next_x, next_action), self.pessimism)  # [B]
            discount = self.discount * (~batch[TERMINATED][:, 0]).float()
            target = batch[REWARD][:, 0] + discount * future
        value = self.critic(self.encoder(obs)[POOLED], batch[ACTION][:, 0])  # [K, B]
        loss = (value.float() - target).square().mean()
        return TensorDict({LOSS: {"critic": loss}, STAT: {"target": target.mean(), "target_std": target.std()}})

    def actor_loss(self, batch: TensorDict) -> TensorDict:
        """Climb Q, tied to the data by the actor's behaviour losses. The critic's weights get no gradient."""
        with torch.no_grad():
            x = self.encoder(batch[OBSERVATION][:, 0])[POOLED]
        action = self.actor(x, only_task(x), batch[NOISE, "action"])
        value = frozen(self.critic, x, action)  # [K, B]
        return self.actor.climb(x, action, value, batch)

    # --- capabilities -------------------------------------------------------------------------------------------
    @torch.no_grad()
    def act(self, td: TensorDict, explore: bool = False) -> TensorDict:
        """Act on "observation"; noise comes in ("noise", "action") [B, A] and is zero if absent."""
        x = self.encoder(td[OBSERVATION])[POOLED]
        return self.actor.answer(td, x, only_task(x), explore=explore)

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """Return "state" [B, X], the encoder's features."""
        return TensorDict({"state": self.encoder(obs)[POOLED]}, batch_size=obs.batch_size)


def require_reward(objective: Objective, spec: Composite) -> None:
    """Raise a ValueError if a step of the data has no action or no reward."""
    if missing := [key for key in (ACTION, REWARD) if key not in spec.keys()]:
        have = ", ".join(sorted(map(str, spec.keys())))
        raise ValueError(
            f"{type(objective).__name__} needs {' and '.join(missing)} in the data, which have {have}. Use env=ogbench "
            "with relabel._target_=envs.rewards.Rewards"
        )


def only_task(x: Tensor) -> Tensor:
    """The z [B, 1] of an actor that knows one task, for features ``x`` [B, X]: a constant.

    It is not empty because actors embed [x, z] by Linear, LayerNorm and zero bias, which without a constant beside x
    forget how long x is.
    """
    return x.new_ones(x.shape[0], 1)
