"""Actors conditioned on a task vector: a Gaussian around a tanh mean, and a one-step actor distilled from a flow.

An actor never draws random numbers itself: it is a function of its inputs and of noise that a transform drew, which
keeps whole updates compilable and resume exact.

Sources: TD-JEPA (arXiv 2510.00739) appendix; Park et al. 2025 (flow Q-learning) for the flow variant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn

from worldmodels.keys import ACTION, LOSS, NOISE, STAT
from worldmodels.nn.mlp import MLP, Embedding


class Actor(nn.Module, ABC):
    """Maps (features, z, noise) to actions within [-1, 1]. Built as ``Actor(obs_dim, task_dim, action_dim, ...)``."""

    scales_value: bool
    """Whether Q is divided by its mean magnitude, so that it can be traded against a behaviour loss."""

    def __init__(self, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim

    @abstractmethod
    def forward(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Sample actions [B, A] for features ``x`` [B, X], tasks ``z`` [B, d] and standard normal ``noise`` [B, A]."""

    @abstractmethod
    def best(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Actions [B, A] to take when being judged."""

    @abstractmethod
    def behavior_losses(self, x: Tensor, proposed: Tensor, action: Tensor, noise: TensorDict) -> dict[str, Tensor]:
        """What ties ``proposed`` [B, A] to the data's ``action`` [B, A]; named scalars, empty for a free actor."""

    def draw_noise(self, action: Tensor, generator: Generator) -> dict[str, Tensor]:
        """Draw this actor's own random numbers for a batch with ``action`` [B, A]."""
        return {}

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by learning-rate group."""
        return {"actor": list(self.parameters())}

    # --- what agents share ----------------------------------------------------------------------------------------
    def update_noise(self, action: Tensor, generator: Generator) -> TensorDict:
        """Draw what an update with this actor needs, for a batch with ``action`` [B, A].

        Returns:
            batch size [B]: noise of its actions now, "action", and in the next state, "next_action", [B, A]; and its
            own.
        """
        like = {"generator": generator, "device": action.device}
        draws = {name: torch.randn(action.shape, **like) for name in ("action", "next_action")}
        return TensorDict({**draws, **self.draw_noise(action, generator)}, batch_size=action.shape[:1])

    def climb(self, x: Tensor, proposed: Tensor, value: Tensor, batch: TensorDict) -> TensorDict:
        """Losses and statistics of actions that shall have a high value and stay near the data's.

        Args:
            x: features [B, X] that the actions ``proposed`` [B, A] are for.
            value: Q [K, B] of these actions, by each member of an ensemble.
            batch: windows with "action" and "noise".
        """
        scale = value.detach().abs().mean() if self.scales_value else 1.0
        ties = self.behavior_losses(x, proposed, batch[ACTION][:, 0], batch[NOISE])
        stats = {"q": value.detach().mean(), "action_abs": proposed.detach().abs().mean()}
        return TensorDict({LOSS: {"value": -value.mean() / scale, **ties}, STAT: stats})

    def answer(self, td: TensorDict, x: Tensor, z: Tensor, *, explore: bool) -> TensorDict:
        """``td`` [B] with "action" for features ``x`` [B, X] and tasks ``z`` [B, d]: sampled, or the best.

        Noise comes in ("noise", "action") [B, A] of ``td`` and is zero if absent.
        """
        noise = td.get((NOISE, ACTION), None)
        noise = x.new_zeros(x.shape[0], self.action_dim) if noise is None else noise
        choose = self if explore else self.best
        return td.copy().set(ACTION, choose(x, z, noise))


class GaussianActor(Actor):
    """tanh mean plus clipped Gaussian noise of fixed standard deviation (TD3 style); no tie to the data.

    Args:
        obs_dim, task_dim, action_dim: widths of features, z and action.
        width, depth: of the trunk; std: of the noise; clip: its largest magnitude.
    """

    scales_value = False

    def __init__(
        self,
        obs_dim: int,
        task_dim: int,
        action_dim: int,
        *,
        width: int,
        depth: int,
        std: float = 0.2,
        clip: float = 0.3,
    ) -> None:
        super().__init__(action_dim)
        self.std, self.clip = std, clip
        self.embed_task = Embedding(obs_dim + task_dim, width=width)
        self.embed_obs = Embedding(obs_dim, width=width)
        self.trunk = MLP(self.embed_task.dim + self.embed_obs.dim, action_dim, width=width, depth=depth)

    def mean(self, x: Tensor, z: Tensor) -> Tensor:
        """Mean action [B, A]."""
        task = self.embed_task(torch.cat([x, z], dim=-1))
        return torch.tanh(self.trunk(torch.cat([task, self.embed_obs(x)], dim=-1)))

    def forward(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Sample; the final clamp passes gradients straight through."""
        action = self.mean(x, z) + (self.std * noise).clamp(-self.clip, self.clip)
        return action + (action.clamp(-1 + 1e-6, 1 - 1e-6) - action).detach()

    def best(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Take the mean."""
        return self.mean(x, z)

    def behavior_losses(self, x: Tensor, proposed: Tensor, action: Tensor, noise: TensorDict) -> dict[str, Tensor]:
        """Nothing: this actor only climbs Q."""
        return {}


class FlowActor(Actor):
    """One-step actor a = mu(x, z, n) kept close to a behaviour flow that is learned beside it.

    The vector field v(x, a_t, t) is not conditioned on z: it models what the data does. The one-step actor starts from
    the same noise as the flow and is pulled to where the flow ends, while Q pulls it to better actions.

    Args:
        obs_dim, task_dim, action_dim: widths of features, z and action.
        width, depth: of the one-step actor's trunk.
        field_width, field_depth: of the vector field.
        num_flow_steps: Euler steps from noise to action.
    """

    scales_value = True

    def __init__(
        self,
        obs_dim: int,
        task_dim: int,
        action_dim: int,
        *,
        width: int,
        depth: int,
        field_width: int,
        field_depth: int,
        num_flow_steps: int = 10,
    ) -> None:
        super().__init__(action_dim)
        self.num_flow_steps = num_flow_steps
        self.embed_task = Embedding(obs_dim + task_dim + action_dim, width=width)
        self.embed_obs = Embedding(obs_dim + action_dim, width=width)
        self.trunk = MLP(self.embed_task.dim + self.embed_obs.dim, action_dim, width=width, depth=depth)
        self.field = MLP(obs_dim + action_dim + 1, action_dim, width=field_width, depth=field_depth, activation=nn.GELU)

    def forward(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Sample in one step from ``noise``."""
        task = self.embed_task(torch.cat([x, z, noise], dim=-1))
        obs = self.embed_obs(torch.cat([x, noise], dim=-1))
        return torch.tanh(self.trunk(torch.cat([task, obs], dim=-1)))

    def best(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Sample: this actor is stochastic when judged, too."""
        return self(x, z, noise)

    @torch.no_grad()
    def flow(self, x: Tensor, noise: Tensor) -> Tensor:
        """Integrate the vector field from ``noise`` [B, A] at t = 0 to a behaviour action [B, A] at t = 1."""
        action = noise
        for step in range(self.num_flow_steps):
            time = torch.full_like(action[:, :1], step / self.num_flow_steps)
            action = action + self.field(torch.cat([x, action, time], dim=-1)) / self.num_flow_steps
        return action.clamp(-1, 1)

    def behavior_losses(self, x: Tensor, proposed: Tensor, action: Tensor, noise: TensorDict) -> dict[str, Tensor]:
        """Flow matching to the data's actions, and the distance of ``proposed`` to the flow from the same noise."""
        start, time = noise["flow_start"], noise["flow_time"]  # [B, A], [B, 1]
        point = (1 - time) * start + time * action
        velocity = self.field(torch.cat([x, point, time], dim=-1))
        return {
            "flow_matching": (velocity - (action - start)).square().mean(),
            "distillation": (proposed - self.flow(x, noise["action"])).square().mean(),
        }

    def draw_noise(self, action: Tensor, generator: Generator) -> dict[str, Tensor]:
        """Draw where each flow starts and at which time it is matched."""
        like = {"generator": generator, "device": action.device}
        return {
            "flow_start": torch.randn(action.shape, **like),
            "flow_time": torch.rand((action.shape[0], 1), **like),
        }

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The vector field has a learning rate of its own."""
        field = list(self.field.parameters())
        one_step = [*self.embed_task.parameters(), *self.embed_obs.parameters(), *self.trunk.parameters()]
        return {"actor": one_step, "vector_field": field}
