"""RND: an agent that is paid for what it has not seen, to gather data that covers a body's states.

A random network f looks at states and never changes; a second one, g, learns to say what f says of them. Where g is
still wrong the agent has been seldom: that error is its reward. TD3 climbs it; nothing else is ever paid.

Papers: Burda et al. 2018 (random network distillation); Yarats et al. 2022 (ExoRL, whose data this explorer made).
Differs from Burda: TD3 from a store instead of PPO, one critic scale, and the error is divided by the running standard
deviation of errors, as in ExoRL, not of returns. Both running statistics forget (the framework's normaliser).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite, Unbounded

from agents.td3 import TD3
from perception.normalize import RunningNorm
from worldmodels.core import Encoder, Objective, Phase, Transform
from worldmodels.keys import LOSS, OBSERVATION, POOLED, REWARD, STAT
from worldmodels.targets import Frozen

Factory = Callable[..., Any]


class RND(Objective):
    """TD3 whose reward is how wrong a network is about a random one, in the state reached.

    Args:
        spec: one step; needs observation and action, and must have no reward (``envs.online.Online`` without a task).
        encoder: perception without weights, such as a normaliser: what learns would make known states new again.
        net: factory of f and g, ``net(obs_dim)`` (worldmodels.nn.mlp.MLP).
        critic, actor, target, discount, pessimism: of ``agents.td3.TD3``.
        clip: features are clipped to this many standard deviations before f and g.
        momentum: of the running standard deviation of errors.

    Raises:
        ValueError: if the data have a reward, or the encoder has weights that learn.
    """

    window = 2

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Factory | Encoder,
        net: Factory,
        critic: Factory,
        actor: Factory,
        target: Factory,
        discount: float,
        pessimism: float = 0.5,
        clip: int | float = 5.0,
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        if REWARD in spec.keys():
            raise ValueError("rnd rewards itself, but these data have a reward: relabel.task=null")
        spec = spec.clone()
        spec[REWARD] = Unbounded((), device=spec.device)
        learner = {"critic": critic, "actor": actor, "target": target, "discount": discount, "pessimism": pessimism}
        self.agent = TD3(spec, encoder=encoder, **learner)
        if any(parameter.requires_grad for parameter in self.agent.encoder.parameters()):
            raise ValueError("rnd needs an encoder without weights, or states would become new again: encoder=state")
        self.clip = float(clip)
        self.predictor: nn.Module = net(self.agent.encoder.dim)  # g
        self.random = Frozen(net(self.agent.encoder.dim))  # f
        self.errors = RunningNorm(1, momentum=momentum, epsilon=1e-16)  # a floor of 1e-8 for their deviation

    # --- the update ---------------------------------------------------------------------------------------------
    def phases(self) -> tuple[Phase, ...]:
        """The predictor, then critics and actor; all with the reward from before the predictor's step."""
        return (
            Phase("predictor", self.predictor_loss, {"predictor": list(self.predictor.parameters())}),
            *self.agent.phases(),
        )

    def transforms(self) -> tuple[Transform, ...]:
        """TD3's noise."""
        return self.agent.transforms()

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Move running statistics and add "reward" [B, 1] of the first row; the last row's is not known."""
        batch = self.agent.prepare(batch)
        error = self.novelty(batch[OBSERVATION][:, 1])[:, None]  # [B, 1]
        self.errors.observe(error)
        return batch.copy().set(REWARD, error * torch.rsqrt(self.errors.var + self.errors.epsilon))

    def predictor_loss(self, batch: TensorDict) -> TensorDict:
        """Mean novelty of the states reached: g learns them."""
        stats = {"intrinsic": batch[REWARD].mean(), "intrinsic_std": batch[REWARD].std()}
        return TensorDict({LOSS: {"novelty": self.novelty(batch[OBSERVATION][:, 1]).mean()}, STAT: stats})

    def novelty(self, obs: TensorDict) -> Tensor:
        """|f(s) - g(s)|^2, as a mean over outputs: [B] for observations [B], not normalised."""
        x = self.agent.encoder(obs)[POOLED].clamp(-self.clip, self.clip)
        return (self.random(x) - self.predictor(x)).float().square().mean(-1)

    # --- capabilities -------------------------------------------------------------------------------------------
    def act(self, td: TensorDict, explore: bool = False) -> TensorDict:
        """Act on "observation"; see ``TD3.act``."""
        return self.agent.act(td, explore)

    def embed(self, obs: TensorDict) -> TensorDict:
        """Return "state" [B, X], the encoder's features."""
        return self.agent.embed(obs)
