"""Deep linear networks under JEPA and masked reconstruction: the laboratory in which theory and training must agree.

An encoder of L square matrices W = W_L ... W_1 and one more matrix V on top, trained on the exact second moments of two
views (x, y), in float64, by plain gradient descent:

    JEPA   1/2 E |V W x - sg(W y)|^2          MAE   1/2 E |V W x - y|^2

Several networks are trained at once, one for each pair of a panel of the data and a loss, each at its own step size.

Source: Littwin et al., arXiv 2407.03475 (NeurIPS 2024). What the aligned start needs is in ``aligned_start``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite

from worldmodels.core import Objective, Phase
from worldmodels.keys import LOSS, MOMENTS, OBSERVATION, STAT


class DeepLinear(Objective):
    """G = panels x losses linear networks of one depth.

    ``trajectory`` [T, G, d] holds the norms of the columns of W, before every ``record_every``-th update: the weight w
    of each feature, as features lie on the input side.

    Args:
        spec: observation "moments" [P, 3, d, d].
        losses: of "jepa" and "mae"; every panel is trained with each.
        depth: L; scale: s, singular value of every matrix at the start.
        step_sizes: of gradient descent, one a loss.
        updates: that will be made; record_every: see above.
        momentum: of the moving average of W that gives JEPA's targets; 0 is the current W, as in the theory.
        seed: of the orthogonal matrices.
    """

    window = 1
    is_jepa: Tensor

    def __init__(
        self,
        spec: Composite,
        *,
        encoder: None = None,
        losses: Sequence[Literal["jepa", "mae"]] = ("jepa", "mae"),
        depth: int,
        scale: float,
        step_sizes: Sequence[float],
        updates: int,
        record_every: int = 1,
        momentum: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if OBSERVATION not in spec.keys() or MOMENTS not in spec[OBSERVATION].keys():
            raise ValueError("objective=linear trains on moments of two views. Use env=linear_features")
        if unknown := set(losses) - {"jepa", "mae"}:
            raise ValueError(f"losses={list(losses)}: {sorted(unknown)} is neither jepa nor mae")
        if len(step_sizes) != len(losses):
            raise ValueError(f"step_sizes={list(step_sizes)} must give one for each of the losses {list(losses)}")
        if depth < 1 or scale <= 0 or record_every < 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"depth={depth} and record_every={record_every} must be at least 1, scale={scale} positive, "
                f"momentum={momentum} within [0, 1)"
            )
        num_panels, _, dim, _ = spec[OBSERVATION, MOMENTS].shape
        self.losses, self.depth, self.scale, self.record_every = tuple(losses), depth, scale, record_every
        self.num_panels, self.momentum = num_panels, momentum
        is_jepa = torch.tensor([name == "jepa" for name in losses]).repeat(num_panels)  # [G], panel after panel
        generator = torch.Generator().manual_seed(seed)
        layers, top = aligned_start(is_jepa, dim, depth=depth, scale=scale, generator=generator)
        self.layers, self.top = nn.Parameter(layers), nn.Parameter(top)
        self.register_buffer("is_jepa", is_jepa)
        self.register_buffer("step_size", torch.tensor(list(step_sizes), dtype=torch.float64).repeat(num_panels))
        self.register_buffer("average", self.product().detach().clone())  # of W, for momentum
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        size = -(-updates // record_every) + 1  # the last row takes what is not kept
        self.register_buffer("trajectory", torch.zeros(size, len(is_jepa), dim, dtype=torch.float64))

    def product(self) -> Tensor:
        """The encoders W [G, d, d]."""
        result = self.layers[:, 0]
        for index in range(1, self.depth):
            result = self.layers[:, index] @ result
        return result

    def phases(self) -> tuple[Phase, ...]:
        """A single one."""
        return (Phase("linear", self.loss, {"linear": [self.layers, self.top]}),)

    @torch.no_grad()
    def prepare(self, batch: TensorDict) -> TensorDict:
        """Record the weights of this moment."""
        encoder = self.product()
        self.average.lerp_(encoder, 1 - self.momentum)
        row = torch.where(
            self.count % self.record_every == 0, self.count // self.record_every, len(self.trajectory) - 1
        )
        self.trajectory.index_copy_(0, row[None], encoder.norm(dim=1)[None])
        self.count += 1
        return batch

    def loss(self, batch: TensorDict) -> TensorDict:
        """Sum over networks of step size times loss, so that one optimizer of rate 1 takes each its own step."""
        moments = batch[OBSERVATION][MOMENTS][0, 0].repeat_interleave(len(self.losses), 0)  # [G, 3, d, d]
        xx, yx, yy = moments.unbind(1)
        encoder = self.product()
        prediction = self.top @ encoder  # V W [G, d, d]
        identity = torch.eye(xx.shape[-1], dtype=xx.dtype, device=xx.device)
        target = torch.where(self.is_jepa[:, None, None], self.average, identity)  # T
        error = 0.5 * (
            trace(prediction @ xx, prediction) - 2 * trace(target @ yx, prediction) + trace(target @ yy, target)
        )
        stats = {f"{name}_loss": error.detach()[i :: len(self.losses)].mean() for i, name in enumerate(self.losses)}
        return TensorDict({LOSS: {"linear": (self.step_size * error).sum()}, STAT: stats})

    @torch.no_grad()
    def embed(self, obs: TensorDict) -> TensorDict:
        """The encoders themselves, "encoder" [B, G d d]: what there is to look at when the data are moments."""
        size = obs.batch_size[0]
        return TensorDict({"encoder": self.product().flatten().expand(size, -1)}, batch_size=[size])


def trace(a: Tensor, b: Tensor) -> Tensor:
    """tr(A B^T) of each [G, d, d]: [G]."""
    return (a * b).sum((-2, -1))


def aligned_start(
    is_jepa: Tensor, dim: int, *, depth: int, scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Layers s U_a [G, L, d, d] with orthogonal U_a, and V [G, d, d], such that features never mix.

    The U_a are arbitrary but V is not: s I for JEPA, s (U_L ... U_1)^T for MAE. All networks get the same U_a.

    Source: Littwin et al., assumption on the start; which V it needs is derived in docs/linear.md.
    """
    draws = torch.randn(depth, dim, dim, dtype=torch.float64, generator=generator)
    rotations = torch.linalg.qr(draws).Q  # [L, d, d]
    whole = rotations[0]
    for rotation in rotations[1:]:
        whole = rotation @ whole
    top = torch.where(is_jepa[:, None, None], torch.eye(dim, dtype=torch.float64), whole.T)
    return scale * rotations.expand(len(is_jepa), -1, -1, -1).clone(), scale * top
