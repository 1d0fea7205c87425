from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from worldmodels.masking import RandomSubsets, counts, first, validity


@given(
    num=st.integers(2, 40),
    sizes=st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(1, 20), st.integers(0, 20)),
    num_targets=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_targets_never_meet_the_context_and_sizes_keep_their_range(num, sizes, num_targets, seed):
    context, target = (sizes[0], sizes[0] + sizes[1]), (sizes[2], sizes[2] + sizes[3])
    options = {"context": context, "target": target, "num_targets": num_targets}
    if context[0] + target[0] > num:
        with pytest.raises(ValueError, match="cannot leave"):
            RandomSubsets(num, **options)
        return
    draw = RandomSubsets(num, **options)
    masks, again = (draw(8, Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(masks.context, again.context)
    assert torch.equal(masks.targets, again.targets)
    assert masks.targets.shape[:2] == (8, num_targets)
    assert context[0] <= masks.context.shape[1] <= context[1]
    assert target[0] <= masks.targets.shape[2] <= target[1]
    for shown, asked in zip(masks.context.tolist(), masks.targets.tolist(), strict=True):
        assert len(set(shown)) == len(shown)
        for one in asked:
            assert len(set(one)) == len(one)
            assert not set(one) & set(shown)
            assert set(one) | set(shown) <= set(range(num))


def test_every_column_is_shown_and_asked_for_equally_often():
    draw, generator = RandomSubsets(9, context=(2, 4), target=(1, 5), num_targets=2), Generator().manual_seed(0)
    masks = [draw(200, generator) for _ in range(100)]
    for which in (0, 1):
        hits = sum(torch.bincount(mask[which].flatten(), minlength=9) for mask in masks).float()
        assert float(hits.min() / hits.max()) > 0.9
    differ = [(mask.targets[:, 0] != mask.targets[:, 1]).any(1).float().mean() for mask in masks]
    assert float(torch.stack(differ).mean()) > 0.7  # the sets of a row


def test_sizes_are_drawn_as_published():
    draw, generator = RandomSubsets(20, context=(3, 7), target=(10, 15), num_targets=1), Generator().manual_seed(0)
    found = torch.zeros(8, 16)
    for _ in range(4000):
        masks = draw(1, generator)
        found[masks.context.shape[1], masks.targets.shape[2]] += 1 / 4000
    uniform = torch.rand(2, 400_000, generator=generator)
    context, target = 3 + (4 * uniform[0]).round().long(), 10 + (5 * uniform[1]).round().long()
    fits = context + target <= 20  # the others are drawn again
    expected = torch.zeros(8, 16)
    expected.index_put_((context[fits], target[fits]), 1 / fits.sum(), accumulate=True)
    assert float((found - expected).abs().max()) < 0.02


def test_the_released_code_asks_for_one_target_again_and_again():
    draw = RandomSubsets(9, context=(2, 4), target=(1, 5), num_targets=3, is_one_target=True)
    targets = draw(50, Generator().manual_seed(0)).targets
    assert bool((targets == targets[:, :1]).all())


def test_padding_stands_where_shapes_are_fixed():
    index = torch.tensor([[4, 2, 7]])
    assert first(index, torch.tensor(2), 3).tolist() == [[4, 2]]
    padded = first(index.to("meta"), torch.tensor(2, device="meta"), 3)
    assert padded.shape == (1, 3)
    assert validity(index) is None
    assert validity(torch.tensor([[4, -1]])).tolist() == [[True, False]]


def test_shares_become_numbers():
    assert counts((0.136, 0.368), 54, what="context_share") == (7, 20)
    assert counts((0.156, 0.622), 54, what="target_share") == (8, 34)
    assert counts((0.01, 0.02), 8, what="context_share") == (1, 1)
    with pytest.raises(ValueError, match="context_share"):
        counts((0.5, 0.2), 8, what="context_share")
