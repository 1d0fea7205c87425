"""Attention is torch's, whichever way it is computed; rotations, checkpointing, first weights of the blocks."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn import functional as F

from worldmodels.nn.rotary import RotaryPositions
from worldmodels.nn.transformer import _SHORT, Transformer, attend


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


def test_rotations_reach_every_block_and_the_last_tokens_alone_are_the_same():
    positions = RotaryPositions((2, 2, 3), 32, num_heads=2)
    blocks = Transformer(32, depth=2, num_heads=2, hidden=64)
    for parameter in blocks.parameters():
        parameter.data.mul_(3)  # 0.02 gives nearly flat attention, which no rotation moves
    x, index = torch.randn(4, 6, 32), torch.rand(4, 12).argsort(1)[:, :6]
    rotations = positions.rotations(index)
    out = blocks(x, rotations=rotations)
    assert not torch.allclose(out, blocks(x), atol=1e-4)
    torch.testing.assert_close(blocks(x, rotations=positions.turns[index]), out)
    torch.testing.assert_close(blocks(x, last=2, rotations=rotations), out[:, -2:])
    order = torch.tensor([3, 0, 5, 1, 4, 2])  # places travel with their tokens
    torch.testing.assert_close(blocks(x[:, order], rotations=rotations[:, order]), out[:, order])


@pytest.mark.parametrize("is_compiled", [False, True])
def test_checkpointed_blocks_give_the_same_gradients(is_compiled, unchecked):
    make = functools.partial(Transformer, 32, depth=2, num_heads=2, hidden=64)
    plain, checkpointed = make(), make(is_checkpointed=True)
    checkpointed.load_state_dict(plain.state_dict())
    positions, x = RotaryPositions((2, 2, 3), 32, num_heads=2), torch.randn(4, 12, 32)

    def loss(blocks: Transformer) -> torch.Tensor:
        return blocks(x, last=4, rotations=positions.rotations()).square().sum()

    torch._dynamo.reset()
    second = torch.compile(loss, fullgraph=True, backend="eager") if is_compiled else loss
    for function, blocks in ((loss, plain), (second, checkpointed)):
        function(blocks).backward()
    for mine, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(checkpointed(x), plain(x))


def test_checkpointing_keeps_less_for_the_backward_pass():
    def kept(is_checkpointed: bool) -> int:
        blocks, sizes = Transformer(32, depth=4, num_heads=2, hidden=128, is_checkpointed=is_checkpointed), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            blocks(torch.randn(2, 64, 32))
        return sum(sizes)

    assert kept(True) < kept(False) / 4


def test_residual_weights_may_start_smaller_with_depth():
    torch.manual_seed(0)
    plain = Transformer(32, depth=3, num_heads=2, hidden=64)
    torch.manual_seed(0)
    scaled = Transformer(32, depth=3, num_heads=2, hidden=64, is_init_scaled=True)
    for number, (mine, theirs) in enumerate(zip(scaled.blocks, plain.blocks, strict=True), 1):
        for name, weight in mine.named_parameters():
            leads_out = name in ("attention.out.weight", "feed_forward.2.weight")
            factor = (2 * number) ** -0.5 if leads_out else 1.0
            torch.testing.assert_close(weight, factor * theirs.get_parameter(name))
