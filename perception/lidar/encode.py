"""The sparse encoder as one function of tensors: voxels in, bird's-eye view out.

How many sites a layer has depends on the data. Only inside this function: what goes in and comes out has static shapes.
So ``torch.compile`` takes it as a single opaque operator, `encode_opaque`, and the loss around it stays one graph. As
the operator cannot hand an autograd graph to its backward pass, that pass repeats the forward pass: only when compiled.

Source: VoxelBackBone8x (sheet ad_l_jepa, section 1.2; SECOND, Yan et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from perception.lidar.sparse_conv import Geometry, SparseTensor, convolve, strided, submanifold

STRIDE = 8  # voxels a cell of the bird's-eye view
EPSILON = 1e-3  # of batch norms


class Layer(NamedTuple):
    """A convolution without bias, a batch norm, a ReLU."""

    name: str  # what OpenPCDet calls it
    stage: int  # which of the widths it gives
    geometry: Geometry


LAYERS = (
    Layer("conv_input", 0, submanifold()),
    Layer("conv1.0", 1, submanifold()),
    *(Layer(f"conv2.{i}", 2, submanifold() if i else strided()) for i in range(3)),
    *(Layer(f"conv3.{i}", 3, submanifold() if i else strided()) for i in range(3)),
    *(Layer(f"conv4.{i}", 4, submanifold() if i else strided(padding=(0, 1, 1))) for i in range(3)),
    Layer("conv_out", 5, strided(kernel=(3, 1, 1), stride=(2, 1, 1), padding=0)),
)


class Inputs(NamedTuple):
    """What `encode` needs, and its operators in this order."""

    features: Tensor  # float [B, V, C]
    coords: Tensor  # int64 [B, V, 3], z, y, x; -1 for padding
    weights: Sequence[Tensor]  # of each layer the kernel, the norm's gain and its bias
    means: Tensor  # [sum of widths], running statistics of the norms, layer after layer
    variances: Tensor  # the same
    shape: Sequence[int]  # (Z, Y, X) of the grid of voxels
    is_training: bool  # whether norms use statistics of this batch


class Encoded(NamedTuple):
    """What `encode` gives."""

    bev: Tensor  # [B, D, Y, X], channel c * Z + z of channel c and height z; 0 where nothing is active
    is_active: Tensor  # bool [B, Y, X]
    means: Tensor  # [sum of widths], of each batch norm's input, layer after layer
    variances: Tensor  # the same, unbiased


def final_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(Z, Y, X) of the output for that of the input.

    Raises:
        ValueError: if the highest voxels would be lost because a window along z does not reach them.
    """
    wanted = shape
    for layer in LAYERS:
        kernel, step, pad = (values[0] for values in layer.geometry[:3])
        beyond = shape[0] + 2 * pad - kernel
        if beyond < 0 or beyond % step > pad:
            raise ValueError(
                f"{wanted[0] - 1} voxels along z do not pass {layer.name} whole: take 24, 40, 56, ... (40 on KITTI)"
            )
        shape = layer.geometry.out_shape(shape)
    return shape[0], shape[1], shape[2]


def encode(inputs: Inputs) -> Encoded:
    """Run the layers on the voxels of a batch.

    In training norms use statistics over the active sites of all samples, which are returned. Of fewer than two sites
    there are none: the running ones are returned, as they are otherwise.
    """
    features, coords, weights, means, variances, shape, is_training = inputs
    _, height, width = final_shape(shape)
    is_voxel = coords[..., 0] >= 0
    sample, slot = is_voxel.nonzero(as_tuple=True)  # the host waits for the number of voxels
    indices = torch.cat([sample[:, None], coords[sample, slot]], 1).int()
    x = SparseTensor(features[sample, slot], indices, (shape[0], shape[1], shape[2]), len(features))
    widths = [len(gain) for gain in weights[1::3]]
    statistics = list(zip(means.split(widths), variances.split(widths), strict=True))
    for index, layer in enumerate(LAYERS):
        kernel, gain, bias = weights[3 * index : 3 * index + 3]
        mean, variance = statistics[index]
        x = convolve(x, kernel, layer.geometry)
        if is_training:
            y, *statistics[index] = normalized(x.features, gain, bias, mean, variance)
        else:
            y = F.batch_norm(x.features, mean, variance, gain, bias, eps=EPSILON)
        x = x.with_features(F.relu(y, inplace=True))
    bev = Densify.apply(x.features, x.indices, x.batch_size, x.shape)
    sample, _, row, column = x.indices.long().unbind(1)
    is_active = torch.zeros(len(bev), height, width, dtype=torch.bool, device=bev.device)
    is_active[sample, row, column] = True
    means, variances = (torch.cat(values) for values in zip(*statistics, strict=True))
    return Encoded(bev, is_active, means, variances)


def normalized(x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of [N, C] by its own statistics, and these; the given ones if N < 2."""
    num = len(x)
    if not num:
        return x * gain + bias, mean, variance  # nothing, but with a gradient
    y, batch_mean, inverse = torch.native_batch_norm(x, gain, bias, None, None, True, 0.0, EPSILON)
    if num < 2:
        return y, mean, variance
    return y, batch_mean, (inverse.pow(-2) - EPSILON) * (num / (num - 1))


class Densify(torch.autograd.Function):
    """Sites [N, C] to [B, C Z, Y, X]: the fresh tensor is written, and its gradient read, at the sites only.

    Channels lie next to each other in memory (channels_last), as in the tokens [B, Y X, C Z] that losses read: a copy
    for each of their steps is spared, and 2D convolutions keep that order.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, indices: Tensor, batch_size: int, shape: tuple[int, int, int]) -> Tensor:
        """Scatter."""
        ctx.save_for_backward(indices)
        ctx.shape = shape
        bev = empty_bev(features, batch_size, features.shape[1] * shape[0], shape[1:]).zero_()
        Densify.sites(bev, shape).index_put_(indices.long().unbind(1), features)
        return bev

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Gather."""
        (indices,) = ctx.saved_tensors
        return Densify.sites(grad, ctx.shape)[indices.long().unbind(1)], None, None, None

    @staticmethod
    def sites(bev: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """View of [B, C Z, Y, X] as [B, Z, Y, X, C]."""
        return bev.unflatten(1, (-1, shape[0])).permute(0, 2, 3, 4, 1)


def empty_bev(like: Tensor, batch_size: int, channels: int, grid: Sequence[int]) -> Tensor:
    """An unwritten map [B, D, Y, X]."""
    size = (batch_size, channels, *grid)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


# --- the same as one operator, for torch.compile --------------------------------------------------------------------
# An operator takes no tuple: the fields of `Inputs` one by one.
INPUTS = "Tensor features, Tensor coords, Tensor[] weights, Tensor means, Tensor variances, int[] shape, bool train"


@torch.library.custom_op(
    "worldmodels::sparse_encode", mutates_args=(), schema=f"({INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def encode_opaque(*inputs: Any) -> tuple[Tensor, ...]:
    """`encode` as an operator that the compiler does not look into: the fields of `Inputs` to those of `Encoded`."""
    return tuple(encode(Inputs(*inputs)))


@encode_opaque.register_fake
def _encoded_shapes(*inputs: Any) -> tuple[Tensor, ...]:
    """What `encode_opaque` gives, without values."""
    given = Inputs(*inputs)
    depth, height, width = final_shape(given.shape)
    batch, last_gain = len(given.features), given.weights[-1]
    bev = empty_bev(given.features, batch, len(last_gain) * depth, (height, width))
    is_active = bev.new_empty(batch, height, width, dtype=torch.bool)
    return bev, is_active, torch.empty_like(given.means), torch.empty_like(given.variances)


@torch.library.custom_op(
    "worldmodels::sparse_encode_backward", mutates_args=(), schema=f"(Tensor grad, {INPUTS}) -> (Tensor, Tensor[])"
)
def encode_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Forward once more, with autograd, and back.

    Args:
        grad: of the bird's-eye view, [B, D, Y, X]; the other outputs have none.
        inputs: the fields of `Inputs`, as they were in the forward pass.

    Returns:
        gradients of the features [B, V, C] and of each of the weights.
    """
    given = Inputs(*inputs)
    off = torch._C._dispatch_tls_local_exclude_set()  # an operator runs with autograd switched off for its thread
    for key in (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView):
        off = off.remove(key)
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), off), torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (given.features, *given.weights)]
        bev = encode(given._replace(features=leaves[0], weights=leaves[1:])).bev
        grads = torch.autograd.grad(bev, leaves, grad)
    return grads[0], list(grads[1:])


@encode_backward.register_fake
def _gradient_shapes(grad: Tensor, *inputs: Any) -> tuple[Tensor, list[Tensor]]:
    """What `encode_backward` gives, without values."""
    given = Inputs(*inputs)
    return torch.empty_like(given.features), [torch.empty_like(weight) for weight in given.weights]


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what `encode_backward` needs."""
    given = Inputs(*inputs)
    ctx.shape, ctx.is_training = given.shape, given.is_training
    ctx.save_for_backward(given.features, given.coords, given.means, given.variances, *given.weights)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    """Gradients of the seven inputs, for ``grad`` of the bird's-eye view; None where there is none."""
    features, coords, means, variances, *weights = ctx.saved_tensors
    of_features, of_weights = encode_backward(
        grad, features, coords, weights, means, variances, ctx.shape, ctx.is_training
    )
    return of_features, None, of_weights, None, None, None, None


encode_opaque.register_autograd(_backward, setup_context=_keep_inputs)
