"""Rulebooks: which input site meets which output site under which kernel offset, in plain torch.

A rulebook holds, for each offset of a kernel in (z, y, x) order, the pair (inputs [P], outputs [P]) of site numbers, or
None where every site meets itself. Sites are found by a linear key, one sort and one binary search. A convolution is
then gather, matmul, scatter (`Convolve`): the same idea as SECOND's (Yan et al. 2018) and spconv's native algorithm.

Sizes depend on the data, so on a GPU the host waits once a rulebook.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Triple = tuple[int, int, int]
Rules = tuple[tuple[Tensor, Tensor] | None, ...]


def submanifold_rules(indices: Tensor, shape: Triple, kernel: Triple) -> Rules:
    """Rules whose output sites are the input sites.

    Only the offsets after the kernel's centre are looked up: those before it are the same pairs the other way round.
    Along x, neighbours of a site are neighbours in the sorted list: one binary search serves a row of the kernel.

    Args:
        indices: int [N, 4], (sample, z, y, x), no site twice.
        shape: (Z, Y, X).
        kernel: odd sizes.
    """
    (depth, height, width), margin = kernel, [size // 2 for size in kernel]
    device = indices.device
    # Keys on a grid with a margin: no neighbour's key is that of a site across an edge.
    space = [size + 2 * side for size, side in zip(shape, margin, strict=True)]
    sample, z, y, x = indices.long().unbind(1)
    key = ((sample * space[0] + z + margin[0]) * space[1] + y + margin[1]) * space[2] + x + margin[2]
    key, order = key.sort()

    row = torch.arange(depth * height // 2, depth * height, device=device)  # rows of the kernel from its middle one on
    step_z, step_y = row // height - margin[0], row % height - margin[1]
    wanted = key + ((step_z * space[1] + step_y) * space[2] - margin[2])[:, None]  # [R, N], the row's first neighbour
    position = torch.searchsorted(key, wanted)
    padded = F.pad(key, (0, width), value=-1)
    found, places = [], []
    for step in range(width):
        is_there = padded[position] == wanted + step
        found.append(is_there)
        places.append(position)
        position = position + is_there
    # [R, width, N]; what lies up to the centre in the middle row is known already
    is_there, place = (torch.stack(parts, 1).flatten(0, 1)[margin[2] + 1 :] for parts in (found, places))
    offset, output = is_there.nonzero(as_tuple=True)
    sizes = is_there.sum(1).tolist()
    inputs, outputs = order[place[offset, output]].split(sizes), order[output].split(sizes)
    after = list(zip(inputs, outputs, strict=True))
    return (*((outs, ins) for ins, outs in reversed(after)), None, *after)


def strided_rules(
    indices: Tensor, out_shape: Triple, kernel: Triple, stride: Triple, padding: Triple
) -> tuple[Tensor, Rules]:
    """Output sites, sorted, and rules of an ordinary convolution: a site is active if its window holds an active site.

    Args:
        indices: int [N, 4], (sample, z, y, x), no site twice.
        out_shape: (Z, Y, X) of the output.
        kernel, stride, padding: for z, y, x.

    Returns:
        int32 [M, 4] and the rules.
    """
    # Output o meets input i at offset k if o stride + k = i + padding. Keys of outputs grow axis by axis.
    key = indices[:, 0].long()[None]  # [offsets so far, N]
    is_met = torch.ones_like(key, dtype=torch.bool)
    for axis in range(3):
        offset = torch.arange(kernel[axis], device=indices.device)[:, None]
        reach = indices[:, axis + 1].long() + padding[axis] - offset  # [k, N]
        output = reach.div(stride[axis], rounding_mode="floor")
        is_output = (reach >= 0) & (output * stride[axis] == reach) & (output < out_shape[axis])
        key = (key[:, None] * out_shape[axis] + output).flatten(0, 1)
        is_met = (is_met[:, None] & is_output).flatten(0, 1)
    _, source = is_met.nonzero(as_tuple=True)  # the host waits for the number of pairs
    sites, goal = key[is_met].unique(return_inverse=True)
    sizes = is_met.sum(1).tolist()
    rules = tuple(zip(source.split(sizes), goal.split(sizes), strict=True))
    axes = [sites]
    for size in reversed(out_shape):
        axes = [axes[0] // size, axes[0] % size, *axes[1:]]
    return torch.stack(axes, 1).int(), rules


class Convolve(torch.autograd.Function):
    """Gather, multiply, add up: features [N, in], weight [out, kz, ky, kx, in] to [num_out, out].

    A class of its own because autograd would keep every gathered row for the backward pass and fill a whole gradient
    for each offset. Deterministic: within an offset no output occurs twice, and offsets come one after the other.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, rules: Rules, num_out: int) -> Tensor:
        """Out[o] = sum over offsets k and pairs (i, o) of features[i] weight[k]."""
        ctx.save_for_backward(features, weight)
        ctx.rules = rules
        out = features.new_zeros(num_out, weight.shape[0])
        kernels = weight.flatten(1, 3).permute(1, 2, 0).contiguous()  # [K, in, out]
        for kernel, pair in zip(kernels, rules, strict=True):
            inputs, outputs = pair or (None, None)
            add_rows(out, gathered(features, inputs) @ kernel, outputs)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The same walk with inputs and outputs exchanged."""
        features, weight = ctx.saved_tensors
        needs_features, needs_weight = ctx.needs_input_grad[:2]
        grad_features = torch.zeros_like(features) if needs_features else None
        grad_kernels = []
        for kernel, pair in zip(weight.flatten(1, 3).unbind(1), ctx.rules, strict=True):
            inputs, outputs = pair or (None, None)
            there = gathered(grad, outputs)  # [P, out]
            if needs_weight:
                grad_kernels.append(there.T @ gathered(features, inputs))
            if grad_features is not None:
                add_rows(grad_features, there @ kernel, inputs)
        grad_weight = torch.stack(grad_kernels, 1).view_as(weight) if needs_weight else None
        return grad_features, grad_weight, None, None


def gathered(rows: Tensor, index: Tensor | None) -> Tensor:
    """Rows [N, C] at ``index`` [P], all where it is None, and zeros below up to a size from a short list.

    On a CPU a matrix product of a shape not met before costs up to a millisecond more: oneDNN writes code for it. The
    number of pairs is new for each offset of each scan, so it is rounded up (by 6 % on average).
    """
    num = len(rows) if index is None else len(index)
    out = rows.new_empty(rounded(num), rows.shape[1])
    if index is None:
        out[:num] = rows
    else:
        torch.index_select(rows, 0, index, out=out[:num])
    out[num:] = 0
    return out


def add_rows(total: Tensor, rows: Tensor, index: Tensor | None) -> None:
    """Add the first rows [P, C] to those of ``total`` [N, C] at ``index`` [P]; None: to all, in order."""
    if index is None:
        total += rows[: len(total)]
    else:
        total.index_add_(0, index, rows[: len(index)])


def rounded(num: int) -> int:
    """The next size of 64, 72, ..., 128, 144, ..., 256, 288, ...: eight an octave."""
    step = 1 << max(3, (num - 1).bit_length() - 4)
    return max(64, -(-num // step) * step)
