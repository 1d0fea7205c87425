"""Diffusion policy: chunks of actions are noise that a network, asked a number of times, turns into a demonstration.

    x_k = sqrt(c_k) a + sqrt(1 - c_k) e,   e ~ N(0, 1);   L = mean (e^(x_k, k; s_x) - e)^2

c_k falls from 1 to 0 over K levels. Acting starts at the last level from noise and goes down by deterministic steps
(DDIM, Song et al. 2021), each from an estimate of the actions that is clipped to their box.

Paper: Chi et al. 2023 (arXiv 2303.04137), the transformer on states; sheet act_jepa, section 3.2. Differs: one
observation, not two; layers are post-norm and see all steps (released: pre-norm, causal); steps that pad a window count
in no loss; DDIM for 100 stochastic steps; no dropout. Actions are learned in their own units, [-1, 1].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Composite

from agents.chunking import ChunkPolicy
from agents.imitation import Factory, known_actions, valid_steps
from worldmodels.core import Encoder, Phase, Target, Transform
from worldmodels.keys import ACTION, LOSS, NOISE, OBSERVATION, STAT, TOKENS
from worldmodels.losses import masked_mean
from worldmodels.nn.parameters import matrices_and_vectors
from worldmodels.nn.positions import sinusoids
from worldmodels.nn.transformer import DecoderBlock


class NoiseDecoder(nn.Module):
    """Tells the noise in actions from a context: decoder layers over the noisy actions, which ask level and context.

    Args:
        dim: width C of the context's tokens; num: n; action_dim: A.
        num_levels: K.
        width, depth, num_heads, hidden: of the layers.
    """

    code: Tensor

    def __init__(
        self,
        dim: int,
        num: int,
        action_dim: int,
        num_levels: int,
        *,
        width: int,
        depth: int,
        num_heads: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.embed_context, self.embed_action = nn.Linear(dim, width), nn.Linear(action_dim, width)
        self.embed_level = nn.Linear(width, width)
        self.place = nn.Parameter(0.02 * torch.randn(num, width))
        self.blocks = nn.ModuleList(DecoderBlock(width, num_heads=num_heads, hidden=hidden) for _ in range(depth))
        self.norm, self.outward = nn.LayerNorm(width), nn.Linear(width, action_dim)
        self.register_buffer("code", sinusoids(num_levels, width), persistent=False)  # [K, width]

    def forward(self, context: Tensor, noisy: Tensor, level: Tensor, is_valid: Tensor | None = None) -> Tensor:
        """Noise [B, n, A] in ``noisy`` [B, n, A] of ``level`` int64 [B], for ``context`` [B, N, C].

        ``is_valid``: bool [B, n], steps that others may look at; None: all.
        """
        memory = torch.cat([self.embed_level(self.code[level])[:, None], self.embed_context(context)], 1)
        x = self.embed_action(noisy) + self.place
        for block in self.blocks:
            x = block(x, memory, is_valid)
        return self.outward(self.norm(x))


class NoisePredictor(nn.Module):
    """Encoder and decoder as one, so that a target can average both."""

    def __init__(self, encoder: Encoder, decoder: NoiseDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, obs: TensorDict, noisy: Tensor, level: Tensor) -> Tensor:
        """Noise [N, n, A] in ``noisy`` for observations [N]."""
        return self.decoder(self.encoder(obs)[TOKENS], noisy, level)


class DiffusionPolicy(ChunkPolicy):
    """Denoises chunks of actions.

    Args:
        spec: one step.
        decoder: factory ``decoder(dim, n, action_dim, K)``.
        target: factory of the average of weights that acts, ``target(module)``.
        num_levels: K; num_denoising: calls of the network for one chunk, at most K.
        **options: see ``ChunkPolicy``; actions must not be normalised.

    Raises:
        ValueError: if settings make no sense.
    """

    kept: Tensor

    def __init__(
        self,
        spec: Composite,
        *,
        decoder: Factory,
        target: Factory,
        num_levels: int = 100,
        num_denoising: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        if not 1 <= num_denoising <= num_levels:
            raise ValueError(f"agent.num_denoising={num_denoising}: 1 to num_levels={num_levels} calls make a chunk")
        if self.is_normalized:
            raise ValueError("agent.is_normalized=true: diffusion_policy clips to the box of actions; set it to false")
        self.num_levels, self.num_noise = num_levels, self.chunk
        self.decoder = decoder(self.encoder.dim, self.chunk, self.action_dim, num_levels)
        self.average: Target = target(NoisePredictor(self.encoder, self.decoder))
        self.register_buffer("kept", cosine_schedule(num_levels), persistent=False)  # c_k [K]
        step = (num_levels - 1) / max(1, num_denoising - 1)
        self.levels = [round(num_levels - 1 - call * step) for call in range(num_denoising)]

    def study(self, source: Any) -> None:
        """Fit units, also those of the average."""
        super().study(source)
        self.average.update(0)

    def phases(self) -> tuple[Phase, ...]:
        """A single one; biases, norms and other vectors are groups of their own, to be kept from decay."""
        parts = {"encoder": self.encoder.parameters(), "decoder": self.decoder.parameters()}
        return (Phase("policy", self.loss, matrices_and_vectors(parts)),)

    def transforms(self) -> tuple[Transform, ...]:
        """Noise and its level."""
        return (self.draw_noise,)

    def draw_noise(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add "noise": "action" [B, n, A], standard normal, and "level" int64 [B]."""
        like, device = batch[ACTION], generator.device
        noise = torch.randn(like.shape, generator=generator, device=device).to(like)
        level = torch.randint(self.num_levels, like.shape[:1], generator=generator, device=device).to(like.device)
        return batch.copy().set(NOISE, TensorDict({ACTION: noise, "level": level}, batch.batch_size))

    def loss(self, batch: TensorDict) -> TensorDict:
        """Mean of (e^ - e)^2 over known actions and their entries."""
        noise, level = batch[NOISE, ACTION], batch[NOISE, "level"]
        kept, counts = self.kept[level][:, None, None], known_actions(batch)
        noisy = kept.sqrt() * batch[ACTION] + (1 - kept).sqrt() * noise
        context = self.encoder(batch[OBSERVATION][:, 0])[TOKENS]
        found = self.decoder(context, noisy, level, valid_steps(batch)).float()
        loss = masked_mean((found - noise).square().mean(-1), counts)
        with torch.no_grad():
            guess = ((noisy - (1 - kept).sqrt() * found) / kept.sqrt()).clamp(-1, 1)
            error = masked_mean((guess - batch[ACTION]).abs().mean(-1), counts)
        return TensorDict({LOSS: {"denoising": loss}, STAT: {"action_error": error}})

    @torch.no_grad()
    def predict(self, td: TensorDict) -> Tensor:
        """Actions [N, n, A] from ("noise", "action") [N, n A], zero if absent."""
        obs = td[OBSERVATION]
        shape = (td.batch_size[0], self.chunk, self.action_dim)
        x = td[NOISE, ACTION].view(shape) if NOISE in td.keys() else self.kept.new_zeros(shape)
        guess = x
        for now, then in zip(self.levels, [*self.levels[1:], None], strict=True):
            kept = self.kept[now]
            level = torch.full(shape[:1], now, device=x.device)
            found = self.average(obs, x, level).float()
            guess = ((x - (1 - kept).sqrt() * found) / kept.sqrt()).clamp(-1, 1)
            if then is not None:
                found = (x - kept.sqrt() * guess) / (1 - kept).sqrt()  # what the clipped guess leaves as noise
                x = self.kept[then].sqrt() * guess + (1 - self.kept[then]).sqrt() * found
        return guess


def cosine_schedule(num: int, *, offset: float = 0.008, most: float = 0.999) -> Tensor:
    """What is kept of a signal's variance at levels 1 to ``num``: the squared cosine; a level takes at most ``most``.

    Source: Nichol and Dhariwal 2021, eq. 17.
    """
    share = torch.arange(num + 1, dtype=torch.float64) / num
    kept = torch.cos((share + offset) / (1 + offset) * math.pi / 2).square()
    return (1 - (1 - kept[1:] / kept[:-1]).clamp(max=most)).cumprod(0).float()
