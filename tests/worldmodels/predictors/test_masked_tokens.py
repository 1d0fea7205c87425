from __future__ import annotations

import functools

import pytest
import torch

from worldmodels.nn.positions import SinusoidalPositions
from worldmodels.nn.rotary import RotaryPositions
from worldmodels.predictors.masked_tokens import MaskedTokenPredictor


def make(**choices):
    torch.manual_seed(0)
    return MaskedTokenPredictor(8, (2, 3), width=16, depth=2, num_heads=2, hidden=32, **choices)


def test_one_prediction_a_hidden_token():
    predictor = make(num_extra=1)
    context, shown = torch.randn(4, 3, 8), torch.tensor([[0, 4]]).expand(4, -1)
    asked = torch.tensor([[[1, 2], [5, -1]]]).expand(4, -1, -1)
    out = predictor(context, shown, asked)
    assert out.shape == (4, 2, 2, 8)
    assert not torch.allclose(out[:, 0, 0], out[:, 0, 1])  # the position is all that tells queries apart


def test_sets_of_hidden_tokens_do_not_see_each_other():
    predictor = make()
    context, shown = torch.randn(4, 2, 8), torch.tensor([[0, 4]]).expand(4, -1)
    both = predictor(context, shown, torch.tensor([[[1, 2], [5, 3]]]).expand(4, -1, -1))
    alone = predictor(context, shown, torch.tensor([[[5, 3]]]).expand(4, -1, -1))
    torch.testing.assert_close(both[:, 1:], alone)


def test_padding_of_context_and_targets_changes_nothing():
    predictor = make(num_extra=1)
    context, shown = torch.randn(4, 3, 8), torch.tensor([[0, 4]]).expand(4, -1)
    asked = torch.tensor([[[1, 2]]]).expand(4, -1, -1)
    expected = predictor(context, shown, asked)
    padded = torch.cat([context, torch.randn(4, 2, 8)], 1)
    found = predictor(
        padded, torch.tensor([[0, 4, -1, -1]]).expand(4, -1), torch.tensor([[[1, 2, -1]]]).expand(4, -1, -1)
    )
    torch.testing.assert_close(found[:, :, :2], expected)


def test_only_what_is_asked_for_is_computed_at_the_end_and_nothing_changes():
    predictor = make(num_extra=1)
    x = torch.randn(4, 7, 16)
    torch.testing.assert_close(predictor.blocks(x, last=3), predictor.blocks(x)[:, -3:])
    is_valid = torch.tensor([True, False, True, True, True, True, False]).expand(4, -1)
    torch.testing.assert_close(predictor.blocks(x, is_valid, last=3), predictor.blocks(x, is_valid)[:, -3:])


CLIP = (2, 2, 3)


@pytest.mark.parametrize("positions", [None, RotaryPositions, functools.partial(SinusoidalPositions, scale=0.1)])
def test_clips_and_wider_teachers_are_predicted_with_a_query_a_family(positions):
    torch.manual_seed(0)
    options = {"width": 24, "depth": 2, "num_heads": 2, "hidden": 48, "out_dim": 20, "num_queries": 2, "num_extra": 1}
    predictor = MaskedTokenPredictor(8, CLIP, **options, positions=positions)
    for block in predictor.blocks.blocks:
        block.attention.qkv.weight.data.mul_(20)  # flat attention would hide rotations
    context, shown = torch.randn(4, 3, 8), torch.tensor([[0, 11]]).expand(4, -1)
    asked = torch.tensor([[[1, 7, 10]]]).expand(4, -1, -1)
    first, second = (predictor(context, shown, asked, query=query) for query in (0, 1))
    assert first.shape == (4, 1, 3, 20)
    assert not torch.allclose(first, second)
    asks = first[0, 0].detach()
    assert float(torch.cdist(asks, asks).fill_diagonal_(1).min()) > 1e-4  # a place is all that tells them apart
    assert not torch.allclose(predictor(context, shown.flip(1), asked), first, atol=1e-4)
    padded = torch.cat([context, torch.randn(4, 1, 8)], 1)
    found = predictor(
        padded, torch.tensor([[0, 11, -1]]).expand(4, -1), torch.tensor([[[1, 7, 10, -1]]]).expand(4, -1, -1)
    )
    torch.testing.assert_close(found[:, :, :3], first)
    (first.sum() + second.sum()).backward()
    assert all(p.grad is not None for p in predictor.parameters())
    assert {p.ndim for name, p in predictor.named_parameters() if "quer" in name} == {1}  # vectors are not decayed


def test_a_predictor_needs_a_query():
    with pytest.raises(ValueError, match="num_queries=0"):
        make(num_queries=0)
