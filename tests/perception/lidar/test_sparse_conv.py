"""Both backends against dense convolution and against each other."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch.nn import functional as F

from perception.lidar.sparse_conv import (
    SparseConv3d,
    SparseTensor,
    SubmanifoldConv3d,
    backend_for,
    import_spconv,
    use_backend,
)

HAS_SPCONV = importlib.util.find_spec("spconv") is not None
needs_spconv = pytest.mark.skipif(not HAS_SPCONV, reason="needs the package spconv")
BACKENDS = [  # and spconv on the CPU: test_spconv_on_the_cpu
    pytest.param("torch", "cpu", torch.float64, id="torch"),
    pytest.param("torch", "cuda", torch.float64, id="torch-cuda", marks=pytest.mark.gpu),
    pytest.param("spconv", "cuda", torch.float32, id="spconv-cuda", marks=[pytest.mark.gpu, needs_spconv]),
]
LAYERS = {
    "first": lambda: SubmanifoldConv3d(4, 16),
    "submanifold": lambda: SubmanifoldConv3d(8, 8),
    "strided": lambda: SparseConv3d(4, 6),
    "strided, z unpadded": lambda: SparseConv3d(4, 6, padding=(0, 1, 1)),
    "along z": lambda: SparseConv3d(4, 6, kernel=(3, 1, 1), stride=(2, 1, 1), padding=0),
    "lopsided": lambda: SubmanifoldConv3d(4, 5, kernel=(1, 3, 5)),
    "wide stride": lambda: SparseConv3d(4, 5, kernel=(2, 3, 5), stride=(3, 1, 2), padding=(0, 2, 1)),
}
SHAPE = (7, 10, 9)


def sites(channels, *, shape=SHAPE, dtype=torch.float64, device="cpu", share=0.2, empty=(1,)) -> SparseTensor:
    """Random sites of three samples, in random order; one sample has none."""
    is_site = torch.rand(3, *shape) < share
    is_site[list(empty)] = False
    indices = is_site.nonzero().int()
    indices = indices[torch.randperm(len(indices))].to(device)
    features = torch.randn(len(indices), channels, dtype=dtype).to(device).requires_grad_()
    return SparseTensor(features, indices, shape, 3)


def dense(x: SparseTensor, layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer as a dense convolution [B, C, Z, Y, X], and which sites are active [B, 1, Z, Y, X]."""
    options = {"stride": layer.geometry.stride, "padding": layer.geometry.padding}
    out = F.conv3d(x.dense(), layer.weight.permute(0, 4, 1, 2, 3), **options)
    there = x.with_features(torch.ones_like(x.features[:, :1])).dense()
    if not layer.geometry.is_submanifold:
        there = F.conv3d(there, torch.ones(1, 1, *layer.geometry.kernel).to(there), **options)
    is_active = there > 0.5
    return out * is_active, is_active


def as_mask(x: SparseTensor) -> torch.Tensor:
    return x.with_features(torch.ones_like(x.features[:, :1])).dense().bool()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("backend", "device", "dtype"), BACKENDS)
def test_equals_a_dense_convolution_with_all_gradients(name, backend, device, dtype):
    layer = LAYERS[name]().to(device, dtype)
    x = sites(layer.weight.shape[-1], dtype=dtype, device=device)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-2, "atol": 1e-2}
    with use_backend(backend):
        out = layer(x)
    expected, is_active = dense(x, layer)
    assert out.shape == expected.shape[2:]
    assert torch.equal(as_mask(out), is_active)
    torch.testing.assert_close(out.dense(), expected, **close)
    pull = torch.randn_like(expected)
    mine = torch.autograd.grad((out.dense() * pull).sum(), [x.features, layer.weight])
    theirs = torch.autograd.grad((expected * pull).sum(), [x.features, layer.weight])
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("name", LAYERS)
def test_order_of_sites_does_not_matter(name):
    layer = LAYERS[name]().double()
    x = sites(layer.weight.shape[-1])
    order = torch.randperm(len(x.indices))
    other = SparseTensor(x.features[order], x.indices[order], x.shape, x.batch_size)
    torch.testing.assert_close(layer(x).dense(), layer(other).dense())


def test_submanifold_layers_share_a_rulebook():
    x = sites(8)
    a, b = SubmanifoldConv3d(8, 8).double(), SubmanifoldConv3d(8, 8).double()
    assert b(a(x)).cache is x.cache
    assert len(x.cache) == 1


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("backend", "device", "dtype"), BACKENDS)
def test_nothing_gives_nothing_and_a_gradient_of_zero(name, backend, device, dtype):
    layer = LAYERS[name]().to(device, dtype)
    x = sites(layer.weight.shape[-1], dtype=dtype, device=device, share=0.0)
    with use_backend(backend):
        out = layer(x)
    assert out.features.shape == (0, layer.weight.shape[0])
    assert out.dense().shape[:2] == (3, layer.weight.shape[0])
    (gradient,) = torch.autograd.grad(out.dense().sum(), [layer.weight])
    assert (gradient == 0).all()


@pytest.mark.parametrize("backend", ["torch"])
def test_same_input_same_bits(backend):
    layer, x = SparseConv3d(4, 6), sites(4, dtype=torch.float32)
    outs = []
    for _ in range(2):
        with use_backend(backend):
            out = layer(SparseTensor(x.features, x.indices, x.shape, x.batch_size)).dense()
        outs.append((out, *torch.autograd.grad(out.square().sum(), [x.features, layer.weight])))
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))


def assert_backends_agree_in_float32(name):
    layer = LAYERS[name]()
    x = sites(layer.weight.shape[-1], dtype=torch.float32)
    found = {}
    for backend in ("torch", "spconv"):
        with use_backend(backend):
            out = layer(SparseTensor(x.features, x.indices, x.shape, x.batch_size)).dense()
        found[backend] = (out, *torch.autograd.grad(out.square().sum(), [x.features, layer.weight]))
    for a, b in zip(found["torch"], found["spconv"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@needs_spconv
@pytest.mark.slow
def test_spconv_on_the_cpu():
    """In one test: importing it takes ten seconds of processor time, which two workers would both spend."""
    for name in LAYERS:
        print(name)  # shown if it fails
        test_equals_a_dense_convolution_with_all_gradients(name, "spconv", "cpu", torch.float64)
        test_nothing_gives_nothing_and_a_gradient_of_zero(name, "spconv", "cpu", torch.float64)
    for name in ("submanifold", "strided", "along z"):
        print(name)
        assert_backends_agree_in_float32(name)
    test_same_input_same_bits("spconv")


def test_sites_beyond_the_last_window_are_lost_as_in_a_dense_convolution():
    layer = SparseConv3d(4, 6, kernel=2, stride=2, padding=0).double()
    lost = torch.tensor([[0, 6, 0, 0], [2, 0, 0, 8]], dtype=torch.int32)  # the windows of 7 and 9 end at 5 and 7
    out = layer(SparseTensor(torch.randn(2, 4, dtype=torch.float64), lost, SHAPE, 3))
    assert out.shape == (3, 5, 4)
    assert len(out.features) == 0


def test_autocast_leaves_the_type_alone():
    x = sites(4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SubmanifoldConv3d(4, 8)(x).features.dtype == torch.float32


def test_the_device_chooses_the_backend():
    assert backend_for(torch.device("cpu")) == "torch"
    assert backend_for(torch.device("cuda")) == ("spconv" if HAS_SPCONV else "torch")
    with use_backend("spconv"):
        assert backend_for(torch.device("cpu")) == "spconv"
    assert backend_for(torch.device("cpu")) == "torch"


def test_bad_input_is_named(monkeypatch):
    x = sites(4)
    with pytest.raises(ValueError, match=r"kernel \(3, 3, 3\) and 4 channels; got \[8, 3, 3, 3, 5\]"):
        SubmanifoldConv3d(5, 8)(x)
    with pytest.raises(ValueError, match="odd sizes"):
        SubmanifoldConv3d(4, 8, kernel=2)
    with pytest.raises(ValueError, match=r"int32; got torch.int64"):
        SparseTensor(x.features, x.indices.long(), SHAPE, 3)
    with pytest.raises(ValueError, match=r"indices \[N, 4\]"):
        SparseTensor(x.features, x.indices[1:], SHAPE, 3)
    with pytest.raises(ValueError, match="no sparse backend called dense"), use_backend("dense"):
        pass
    for package in ("spconv", "spconv.pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"worldmodels\[lidar\]"):
        import_spconv()
