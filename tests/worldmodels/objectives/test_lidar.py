"""AD-L-JEPA and Occupancy-MAE: masks, what leaks, the losses against slow ones."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional as F
from torchrl.data import Bounded, Composite, Unbounded

from perception.lidar.backbone import VoxelBackbone
from worldmodels.keys import (
    CELLS_OCCUPIED,
    CELLS_SHOWN,
    COORDS,
    KEPT,
    LOSS,
    NUM_POINTS,
    OBSERVATION,
    POINTS,
    STAT,
    VOXELS,
)
from worldmodels.objectives.ad_l_jepa import ADLJEPA, VARIANCE_EPSILON, variance_hinge
from worldmodels.objectives.occupancy_mae import OccupancyMAE
from worldmodels.predictors.bev import BEVPredictor
from worldmodels.targets import EMA

LOW, HIGH, SIDE = (0.0, -6.4, -3.0), (12.8, 6.4, 1.0), (0.1, 0.1, 0.1)  # 16 x 16 cells of 0.8 m
CAPACITY = 600
SPEC = Composite(
    {
        OBSERVATION: Composite(
            {POINTS: Unbounded((CAPACITY, 4)), NUM_POINTS: Bounded(0, CAPACITY, (), dtype=torch.int64)}
        )
    }
)


def encoder(spec: Composite) -> VoxelBackbone:
    return VoxelBackbone(spec, low=LOW, high=HIGH, voxel_size=SIDE, widths=(4, 4, 4, 8, 8, 8), max_voxels=CAPACITY)


def ad_l_jepa(**choices) -> ADLJEPA:
    torch.manual_seed(0)
    make_target = lambda online: EMA(online, 0.1, has_own_statistics=True)  # noqa: E731
    return ADLJEPA(SPEC, encoder=encoder, predictor=BEVPredictor, target=make_target, **choices)


def scans(num: int = 3, seed: int = 0) -> TensorDict:
    """Points in a part of the range, a different number in each scan."""
    generator = Generator().manual_seed(seed)
    low, high = torch.tensor([*LOW, 0.0]), torch.tensor([8.0, 4.0, 0.0, 1.0])
    points = low + (high - low) * torch.rand(num, CAPACITY, 4, generator=generator)
    count = torch.arange(num) * 150 + 200
    points[torch.arange(CAPACITY) >= count[:, None]] = 0
    obs = TensorDict({POINTS: points[:, None], NUM_POINTS: count[:, None]}, batch_size=[num, 1])
    return TensorDict({OBSERVATION: obs}, batch_size=[num])


def drawn(objective: ADLJEPA | OccupancyMAE, batch: TensorDict, seed: int = 1) -> TensorDict:
    return objective.draw_masks(batch, Generator().manual_seed(seed))


@pytest.mark.parametrize("is_split_over_batch", [False, True])
def test_the_asked_share_of_occupied_cells_is_shown(is_split_over_batch):
    objective = ad_l_jepa(mask_ratio=0.25, is_split_over_batch=is_split_over_batch)
    batch = drawn(objective, scans())
    occupied, shown = batch[CELLS_OCCUPIED], batch[CELLS_SHOWN]
    num, num_shown = occupied.sum(1), (occupied & shown).sum(1)
    if is_split_over_batch:
        assert num_shown.sum() == math.floor(0.75 * int(num.sum()))
    else:
        assert num_shown.tolist() == [math.floor(0.75 * n) for n in num.tolist()]
    share = shown[~occupied].float().mean()
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / int((~occupied).sum())) ** 0.5
    again = drawn(objective, scans())
    assert torch.equal(shown, again[CELLS_SHOWN])
    assert not torch.equal(shown, drawn(objective, scans(), seed=2)[CELLS_SHOWN])


def test_points_of_hidden_cells_reach_neither_context_nor_prediction():
    objective = ad_l_jepa().eval()  # batch statistics would let the number of voxels through
    batch = drawn(objective, scans())
    obs, occupied, shown = batch[OBSERVATION][:, 0], batch[CELLS_OCCUPIED], batch[CELLS_SHOWN]
    context = objective.context(obs, occupied, shown)
    cells = objective.encoder.cells(obs)
    is_hidden = (cells >= 0) & ~shown.gather(1, cells.clamp_min(0))
    assert is_hidden.any()
    changed = obs.clone()
    changed[VOXELS, "features"][is_hidden] += 5.0
    assert torch.equal(objective.context(changed, occupied, shown), context)
    changed[VOXELS, "features"][(cells >= 0) & ~is_hidden] += 5.0
    assert not torch.equal(objective.context(changed, occupied, shown), context)
    # Cells that are not both occupied and shown hold a token, whatever dilated into them.
    unit = F.normalize(torch.stack([objective.mask_token, objective.empty_token]), dim=-1)
    is_token = ~(occupied & shown)
    torch.testing.assert_close(context[is_token], unit[shown[is_token].long()])


def test_loss_is_that_of_a_slow_reference():
    objective = ad_l_jepa()
    batch = drawn(objective, scans())
    twin = ad_l_jepa()  # norms move their statistics
    out = objective.loss(batch)
    obs, occupied, shown = batch[OBSERVATION][:, 0], batch[CELLS_OCCUPIED], batch[CELLS_SHOWN]
    context = twin.context(obs, occupied, shown)
    prediction = twin.predictor(context.mT.reshape(3, twin.encoder.dim, *twin.encoder.grid))
    seen = twin.target.module.bev(twin.encoder.showing(obs, occupied & ~shown))
    full, empty, hinges = [], [], []
    for b in range(3):
        visible, hidden = [], []
        for y in range(16):
            for x in range(16):
                cell = y * 16 + x
                p = F.normalize(prediction[b, :, y, x], dim=0, eps=1e-12)
                if occupied[b, cell] and shown[b, cell]:
                    visible.append(context[b, cell])
                elif occupied[b, cell]:
                    hidden.append(p)
                    full.append(1 - p @ F.normalize(seen[b, :, y, x], dim=0, eps=1e-12))
                elif not shown[b, cell]:
                    empty.append(1 - p @ F.normalize(twin.empty_token, dim=0))
        for cells in (visible, hidden):
            deviation = (torch.stack(cells).var(0) + VARIANCE_EPSILON).sqrt()
            hinges.append(F.relu(twin.encoder.dim**-0.5 - deviation).mean())
    torch.testing.assert_close(out[LOSS, "occupied"], torch.stack(full).mean())
    torch.testing.assert_close(out[LOSS, "empty"], torch.stack(empty).mean())
    torch.testing.assert_close(out[LOSS, "variance"], torch.stack(hinges).sum() / 3)
    torch.testing.assert_close(out[STAT, "cosine_occupied"], 1 - out[LOSS, "occupied"])


def test_variance_of_too_few_cells_is_none():
    z = F.normalize(torch.randn(3, 5, 8), dim=-1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    hinge = variance_hinge(z, mask)
    expected = F.relu(8**-0.5 - (z[0, :3].var(0) + VARIANCE_EPSILON).sqrt()).mean()
    torch.testing.assert_close(hinge, torch.stack([expected, torch.zeros(()), torch.zeros(())]))


def test_variance_is_as_exact_under_autocast():
    z = F.normalize(torch.randn(64) + 0.01 * torch.randn(2, 500, 64), dim=-1)  # almost collapsed: where it must work
    mask = torch.rand(2, 500) < 0.3
    found = []
    for is_enabled in (False, True):
        leaf = z.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
            hinge = variance_hinge(leaf, mask)
        found.append((hinge, *torch.autograd.grad(hinge.sum(), leaf)))
    for exact, fast in zip(*found, strict=True):
        assert torch.equal(exact, fast)


def test_a_scan_without_points_does_no_harm():
    objective, batch = ad_l_jepa(), scans()
    batch[OBSERVATION, NUM_POINTS][1] = 0
    out = objective.loss(drawn(objective, batch))
    sum(out[LOSS].values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.encoder.parameters())


def test_released_switches():
    objective = ad_l_jepa(are_tokens_trained=False)
    (phase,) = objective.phases()
    assert "tokens" not in phase.params
    assert not objective.mask_token.requires_grad
    assert "tokens" in ad_l_jepa().phases()[0].params
    with pytest.raises(ValueError, match="mask_ratio=1"):
        ad_l_jepa(mask_ratio=1)


def test_target_keeps_statistics_of_its_own():
    objective = ad_l_jepa()
    objective.loss(drawn(objective, scans()))
    objective.target.update(0)
    mine, theirs = objective.target.module.norms[0], objective.encoder.norms[0]
    assert not torch.equal(mine.running_mean, theirs.running_mean)
    assert mine.num_batches_tracked == theirs.num_batches_tracked == 1
    objective.eval()
    assert not objective.target.module.training
    objective.train()
    assert objective.target.module.training


def test_embeds_whole_scans():
    objective = ad_l_jepa().eval()
    latents = objective.embed(scans()[OBSERVATION][:, 0])
    assert latents["scan"].shape == latents["cell"].shape == (3, objective.encoder.dim)
    assert latents["cell"].any(-1).all()


# --- Occupancy-MAE --------------------------------------------------------------------------------------------------
def occupancy_mae(**choices) -> OccupancyMAE:
    torch.manual_seed(0)
    return OccupancyMAE(SPEC, encoder=encoder, width=8, parts=(10, 2, 2), **choices)


def test_occupied_parts_are_those_that_hold_voxels():
    objective = occupancy_mae()
    obs = drawn(objective, scans())[OBSERVATION][:, 0]
    expected = torch.zeros(3, 10, 32, 32, dtype=torch.bool)
    for b in range(3):
        for z, y, x in obs[VOXELS, COORDS][b].tolist():
            if z >= 0:
                expected[b, z // 4, y // 4, x // 4] = True
    assert torch.equal(objective.occupied(obs), expected)
    assert expected.any()


def test_decoder_puts_every_part_in_its_place():
    objective = occupancy_mae()
    logits = objective.decode(torch.randn(1, objective.encoder.dim, 16, 16))
    assert logits.shape == (1, 10, 32, 32)
    bev: Tensor = torch.randn(1, objective.encoder.dim, 16, 16)
    raw = objective.decoder.eval()(bev)
    whole = objective.decode(bev)
    for z, y, x in [(0, 0, 0), (3, 5, 8), (9, 31, 30)]:
        channel = (z * 2 + y % 2) * 2 + x % 2
        assert whole[0, z, y, x] == raw[0, channel, y // 2, x // 2]


def test_voxels_are_hidden_by_distance():
    objective = occupancy_mae(mask_ratio=[0.0, 0.9], mask_distance=[5])
    batch = drawn(objective, scans())
    obs = batch[OBSERVATION][:, 0]
    distance = objective.encoder.centres(obs)[..., :2].norm(dim=-1)
    is_voxel, kept = obs[VOXELS, COORDS][..., 0] >= 0, batch[KEPT]
    assert kept[is_voxel & (distance < 5)].all()
    far = kept[is_voxel & (distance > 5)].float()
    assert abs(far.mean() - 0.1) < 4 * (0.09 / len(far)) ** 0.5
    assert objective.loss(batch)[STAT, "kept"] == kept[is_voxel].float().mean()
    with pytest.raises(ValueError, match="one more than the distances"):
        occupancy_mae(mask_ratio=[0.5], mask_distance=[5])


@pytest.mark.gpu
def test_drawing_masks_does_not_wait_for_the_gpu():
    for objective in (ad_l_jepa().cuda(), occupancy_mae().cuda()):
        batch, generator = scans().cuda(), Generator("cuda")
        objective.draw_masks(batch, generator)
        torch.cuda.set_sync_debug_mode("error")
        try:
            objective.draw_masks(batch, generator)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_both_learn_a_batch():
    for objective in (ad_l_jepa(), occupancy_mae()):
        batch = drawn(objective, scans())
        optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
        first = last = None
        for _ in range(25):
            loss = sum(objective.loss(batch)[LOSS].values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            last = loss.item()
            first = first or last
        assert last < 0.9 * first
