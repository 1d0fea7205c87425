"""ICVF*: features of an intention-conditioned value function, learned from where behaviour leads.

V(s, g, w) = T(phi(s), psi(w)) . psi(g) is the value of reaching g for someone who intends to reach w. It is trained by
expectile regression, whose advantage asks whether the step was right for w. Successor features of psi then act for any
reward, as in ``agents.sf``; their critic trains phi, too.

Paper: Ghosh, Bhateja and Levine, "RL from Passive Data via Latent Intentions" (2023); layout and constants as in
TD-JEPA's comparison (sheet td_jepa, section 1.8).

Mended here (pitfall 16): a goal's target ends where *it* is reached, not where the intent is; phi, which both losses
train, has one optimizer and takes one step an update. Futures begin one step ahead, so no goal would ever be reached
and V would sink to -1 / (1 - gamma) everywhere: as in ICVF's own sampler, a fifth of goals is the present state (0.2
present, 0.3 random, 0.5 future).
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn

from agents.goals import arrival, choose_goals, draw_goals, is_same
from agents.sf import SuccessorFeatures
from agents.zero_shot import Transition
from worldmodels.core import Target
from worldmodels.keys import FUTURE, INTENT, NOISE, OBSERVATION, POOLED
from worldmodels.losses import expectile
from worldmodels.nn.mlp import MLP, project


class IntentMap(nn.Module):
    """T(phi, psi(w)) = t * (B A (t * phi)) with t = N(MLP(psi(w))): linear in phi, one map an intent and member.

    Args:
        dim: width of phi and psi.
        width, depth: of the MLP; num_members: K.
    """

    def __init__(self, dim: int, *, width: int, depth: int, num_members: int) -> None:
        super().__init__()
        self.gate = MLP(dim, dim, width=width, depth=depth, num_members=num_members)
        self.inner = nn.Parameter(torch.empty(num_members, dim, dim))  # A
        self.outer = nn.Parameter(torch.empty(num_members, dim, dim))  # B
        for member in (*self.inner.data, *self.outer.data):
            nn.init.orthogonal_(member)

    def forward(self, state: Tensor, intent: Tensor) -> Tensor:
        """Map ``state`` phi(s) [B, D] and ``intent`` psi(w) [B, D] to [K, B, D]."""
        gate = project(self.gate(intent))  # [K, B, D]
        return gate * ((gate * state) @ self.inner @ self.outer)


class ICVF(SuccessorFeatures):
    """Successor features of intention-conditioned features.

    Args:
        intent_map: factory of T, ``intent_map(task_dim)``.
        current_goal_ratio: share of goals and intents that are the present state.
        random_goal_ratio: share of the others that are any state of the batch; the rest lie in the trajectory's future.
        intent_goal_ratio: share of goals that are the intent itself.
        expectile: tau of the value regression.
        **scaffold: see ``ZeroShotAgent``; ``state_net`` and ``task_net`` must have one width.
    """

    def __init__(
        self,
        spec: Any,
        *,
        target: Any,
        intent_map: Any,
        random_goal_ratio: float = 0.375,
        current_goal_ratio: float = 0.2,
        intent_goal_ratio: float = 0.5,
        expectile: float = 0.9,
        **scaffold: Any,
    ) -> None:
        super().__init__(spec, target=target, **scaffold)
        if self.state_net.dim != self.task_dim:
            raise ValueError(
                f"ICVF multiplies phi and psi: they need one width, not {self.state_net.dim} and {self.task_dim}; "
                "set agent.state_net.dim to agent.task_net.dim"
            )
        self.random_goal_ratio, self.current_goal_ratio = random_goal_ratio, current_goal_ratio
        self.intent_goal_ratio, self.expectile = intent_goal_ratio, expectile
        self.intent_map: IntentMap = intent_map(self.task_dim)
        self.intent_target: Target = target(self.intent_map)
        self.task_target: Target = target(self.task_net)

    def feature_groups(self) -> dict[str, list[nn.Parameter]]:
        """Psi with its encoder, and T; phi is among the critic's."""
        return {"task_net": self.task_parameters(), "intent_map": list(self.intent_map.parameters())}

    def draw_noise(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Also draw where goals and intents come from, and which goals are the intent."""
        batch = super().draw_noise(batch, generator)
        device, num = batch[NOISE, "action"].device, batch.shape[0]
        drawn = {}
        for name in ("goal", "intent"):
            drawn[name] = draw_goals(num, self.random_goal_ratio, generator, device)
            drawn[name]["is_current"] = torch.rand(num, generator=generator, device=device) < self.current_goal_ratio
        is_intent = torch.rand(num, generator=generator, device=device) < self.intent_goal_ratio
        return batch.set(NOISE, batch[NOISE].copy().update({**drawn, "is_intent": is_intent}))

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Also put the goals and intents of this update in the place of the futures."""
        batch, size = super().prepare(batch), batch.batch_size
        chosen = {}
        for name, future in (("goal", FUTURE), ("intent", INTENT)):
            drawn = batch[NOISE, name]
            chosen[name] = batch[OBSERVATION][:, 0].where(drawn["is_current"], choose_goals(batch, future, drawn))
        goal = chosen["intent"].where(batch[NOISE, "is_intent"], chosen["goal"])
        batch.set(FUTURE, TensorDict({OBSERVATION: goal}, batch_size=size))
        return batch.set(INTENT, TensorDict({OBSERVATION: chosen["intent"]}, batch_size=size))

    def feature_losses(self, batch: TensorDict, step: Transition, state: Tensor) -> dict[str, Tensor]:
        """Expectile regression of V(s, g, w) on r_g + gamma V^-(s', g, w), weighed by the advantage for w."""
        obs, goal_obs, intent_obs = batch[OBSERVATION][:, 0], batch[FUTURE][OBSERVATION], batch[INTENT][OBSERVATION]
        goal_x, intent_x = self.task_encoder(goal_obs)[POOLED], self.task_encoder(intent_obs)[POOLED]
        with torch.no_grad():
            goal, intent = self.task_target(goal_x), self.task_target(intent_x)  # psi^-(g), psi^-(w) [B, d]
            ahead = self.intent_target(self.state_target(step.next_x), intent)  # T^-(phi^-(s'), psi^-(w)) [K, B, d]
            here = self.intent_target(self.state_target(step.x), intent)
            reached = (ahead * intent).sum(-1).amin(0)  # pessimistic [B]
            advantage = arrival(is_same(obs, intent_obs), reached, self.discount) - (here * intent).sum(-1).mean(0)
            target = arrival(is_same(obs, goal_obs), (ahead * goal).sum(-1), self.discount)  # [K, B]
        value = (self.intent_map(state, self.task_net(intent_x)) * self.task_net(goal_x)).sum(-1)  # [K, B]
        return {"intention": expectile(target - value, self.expectile, advantage).mean(1).sum()}
