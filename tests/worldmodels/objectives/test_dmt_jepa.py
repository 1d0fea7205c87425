from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.worldmodels.objectives.pictures import batch_of, check_compiles_whole, dmt_jepa
from worldmodels.masking import padding, union
from worldmodels.nn.class_attention import AggregationHead
from worldmodels.objectives.dmt_jepa import OFFSETS, neighbour_similarity


def around(place: int, rows: int, columns: int, *, wraps: bool = False) -> list[int]:
    """Neighbours of a patch, by hand."""
    row, column = divmod(place, columns)
    spots = [(row + down, column + right) for down, right in OFFSETS]
    if wraps:
        return [r % rows * columns + c % columns for r, c in spots]
    return [r * columns + c for r, c in spots if 0 <= r < rows and 0 <= c < columns]


@settings(max_examples=20)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), wraps=st.booleans(), seed=st.integers(0, 100))
def test_similarities_are_the_cosines_of_neighbours(rows, columns, wraps, seed):
    features = torch.randn(2, rows * columns, 6, generator=torch.Generator().manual_seed(seed))
    found = neighbour_similarity(features, (rows, columns), wraps=wraps)
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        for number, (down, right) in enumerate(OFFSETS):
            at = row + down, column + right
            if wraps:
                at = at[0] % rows, at[1] % columns
            elif not (0 <= at[0] < rows and 0 <= at[1] < columns):
                continue
            other = features[:, at[0] * columns + at[1]]
            expected = F.cosine_similarity(features[:, place], other, dim=-1)
            torch.testing.assert_close(found[:, place, number], expected, rtol=1e-4, atol=1e-5)


def test_the_released_torus_and_ours():
    """Patch 0 of a 6 x 6 grid: the neighbours that the sheet measured in the released code, and its real ones."""
    assert sorted(around(0, 6, 6, wraps=True)) == [1, 5, 6, 7, 11, 30, 31, 35]
    for released in (False, True):
        objective = dmt_jepa(released=released)
        table = [
            sorted(row[~barred].tolist()) for row, barred in zip(objective.neighbours, objective.edge, strict=True)
        ]
        assert table == [sorted(around(place, 6, 8, wraps=released)) for place in range(48)]


@pytest.mark.parametrize("released", [False, True])
def test_the_nearest_neighbours_are_chosen_and_corners_have_three(released):
    objective = dmt_jepa(released=released)
    features, asked = torch.randn(2, 48, 16), torch.arange(48).expand(2, -1)
    index, is_valid = objective.nearest(features, asked, objective.edge[asked])
    for picture in range(2):
        for place in range(48):
            spots = around(place, 6, 8, wraps=released)
            near = F.cosine_similarity(features[picture, place][None], features[picture, spots], dim=-1)
            expected = {spots[i] for i in near.topk(min(4, len(spots))).indices.tolist()}
            assert set(index[picture, place][is_valid[picture, place]].tolist()) == expected
    assert int(is_valid[0, 0].sum()) == (4 if released else 3)


def test_neighbours_within_the_block_only():
    objective = dmt_jepa(is_within_block=True)
    batch = batch_of(objective)
    targets = batch["targets"]
    beside = objective.beside(targets)
    for picture in range(4):
        for block in range(4):
            members = set(targets[picture, block].tolist())
            for place, barred in zip(targets[picture, block].tolist(), beside[picture, block], strict=True):
                inside = objective.neighbours[place][~barred].tolist()
                assert set(inside) == members & set(around(place, 6, 8))
    assert objective.goal(batch).shape == (*targets.shape, 16)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_head_attends_to_itself_and_the_few_that_exist(depth):
    """Against a straightforward loop: u0 <- u0 + attention([u0; x]), u0 <- u0 + feed-forward."""
    head = AggregationHead(8, depth=depth, num_heads=2).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    memory, asking = torch.randn(2, 5, 8).double(), torch.randn(2, 3, 8).double()
    index = torch.tensor([[[0, 1], [4, 2], [3, 3]]]).expand(2, -1, -1)
    is_valid = torch.tensor([[[True, True], [True, False], [False, False]]]).expand(2, -1, -1)
    found = head(asking, is_valid, memory, index)
    for picture in range(2):
        for row in range(3):
            token, known = asking[picture, row], memory[picture, index[picture, row][is_valid[picture, row]]]
            for block in head.blocks:
                seen = block.norm_attention(torch.cat([token[None], known]))
                parts = block.query(seen[:1]), block.key(seen), block.value(seen)
                query, key, value = (part.unflatten(-1, (2, 4)).transpose(0, 1) for part in parts)
                answer = F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten()
                token = token + block.out(answer)
                token = token + block.feed_forward(block.norm_feed_forward(token))
            torch.testing.assert_close(found[picture, row], head.norm(token))


def test_the_context_head_gives_every_token_one_answer_and_ignores_padding():
    head = AggregationHead(8, depth=2, num_heads=2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens = torch.randn(2, 5, 8)
    padded = F.pad(tokens, (0, 0, 0, 2), value=7.0)
    is_valid = torch.arange(7).expand(2, -1) < 5
    torch.testing.assert_close(head(padded, is_valid)[:, :5], head(tokens), rtol=1e-4, atol=1e-5)
    block = head.blocks[0]
    asking = tokens.mean(1, keepdim=True)
    seen = block.norm_attention(torch.cat([asking, tokens], 1))
    parts = block.query(seen[:, :1]), block.key(seen), block.value(seen)
    query, key, value = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in parts)
    answer = block.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    mixed = tokens + answer
    expected = mixed + block.feed_forward(block.norm_feed_forward(mixed))
    torch.testing.assert_close(block.of_all(tokens, None), expected)


def test_targets_are_the_same_computed_once_a_patch_or_once_a_block(monkeypatch):
    objective = dmt_jepa()
    batch = batch_of(objective)
    features = objective.whole(batch["observation"][:, 0])
    every = torch.arange(48).expand(4, -1)
    whole = objective.aggregate(features, every, objective.edge[every])  # of all patches
    index = batch["targets"].flatten(1)[..., None].expand(-1, -1, 16)
    expected = whole.gather(1, index).view(*batch["targets"].shape, 16)
    torch.testing.assert_close(objective.goal(batch), expected, rtol=1e-4, atol=1e-5)
    cut = objective.loss(batch)["loss", "prediction"]
    with monkeypatch.context() as patch:
        patch.setattr(padding, "is_cut", lambda device: False)
        padded = batch_of(objective)
    assert padded["asked"].shape == (4, 48)
    torch.testing.assert_close(objective.loss(padded)["loss", "prediction"], cut, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 2**20), num=st.integers(1, 30))
@settings(max_examples=20)
def test_a_union_holds_every_target_once(seed, num):
    targets = torch.randint(-1, num, (3, 2, 5), generator=torch.Generator().manual_seed(seed))
    found = union(targets, num)
    for row, wanted in zip(found.tolist(), targets.flatten(1).tolist(), strict=True):
        assert sorted(place for place in row if place >= 0) == sorted(set(wanted) - {-1})


@pytest.mark.parametrize("released", [False, True])
def test_a_patch_asks_with_the_mean_of_its_own_picture(released):
    """In the released code only one patch in B does."""
    objective = dmt_jepa(released=released)
    features, every = torch.randn(3, 48, 16), torch.arange(48).expand(3, -1)
    together = objective.aggregate(features, every, objective.edge[every])
    alone = torch.cat([objective.aggregate(f[None], every[:1], objective.edge[every[:1]]) for f in features])
    is_same = torch.isclose(together, alone, rtol=1e-4, atol=1e-5).all(-1)
    row = torch.arange(3 * 48).view(3, 48)
    assert torch.equal(is_same, (row % 3 == torch.arange(3)[:, None]) | (not released))


def two_regions(noise: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [8, 48, 16] that are constant on either side of a border between columns 3 and 4, plus noise."""
    is_left = (torch.arange(48) % 8 < 4).float()[:, None]
    kinds = torch.randn(8, 2, 1, 16)
    return kinds[:, 0] * is_left + kinds[:, 1] * (1 - is_left) + noise * torch.randn(8, 48, 16), is_left[:, 0] > 0


def test_similar_neighbours_lower_noise_within_regions_and_keep_their_border():
    """The claim of the paper on maps of two regions; the mean of the 3 x 3 window blurs the border instead."""
    objective = dmt_jepa()
    features, is_left = two_regions()
    every = torch.arange(48).expand(8, -1)
    index, is_valid = objective.nearest(features, every, objective.edge[every])
    near = torch.gather(features[:, None].expand(-1, 48, -1, -1), 2, index[..., None].expand(-1, -1, -1, 16))
    chosen = (near * is_valid[..., None]).sum(2) / is_valid.sum(2)[..., None]
    maps = features.mT.unflatten(2, (6, 8))
    blurred = F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False).flatten(2).mT

    def spread(x: torch.Tensor) -> float:
        """Variance within a region, away from its border and the picture's edge."""
        inner = torch.arange(48).view(6, 8)[1:5, [1, 2]].flatten()
        return float(x[:, inner].var(1).mean())

    def contrast(x: torch.Tensor) -> float:
        """Squared distance of the mean patches on either side of the border."""
        cells = x.unflatten(1, (6, 8))[:, 1:5].mean(1)  # [B, 8, D]; corners have but three neighbours on their side
        return float((cells[:, 3] - cells[:, 4]).square().mean())

    assert spread(chosen) < 0.5 * spread(features)
    assert contrast(chosen) > 0.85 * contrast(features)
    assert contrast(blurred) < 0.3 * contrast(features)
    sides = (is_left[index] == is_left[:, None]).view(8, 6, 8, 4)[:, 1:5]  # of those chosen
    assert float(sides.float().mean()) > 0.97


def test_targets_of_the_head_keep_regions_apart_and_calm_them():
    """The same through the head, as drawn: attention averages what it is given."""
    objective = dmt_jepa()
    for parameter in objective.head_target.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    features, is_left = two_regions()
    features = F.layer_norm(features, (16,))
    every = torch.arange(48).expand(8, -1)
    targets = objective.aggregate(features, every, objective.edge[every])

    def ratio(x: torch.Tensor) -> float:
        """Variance between the two regions over that within them."""
        left, right = x[:, is_left], x[:, ~is_left]
        within = (left.var(1) + right.var(1)).mean() / 2
        return float((left.mean(1) - right.mean(1)).square().mean() / within)

    assert ratio(targets) > 2 * ratio(features)


@pytest.mark.parametrize("options", [{}, {"is_within_block": True}, {"released": True}])
def test_the_loss_compiles_whole(options, unchecked):
    """The contract test compiles a loss that systems inherit for the first of them only."""
    check_compiles_whole(dmt_jepa(**options))


def test_heads_are_trained_followed_and_saved():
    objective = dmt_jepa()
    names = {name.split(".")[0] for name in objective.state_dict()}
    assert {"head", "head_target"} <= names
    objective.loss(batch_of(objective))["loss", "prediction"].backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in objective.head.blocks.parameters())
    assert all(p.grad is None for p in objective.head_target.parameters())
    with torch.no_grad():
        for parameter in objective.head.parameters():
            parameter.add_(1.0)
    before = objective.head_target.module.norm.weight.clone()
    objective.head_target.update(0)
    torch.testing.assert_close(objective.head_target.module.norm.weight, before + 0.1)


def test_probes_see_the_encoder_without_the_head():
    objective = dmt_jepa()
    obs = batch_of(objective)["observation"][:, 0]
    torch.testing.assert_close(objective.patches(obs), objective.target.module(obs)["tokens"])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_neighbours=9"):
        dmt_jepa(num_neighbours=9)
    with pytest.raises(ValueError, match="exclude each other"):
        dmt_jepa(released=True, is_within_block=True)
    with pytest.raises(ValueError, match="does not divide among 3 heads"):
        AggregationHead(16, depth=1, num_heads=3)
