"""Learning a label: a head on an encoder that is trained with it. The yardstick of every representation.

With a fresh encoder this is the supervised baseline; with that of a finished run (``encoder=pretrained``) or its
latents (``encoder=frozen``) it is the downstream task of self-supervised learning, fine-tuned or frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Categorical, Composite

from perception.normalize import RunningNorm
from worldmodels.core import Encoder, Objective, Phase
from worldmodels.keys import LABEL, LOSS, OBSERVATION, POOLED, STAT
from worldmodels.nn.transformer import all_tokens


class Supervised(Objective):
    """Cross-entropy of a class, or squared error of a number in standard deviations of the label.

    Args:
        spec: one sample; needs "label": ``Categorical`` for classes, otherwise a number.
        encoder: perception, a factory or a module shared with other objectives.
        head: factory ``head(in_dim, out_dim)``.
        read: what the head sees: "pooled" [D], or all "tokens" joined [(R + N) D].
        label_smoothing: of the cross-entropy.

    Raises:
        ValueError: if the data have no labels.
    """

    window = 1

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: Callable[[Composite], Encoder] | Encoder,
        head: Callable[..., nn.Module],
        read: Literal["pooled", "tokens"] = "pooled",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if LABEL not in spec.keys():
            raise ValueError("objective=supervised needs labels, which the data do not have. Use env=tables")
        self.encoder = encoder if isinstance(encoder, nn.Module) else encoder(spec)
        self.read, self.label_smoothing = read, label_smoothing
        label = spec[LABEL]
        self.num_classes = int(label.space.n) if isinstance(label, Categorical) else 0
        with torch.no_grad():
            width = self.latent(spec[OBSERVATION].expand(2).rand()).shape[-1]
        self.norm = RunningNorm(width)  # of a latent whose scale is anyone's
        self.head = head(width, max(1, self.num_classes))
        self.label_norm = RunningNorm(1)

    def phases(self) -> tuple[Phase, ...]:
        """A single one; the encoder is a group of its own, to fine-tune it at another rate."""
        params = {"head": list(self.head.parameters()), "encoder": list(self.encoder.parameters())}
        return (Phase("supervised", self.loss, params),)

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Move running statistics."""
        obs = batch[OBSERVATION][:, 0]
        self.encoder.observe(obs)
        self.norm.observe(self.latent(obs))
        if not self.num_classes:
            self.label_norm.observe(batch[LABEL])
        return batch

    def latent(self, obs: TensorDict) -> Tensor:
        """What the head reads of observations [B]: [B, F]."""
        out = self.encoder(obs)
        if self.read == "pooled":
            return out[POOLED]
        return all_tokens(out).flatten(1)

    def output(self, obs: TensorDict) -> Tensor:
        """Logits [B, C], or the standardised label [B, 1]."""
        return self.head(self.norm(self.latent(obs)))

    def loss(self, batch: TensorDict) -> TensorDict:
        """Mean over the batch."""
        output, label = self.output(batch[OBSERVATION][:, 0]), batch[LABEL][:, 0]
        if self.num_classes:
            error = F.cross_entropy(output.float(), label, label_smoothing=self.label_smoothing)
            stat = {"accuracy": (output.detach().argmax(-1) == label).float().mean()}
        else:
            error = (output[:, 0].float() - self.label_norm(label[:, None])[:, 0]).square().mean()
            stat = {"explained": 1 - error.detach()}
        return TensorDict({LOSS: {"label": error}, STAT: stat})

    @torch.no_grad()
    def predict(self, obs: TensorDict) -> Tensor:
        """Probabilities [B, C] of the classes, or the label [B] in its unit."""
        output = self.output(obs).float()
        if self.num_classes:
            return output.softmax(-1)
        return (output * (self.label_norm.var + self.label_norm.epsilon).sqrt() + self.label_norm.mean)[:, 0]

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """Return "latent" [B, F], what the head reads."""
        return TensorDict({"latent": self.latent(obs)}, batch_size=obs.batch_size)
