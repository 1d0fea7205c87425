"""Running statistics against those of all data at once, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrl.data import Composite, Unbounded

from perception.normalize import RunningNorm
from perception.state import StateEncoder


def data(num: int) -> Tensor:
    """Dimensions of very different size and place."""
    return torch.randn(num, 3).double() * torch.tensor([0.1, 1.0, 50.0]) + torch.tensor([0.0, -3.0, 200.0])


def test_statistics_equal_those_of_the_whole_data_set():
    x = data(40 * 16)
    norm = RunningNorm(3, momentum=0.01).double()
    for batch in x.split(16):  # 40 batches: fewer than 1 / momentum, so the average is cumulative
        norm.observe(batch)
    np.testing.assert_allclose(norm.mean.numpy(), x.numpy().mean(0), rtol=1e-10)
    np.testing.assert_allclose(norm.var.numpy(), x.numpy().var(0), rtol=1e-10)
    np.testing.assert_allclose(
        norm(x).numpy(), (x.numpy() - x.numpy().mean(0)) / np.sqrt(x.numpy().var(0) + 1e-5), rtol=1e-8
    )


def test_average_becomes_exponential_once_it_has_settled():
    norm = RunningNorm(3, momentum=0.25).double()
    batches = data(7 * 8).split(8)
    mean, var = np.zeros(3), np.ones(3)
    for count, batch in enumerate(batches, start=1):
        rate = max(1 / count, 0.25)  # the fifth batch on: no longer 1 / n
        gap = batch.numpy().mean(0) - mean
        var = (1 - rate) * var + rate * batch.numpy().var(0) + rate * (1 - rate) * gap**2
        mean = mean + rate * gap
        norm.observe(batch)
    np.testing.assert_allclose(norm.mean.numpy(), mean, rtol=1e-10)
    np.testing.assert_allclose(norm.var.numpy(), var, rtol=1e-10)
    assert norm.count == 7
    assert not np.allclose(mean, torch.cat(batches).mean(0).numpy(), rtol=1e-6)  # later batches count more


def test_one_number_twice_is_no_error_and_statistics_move_only_when_told():
    norm = RunningNorm(2)
    norm.observe(torch.full((4, 2), 7.0))
    out = norm(torch.full((4, 2), 7.0))
    assert torch.equal(out, torch.zeros(4, 2))
    assert norm.count == 1


@pytest.mark.parametrize("is_normalized", [True, False])
def test_state_encoder_hands_the_state_on(is_normalized):
    spec = Composite(observation=Composite(state=Unbounded((3,))))
    encoder = StateEncoder(spec, is_normalized=is_normalized)
    obs = Composite(state=Unbounded((3,))).expand(6).rand()
    encoder.observe(obs)
    out = encoder(obs)
    state = obs["state"]
    expected = (state - state.mean(0)) / (state.var(0, correction=0) + 1e-5).sqrt() if is_normalized else state
    torch.testing.assert_close(out["pooled"], expected)
    assert torch.equal(out["tokens"][:, 0], out["pooled"])
    assert encoder.dim == 3
    assert list(encoder.parameters()) == []
    with pytest.raises(ValueError, match="keep must be None"):
        encoder(obs, keep=torch.zeros(6, 1, dtype=torch.int64))
