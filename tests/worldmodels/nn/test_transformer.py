"""Attention is torch's, whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from worldmodels.nn.transformer import _SHORT, attend


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("num_keys", [1, 7, _SHORT + 1])
def test_attention_and_its_gradients_are_torchs(num_keys, is_masked):
    parts = [torch.randn(3, 2, num, 4, dtype=torch.float64, requires_grad=True) for num in (5, num_keys, num_keys)]
    mask = torch.rand(3, 1, 1, num_keys) < 0.5 if is_masked else None
    if mask is not None:
        mask[..., 0] = True  # a row attends to something
    found, wanted = attend(*parts, mask), F.scaled_dot_product_attention(*parts, attn_mask=mask)
    torch.testing.assert_close(found, wanted)
    direction = torch.randn_like(found)
    mine, theirs = (torch.autograd.grad(out, parts, direction) for out in (found, wanted))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)
