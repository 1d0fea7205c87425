"""The scaffold of zero-shot RL: what all methods that act for a task vector z share.

A method learns task features psi(s) and successor predictions F(phi(s), z, a) of them; the value of task z is
Q = F . z. Here live the task vectors used in training, the actor phase, acting, and the two rules that turn samples of
a reward into a task vector. A method's own file holds its feature loss, its critic target and its choice of rule.

Networks: ``encoder`` (perception; a normaliser for states, a conv net for pixels) -> ``state_net`` (phi), and
``task_encoder`` -> ``task_net`` (psi). Encoders have no target copy; the small networks on top do.

Sources: TD-JEPA (arXiv 2510.00739) and its code's order of one update; Touati, Rapin and Ollivier 2023.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Composite

from agents.actors import Actor
from worldmodels.core import Encoder, Objective, Phase, Target, TaskRule, Transform
from worldmodels.keys import ACTION, NEXT_FEATURES, NOISE, OBSERVATION, POOLED, TASK, TERMINATED
from worldmodels.nn.mlp import project
from worldmodels.predictors.successor import SuccessorPredictor, ensemble_mean
from worldmodels.targets import frozen

Factory = Callable[..., Any]

INFERENCE_CHUNK = 2048  # labelled observations encoded at a time: pictures would not fit in memory all at once


class Transition(NamedTuple):
    """One batch of transitions as plain tensors; features come from the encoders, x for phi and task_x for psi."""

    x: Tensor  # [B, X]
    task_x: Tensor  # [B, X']
    action: Tensor  # [B, A]
    next_x: Tensor  # [B, X], no gradient
    next_task_x: Tensor  # [B, X'], no gradient
    discount: Tensor  # [B], zero where the episode terminated
    z: Tensor  # [B, d]
    noise: TensorDict  # every random number of this update, batch size [B]


class ZeroShotAgent(Objective):
    """An agent that is trained without rewards and asked for any task afterwards.

    Args:
        spec: one step; needs observation and action.
        encoder: perception for the state side, a factory ``encoder(spec)`` or a module shared with other objectives.
        task_encoder: perception for the task side; None shares ``encoder``.
        state_net: factory of phi, ``state_net(in_dim)``; task_net: factory of psi, whose width is that of z.
        predictor: factory of F; actor: factory of the actor; target: factory of EMA targets.
        discount: gamma; goal_ratio: share of training tasks that are goals, the others are uniform on the sphere.
        is_goal_whitened: whether goal features are multiplied by the inverse second moment of psi.
        actor_sees_latent: whether the actor reads phi(s) (DMC) instead of the encoder's features (OGBench).
        pessimism: how much of the ensemble's disagreement is subtracted from its mean.
    """

    window = 2

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Factory | Encoder,
        task_encoder: Factory | Encoder | None,
        state_net: Factory,
        task_net: Factory,
        predictor: Factory,
        actor: Factory,
        target: Factory,
        discount: float,
        goal_ratio: float = 0.5,
        is_goal_whitened: bool = True,
        actor_sees_latent: bool = False,
        pessimism: float = 0.0,
    ) -> None:
        super().__init__()
        if ACTION not in spec.keys():
            have = ", ".join(sorted(map(str, spec.keys())))
            raise ValueError(
                f"{type(self).__name__} needs an action in the spec; this source has {have}. Use env=ogbench."
            )
        self.discount, self.goal_ratio, self.pessimism = discount, goal_ratio, pessimism
        self.is_goal_whitened, self.actor_sees_latent = is_goal_whitened, actor_sees_latent
        self.action_dim = spec[ACTION].shape[-1]

        self.encoder = encoder if isinstance(encoder, nn.Module) else encoder(spec)
        if task_encoder is None:
            self.task_encoder = self.encoder
        else:
            self.task_encoder = task_encoder if isinstance(task_encoder, nn.Module) else task_encoder(spec)
        self.state_net = state_net(self.encoder.dim)
        self.task_net = task_net(self.task_encoder.dim)
        self.task_dim: int = self.task_net.dim
        self.predictor: SuccessorPredictor = predictor(
            self.state_net.dim, self.task_dim, self.action_dim, self.task_dim
        )
        actor_in = self.state_net.dim if actor_sees_latent else self.encoder.dim
        self.actor: Actor = actor(actor_in, self.task_dim, self.action_dim)
        self.register_buffer("second_moment", torch.eye(self.task_dim))  # of psi, uncentred [d, d]

        self.state_target: Target = target(self.state_net)
        self.predictor_target: Target = target(self.predictor)

    # --- what a method supplies ---------------------------------------------------------------------------------
    @abstractmethod
    def representation_loss(self, batch: TensorDict) -> TensorDict:
        """Feature and critic losses of one batch."""

    @abstractmethod
    def representation_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters trained by ``representation_loss``, by learning-rate group."""

    @abstractmethod
    def task_from_reward(self, features: Tensor, reward: Tensor, weight: Tensor | None = None) -> Tensor:
        """Task vector [d] from task features [N, d], rewards [N] and how much each state counts [N]; None is alike.

        ``regress`` or ``average`` for most methods.
        """

    def task_features(self, task_x: Tensor) -> Tensor:
        """Features [B, d] in which rewards are linear; psi unless a method says otherwise."""
        return self.task_net(task_x)

    def task_from_goal(self, features: Tensor, goal: Tensor) -> Tensor | TaskRule:
        """Task vector [d], or a rule, for a goal with features [d], given those of N states [N, d]."""
        moment = features.double().T @ features.double() / features.shape[0]
        return project(torch.linalg.pinv(moment, hermitian=True) @ goal.double()).float()

    def task_from_demonstration(self, shown: Tensor) -> Tensor:
        """Task vector [d] for behaving as in states with features [T, d], for methods whose theory has one.

        Raises:
            ValueError: unless a method says otherwise.
        """
        raise ValueError(
            f"{type(self).__name__} infers no task from a demonstration; methods with a successor measure do: "
            "agent=fb, rldp or c_td_jepa_sym"
        )

    def encoders(self) -> tuple[Encoder, ...]:
        """The distinct perception encoders."""
        return (self.encoder,) if self.task_encoder is self.encoder else (self.encoder, self.task_encoder)

    def critic_groups(self) -> dict[str, list[nn.Parameter]]:
        """The state side and its predictor."""
        return {
            "state_net": [*self.encoder.parameters(), *self.state_net.parameters()],
            "predictor": list(self.predictor.parameters()),
        }

    def task_parameters(self) -> list[nn.Parameter]:
        """The task side: psi, with its encoder where that is its own."""
        own = [] if self.task_encoder is self.encoder else list(self.task_encoder.parameters())
        return [*own, *self.task_net.parameters()]

    # --- the update ---------------------------------------------------------------------------------------------
    def phases(self) -> tuple[Phase, ...]:
        """Representation and critic first, then the actor against the updated networks."""
        return (
            Phase("representation", self.representation_loss, self.representation_groups()),
            Phase("actor", self.actor_loss, self.actor.groups()),
        )

    def transforms(self) -> tuple[Transform, ...]:
        """Every random number of an update, drawn before it."""
        return (self.draw_noise,)

    def draw_noise(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add "noise": task directions, goal permutation and mask, action noise, and what the actor wants."""
        action = batch[ACTION][:, 0]
        num, like = action.shape[0], {"generator": generator, "device": action.device}
        drawn = {
            "task": torch.randn((num, self.task_dim), **like),
            "goal_index": torch.randperm(num, **like),
            "is_goal": torch.rand(num, **like) < self.goal_ratio,
        }
        noise = TensorDict(drawn, batch_size=[num]).update(self.actor.update_noise(action, generator))
        return batch.copy().set(NOISE, noise)

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Move running statistics and choose the task vectors that critic and actor of this update share.

        Goals are the batch's own next states. Their encoding, costly for pictures, is kept: the critic's target needs
        it, and the networks do not change in between.
        """
        obs, next_obs = batch[OBSERVATION][:, 0], batch[OBSERVATION][:, 1]
        for encoder in self.encoders():
            encoder.observe(obs)
            encoder.observe(next_obs)
        next_task_x = self.task_encoder(next_obs)[POOLED]
        goals = self.task_features(next_task_x)  # [B, d], online
        return batch.copy().set(TASK, self.training_tasks(goals, batch[NOISE])).set(NEXT_FEATURES, next_task_x)

    def training_tasks(self, goals: Tensor, noise: TensorDict) -> Tensor:
        """Mix uniform directions with goals: features of the batch's own next states, permuted. Returns [B, d]."""
        goals = goals[noise["goal_index"]]
        if self.is_goal_whitened:
            ridge = 1e-6 * torch.eye(self.task_dim, device=goals.device)
            factor = torch.linalg.cholesky_ex(self.second_moment + ridge).L
            goals = torch.cholesky_solve(goals.T, factor).T
        return torch.where(noise["is_goal"][:, None], project(goals), project(noise["task"]))

    def transition(self, batch: TensorDict) -> Transition:
        """Encode both rows of a window; only the first with gradient. What ``prepare`` kept is not done again."""
        obs, next_obs = batch[OBSERVATION][:, 0], batch[OBSERVATION][:, 1]
        is_shared = self.task_encoder is self.encoder
        x = self.encoder(obs)[POOLED]
        task_x = x if is_shared else self.task_encoder(obs)[POOLED]
        next_task_x = batch.get(NEXT_FEATURES, None)
        with torch.no_grad():
            next_task_x = self.task_encoder(next_obs)[POOLED] if next_task_x is None else next_task_x
            next_x = next_task_x if is_shared else self.encoder(next_obs)[POOLED]
        discount = self.discount * (~batch[TERMINATED][:, 0]).float()
        return Transition(x, task_x, batch[ACTION][:, 0], next_x, next_task_x, discount, batch[TASK], batch[NOISE])

    def next_action(self, step: Transition, next_state: Tensor) -> Tensor:
        """Action [B, A] of the policy of z in the next state; ``next_state`` is the target's phi(s') [B, L]."""
        x = next_state if self.actor_sees_latent else step.next_x
        return self.actor(x, step.z, step.noise["next_action"])

    def bootstrap(self, target: Target, latent: Tensor, step: Transition, action: Tensor) -> Tensor:
        """Prediction [B, D] of a target ensemble, reduced."""
        return ensemble_mean(target(latent, step.z, action), self.pessimism)

    def next_successor(self, step: Transition, next_state: Tensor) -> Tensor:
        """F^-(phi^-(s'), z, a') [B, d], a' of the policy of z; ``next_state`` is the target's phi(s') [B, L]."""
        return self.bootstrap(self.predictor_target, next_state, step, self.next_action(step, next_state))

    @torch.no_grad()
    def track_second_moment(self, features: Tensor) -> None:
        """Move the running second moment of psi towards that of ``features`` [B, d]."""
        moment = (features.T @ features).float() / features.shape[0]
        self.second_moment.lerp_(moment, 0.005)

    def actor_loss(self, batch: TensorDict) -> TensorDict:
        """Climb Q = F . z, tied to the data by the actor's behaviour losses. The critic's weights get no gradient."""
        z = batch[TASK]
        with torch.no_grad():
            x = self.encoder(batch[OBSERVATION][:, 0])[POOLED]
            latent = self.state_net(x)
        x = latent if self.actor_sees_latent else x
        action = self.actor(x, z, batch[NOISE, "action"])
        value = (frozen(self.predictor, latent, z, action) * z).sum(-1)  # [K, B]
        return self.actor.climb(x, action, value, batch)

    # --- capabilities -------------------------------------------------------------------------------------------
    @torch.no_grad()
    def act(self, td: TensorDict, explore: bool = False) -> TensorDict:
        """Act on "observation" for task "z" [B, d]; noise comes in ("noise", "action") [B, A] and is zero if absent."""
        x = self.encoder(td[OBSERVATION])[POOLED]
        x = self.state_net(x) if self.actor_sees_latent else x
        return self.actor.answer(td, x, td[TASK], explore=explore)

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """Return "state" [B, L], the latent phi, and "task" [B, d], the features psi."""
        state = self.state_net(self.encoder(obs)[POOLED])
        task = self.task_features(self.task_encoder(obs)[POOLED])
        return TensorDict({"state": state, "task": task}, batch_size=obs.batch_size)

    @torch.no_grad()
    def infer_task(
        self,
        obs: TensorDict,
        reward: Tensor | None = None,
        goal: TensorDict | None = None,
        demonstration: TensorDict | None = None,
        weight: Tensor | None = None,
    ) -> Tensor | TaskRule:
        """Return the task vector [d] or a rule for a reward, a goal or a demonstration; see ``core.ZeroShot``."""
        if sum(given is not None for given in (reward, goal, demonstration)) != 1:
            raise ValueError("infer_task needs one of a reward, a goal and a demonstration")
        if weight is not None and reward is None:
            raise ValueError("infer_task weighs rewards only: a goal or a demonstration has no weight")
        if demonstration is not None:
            return self.task_from_demonstration(self._features(demonstration))
        features = self._features(obs)  # [N, d]
        if goal is not None:
            return self.task_from_goal(features, self._features(goal.unsqueeze(0))[0])
        return self.task_from_reward(features, reward, weight)

    def _features(self, obs: TensorDict) -> Tensor:
        parts = obs.split(INFERENCE_CHUNK)
        return torch.cat([self.task_features(self.task_encoder(part)[POOLED]) for part in parts])


def regress(features: Tensor, reward: Tensor, weight: Tensor | None = None) -> Tensor:
    """Least-squares task vector: N((Psi^T W Psi)^-1 Psi^T W r), no intercept, in float64; any rank of Psi is allowed.

    Args:
        features: [N, d]; reward: [N].
        weight: [N] diagonal of W, not negative; None is the identity.

    Returns:
        z [d] of norm sqrt(d).

    Source: TD-JEPA section 3; successor features, Barreto et al. 2017. Not for FB (see ``average``).
    """
    psi, r = features.double(), reward.double()
    weighted = psi.T if weight is None else psi.T * weight.double()  # [d, N]
    return project(torch.linalg.pinv(weighted @ psi, hermitian=True) @ (weighted @ r)).float()


def average(features: Tensor, reward: Tensor, weight: Tensor | None = None) -> Tensor:
    """Reward-weighted mean of backward features: N(sum_i w_i r_i B(s_i)), without inverse covariance.

    Source: Touati and Ollivier 2021, where B is orthonormal by its regulariser. Wrong for regressed features.
    """
    reward = reward.double() if weight is None else reward.double() * weight.double()
    return project(reward @ features.double()).float()


def mean_direction(shown: Tensor) -> Tensor:
    """N(mean_t B(s_t)) of a window of a demonstration [T, d]: "tracking", the average reward of being where it was."""
    return project(shown.double().mean(0)).float()
