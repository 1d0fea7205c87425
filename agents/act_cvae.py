"""The original ACT: a latent style variable tells one way of doing a task from another.

While training, a second transformer reads the demonstrated chunk and the state and gives a normal distribution of the
style; a sample of it is a further token of the context. The decoder has to reproduce the chunk, and a penalty keeps
the style close to a standard normal. When the policy acts, the style is zero.

    L = mean |a^ - a| + 10 KL(N(mu, sigma^2) || N(0, 1))

Paper: Zhao et al. 2023 (arXiv 2304.13705) and its code; sheet act_jepa, section 3.1. Differs: one decoder layer, the
only one that the released code uses; the error is a mean over steps that are no padding (released: over all); learned
queries enter as tokens, not as codes added in every layer; no dropout; weight decay leaves out biases and norms.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite

from agents.act import ACT
from agents.imitation import Factory, known_actions, valid_steps
from perception.context import ContextEncoder
from worldmodels.core import Phase, Transform
from worldmodels.keys import ACTION, LOSS, NOISE, OBSERVATION, STAT, STATE
from worldmodels.losses import masked_mean
from worldmodels.nn.parameters import matrices_and_vectors
from worldmodels.nn.positions import sinusoids
from worldmodels.nn.transformer import Transformer
from worldmodels.targets import frozen


class StyleEncoder(nn.Module):
    """Reads [CLS, state, a_1 .. a_n] with fixed codes of places; CLS gives mean and log variance of the style.

    Args:
        state_dim, action_dim: S and A; num: n; style_dim: width of the style.
        dim: width; depth, num_heads, hidden: of the post-norm blocks.
    """

    code: Tensor

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        num: int,
        style_dim: int,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(dim))
        self.embed_state, self.embed_action = nn.Linear(state_dim, dim), nn.Linear(action_dim, dim)
        shape = {"depth": depth, "num_heads": num_heads, "hidden": hidden, "epsilon": 1e-5}
        self.blocks = Transformer(dim, **shape, is_pre_norm=False, activation=nn.ReLU, is_init_truncated=False)
        self.outward = nn.Linear(dim, 2 * style_dim)
        self.register_buffer("code", sinusoids(2 + num, dim, is_interleaved=True), persistent=False)

    def forward(self, state: Tensor, action: Tensor, is_valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, style_dim] of normalised ``state`` [B, S] and ``action`` [B, n, A].

        ``is_valid``: bool [B, n], actions that are looked at; None: all.
        """
        token = self.token.expand(len(state), 1, -1)
        x = torch.cat([token, self.embed_state(state)[:, None], self.embed_action(action)], 1) + self.code
        is_valid = None if is_valid is None else F.pad(is_valid, (2, 0), value=True)
        return self.outward(self.blocks(x, is_valid)[:, 0]).chunk(2, -1)


class ACTCVAE(ACT):
    """ACT with a style variable.

    Args:
        spec: one step.
        style: factory ``style(state_dim, action_dim, n, style_dim)`` of the style's encoder.
        style_dim: numbers of a style.
        **options: see ``ACT``.

    Raises:
        ValueError: if the encoder is another.
    """

    def __init__(self, spec: Composite, *, style: Factory, style_dim: int = 32, **options: Any) -> None:
        super().__init__(spec, **options)
        if not isinstance(self.encoder, ContextEncoder):
            raise ValueError(
                f"act_cvae gives its encoder the style as a token; {type(self.encoder).__name__} takes none. "
                "Use encoder=context"
            )
        self.style_dim = style_dim
        self.style = style(spec[OBSERVATION, STATE].shape[-1], self.action_dim, self.chunk, style_dim)
        self.embed_style = nn.Linear(style_dim, self.encoder.dim)

    def phases(self) -> tuple[Phase, ...]:
        """A single one."""
        style = [*self.style.parameters(), *self.embed_style.parameters()]
        return (Phase("policy", self.loss, {**self.policy_groups(), **matrices_and_vectors({"style": style})}),)

    def transforms(self) -> tuple[Transform, ...]:
        """Noise of the style."""
        return (self.draw_noise,)

    def draw_noise(self, batch: TensorDict, generator: Generator) -> TensorDict:
        """Add "noise", "style" [B, style_dim], standard normal."""
        size, device = batch.batch_size[0], generator.device
        noise = torch.randn(size, self.style_dim, generator=generator, device=device).to(batch[ACTION])
        return batch.copy().set(NOISE, TensorDict({"style": noise}, [size]))

    def loss(self, batch: TensorDict) -> TensorDict:
        """Error of actions, and the divergence of styles: summed over their entries, mean over samples.

        A sample whose actions are unknown has no style: it counts in neither.
        """
        known, obs = known_actions(batch), batch[OBSERVATION][:, 0]
        mean, log_variance = self.style(self.encoder.norms[STATE](obs[STATE]), self.action_norm(batch[ACTION]), known)
        style = mean + (0.5 * log_variance).exp() * batch[NOISE, "style"]
        action, raw = self.action_errors(self.decoder(self.styled(obs, style), valid_steps(batch)), batch)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).float().sum(-1)  # [B]
        divergence = masked_mean(divergence, known.any(1))
        stats = {"action_error": raw, "style_std": mean.detach().float().std(0).mean()}
        return TensorDict({LOSS: {"action": action, "divergence": divergence}, STAT: stats})

    def styled(self, obs: TensorDict, style: Tensor) -> Tensor:
        """Tokens [B, 1 + N, C] of the context with ``style`` [B, style_dim] in front."""
        style, tokens = self.embed_style(style)[:, None], self.encoder.embedded(obs)
        if self.is_encoder_trained:
            return self.encoder.blocks(torch.cat([style, tokens], 1))
        return frozen(self.encoder.blocks, torch.cat([style, tokens.detach()], 1))

    def unstyled(self, obs: TensorDict) -> Tensor:
        """Tokens [B, 1 + N, C] in the style zero."""
        return self.styled(obs, obs[STATE].new_zeros(len(obs), self.style_dim))

    def predict(self, td: TensorDict) -> Tensor:
        """Normalised actions [N, n, A]."""
        return self.decoder(self.unstyled(td[OBSERVATION]))

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """Return "context" [B, C], the mean token."""
        return TensorDict({"context": self.unstyled(obs).mean(1)}, batch_size=obs.batch_size)
