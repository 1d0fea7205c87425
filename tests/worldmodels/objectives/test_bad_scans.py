"""Scans and labels that hold nothing, or nothing sensible, cost a step nothing but themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Bounded, Composite, Unbounded

from perception.lidar.backbone import VoxelBackbone
from tests.perception.detection.small_heads import CLASSES, TINY, detector
from worldmodels.core import Objective
from worldmodels.keys import BOX_CLASS, BOXES, LOSS, NUM_POINTS, NUM_VOXELS, OBSERVATION, POINTS, STAT, VOXELS
from worldmodels.objectives.ad_l_jepa import ADLJEPA
from worldmodels.objectives.lidar_detection import LidarDetection
from worldmodels.objectives.occupancy_mae import OccupancyMAE
from worldmodels.predictors.bev import BEVPredictor
from worldmodels.targets import EMA

LOW, HIGH, SIDE = (0.0, -6.4, -3.0), (12.8, 6.4, 1.0), (0.1, 0.1, 0.1)
NUM = 300
SPEC = Composite(
    {
        OBSERVATION: Composite({POINTS: Unbounded((NUM, 4)), NUM_POINTS: Bounded(0, NUM, (), dtype=torch.int64)}),
        BOXES: Unbounded((2, 7)),
        BOX_CLASS: Bounded(-1, 2, (2,), dtype=torch.int64),
    }
)


def encoder(spec: Composite) -> VoxelBackbone:
    return VoxelBackbone(spec, low=LOW, high=HIGH, voxel_size=SIDE, widths=(4, 4, 4, 8, 8, 8), max_voxels=NUM)


def ad_l_jepa() -> Objective:
    target = lambda online: EMA(online, 0.1, has_own_statistics=True)  # noqa: E731
    return ADLJEPA(SPEC, encoder=encoder, predictor=BEVPredictor, target=target)


def occupancy_mae() -> Objective:
    return OccupancyMAE(SPEC, encoder=encoder, width=8)


def detection(name: str) -> Objective:
    node = detector(name).objective.detector
    node.backbone.update(TINY)
    return LidarDetection(
        SPEC, encoder=encoder, detector=lambda dim, **place: instantiate(node)(dim, classes=CLASSES, **place)
    )


OBJECTIVES = {
    "ad_l_jepa": ad_l_jepa,
    "occupancy_mae": occupancy_mae,
    "second": lambda: detection("second"),
    "center": lambda: detection("center"),
}


def scans() -> TensorDict:
    """Three scans with a car and a padding box each."""
    low, high = torch.tensor([*LOW, 0.0]), torch.tensor([*HIGH, 1.0])
    points = low + (high - low) * torch.rand(3, 1, NUM, 4)
    boxes = torch.tensor([[5.0, 0, -1, 3.9, 1.6, 1.5, 0.3], [0] * 7]).expand(3, 1, 2, 7).clone()
    obs = TensorDict({POINTS: points, NUM_POINTS: torch.full((3, 1), NUM)}, batch_size=[3, 1])
    labels = {BOXES: boxes, BOX_CLASS: torch.tensor([0, -1]).expand(3, 1, 2).clone()}
    return TensorDict({OBSERVATION: obs, **labels}, batch_size=[3])


def step(objective: Objective, batch: TensorDict) -> tuple[TensorDict, TensorDict]:
    """A batch after the objective's transforms, and what its loss gives; everything must be finite."""
    for transform in objective.transforms():
        batch = transform(batch, Generator().manual_seed(0))
    out = objective.phases()[0].loss(batch)
    sum(out[LOSS].values()).backward()
    assert all(value.isfinite() for part in (out[LOSS], out[STAT]) for value in part.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())
    assert all(buffer.isfinite().all() for buffer in objective.buffers())
    return batch, out


NOTHING: dict[str, Callable[[TensorDict], TensorDict]] = {
    "no points": lambda obs: obs.set(NUM_POINTS, torch.zeros_like(obs[NUM_POINTS])),
    "none in range": lambda obs: obs.set(POINTS, obs[POINTS] + 1e4),
    "none finite": lambda obs: obs.set(POINTS, torch.full_like(obs[POINTS], math.nan)),
    "all at infinity": lambda obs: obs.set(POINTS, torch.full_like(obs[POINTS], -math.inf)),
}


@pytest.mark.parametrize("how", NOTHING)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_batches_without_a_voxel(name, how):
    objective, batch = OBJECTIVES[name](), scans()
    before = {key: value.clone() for key, value in objective.encoder.state_dict().items() if "running" in key}
    NOTHING[how](batch[OBSERVATION])
    seen, _ = step(objective, batch)
    assert not seen[OBSERVATION, VOXELS, NUM_VOXELS].any()
    after = objective.encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items()), "nothing was seen"
    if isinstance(objective, LidarDetection):
        found = objective.eval().detect(batch[OBSERVATION][:, 0])
        assert found.boxes.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_points_that_are_not_finite_are_as_if_they_were_not_there(name):
    batch = scans()
    spoiled, fewer = batch.clone(), batch.clone()
    spoiled[OBSERVATION, POINTS][:, :, 200:, 1] = math.nan
    fewer[OBSERVATION, NUM_POINTS][:] = 200
    outs = []
    for one in (spoiled, fewer):
        torch.manual_seed(0)
        objective = OBJECTIVES[name]()
        objective.encoder.max_points = NUM  # which five of a voxel's points are kept is drawn
        seen, _ = step(objective, one)
        outs.append(seen[OBSERVATION, VOXELS])
    assert torch.equal(outs[0][NUM_VOXELS], outs[1][NUM_VOXELS])
    assert outs[0]["num_broken"].flatten().tolist() == [100] * 3
    totals = [voxels["features"].sum((1, 2)) for voxels in outs]
    torch.testing.assert_close(*totals)


@pytest.mark.parametrize("name", ["second", "center"])
@pytest.mark.parametrize(
    "box",
    [
        [1e5, 0, -1, 3.9, 1.6, 1.5, 0.3],  # far outside
        [5, 0, 90, 3.9, 1.6, 1.5, 0.3],  # far above
        [5, 0, -1, 0, 0, 0, 0],  # readers refuse it
        [5, 0, -1, -3.9, 1.6, 1.5, 0],
        [5, 0, -1, 500, 500, 9, 0],  # larger than the range
    ],
)
def test_absurd_boxes_leave_losses_finite(name, box):
    batch = scans()
    batch[BOXES][:, 0, 0] = torch.tensor(box, dtype=torch.float32)
    step(OBJECTIVES[name](), batch)
