"""What a forward pass and a training step cost in floating-point operations, by the shapes of networks alone.

A pass of n tokens through a transformer costs 2 P n for P weights that every token meets and 4 L n^2 d for the products
of queries, keys and values in L blocks of width d; a backward pass costs twice as much again. Norms, activations,
softmax and rotations are left out, and so is what a predictor saves where only some tokens pass its last layers.

Source: sheet salt_video, section 1.7: the totals quoted for V-JEPA 2 (1.9, 3.5, 5.3e21 for L, H, g) are reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from worldmodels.core import Phase
from worldmodels.nn.transformer import Attention

TRAINING = 3  # passes forward that a forward and a backward pass are worth


class Size(NamedTuple):
    """What the cost of a transformer depends on."""

    num_weights: int  # P, that every token meets
    depth: int  # L, attentions
    dim: int  # d, their width


def size_of(module: nn.Module) -> Size:
    """The size of an encoder, a target or a predictor that consists of linear maps and ``Attention``.

    Raises:
        ValueError: if it has attentions of several widths, or none.
    """
    widths = [part.out.in_features for part in module.modules() if isinstance(part, Attention)]
    if len(set(widths)) != 1:
        raise ValueError(
            f"{type(module).__name__} has attentions of widths {sorted(set(widths))}: operations are counted of "
            "transformers of one width"
        )
    weights = sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
    return Size(weights, len(widths), widths[0])


def forward_flops(size: Size, num_tokens: int | float) -> float:
    """Operations of one sample's pass of ``num_tokens`` tokens, F = 2 P n + 4 L n^2 d."""
    return float(2 * size.num_weights * num_tokens + 4 * size.depth * num_tokens**2 * size.dim)


def step_flops(
    encoder: Size,
    predictor: Size,
    *,
    num_tokens: int,
    shares: Mapping[str, Sequence[int | float]],
    teacher: Size | None,
) -> float:
    """Operations of one sample in one training step of masked prediction on clips.

    Args:
        encoder, predictor: what is trained; ``num_tokens``: N of a clip.
        shares: of every family of masks, shares of N that contexts and targets have.
        teacher: what sees the whole clip: the moving average of V-JEPA, the frozen teacher of SALT; None where there is
            no such pass, for V-Pixel (the first stage of SALT) and where latents are cached.

    Returns:
        F(teacher, N) + 3 sum_k F(encoder, c_k N) + 3 sum_k F(predictor, (c_k + t_k) N).
    """
    watched = forward_flops(teacher, num_tokens) if teacher is not None else 0.0
    seen = sum(forward_flops(encoder, context * num_tokens) for context, _ in shares.values())
    asked = sum(forward_flops(predictor, (context + target) * num_tokens) for context, target in shares.values())
    return watched + TRAINING * (seen + asked)


def spent(phases: Sequence[Phase], costs: Mapping[str, float], *, batch_size: int, step: int) -> float:
    """Operations of a run up to ``step``.

    Args:
        costs: of a sample in a step, by the name of the phase. batch_size: samples of a step.
    """
    return sum(batch_size * costs[phase.name] * phase.num_runs(step) for phase in phases)


def shares_of(masks: Mapping[str, Sequence[int | float]], num_tokens: int) -> dict[str, tuple[float, float]]:
    """Shares of context and targets from their lengths K and K', by family."""
    return {name: (context / num_tokens, target / num_tokens) for name, (context, target) in masks.items()}
