"""The yardstick: TD-JEPA (asymmetric, OGBench states, flow-BC actor) written the straightforward way.

What one writes first, directly from the equations: a module for every ensemble member, called in a Python loop; an Adam
for each network; targets that follow parameter by parameter; the predictor's weights left to collect gradients in the
actor's backward pass. Nothing is made slow on purpose, and nothing of the package is used, so it serves twice: speed is
measured against it (``update_speed.py``), and losses are compared with it number by number (tests/golden).

Source: Bagatella et al., TD-JEPA, arXiv 2510.00739, algorithm 1 and appendix; update order of its released code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class YardstickConfig:
    """Sizes and coefficients; the defaults are the paper's for OGBench states (manipulation)."""

    state_dim: int = 50  # width of phi
    task_dim: int = 50  # width of psi and of z
    encoder_width: int = 512
    encoder_depth: int = 4
    predictor_width: int = 512
    predictor_depth: int = 2
    num_members: int = 2
    actor_width: int = 512
    actor_depth: int = 2
    field_width: int = 512
    field_depth: int = 4
    flow_steps: int = 10
    discount: float = 0.99
    tau: float = 0.005
    lr: float = 1e-4
    lr_field: float = 3e-4
    weight_state: float = 1.0  # lambda_phi
    weight_task: float = 1.0  # lambda_psi
    bc_weight: float = 3.0  # alpha; 0.3 for navigation
    goal_ratio: float = 0.5


def project(x: Tensor) -> Tensor:
    """Scale rows to norm sqrt(D)."""
    return math.sqrt(x.shape[-1]) * F.normalize(x, dim=-1)


def dense(in_dim: int, out_dim: int, gain: float = 1.0) -> nn.Linear:
    """Linear layer, orthogonal weight, zero bias."""
    layer = nn.Linear(in_dim, out_dim)
    nn.init.orthogonal_(layer.weight, gain=gain)
    nn.init.zeros_(layer.bias)
    return layer


def trunk(in_dim: int, out_dim: int, width: int, depth: int, act: type[nn.Module], gain: float = 1.0) -> nn.Sequential:
    """Hidden layers with one activation, linear output."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [dense(width if i else in_dim, width, gain), act()]
    return nn.Sequential(*layers, dense(width, out_dim, gain))


def embedding(in_dim: int, width: int, gain: float = 1.0) -> nn.Sequential:
    """Linear, LayerNorm, tanh, then half the width."""
    half = dense(width, width // 2, gain)
    return nn.Sequential(dense(in_dim, width, gain), nn.LayerNorm(width), nn.Tanh(), half, nn.ReLU())


class LatentEncoder(nn.Module):
    """phi or psi."""

    def __init__(self, in_dim: int, out_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Sequential(dense(in_dim, width), nn.LayerNorm(width), nn.Tanh())
        self.rest = trunk(width, out_dim, width, depth - 1, nn.ReLU)

    def forward(self, obs: Tensor) -> Tensor:
        return project(self.rest(self.first(obs)))


class PredictorMember(nn.Module):
    """One member of T_phi or T_psi."""

    def __init__(self, latent_dim: int, task_dim: int, action_dim: int, out_dim: int, width: int, depth: int) -> None:
        super().__init__()
        gain = math.sqrt(2)
        self.embed_task = embedding(latent_dim + task_dim, width, gain)
        self.embed_action = embedding(latent_dim + action_dim, width, gain)
        self.trunk = trunk(width, out_dim, width, depth, nn.ReLU, gain)

    def forward(self, latent: Tensor, z: Tensor, action: Tensor) -> Tensor:
        task = self.embed_task(torch.cat([latent, z], dim=1))
        act = self.embed_action(torch.cat([latent, action], dim=1))
        return self.trunk(torch.cat([act, task], dim=1))


class Predictor(nn.Module):
    """K members in a list."""

    def __init__(self, num_members: int, *sizes: int) -> None:
        super().__init__()
        self.members = nn.ModuleList([PredictorMember(*sizes) for _ in range(num_members)])

    def forward(self, latent: Tensor, z: Tensor, action: Tensor) -> Tensor:
        return torch.stack([member(latent, z, action) for member in self.members])  # [K, B, out]


class NoiseActor(nn.Module):
    """One-step actor: (observation, z, noise) to an action."""

    def __init__(self, obs_dim: int, task_dim: int, action_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed_task = embedding(obs_dim + task_dim + action_dim, width)
        self.embed_obs = embedding(obs_dim + action_dim, width)
        self.trunk = trunk(width, action_dim, width, depth, nn.ReLU)

    def forward(self, obs: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        task = self.embed_task(torch.cat([obs, z, noise], dim=1))
        embedded = self.embed_obs(torch.cat([obs, noise], dim=1))
        return torch.tanh(self.trunk(torch.cat([task, embedded], dim=1)))


def orthonormality(latent: Tensor) -> Tensor:
    """0.5 * mean over i != j of (e_i . e_j)^2, minus the mean of e_i . e_i."""
    gram = latent @ latent.T
    off_diagonal = ~torch.eye(len(latent), dtype=torch.bool, device=latent.device)
    return 0.5 * (gram**2)[off_diagonal].mean() - torch.diagonal(gram).mean()


class TDJEPAYardstick:
    """The agent and its update."""

    def __init__(self, obs_dim: int, action_dim: int, config: YardstickConfig, device: torch.device | str) -> None:
        c = self.config = config
        self.device, self.action_dim = torch.device(device), action_dim
        self.phi = LatentEncoder(obs_dim, c.state_dim, c.encoder_width, c.encoder_depth).to(device)
        self.psi = LatentEncoder(obs_dim, c.task_dim, c.encoder_width, c.encoder_depth).to(device)
        width, depth = c.predictor_width, c.predictor_depth
        sizes_phi = (c.state_dim, c.task_dim, action_dim, c.task_dim, width, depth)
        sizes_psi = (c.task_dim, c.task_dim, action_dim, c.state_dim, width, depth)
        self.predictor_phi = Predictor(c.num_members, *sizes_phi).to(device)
        self.predictor_psi = Predictor(c.num_members, *sizes_psi).to(device)
        self.actor = NoiseActor(obs_dim, c.task_dim, action_dim, c.actor_width, c.actor_depth).to(device)
        field_in = obs_dim + action_dim + 1
        self.vector_field = trunk(field_in, action_dim, c.field_width, c.field_depth, nn.GELU).to(device)
        self.second_moment = torch.eye(c.task_dim, device=device)
        self.copy_targets()

        self.optim_phi = torch.optim.Adam(self.phi.parameters(), lr=c.lr)
        self.optim_psi = torch.optim.Adam(self.psi.parameters(), lr=c.lr)
        self.optim_predictor_phi = torch.optim.Adam(self.predictor_phi.parameters(), lr=c.lr)
        self.optim_predictor_psi = torch.optim.Adam(self.predictor_psi.parameters(), lr=c.lr)
        self.optim_actor = torch.optim.Adam(self.actor.parameters(), lr=c.lr)
        self.optim_field = torch.optim.Adam(self.vector_field.parameters(), lr=c.lr_field)

    def copy_targets(self) -> None:
        """Set every target to its online network."""
        self.phi_target = copy.deepcopy(self.phi).requires_grad_(False)
        self.psi_target = copy.deepcopy(self.psi).requires_grad_(False)
        self.predictor_phi_target = copy.deepcopy(self.predictor_phi).requires_grad_(False)
        self.predictor_psi_target = copy.deepcopy(self.predictor_psi).requires_grad_(False)

    def networks(self) -> dict[str, nn.Module]:
        """The trained networks by name."""
        names = ("phi", "psi", "predictor_phi", "predictor_psi", "actor", "vector_field")
        return {name: getattr(self, name) for name in names}

    def draw_noise(self, like: Tensor) -> dict[str, Tensor]:
        """Every random number of one update, from torch's global generator; ``like`` is the actions [B, A]."""
        batch_size, device, dtype = len(like), like.device, like.dtype
        return {
            "task": torch.randn(batch_size, self.config.task_dim, device=device, dtype=dtype),
            "goal_index": torch.randperm(batch_size, device=device),
            "is_goal": torch.rand(batch_size, device=device) < self.config.goal_ratio,
            "next_action": torch.randn_like(like),
            "action": torch.randn_like(like),
            "flow_start": torch.randn_like(like),
            "flow_time": torch.rand(batch_size, 1, device=device, dtype=dtype),
        }

    @torch.no_grad()
    def sample_z(self, next_obs: Tensor, noise: dict[str, Tensor]) -> Tensor:
        """Random directions mixed with goals from the batch, whitened by the second moment of psi."""
        goal = self.psi(next_obs[noise["goal_index"]])
        ridge = 1e-6 * torch.eye(self.config.task_dim, device=goal.device, dtype=goal.dtype)
        goal = goal @ torch.linalg.inv(self.second_moment + ridge)
        return torch.where(noise["is_goal"][:, None], project(goal), project(noise["task"]))

    def update(self, batch: dict[str, Tensor], noise: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """One full update: critic and encoders, then actor, then targets.

        Args:
            batch: "observation" [B, S], "action" [B, A], "next_observation" [B, S], "terminated" [B] bool.
            noise: what ``draw_noise`` returns; drawn here when None.

        Returns:
            The unweighted losses, detached scalars.
        """
        if noise is None:
            noise = self.draw_noise(batch["action"])
        z = self.sample_z(batch["next_observation"], noise)
        losses = self.update_representation(batch, z, noise)
        losses.update(self.update_actor(batch, z, noise))
        self.update_targets()
        return {name: loss.detach() for name, loss in losses.items()}

    def update_representation(self, batch: dict[str, Tensor], z: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """TD losses of both predictors and the regularisers; one backward, four Adams."""
        obs, action, next_obs = batch["observation"], batch["action"], batch["next_observation"]
        with torch.no_grad():
            gamma = self.config.discount * (1 - batch["terminated"].to(obs.dtype))[:, None]
            next_action = self.actor(next_obs, z, noise["next_action"])
            next_phi, next_psi = self.phi_target(next_obs), self.psi_target(next_obs)
            target_phi = next_psi + gamma * self.predictor_phi_target(next_phi, z, next_action).mean(0)
            target_psi = next_phi + gamma * self.predictor_psi_target(next_psi, z, next_action).mean(0)

        phi, psi = self.phi(obs), self.psi(obs)
        losses = {
            "td_state": ((self.predictor_phi(phi, z, action) - target_phi) ** 2).sum(-1).mean(),
            "td_task": ((self.predictor_psi(psi, z, action) - target_psi) ** 2).sum(-1).mean(),
            "orthonormality_state": orthonormality(phi),
            "orthonormality_task": orthonormality(psi),
        }
        loss = losses["td_state"] + losses["td_task"]
        loss = loss + self.config.weight_state * losses["orthonormality_state"]
        loss = loss + self.config.weight_task * losses["orthonormality_task"]
        optimizers = (self.optim_phi, self.optim_psi, self.optim_predictor_phi, self.optim_predictor_psi)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

        with torch.no_grad():
            psi = psi.detach()
            self.second_moment = 0.995 * self.second_moment + 0.005 * (psi.T @ psi) / len(psi)
        return losses

    def update_actor(self, batch: dict[str, Tensor], z: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Q of the one-step actor, its distance to the behaviour flow, and the flow's own matching loss."""
        obs, action = batch["observation"], batch["action"]
        start, time = noise["flow_start"], noise["flow_time"]
        point = (1 - time) * start + time * action
        velocity = self.vector_field(torch.cat([obs, point, time], dim=1))
        flow_matching = ((velocity - (action - start)) ** 2).mean()

        with torch.no_grad():
            phi = self.phi(obs)
            flow = self.integrate_flow(obs, noise["action"])
        proposed = self.actor(obs, z, noise["action"])
        distillation = ((proposed - flow) ** 2).mean()
        q = (self.predictor_phi(phi, z, proposed) * z).sum(-1)  # [K, B]
        value = -q.mean(0).mean() / q.abs().mean().detach()

        loss = value + self.config.bc_weight * distillation + flow_matching
        self.optim_actor.zero_grad()
        self.optim_field.zero_grad()
        loss.backward()
        self.optim_actor.step()
        self.optim_field.step()
        return {"value": value, "distillation": distillation, "flow_matching": flow_matching}

    @torch.no_grad()
    def integrate_flow(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Euler steps from the noise to an action within bounds."""
        action = noise
        for i in range(self.config.flow_steps):
            time = torch.full((len(obs), 1), i / self.config.flow_steps, device=obs.device, dtype=obs.dtype)
            action = action + self.vector_field(torch.cat([obs, action, time], dim=1)) / self.config.flow_steps
        return action.clamp(-1, 1)

    @torch.no_grad()
    def update_targets(self) -> None:
        """Move every target parameter a little towards its online parameter."""
        pairs = (
            (self.phi, self.phi_target),
            (self.psi, self.psi_target),
            (self.predictor_phi, self.predictor_phi_target),
            (self.predictor_psi, self.predictor_psi_target),
        )
        for online, target in pairs:
            for p, p_target in zip(online.parameters(), target.parameters(), strict=True):
                p_target.copy_((1 - self.config.tau) * p_target + self.config.tau * p)


def make_yardstick(
    obs_dim: int, action_dim: int, config: YardstickConfig, device: torch.device | str = "cpu"
) -> TDJEPAYardstick:
    """Build the yardstick; its parameters have torch's default dtype."""
    return TDJEPAYardstick(obs_dim, action_dim, config, device)


@torch.no_grad()
def copy_network(source: nn.Module, destination: nn.Module) -> None:
    """Copy weights between two layouts of one network: equal modules, or a batched ensemble into a list of members.

    A batched layer [K, in, out] becomes K linear weights [out, in]; parameters are matched in order.

    Raises:
        ValueError: if the two do not have the same parameters in the same order.
    """
    members: Iterable[nn.Module] = getattr(destination, "members", [destination])
    is_ensemble = hasattr(destination, "members")
    for k, member in enumerate(members):
        pairs = list(zip(source.parameters(), member.parameters(), strict=True))
        for theirs, ours in pairs:
            value = theirs[k] if is_ensemble else theirs
            value = value.T if is_ensemble and ours.ndim == 2 else value.reshape(ours.shape)
            if value.shape != ours.shape:
                raise ValueError(f"parameter {tuple(theirs.shape)} does not fit {tuple(ours.shape)}")
            ours.copy_(value)
