"""ACT: action chunking with a transformer. One look at the scene decides the next n actions.

An encoder makes tokens of the task, the state and the scene, a decoder turns n learned queries into n actions; the loss
is their mean absolute error.

Paper: Zhao et al. 2023 (arXiv 2304.13705), as ACT-JEPA's authors build their baseline (arXiv 2501.14622; sheet
act_jepa, sections 1.2, 1.4 to 1.6): no latent style variable, which ``agents/act_cvae.py`` adds, and one decoder layer.
Differs: no dropout; actions and states normalised where asked; steps without a known action count in no loss.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from agents.chunking import ChunkPolicy
from agents.imitation import Factory, valid_steps
from worldmodels.core import Phase
from worldmodels.keys import LOSS, OBSERVATION, STAT, TOKENS
from worldmodels.nn.parameters import matrices_and_vectors


class ACT(ChunkPolicy):
    """Imitates chunks of actions.

    Args:
        spec: one step.
        decoder: factory ``decoder(dim, n, action_dim)`` of what maps tokens [B, N, C] to actions [B, n, A].
        is_encoder_trained: whether actions train the encoder, or only the decoder: of an encoder that comes trained
            (``init=``), or of a random one, a control.
        **options: see ``ChunkPolicy``.
    """

    def __init__(self, spec: Composite, *, decoder: Factory, is_encoder_trained: bool = True, **options: Any) -> None:
        super().__init__(spec, **options)
        self.is_encoder_trained = is_encoder_trained
        self.decoder = decoder(self.encoder.dim, self.chunk, self.action_dim)

    def phases(self) -> tuple[Phase, ...]:
        """A single one; biases, norms and other vectors are groups of their own, to be kept from decay."""
        return (Phase("policy", self.action_loss, self.policy_groups()),)

    def policy_groups(self) -> dict[str, list[nn.Parameter]]:
        """What actions train."""
        encoder = {"encoder": self.encoder.parameters()} if self.is_encoder_trained else {}
        return matrices_and_vectors({**encoder, "decoder": self.decoder.parameters()})

    def action_loss(self, batch: TensorDict) -> TensorDict:
        """L_act, the mean of |a^ - a| over known actions."""
        loss, raw = self.action_errors(self.decoder(self.context(batch), valid_steps(batch)), batch)
        return TensorDict({LOSS: {"action": loss}, STAT: {"action_error": raw}})

    def context(self, batch: TensorDict) -> Tensor:
        """Tokens s_x [B, N, C] of the first rows, without gradient where actions do not train the encoder."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_encoder_trained):
            return self.encoder(batch[OBSERVATION][:, 0])[TOKENS]

    def predict(self, td: TensorDict) -> Tensor:
        """Normalised actions [N, n, A]."""
        return self.decoder(self.encoder(td[OBSERVATION])[TOKENS])
