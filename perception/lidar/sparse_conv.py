"""Sparse 3D convolution behind one door: layers that own their weights, and two backends that give the same results.

* ``torch``: rulebooks, gather, matmul, scatter (`rulebook.py`); any device, any floating type, float64 included.
* ``spconv``: the compiled package, where it is installed.

Which one is used depends on the device alone: ``torch`` on a CPU, where it is as fast as spconv or faster
(benchmarks/sparse_backbone.py) and spares the 7 s that importing spconv takes; on a GPU spconv, if it is installed.
Both are deterministic on a CPU. Weights are laid out (out, kz, ky, kx, in), as in spconv 2. Under autocast the sparse
part keeps the type of its weights.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from perception.lidar.rulebook import Convolve, Triple, strided_rules, submanifold_rules

BACKENDS = ("torch", "spconv")
_forced: ContextVar[str | None] = ContextVar("sparse convolution backend", default=None)


def backend_for(device: torch.device) -> str:
    """Which backend serves tensors on ``device``: "torch" or "spconv"."""
    if forced := _forced.get():
        return forced
    return "spconv" if device.type == "cuda" and importlib.util.find_spec("spconv") else "torch"


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend within a block: for tests and benchmarks.

    Raises:
        ValueError: if there is no such backend.
    """
    if name not in BACKENDS:
        raise ValueError(f"no sparse backend called {name}: choose from {', '.join(BACKENDS)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@dataclass(frozen=True)
class SparseTensor:
    """Features at a few sites of a 3D grid, of a whole batch.

    Raises:
        ValueError: if shapes or the index type are not as below.
    """

    features: Tensor  # float [N, C]
    indices: Tensor  # int32 [N, 4], (sample, z, y, x), no site twice, in any order
    shape: Triple  # (Z, Y, X)
    batch_size: int
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)  # rulebooks of these sites, shared by layers

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.indices.shape != (len(self.features), 4):
            raise ValueError(
                f"features are [N, C] and indices [N, 4]; got {list(self.features.shape)}, {list(self.indices.shape)}"
            )
        if self.indices.dtype != torch.int32:
            raise ValueError(f"indices of sites are int32; got {self.indices.dtype}")

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other features [N, C'] at the same sites."""
        return replace(self, features=features)

    def dense(self) -> Tensor:
        """[B, C, Z, Y, X], zero where no site is."""
        sample, z, y, x = self.indices.long().unbind(1)
        row = ((sample * self.shape[0] + z) * self.shape[1] + y) * self.shape[2] + x
        full = self.features.new_zeros(self.batch_size * math.prod(self.shape), self.features.shape[1])
        return full.index_copy(0, row, self.features).view(self.batch_size, *self.shape, -1).permute(0, 4, 1, 2, 3)


class Geometry(NamedTuple):
    """Of a convolution, along z, y, x."""

    kernel: Triple
    stride: Triple
    padding: Triple
    is_submanifold: bool

    def out_shape(self, shape: Sequence[int]) -> Triple:
        """(Z, Y, X) of the output for that of the input; 0 where the kernel does not fit."""
        sizes = zip(shape, self.kernel, self.stride, self.padding, strict=True)
        return triple([max(0, (size + 2 * pad - kernel) // step + 1) for size, kernel, step, pad in sizes])


def submanifold(kernel: int | Sequence[int] = 3) -> Geometry:
    """Output sites are the input sites; stride 1.

    Raises:
        ValueError: if a size of the kernel is even.
    """
    sizes = triple(kernel)
    if not all(size % 2 for size in sizes):
        raise ValueError(f"a submanifold kernel has a centre, so odd sizes; got {sizes}")
    return Geometry(sizes, (1, 1, 1), triple([size // 2 for size in sizes]), True)


def strided(
    kernel: int | Sequence[int] = 3, stride: int | Sequence[int] = 2, padding: int | Sequence[int] = 1
) -> Geometry:
    """An output site is active if an input site lies in its window."""
    return Geometry(triple(kernel), triple(stride), triple(padding), False)


def convolve(x: SparseTensor, weight: Tensor, geometry: Geometry) -> SparseTensor:
    """Convolve ``x`` with ``weight`` [out, kz, ky, kx, in], by the backend of its device.

    Raises:
        ValueError: if the weight fits neither the channels of ``x`` nor the kernel.
    """
    if (*weight.shape[1:4], weight.shape[4]) != (*geometry.kernel, x.features.shape[1]):
        raise ValueError(
            f"a weight [out, kz, ky, kx, in] for kernel {geometry.kernel} and {x.features.shape[1]} channels; "
            f"got {list(weight.shape)}"
        )
    device = x.features.device
    with torch.autocast(device.type, enabled=False):
        if len(x.features) and backend_for(device) == "spconv":  # which refuses a strided convolution of nothing
            return _with_spconv(x, weight, geometry)
        return _with_torch(x, weight, geometry)


def _with_torch(x: SparseTensor, weight: Tensor, geometry: Geometry) -> SparseTensor:
    kernel, stride, padding, is_submanifold = geometry
    if is_submanifold:
        if kernel not in x.cache:
            x.cache[kernel] = submanifold_rules(x.indices, x.shape, kernel)
        return x.with_features(Convolve.apply(x.features, weight, x.cache[kernel], len(x.indices)))
    shape = geometry.out_shape(x.shape)
    indices, rules = strided_rules(x.indices, shape, kernel, stride, padding)
    return SparseTensor(Convolve.apply(x.features, weight, rules, len(indices)), indices, shape, x.batch_size)


def _with_spconv(x: SparseTensor, weight: Tensor, geometry: Geometry) -> SparseTensor:
    given = import_spconv().SparseConvTensor(x.features, x.indices.contiguous(), list(x.shape), x.batch_size)
    given.indice_dict = x.cache.setdefault("spconv", {})
    widths = (weight.shape[-1], weight.shape[0])
    layer = _spconv_layer(*widths, geometry, weight.device.type, torch.is_grad_enabled())
    out = functional_call(layer, {"weight": weight}, (given,))
    if geometry.is_submanifold:
        return x.with_features(out.features)
    return SparseTensor(out.features, out.indices, geometry.out_shape(x.shape), x.batch_size)


@functools.cache
def _spconv_layer(inputs: int, outputs: int, geometry: Geometry, device: str, is_training: bool) -> nn.Module:
    """A layer of spconv without weights, which we lend it for each call; without training it skips backward tables."""
    spconv = import_spconv()
    kernel, stride, padding, is_submanifold = geometry
    # On a CPU the default algorithm asks for CUDA.
    options: dict[str, Any] = {"bias": False, "algo": spconv.ConvAlgo.Native if device == "cpu" else None}
    with torch.device("meta"):
        if is_submanifold:  # layers on the same sites share a table by its key
            layer = spconv.SubMConv3d(inputs, outputs, list(kernel), indice_key=f"submanifold{kernel}", **options)
        else:
            layer = spconv.SparseConv3d(
                inputs, outputs, list(kernel), stride=list(stride), padding=list(padding), **options
            )
    return layer.train(is_training)


class _SparseConvolution(nn.Module):
    """What both layers share: a geometry and a weight [out, kz, ky, kx, in]; no bias."""

    def __init__(self, in_channels: int, out_channels: int, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.weight = nn.Parameter(torch.empty(out_channels, *geometry.kernel, in_channels))
        bound = 1 / math.sqrt(in_channels * math.prod(geometry.kernel))  # as nn.Conv3d
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve."""
        return convolve(x, self.weight, self.geometry)


class SubmanifoldConv3d(_SparseConvolution):
    """Convolution that keeps the sites as they are.

    Args:
        in_channels, out_channels: widths.
        kernel: odd sizes, one or (z, y, x).
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int | Sequence[int] = 3) -> None:
        super().__init__(in_channels, out_channels, submanifold(kernel))


class SparseConv3d(_SparseConvolution):
    """Ordinary convolution, with a stride, of a sparse input.

    Args:
        in_channels, out_channels: widths.
        kernel, stride, padding: one, or (z, y, x).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        padding: int | Sequence[int] = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, strided(kernel, stride, padding))


def triple(value: int | Sequence[int]) -> Triple:
    """One number for each of z, y, x."""
    z, y, x = (value, value, value) if isinstance(value, int) else value
    return z, y, x


def import_spconv() -> Any:
    """The compiled package.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        with warnings.catch_warnings():  # its build tools, imported too, use functions that Python is giving up
            warnings.simplefilter("ignore")
            import spconv.pytorch
    except ImportError as error:
        raise ImportError(
            "the spconv backend needs the package spconv (Linux, x86-64): pip install 'worldmodels[lidar]'"
        ) from error
    return spconv.pytorch
