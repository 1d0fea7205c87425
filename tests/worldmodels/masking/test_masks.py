from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from worldmodels.masking import MultiBlock, RandomSubsets, Subsets, counts, first, padding, validity


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


GRID = (14, 14)


def drawn(draw: MultiBlock, num: int, batch_size: int = 256) -> list[Subsets]:
    generator = Generator().manual_seed(0)
    return [draw(batch_size, generator) for _ in range(num)]


def row_shares(masks: list[Subsets]) -> torch.Tensor:
    """How probably a patch of each row is in a context, with 14 columns."""
    shares = [torch.bincount((mask.context // 14).flatten(), minlength=14) / mask.context.shape[0] for mask in masks]
    return torch.stack(shares).mean(0) / 14


def target_density(masks: list[Subsets]) -> torch.Tensor:
    """How often each patch is asked for, over the mean of all; [14, 14]."""
    hits = sum(torch.bincount(mask.targets.flatten(), minlength=196) for mask in masks).float()
    return (hits / hits.mean()).view(GRID)


@given(
    rows=st.integers(6, 15),
    columns=st.integers(6, 15),
    num_targets=st.integers(1, 5),
    released=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40)
def test_targets_are_blocks_and_the_context_is_beside_them(rows, columns, num_targets, released, seed):
    options = {"target_scale": (0.1, 0.15), "min_keep": 1, "num_targets": num_targets, "released": released}
    draw = MultiBlock((rows, columns), **options)
    masks, again = (draw(8, Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(masks.context, again.context)
    assert torch.equal(masks.targets, again.targets)
    assert masks.targets.shape[:2] == (8, num_targets)
    assert 1 < masks.context.shape[1] <= draw.most_context
    assert masks.targets.shape[2] <= draw.most_target
    sizes = set()
    for shown, blocks in zip(masks.context.tolist(), masks.targets.tolist(), strict=True):
        assert len(set(shown)) == len(shown)
        assert set(shown) <= set(range(rows * columns))
        for block in blocks:
            down, right = {place // columns for place in block}, {place % columns for place in block}
            assert set(block) == {r * columns + c for r in range(min(down), max(down) + 1) for c in right}
            assert max(right) - min(right) == len(right) - 1
            assert len(block) == len(set(block)) == len(down) * len(right)
            assert max(down) < rows - released
            assert max(right) < columns - released
            sizes.add((len(down), len(right)))
        assert not set(shown) & {place for block in blocks for place in block}
    assert len(sizes) == 1  # one draw for the batch


def test_every_place_is_shown_and_asked_for_as_often_as_its_mirror_image():
    masks = drawn(MultiBlock(GRID), 100)
    shown = row_shares(masks)
    torch.testing.assert_close(shown, shown.flip(0), rtol=0.05, atol=0.0)
    density = target_density(masks)
    for mirrored in (density.flip(0), density.flip(1)):
        torch.testing.assert_close(density, mirrored, rtol=0.3, atol=0.02)
    assert float(density.min()) > 0  # the last row and column, too
    ratios = {mask.targets.shape[2] for mask in masks}
    assert len(ratios) > 4  # area and aspect are drawn independently


def test_released_masks_have_the_official_statistics():
    """Sheet dmt_jepa, section 1.1, measured there on few batches; one draw decides over the size of a whole batch."""
    draw, shares = MultiBlock(GRID, released=True), []
    whole = draw._context
    draw._context = lambda *args: shares.append((found := whole(*args)).float().mean()) or found
    masks = drawn(draw, 100)
    assert float(torch.stack(shares).mean()) == pytest.approx(0.42, abs=0.01)  # before cutting
    kept = [mask.context.shape[1] for mask in masks]
    assert sum(kept) / len(kept) / 196 == pytest.approx(0.26, abs=0.025)
    assert max(kept) <= 65
    found = row_shares(masks)
    for row, share in {0: 0.75, 6: 0.19, 11: 0.06, 12: 0.01, 13: 0.0}.items():
        assert float(found[row]) == pytest.approx(share, abs=0.035), row
    sizes = [mask.targets.shape[2] for mask in masks]
    assert min(sizes) == 30
    assert sorted(sizes)[95] <= 36  # one draw in forty gives blocks of 8 x 5
    density = target_density(masks).mean(1)
    assert float(density.max()) == pytest.approx(1.8, abs=0.05)
    assert float(density[0]) == pytest.approx(0.3, abs=0.02)
    assert float(density[13]) == 0


def test_a_context_moves_or_overlaps_targets_rather_than_vanish():
    """Four targets of nearly half the grid each leave nothing of many contexts."""
    options = {"target_scale": (0.45, 0.5), "target_aspect": (1, 1), "context_scale": (0.3, 0.3), "max_context": 1.0}
    masks = drawn(MultiBlock((6, 6), min_keep=3, **options), 5)
    overlaps = 0
    for mask in masks:
        assert mask.context.shape[1] > 3
        for shown, blocks in zip(mask.context.tolist(), mask.targets.tolist(), strict=True):
            overlaps += bool(set(shown) & {place for block in blocks for place in block})
    assert 0 < overlaps < 5 * 256


def test_fixed_shapes_hold_the_same_masks_and_padding(monkeypatch):
    """What a GPU gets."""
    for released in (False, True):
        draw = MultiBlock(GRID, released=released)
        cut = draw(64, Generator().manual_seed(1))
        with monkeypatch.context() as patch:
            patch.setattr(padding, "is_cut", lambda device: False)
            padded = draw(64, Generator().manual_seed(1))
        for mine, theirs, most in zip(padded, cut, (draw.most_context, draw.most_target), strict=True):
            num = theirs.shape[-1]
            assert mine.shape == (*theirs.shape[:-1], most)
            assert torch.equal(mine[..., :num].sort(-1).values, theirs.sort(-1).values)
            assert bool((mine[..., num:] == -1).all())


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ((5,), {}, "rows and columns"),
        ((2, 2), {}, "too small"),
        ((2, 3), {"min_keep": 0}, "least target has 0"),
        ((4, 4), {"context_scale": (0.3, 0.4)}, "least context 4"),
        ((8, 8), {"released": True}, "needs 11"),
        ((14, 14), {"target_scale": (0.3, 0.1)}, "target_scale"),
        ((14, 14), {"num_targets": 0}, "num_targets=0: 1 to 24 blocks"),
        ((14, 14), {"num_targets": 25}, "num_targets=25: 1 to 24 blocks"),
        ((14, 14), {"context_scale": (0.9, 1.2)}, "context_scale"),
    ],
)
def test_grids_too_small_for_the_blocks_are_refused(grid, options, message):
    with pytest.raises(ValueError, match=message):
        MultiBlock(grid, **options)


@pytest.mark.gpu
def test_masks_of_a_gpu_have_fixed_shapes():
    draw, generator = MultiBlock(GRID), Generator("cuda").manual_seed(0)
    for _ in range(5):
        masks = draw(64, generator)
        assert masks.context.shape == (64, draw.most_context)
        assert masks.targets.shape == (64, 4, draw.most_target)
        asked = masks.targets.flatten(1)
        assert not bool(((masks.context[:, :, None] == asked[:, None]) & (asked >= 0)[:, None]).any())
        sizes = (masks.context >= 0).sum(1)
        assert bool((sizes == sizes[0]).all())
