"""Losses of detection heads against formulas written out entry by entry."""

from __future__ import annotations

import math

import pytest
import torch

from perception.detection.losses import box_code_error, penalty_reduced_focal, sigmoid_focal

F64 = torch.float64


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_sigmoid_focal_by_hand():
    logits, target = [-2.0, 0.3, 4.0, -0.5], [1.0, 0.0, 1.0, 0.0]
    expected = [
        -0.25 * (1 - sigmoid(x)) ** 2 * math.log(sigmoid(x))
        if t
        else -0.75 * sigmoid(x) ** 2 * math.log(1 - sigmoid(x))
        for x, t in zip(logits, target, strict=True)
    ]
    found = sigmoid_focal(torch.tensor(logits, dtype=F64), torch.tensor(target, dtype=F64))
    assert found.tolist() == pytest.approx(expected)


def test_focal_losses_stay_finite_at_extremes():
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    for target in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])):
        for loss in (sigmoid_focal(logits, target).sum(), penalty_reduced_focal(logits, target)):
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite()
            assert gradient.isfinite().all()


def test_box_code_error_by_hand():
    target = torch.zeros(2, 7, dtype=F64)
    prediction = target.clone()
    prediction[0, 0] = 0.05  # below beta = 1/9: 0.5 * 0.05^2 * 9
    prediction[0, 3] = -1.0  # above: 1 - 1/18
    prediction[1, 6], target[1, 6] = math.pi + 0.5, 0.2  # half a turn is nothing: sin(pi + 0.3)
    expected = [0.5 * 0.05**2 * 9 + 1 - 1 / 18, math.sin(0.3) - 1 / 18]
    assert box_code_error(prediction, target).tolist() == pytest.approx(expected)


def test_heading_error_is_that_of_the_published_pair():
    """sin p cos t against cos p sin t, with gradients through both."""
    p = torch.linspace(-4, 4, 9, dtype=F64, requires_grad=True)
    t = torch.linspace(1, -2, 9, dtype=F64)
    codes = [torch.nn.functional.pad(x[:, None], (6, 0)) for x in (p, t)]
    mine = box_code_error(*codes).sum()
    pair = torch.nn.functional.smooth_l1_loss(p.sin() * t.cos(), p.cos() * t.sin(), beta=1 / 9, reduction="sum")
    torch.testing.assert_close(mine, pair)
    torch.testing.assert_close(torch.autograd.grad(mine, p), torch.autograd.grad(pair, p))


def test_penalty_reduced_focal_by_hand():
    logits, heat = [1.0, -1.0, 0.5, -3.0], [1.0, 0.8, 0.0, 1.0]
    total = 0.0
    for x, y in zip(logits, heat, strict=True):
        p = sigmoid(x)
        total += math.log(p) * (1 - p) ** 2 if y == 1 else math.log(1 - p) * p**2 * (1 - y) ** 4
    found = penalty_reduced_focal(torch.tensor(logits, dtype=F64), torch.tensor(heat, dtype=F64))
    assert found.item() == pytest.approx(-total / 2)
    nothing = penalty_reduced_focal(torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64))  # no centre: divided by 1
    assert nothing.item() == pytest.approx(4 * math.log(2) / 4)
