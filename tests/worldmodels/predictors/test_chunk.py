"""Chunk decoders against torch's own decoder layers; what pads a chunk is not looked at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from worldmodels.nn.transformer import Attention, CrossAttention, DecoderBlock
from worldmodels.predictors.chunk import ChunkDecoder

B, N, T, C, HEADS, HIDDEN = 3, 4, 6, 16, 4, 24

pytestmark = pytest.mark.usefixtures("float64")


def theirs_of(block: DecoderBlock) -> nn.TransformerDecoderLayer:
    """torch's decoder layer with the weights of ours."""
    layer = nn.TransformerDecoderLayer(C, HEADS, HIDDEN, dropout=0.0, batch_first=True)
    pairs = {"linear1": block.feed_forward[0], "linear2": block.feed_forward[2]}
    pairs |= {"norm1": block.norm_attention, "norm2": block.norm_cross, "norm3": block.norm_feed_forward}
    with torch.no_grad():
        for name, mine in pairs.items():
            module = layer.get_submodule(name)
            module.weight.copy_(mine.weight)
            module.bias.copy_(torch.zeros_like(module.bias) if mine.bias is None else mine.bias)
        mine = block.attention
        copy_attention(layer.self_attn, mine.qkv.weight, mine.qkv.bias, mine.out)
        mine = block.cross_attention
        weight = torch.cat([mine.query.weight, mine.key_value.weight])
        copy_attention(layer.multihead_attn, weight, torch.cat([mine.query.bias, mine.key_value.bias]), mine.out)
    return layer


def copy_attention(theirs: nn.MultiheadAttention, weight: Tensor, bias: Tensor, out: nn.Linear) -> None:
    for parameter, value in (
        (theirs.in_proj_weight, weight),
        (theirs.in_proj_bias, bias),
        (theirs.out_proj.weight, out.weight),
        (theirs.out_proj.bias, out.bias),
    ):
        parameter.copy_(value)


@pytest.mark.parametrize("has_feed_bias", [True, False])
def test_a_decoder_block_is_torchs_post_norm_layer(has_feed_bias: bool) -> None:
    block = DecoderBlock(C, num_heads=HEADS, hidden=HIDDEN, has_feed_bias=has_feed_bias)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, memory = torch.randn(B, T, C), torch.randn(B, N, C)
    is_valid = torch.arange(T) < torch.tensor([6, 3, 1])[:, None]
    expected = theirs_of(block)(x, memory, tgt_key_padding_mask=~is_valid)
    torch.testing.assert_close(block(x, memory, is_valid), expected)


def test_a_chunk_is_projected_in_asked_by_queries_and_projected_out() -> None:
    decoder = ChunkDecoder(C, T, 5, width=8, depth=2, num_heads=2, hidden=12)
    context = torch.randn(B, N, C)
    memory, x = decoder.inward(context), decoder.queries.expand(B, -1, -1)
    for block in decoder.blocks:
        x = block(x, memory)
    expected = decoder.outward(decoder.norm(x))
    assert expected.shape == (B, T, 5)
    torch.testing.assert_close(decoder(context), expected)
    assert decoder.blocks[0].feed_forward[0].bias is None
    assert isinstance(ChunkDecoder(C, T, 5, depth=1, num_heads=2, hidden=12).inward, nn.Identity)


def test_steps_that_pad_a_chunk_are_not_looked_at() -> None:
    decoder = ChunkDecoder(C, T, 5, depth=2, num_heads=HEADS, hidden=HIDDEN)
    context, is_valid = torch.randn(B, N, C), torch.arange(T) < torch.tensor([6, 3, 1])[:, None]
    before = decoder(context, is_valid)
    with torch.no_grad():
        decoder.queries[3:] += 1.0  # steps 3 to 5 are padding of the second and third sample
    after = decoder(context, is_valid)
    torch.testing.assert_close(after[1, :3], before[1, :3])
    torch.testing.assert_close(after[2, :1], before[2, :1])
    assert (after[0, :3] - before[0, :3]).abs().min() > 1e-6


def test_the_order_of_the_context_does_not_matter() -> None:
    decoder = ChunkDecoder(C, T, 5, depth=1, num_heads=HEADS, hidden=HIDDEN)
    context = torch.randn(B, N, C)
    torch.testing.assert_close(decoder(context.flip(1)), decoder(context))


def test_a_mask_by_query_is_causal_attention() -> None:
    attention, x = Attention(C, HEADS), torch.randn(B, T, C)
    causal = torch.ones(1, T, T, dtype=torch.bool).tril()
    whole = attention(x, causal)
    for last in range(T):
        torch.testing.assert_close(attention(x[:, : last + 1])[:, last], whole[:, last])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step; got 0"):
        ChunkDecoder(C, 0, 5, depth=1, num_heads=2, hidden=12)
    with pytest.raises(ValueError, match="16 does not divide among 3 heads"):
        CrossAttention(16, 3)
