"""Augmentations keep points and labels together."""

from __future__ import annotations

import math

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from tensordict import TensorDict
from torch import Generator

from perception.detection.augment import BoxesInRange, RandomFlip, RandomRotation, RandomScaling
from worldmodels.core import Transform
from worldmodels.geometry.boxes import corners, points_in_boxes

NUM, POINTS, BOXES = 6, 300, 5
ALL = [
    RandomFlip(along_x=1.0),
    RandomFlip(along_x=0.0, along_y=1.0),
    RandomFlip(along_x=1.0, along_y=1.0),
    RandomFlip(along_x=0.5, along_y=0.5),
    RandomRotation(),
    RandomScaling(low=0.5, high=2.0),
]


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def scans(*, has_boxes: bool = True) -> TensorDict:
    """Scans whose first 250 points lie in and around their boxes; the last box of each is padding; float64."""
    boxes = torch.zeros(NUM, 1, BOXES, 7, dtype=torch.float64)
    real = boxes[..., : BOXES - 1, :]
    real[..., :3] = torch.rand(NUM, 1, BOXES - 1, 3) * torch.tensor([60.0, 60, 2]) - torch.tensor([10.0, 30, 2])
    real[..., 3:6] = 0.5 + 4 * torch.rand(NUM, 1, BOXES - 1, 3)
    real[..., 6] = 2 * math.pi * torch.rand(NUM, 1, BOXES - 1) - math.pi
    owner = torch.randint(BOXES - 1, (NUM, 1, 250))
    centre = boxes.gather(2, owner[..., None].expand(-1, -1, -1, 7))[..., :3]
    points = torch.zeros(NUM, 1, POINTS, 4, dtype=torch.float64)
    points[:, :, :250, :3] = centre + 0.8 * torch.randn(NUM, 1, 250, 3)
    points[:, :, :250, 3] = torch.rand(NUM, 1, 250)
    box_class = torch.tensor([0, 1, 2, 0, -1]).expand(NUM, 1, -1)
    observation = {"points": points, "num_points": torch.full((NUM, 1), 250)}
    labels = {"boxes": boxes, "box_class": box_class, "frame": torch.arange(NUM)[:, None]}
    return TensorDict({"observation": observation, **(labels if has_boxes else {})}, batch_size=[NUM])


def inside(batch: TensorDict) -> torch.Tensor:
    return points_in_boxes(batch["observation", "points"][:, :, :250], batch["boxes"][:, :, : BOXES - 1])


@pytest.mark.parametrize("transform", ALL)
def test_points_stay_in_their_boxes_and_padding_stays_padding(transform):
    batch = scans()
    before = batch.clone()
    after = transform(batch, generator())
    assert isinstance(transform, Transform)
    assert (batch == before).all()  # nobody writes into what they were given
    assert inside(batch).sum() > 300
    assert torch.equal(inside(after), inside(batch))
    assert not torch.equal(after["boxes"], batch["boxes"])
    assert not after["boxes"][..., -1, :].any()
    assert not after["observation", "points"][:, :, 250:].any()
    assert torch.equal(after["observation", "points"][..., 3], batch["observation", "points"][..., 3])
    assert torch.equal(after["box_class"], batch["box_class"])
    assert torch.equal(after["frame"], batch["frame"])
    heading = after["boxes"][..., 6]
    assert ((heading >= -math.pi) & (heading < math.pi)).all()


@pytest.mark.parametrize("transform", ALL)
def test_corners_move_as_points_do(transform):
    """The corners of a changed box, as a set, are the changed corners: length, width and heading fit together."""
    batch = scans()
    places = corners(batch["boxes"][:, :, :-1]).flatten(2, 3)  # [B, 1, 32, 3]
    carrier = batch.copy()
    carrier["observation"] = batch["observation"].copy().set("points", places)
    moved = transform(carrier, generator(3))["observation", "points"].unflatten(2, (BOXES - 1, 8))
    found = corners(transform(batch, generator(3))["boxes"][:, :, :-1])
    distance = torch.cdist(found, moved)
    assert distance.amin(-1).max() < 1e-9
    assert distance.amin(-2).max() < 1e-9


@pytest.mark.parametrize("transform", ALL)
def test_scans_without_labels_are_changed_alike(transform):
    batch = scans()
    bare = batch.select("observation")
    points = [transform(one, generator())["observation", "points"] for one in (batch, bare)]
    assert torch.equal(*points)


def test_a_flip_twice_is_the_identity():
    for chances in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        flip = RandomFlip(along_x=chances[0], along_y=chances[1])
        batch = scans()
        again = flip(flip(batch, generator()), generator())
        torch.testing.assert_close(again["observation", "points"], batch["observation", "points"])
        torch.testing.assert_close(again["boxes"], batch["boxes"])


def test_flips_by_hand():
    batch = scans()[:1]
    batch["boxes"][0, 0, 0] = torch.tensor([10.0, 3, -1, 4, 2, 1.5, 0.3])
    expected = {
        (1.0, 0.0): [10, -3, -1, 4, 2, 1.5, -0.3],
        (0.0, 1.0): [-10, 3, -1, 4, 2, 1.5, math.pi - 0.3],
        (1.0, 1.0): [-10, -3, -1, 4, 2, 1.5, 0.3 - math.pi],
    }
    for (along_x, along_y), box in expected.items():
        found = RandomFlip(along_x=along_x, along_y=along_y)(batch, generator())["boxes"][0, 0, 0]
        assert found.tolist() == pytest.approx(box)


def test_composition_equals_the_matrix():
    """Flip, turn and scale together are one linear map of each sample, which its own points determine."""
    batch = scans()
    after = batch
    for seed, transform in enumerate((RandomFlip(along_y=0.5), RandomRotation(), RandomScaling())):
        after = transform(after, generator(seed))
    old, new = (one["observation", "points"][:, 0, :250, :3] for one in (batch, after))
    matrix = torch.linalg.lstsq(old, new).solution.mT  # new = matrix @ old
    draws = [
        torch.rand(shape, generator=generator(seed), dtype=torch.float64)
        for seed, shape in enumerate(((2, 6), (1, 6), (1, 6)))
    ]
    for sample in range(NUM):
        flip = torch.diag(torch.where(draws[0][[1, 0], sample] < 0.5, -1.0, 1.0).double())
        angle = ((2 * draws[1][0, sample] - 1) * math.pi / 4).item()
        turn = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
        )
        scale = 0.95 + 0.1 * draws[2][0, sample]
        torch.testing.assert_close(matrix[sample, :2, :2], scale * turn @ flip, rtol=1e-9, atol=1e-9)
        assert matrix[sample, 2, 2].item() == pytest.approx(scale.item())
        torch.testing.assert_close(after["boxes"][sample, 0, :, 3:6], scale * batch["boxes"][sample, 0, :, 3:6])


def test_draws_are_one_a_sample_uniform_and_follow_the_generator():
    points = torch.tensor([[[[1.0, 1.0, 1.0, 0.5]]]]).expand(4000, 2, 1, 4)
    batch = TensorDict({"observation": {"points": points}}, batch_size=[4000])
    ranges = {RandomRotation(limit=0.5): (-0.5, 0.5), RandomScaling(): (0.95, 1.05)}
    for transform, (low, high) in ranges.items():
        x, y, z = transform(batch, generator())["observation", "points"][:, :, 0, :3].unbind(-1)
        value = z if isinstance(transform, RandomScaling) else torch.atan2(y, x) - math.pi / 4
        assert torch.equal(value[:, 0], value[:, 1])  # rows of a window move together
        counts = torch.histc(value[:, 0], 5, low, high) / 4000
        assert (counts - 0.2).abs().max() < 0.03
        again = transform(batch, generator())["observation", "points"]
        assert torch.equal(again[:, :, 0, 0], x)
    flipped = RandomFlip(along_x=0.3, along_y=0.6)(batch, generator())["observation", "points"][:, 0, 0] < 0
    assert flipped[:, :2].float().mean(0).tolist() == pytest.approx([0.6, 0.3], abs=0.03)
    assert (flipped[:, 0] & flipped[:, 1]).float().mean().item() == pytest.approx(0.18, abs=0.03)


def test_boxes_without_a_corner_in_the_range_become_padding():
    batch = scans()[:1]
    batch["boxes"][0, 0] = torch.tensor(
        [
            [5.0, 5, 0, 4, 2, 1.5, 0],  # inside
            [-1.5, 5, 0, 4, 2, 1.5, 0],  # four of eight corners inside
            [-1.5, 5, 0, 4, 2, 1.5, math.pi / 2],  # turned: none
            [5.0, 5, 0, 40, 20, 15, 0],  # around the range: none of its corners is inside
            [5.0, 5, 0, 4, 2, 1.5, 0],  # padding
        ]
    )
    after = BoxesInRange(low=[0, 0, -2], high=[10, 10, 2])(batch, generator())
    assert after["box_class"][0, 0].tolist() == [0, 1, -1, -1, -1]
    assert torch.equal(after["boxes"][0, 0, :2], batch["boxes"][0, 0, :2])
    assert not after["boxes"][0, 0, 2:].any()
    bare = batch.select("observation")
    assert BoxesInRange(low=[0, 0, -2], high=[10, 10, 2])(bare, generator()) is bare


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomFlip(along_x=1.5), r"along_x=1.5: a chance lies within \[0, 1\]"),
        (lambda: RandomScaling(low=1.1, high=0.9), "low=1.1 and high=0.9: a scale needs 0 < low <= high"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_configured_augmentation_is_the_published_one():
    with initialize_config_module("conf", version_base="1.3"):
        nodes = compose("augment/lidar").transforms
    flip, rotate, scale = (instantiate(node) for node in nodes.values())
    assert (flip.along_x, flip.along_y) == (0.5, 0.0)
    assert rotate.limit == pytest.approx(math.pi / 4)
    assert (scale.low, scale.high) == (0.95, 1.05)
