from __future__ import annotations

import torch

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
