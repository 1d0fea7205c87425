"""Dense layers against the same maps written in numpy from their weights, one member and one layer at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worldmodels.nn.mlp import (
    MLP,
    Embedding,
    EnsembleLayerNorm,
    EnsembleLinear,
    LatentMLP,
    Tanh,
    linear,
    project,
)


def perturbed(module: nn.Module) -> nn.Module:
    """In float64, with biases and norms that are no longer 0 and 1."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """LayerNorm over the last dimension."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def dense(layer: nn.Module, member: int | None, x: np.ndarray) -> np.ndarray:
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return x @ weight.T + bias if member is None else x @ weight[member] + bias[member]


def close(found: Tensor, expected: np.ndarray, rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=rtol, atol=1e-10)


def test_project_gives_norm_sqrt_of_the_dimension():
    rows = torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.2, 1.6, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(project(rows), expected)
    latent = torch.randn(5, 2, 7)
    close(project(latent), np.sqrt(7) * latent.numpy() / np.linalg.norm(latent.numpy(), axis=-1, keepdims=True), 1e-6)


def test_tanh_is_tanh():
    x = torch.linspace(-20, 20, 4001)
    torch.testing.assert_close(Tanh()(x), torch.tanh(x), rtol=0, atol=3e-7)
    x = torch.randn(9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Tanh(), x)


@pytest.mark.parametrize(("in_dim", "out_dim"), [(6, 4), (4, 6)])
def test_weights_start_orthogonal_and_biases_zero(in_dim, out_dim):
    small = torch.eye(min(in_dim, out_dim))
    weight = linear(in_dim, out_dim).weight.detach()  # [out, in]
    gram = weight @ weight.T if out_dim < in_dim else weight.T @ weight
    torch.testing.assert_close(gram, small, rtol=0, atol=1e-5)
    layer = EnsembleLinear(3, in_dim, out_dim)
    for member in layer.weight.detach():  # [in, out]
        gram = member @ member.T if in_dim < out_dim else member.T @ member
        torch.testing.assert_close(gram, 2 * small, rtol=0, atol=1e-5)
    assert not torch.equal(layer.weight[0], layer.weight[1])
    assert layer.bias.abs().sum() == linear(in_dim, out_dim).bias.abs().sum() == 0


def test_ensemble_linear_is_one_linear_layer_a_member():
    layer = perturbed(EnsembleLinear(3, 4, 5))
    own, shared = torch.randn(3, 6, 4).double(), torch.randn(6, 4).double()
    close(layer(own), np.stack([dense(layer, k, own[k].numpy()) for k in range(3)]))
    close(layer(shared), np.stack([dense(layer, k, shared.numpy()) for k in range(3)]))


def test_ensemble_layer_norm_is_one_layer_norm_a_member():
    layer = perturbed(EnsembleLayerNorm(3, 5))
    x = torch.randn(3, 6, 5).double()
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    close(layer(x), np.stack([norm(x[k].numpy(), weight[k], bias[k]) for k in range(3)]))


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("num_members", [None, 2])
def test_mlp_equals_a_loop_over_layers(depth, num_members):
    net = perturbed(MLP(4, 3, width=8, depth=depth, num_members=num_members))
    layers = [layer for layer in net.layers if isinstance(layer, nn.Linear | EnsembleLinear)]
    assert len(layers) == depth + 1
    x = torch.randn(6, 4).double()

    def forward(member: int | None) -> np.ndarray:
        hidden = x.numpy()
        for layer in layers[:-1]:
            hidden = np.maximum(dense(layer, member, hidden), 0)
        return dense(layers[-1], member, hidden)

    close(net(x), forward(None) if num_members is None else np.stack([forward(k) for k in range(2)]))


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_latent_mlp_equals_a_loop_over_layers(depth, is_normalized):
    net = perturbed(LatentMLP(4, 5, width=8, depth=depth, is_normalized=is_normalized))
    x = torch.randn(6, 4).double()
    hidden, linears = x.numpy(), [layer for layer in net.layers if isinstance(layer, nn.Linear)]
    for index, layer in enumerate(linears[:-1]):
        hidden = dense(layer, None, hidden)
        if index == 0:
            (affine,) = (layer for layer in net.layers if isinstance(layer, nn.LayerNorm))
            hidden = np.tanh(norm(hidden, affine.weight.detach().numpy(), affine.bias.detach().numpy()))
        else:
            hidden = np.maximum(hidden, 0)
    expected = dense(linears[-1], None, hidden)
    if is_normalized:
        expected = np.sqrt(5) * expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    assert net.dim == 5
    close(net(x), expected, rtol=1e-5)  # project works in float32


@pytest.mark.parametrize("num_members", [None, 2])
def test_embedding_equals_a_loop_over_layers(num_members):
    net = perturbed(Embedding(4, width=8, depth=3, num_members=num_members))
    first, middle, last = (layer for layer in net.layers if isinstance(layer, nn.Linear | EnsembleLinear))
    weight, bias = (parameter.detach().numpy() for parameter in net.layers[1].parameters())
    x = torch.randn(6, 4).double()

    def forward(member: int | None) -> np.ndarray:
        scale, shift = (weight, bias) if member is None else (weight[member], bias[member])
        hidden = np.tanh(norm(dense(first, member, x.numpy()), scale, shift))
        hidden = np.maximum(dense(middle, member, hidden), 0)
        return np.maximum(dense(last, member, hidden), 0)

    assert net.dim == 4
    close(net(x), forward(None) if num_members is None else np.stack([forward(k) for k in range(2)]))


def test_embedding_refuses_sizes_it_cannot_halve():
    with pytest.raises(ValueError, match="even width; got depth 2, width 7"):
        Embedding(4, width=7)
    with pytest.raises(ValueError, match="got depth 1"):
        Embedding(4, width=8, depth=1)
