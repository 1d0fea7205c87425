"""Fast adaptation: a zero-shot agent goes on to learn one task, from its reward, as TD3 would.

A finished run already has a policy pi(., z_r) for the task and its value Q(s, a) = T_phi(phi(s), z_r, a) . w, w along
z_r. Both become the start of TD3: z_r stays as it is, the networks learn. The actor keeps its tie to the data; the
features psi and their regulariser are done. Works for every agent on the scaffold, not only for TD-JEPA.

Before the first update the agent acts as the zero-shot agent does, noise by noise, so that curves begin there.

Paper: Bagatella et al., TD-JEPA (arXiv 2510.00739), appendix E.7 (sheet td_jepa, section 2). Differs: the actor and the
predictor still read z_r at its trained norm; only the vector w that reads values off the prediction is rescaled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Composite

from agents.td3 import require_reward
from agents.zero_shot import ZeroShotAgent
from worldmodels.core import Objective, Phase, Transform
from worldmodels.keys import ACTION, LOSS, NOISE, OBSERVATION, REWARD, STAT, TASK


class Adaptation(Objective):
    """TD3 whose critic and actor are a zero-shot agent's for one task.

    Args:
        spec: one step; needs observation, action and reward.
        encoder: must be None: perception is the agent's own.
        start: factory of the trained agent, ``start(spec)`` (see ``worldmodels.pretrained.agent``).
        task: whose reward z_r is inferred from; reward_shift: added to rewards before that.
        num_labelled, label_seed: the states whose rewards define the task; equal to those of the zero-shot evaluation.
        is_encoder_trained: whether phi (and its conv net) learns on, or only predictor and actor.
        scale: how long w is. "max_reward": |w|^2 is the largest reward in the data, as published. "regression": psi . w
            comes nearest to the rewards of the labelled states, so that values begin at their true scale.

    Raises:
        ValueError: if the run holds no agent of the scaffold, or the rewards give w no length.
    """

    window = 2
    z: Tensor
    readout: Tensor

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Any = None,
        start: Callable[[Composite], Any],
        task: str,
        reward_shift: int | float = 1.0,
        num_labelled: int = 10_000,
        label_seed: int = 0,
        is_encoder_trained: bool = True,
        scale: str = "max_reward",
    ) -> None:
        super().__init__()
        require_reward(self, spec)
        if encoder is not None:
            raise ValueError("an adapted agent brings its own encoder; leave encoder=null")
        if scale not in ("max_reward", "regression"):
            raise ValueError(f"scale={scale}: use max_reward or regression")
        agent = start(spec)
        if not isinstance(agent, ZeroShotAgent):
            raise ValueError(f"only zero-shot agents can be adapted; the run trained {type(agent).__name__}")
        self.agent = agent
        self.task, self.reward_shift, self.scale = task, float(reward_shift), scale
        self.num_labelled, self.label_seed = num_labelled, label_seed
        self.is_encoder_trained = is_encoder_trained
        self.register_buffer("z", torch.zeros(agent.task_dim))
        self.register_buffer("readout", torch.zeros(agent.task_dim))  # w

    @torch.no_grad()
    def study(self, source: Any) -> None:
        """Infer z_r as the zero-shot evaluation does, and the scale of values."""
        device = self.z.device
        labelled = source.labelled(self.num_labelled, Generator(device).manual_seed(self.label_seed))
        obs = labelled[OBSERVATION].to(device)
        reward = source.tasks.reward(self.task, labelled).to(device) + self.reward_shift
        self.z.copy_(self.agent.infer_task(obs, reward=reward))
        if self.scale == "max_reward":
            length = max(source.max_reward, 0.0) ** 0.5 / self.z.norm()
        else:
            fitted = self.agent.embed(obs)["task"] @ self.z  # psi . z_r [N]
            length = (fitted @ reward) / fitted.square().sum()
        if not bool(torch.isfinite(length) & (length > 0)):
            raise ValueError(
                f"the rewards of {self.task} give values no scale ({self.scale}: {float(length):.3g}); the largest "
                f"must be positive. reward_shift={self.reward_shift:g} is added to them"
            )
        self.readout.copy_(self.z * length)

    # --- the update ---------------------------------------------------------------------------------------------
    def phases(self) -> tuple[Phase, ...]:
        """The critic first, then the actor against the updated critic."""
        groups: dict[str, list[nn.Parameter]] = {"predictor": list(self.agent.predictor.parameters())}
        if self.is_encoder_trained:
            groups = self.agent.critic_groups()
        return Phase("critic", self.critic_loss, groups), Phase("actor", self.actor_loss, self.agent.actor.groups())

    def transforms(self) -> tuple[Transform, ...]:
        """Every random number of an update, drawn before it."""
        return (self.draw_noise,)

    def draw_noise(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add "noise": that of the actor's actions now and next, and what else the actor wants."""
        return batch.copy().set(NOISE, self.agent.actor.update_noise(batch[ACTION][:, 0], generator))

    def prepare(self, batch: TensorDict) -> TensorDict:
        """Give every sample the same z_r. Statistics of observations stay those of the run."""
        return self.with_task(batch)

    def critic_loss(self, batch: TensorDict) -> TensorDict:
        """Mean over members and batch of (Q(s, a) - r - gamma Q^-(s', a'))^2, Q = T_phi . w, a' of pi(., z_r) in s'."""
        agent, step = self.agent, self.agent.transition(batch)
        with torch.no_grad():
            future = agent.next_successor(step, agent.state_target(step.next_x))  # [B, d]
            target = batch[REWARD][:, 0] + step.discount * (future @ self.readout)  # [B]
        state = agent.state_net(step.x)
        state = state if self.is_encoder_trained else state.detach()
        value = agent.predictor(state, step.z, step.action).float() @ self.readout  # [K, B]
        loss = (value - target).square().mean()
        return TensorDict({LOSS: {"critic": loss}, STAT: {"target": target.mean(), "target_std": target.std()}})

    def actor_loss(self, batch: TensorDict) -> TensorDict:
        """The zero-shot agent's own, for z_r: climb Q, stay near the data."""
        return self.agent.actor_loss(batch)

    # --- capabilities -------------------------------------------------------------------------------------------
    def with_task(self, td: TensorDict) -> TensorDict:
        """``td`` of batch size [B] with "z" [B, d]."""
        return td.copy().set(TASK, self.z.expand(td.batch_size[0], -1))

    def act(self, td: TensorDict, explore: bool = False) -> TensorDict:
        """Act on "observation" as pi(., z_r); see ``ZeroShotAgent.act``."""
        return self.agent.act(self.with_task(td), explore)

    def embed(self, obs: TensorDict) -> TensorDict:
        """The agent's representations."""
        return self.agent.embed(obs)
