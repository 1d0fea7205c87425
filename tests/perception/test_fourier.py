"""Random Fourier features: their values, their kernel, and that they come back with a checkpoint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Composite, Unbounded

from perception.fourier import FourierStateEncoder

SPEC = Composite(observation=Composite(state=Unbounded((2,))))


def states(num: int, seed: int = 0) -> TensorDict:
    noise = torch.randn(num, 2, generator=torch.Generator().manual_seed(seed))
    return TensorDict({"state": 20 + 3 * noise}, [num])


def test_features_are_the_normalised_state_its_sines_and_cosines():
    encoder = FourierStateEncoder(SPEC, num_frequencies=5)
    encoder.observe(states(1000))
    obs = states(4, seed=1)
    out = encoder(obs)["pooled"].numpy()
    assert encoder.dim == out.shape[-1] == 12
    x = (obs["state"] - encoder.norm.mean).numpy() / np.sqrt(encoder.norm.var.numpy() + 1e-5)
    angle = x @ encoder.frequencies.numpy().T
    np.testing.assert_allclose(out, np.concatenate([x, np.sin(angle), np.cos(angle)], -1), rtol=1e-4, atol=1e-5)


def test_similarity_falls_off_over_a_fraction_of_the_wavelength():
    """The mean of cos(w (x - y)) over Gaussian w is exp(-(std(w) |x - y|)^2 / 2)."""
    torch.manual_seed(0)
    encoder = FourierStateEncoder(SPEC, num_frequencies=20_000, wavelength=4.0)
    x = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 1.0], [3.0, 4.0]])
    waves = encoder(TensorDict({"state": x}, [4]))["pooled"][:, 2:]
    kernel = waves @ waves[0] / 20_000
    distance = x.norm(dim=-1)
    expected = torch.exp(-0.5 * (2 * math.pi / 4.0 * distance / math.sqrt(2)).square())
    torch.testing.assert_close(kernel, expected, rtol=0, atol=0.03)


def test_frequencies_belong_to_the_state_of_the_module_and_are_not_trained():
    one, two = (FourierStateEncoder(SPEC) for _ in range(2))
    assert not torch.equal(one.frequencies, two.frequencies)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(states(3))["pooled"], two(states(3))["pooled"])
    assert not list(one.parameters())


def test_bad_settings():
    with pytest.raises(ValueError, match="wavelength=0"):
        FourierStateEncoder(SPEC, wavelength=0.0)
    with pytest.raises(ValueError, match="num_frequencies=0"):
        FourierStateEncoder(SPEC, num_frequencies=0)
