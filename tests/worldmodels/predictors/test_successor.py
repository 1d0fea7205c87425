"""Successor predictions, their reduction, target and loss against loops over members and samples, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodels.predictors.successor import SuccessorPredictor, ensemble_mean, latent_td_loss, successor_target


def doubles(*shape: int) -> Tensor:
    """Numbers that float32 holds too: the loss leaves bfloat16 autocast through ``.float()``."""
    return torch.randn(*shape).double()


def test_predictor_puts_the_action_embedding_before_the_task_embedding():
    """The layout of the sheet: emb1 = [phi, z], emb2 = [phi, a], concat(emb2, emb1) -> trunk, members apart."""
    net = SuccessorPredictor(4, 3, 2, 5, width=8, depth=1, num_members=2).double()
    latent, z, action = doubles(6, 4), doubles(6, 3), doubles(6, 2)
    one = net.embed_task(torch.cat([latent, z], -1))
    two = net.embed_action(torch.cat([latent, action], -1))
    first, last = net.trunk.layers[0], net.trunk.layers[2]
    found = net(latent, z, action).detach().numpy()
    assert found.shape == (2, 6, 5)
    for k in range(2):
        joint = np.concatenate([two[k].detach().numpy(), one[k].detach().numpy()], -1)
        hidden = np.maximum(joint @ first.weight[k].detach().numpy() + first.bias[k].detach().numpy(), 0)
        expected = hidden @ last.weight[k].detach().numpy() + last.bias[k].detach().numpy()
        np.testing.assert_allclose(found[k], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num", [1, 2, 4])
@pytest.mark.parametrize("pessimism", [0.0, 0.5])
def test_ensemble_mean_equals_a_loop_over_pairs(num, pessimism):
    prediction = doubles(num, 3, 5)
    members = prediction.numpy()
    gaps = [abs(members[i] - members[j]) for i in range(num) for j in range(num) if i != j]
    expected = sum(members) / num - pessimism * (np.mean(gaps, axis=0) if gaps else 0)
    np.testing.assert_allclose(ensemble_mean(prediction, pessimism).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_target_by_hand_stops_at_the_end_of_the_task():
    latent = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()
    successor = torch.tensor([[10.0, 20.0], [30.0, 40.0]]).double()
    discount = torch.tensor([0.5, 0.0]).double()
    expected = torch.tensor([[6.0, 12.0], [3.0, 4.0]]).double()
    assert torch.equal(successor_target(latent, successor, discount), expected)


def test_loss_sums_over_dimensions_and_averages_over_members_and_batch():
    prediction, target = doubles(2, 3, 4), doubles(3, 4)
    terms = [float(((prediction[k, i] - target[i]) ** 2).sum()) for k in range(2) for i in range(3)]
    assert latent_td_loss(prediction, target).item() == pytest.approx(sum(terms) / 6, rel=1e-12)


def test_loss_is_computed_in_float32_even_from_bfloat16():
    target = torch.tensor([[1.0 + 2.0**-12]])  # bfloat16 would round this to 1
    loss = latent_td_loss(torch.ones(1, 1, 1, dtype=torch.bfloat16), target)
    assert loss.dtype == torch.float32
    assert loss.item() == 2.0**-24
