"""What every detection head promises, and the layout of each."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from perception.detection.assign import IGNORED, assign
from perception.detection.center import CenterHead, gaussian_radius
from perception.detection.codes import direction_bin, encode
from perception.detection.losses import box_code_error, sigmoid_focal
from perception.detection.second import BEVBackbone, SecondHead
from tests.perception.detection.small_heads import CLASSES, detector, tiny
from worldmodels.geometry.overlap import bev_iou, iou_3d

KITTI = {"low": (0, -40, -3), "high": (70.4, 40, 1), "grid": (200, 176), "classes": CLASSES}
NOTHING = torch.zeros(2, 0, 7), torch.zeros(2, 0, dtype=torch.int64)


@functools.cache
def weights(name: str) -> dict[str, float]:
    return dict(detector(name).weights)


def total(name: str, losses: dict[str, Tensor]) -> Tensor:
    given = weights(name)
    assert losses.keys() == given.keys()
    return sum(given[key] * loss for key, loss in losses.items())


# --- promises of both ------------------------------------------------------------------------------------------------
def test_overfits_a_scene_and_gives_its_boxes_back(name, scene):
    bev, boxes, box_class = scene
    head = tiny(name)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        total(name, head.loss(head(bev), boxes, box_class)).backward()
        optimizer.step()
    found = head.decode(head(bev))
    assert found.boxes.shape == (2, 500, 7)
    for sample in range(2):
        is_real = box_class[sample] >= 0
        truth, labels = boxes[sample][is_real], box_class[sample][is_real]
        sure = found.scores[sample] > 0.5
        assert sure.sum() == len(truth)
        overlap = bev_iou(truth, found.boxes[sample][sure])
        assert (overlap.amax(1) > 0.7).all()
        assert (iou_3d(truth, found.boxes[sample][sure]).amax(1) > 0.6).all()
        match = overlap.argmax(1)
        assert torch.equal(found.labels[sample][sure][match], labels)
        turn = (found.boxes[sample][sure][match, 6] - truth[:, 6]).cos()
        assert (turn > 0.95).all()  # the right way round


def test_padding_of_detections_is_marked_and_behind(name, scene):
    head = tiny(name)
    found = head.decode(head(scene[0]))
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    is_padding = found.labels < 0
    assert torch.equal(is_padding, found.scores < head.score_threshold)
    assert not found.boxes[is_padding].any()


def test_losses_and_gradients_are_finite_without_boxes(name, scene):
    head = tiny(name)
    raw = head(scene[0])
    one = torch.zeros(2, 1, 7), torch.full((2, 1), -1)
    losses = [head.loss(raw, *labels) for labels in (NOTHING, one)]
    for key in losses[0]:
        assert losses[0][key] == losses[1][key]
    total(name, losses[0]).backward()
    assert losses[0]["box"] == 0
    assert losses[0]["class"] > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_losses_do_not_depend_on_order_or_padding(name, scene):
    bev, boxes, box_class = scene
    head = tiny(name)
    raw = head(bev)
    expected = head.loss(raw, boxes, box_class)
    order = torch.tensor([3, 1, 0, 2])
    more = torch.nn.functional.pad(boxes, (0, 0, 2, 3)), torch.nn.functional.pad(box_class, (2, 3), value=-1)
    odd = torch.where((box_class >= 0)[..., None], boxes, torch.randn_like(boxes))  # padding need not be zero
    for labels in ((boxes[:, order], box_class[:, order]), more, (odd, box_class)):
        found = head.loss(raw, *labels)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)


def test_samples_do_not_mix(name, scene):
    head = tiny(name).eval()
    head.score_threshold = 0.0
    raw = head(scene[0])
    alone = {key: value[1:] for key, value in raw.items()}
    for key, value in head(scene[0][1:]).items():
        torch.testing.assert_close(value, alone[key])
    both, one = head.decode(raw), head.decode(alone)
    assert (one.labels >= 0).sum() > 20
    for mine, theirs in zip(one, both, strict=True):
        assert torch.equal(mine[0], theirs[1])


def test_every_parameter_gets_a_gradient(name, scene):
    bev, boxes, box_class = scene
    head = tiny(name)
    total(name, head.loss(head(bev), boxes, box_class)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_loss_compiles_whole(name, scene, unchecked):
    bev, boxes, box_class = scene
    head = tiny(name)

    def loss(*args: Tensor) -> dict[str, Tensor]:
        return head.loss(head(args[0]), *args[1:])

    expected = loss(bev, boxes, box_class)
    found = torch.compile(loss, fullgraph=True, backend="eager")(bev, boxes, box_class)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


@pytest.mark.gpu
def test_losses_do_not_wait_for_the_gpu(name, scene):
    bev, boxes, box_class = (values.cuda() for values in scene)
    head = tiny(name).cuda()
    head.loss(head(bev), boxes, box_class)
    torch.cuda.set_sync_debug_mode("error")
    try:
        head.loss(head(bev), boxes, box_class)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bf16_predictions_give_fp32_losses(name, scene):
    bev, boxes, box_class = scene
    head = tiny(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = head(bev)
        losses = head.loss(raw, boxes, box_class)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert head.decode(raw).boxes.dtype == torch.float32


# --- backbone --------------------------------------------------------------------------------------------------------
def test_backbone_joins_its_blocks_at_the_resolution_of_the_first():
    grids = {(1, 2): (12, 8), (2, 2): (6, 4), (1, 1): (12, 8)}
    for strides, grid in grids.items():
        backbone = BEVBackbone(3, grid=(12, 8), layers=[0, 1], widths=[4, 6], strides=strides, up_widths=[5, 2])
        assert backbone.grid == grid
        assert backbone(torch.randn(2, 3, 12, 8)).shape == (2, backbone.dim, *grid) == (2, 7, *grid)


def test_backbone_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="map of 15 x 8 cells cannot shrink 2-fold"):
        BEVBackbone(3, grid=(15, 8))
    with pytest.raises(ValueError, match=r"one entry a block in each of layers=\[5\], widths=\[128, 256\]"):
        BEVBackbone(3, grid=(16, 8), layers=[5])


# --- SECOND ----------------------------------------------------------------------------------------------------------
def test_second_has_the_published_size_and_start():
    """4.6 M parameters: two blocks, upsampling, and three heads for six anchors a cell."""
    head = instantiate(detector("second").objective.detector)(256, **KITTI)
    convs = 9 * (256 * 128 + 5 * 128**2 + 128 * 256 + 5 * 256**2) + 128 * 256 + 4 * 256 * 256
    norms = 2 * 6 * (128 + 256) + 2 * 2 * 256
    outs = (512 + 1) * 6 * (3 + 7 + 2)
    assert sum(p.numel() for p in head.parameters()) == convs + norms + outs == 4_613_704
    assert head.outs["class"].bias.unique().tolist() == pytest.approx([-math.log(99)])
    assert head.outs["box"].weight.std().item() == pytest.approx(0.001, rel=0.05)
    kinds = {m.eps for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert kinds == {1e-3}


def test_second_orders_anchors_by_row_column_class_rotation(scene):
    head = tiny("second")
    raw = head(scene[0])
    maps = head.outs["box"](head.backbone(scene[0]))  # [B, A * 7, Y, X]
    y, x, kind, turned = 5, 11, 2, 1
    index = ((y * 16 + x) * 3 + kind) * 2 + turned
    anchor = kind * 2 + turned
    torch.testing.assert_close(raw["box"][:, index], maps[:, 7 * anchor : 7 * anchor + 7, y, x])
    assert {key: tuple(value.shape) for key, value in raw.items()} == {
        "class": (2, 1536, 3),
        "box": (2, 1536, 7),
        "direction": (2, 1536, 2),
    }


def test_second_losses_by_hand():
    """One car near an anchor: all terms from their definition, sums over all anchors divided by the positives."""
    head = tiny("second")
    boxes = head.anchors.boxes()[4, 7, 0, 0].clone()[None, None]
    boxes[..., 0] += 0.25  # so that some anchors overlap too much for a negative and too little for a positive
    raw = {key: torch.randn(1, 1536, num) for key, num in (("class", 3), ("box", 7), ("direction", 2))}
    label, _ = assign(head.anchors, boxes, torch.zeros(1, 1, dtype=torch.int64))
    positive, rest = label[0] >= 0, label[0] != IGNORED
    assert positive.sum() > 1
    assert (~rest).sum() > 1
    found = head.loss(raw, boxes, torch.zeros(1, 1, dtype=torch.int64))
    target = torch.zeros(1536, 3)
    target[positive, 0] = 1
    num = positive.sum()
    torch.testing.assert_close(found["class"], sigmoid_focal(raw["class"][0, rest], target[rest]).sum() / num)
    codes = encode(boxes[0, 0], head.anchors.boxes().flatten(0, 3)[positive])
    torch.testing.assert_close(found["box"], box_code_error(raw["box"][0, positive], codes).sum() / num)
    logits = raw["direction"][0, positive]
    direction = torch.nn.functional.cross_entropy(logits, direction_bin(boxes[0, 0, 6]).expand(num), reduction="sum")
    torch.testing.assert_close(found["direction"], direction / num)


def test_second_decodes_what_loss_encodes(scene):
    """Perfect predictions at the assigned anchors: no box loss, and the boxes come back exactly."""
    _, boxes, box_class = scene
    head = tiny("second")
    label, index = assign(head.anchors, boxes, box_class)
    truth = torch.stack([one[i] for one, i in zip(boxes, index, strict=True)])
    raw = {
        "class": torch.where((label[..., None] == torch.arange(3)), 4.0, -9.0),
        "box": encode(truth, head.anchors.boxes().flatten(0, 3)),
        "direction": torch.nn.functional.one_hot(direction_bin(truth[..., 6]), 2).float() * 20,
    }
    raw["box"][..., 6] += math.pi * torch.randint(-2, 3, label.shape)  # half turns are for the direction to tell
    losses = head.loss(raw, boxes, box_class)
    assert losses["box"].item() == pytest.approx(0, abs=1e-6)
    assert losses["direction"].item() == pytest.approx(0, abs=1e-6)
    assert_gives_back(head.decode(raw), boxes, box_class)


def assert_gives_back(found, boxes: Tensor, box_class: Tensor) -> None:
    """Each box once, with its class and heading."""
    assert torch.equal((found.labels >= 0).sum(1), (box_class >= 0).sum(1))
    for sample in range(len(boxes)):
        for box, kind in zip(boxes[sample], box_class[sample], strict=True):
            if kind < 0:
                continue
            near = (found.boxes[sample, :, :3] - box[:3]).norm(dim=-1).argmin()
            assert found.labels[sample, near] == kind
            torch.testing.assert_close(found.boxes[sample, near, :6], box[:6], rtol=1e-4, atol=1e-4)
            turn = (found.boxes[sample, near, 6] - box[6]).cos()
            assert turn.item() == pytest.approx(1, abs=1e-5)


def test_second_names_a_class_without_anchor():
    with pytest.raises(ValueError, match="no entry for the class Tram of the data; it has Car, Pedestrian, Cyclist"):
        tiny("second", classes=("Car", "Tram"))


def test_once_has_its_own_anchors():
    classes = ("Car", "Bus", "Truck", "Pedestrian", "Cyclist")
    place = {"low": (-75.2, -75.2, -5), "high": (75.2, 75.2, 3), "grid": (188, 188)}
    node = detector("second_once").objective.detector
    head: SecondHead = instantiate(node)(16, classes=classes, **place)
    boxes = head.anchors.boxes()
    assert boxes.shape == (188, 188, 5, 2, 7)
    assert boxes[0, 0, 1, 0].tolist() == pytest.approx([-75.2, -75.2, -1.74 + 3.41 / 2, 11.11, 2.88, 3.41, 0])
    assert head.anchors.unmatched.tolist() == pytest.approx([0.45, 0.4, 0.4, 0.15, 0.35])


# --- CenterPoint -----------------------------------------------------------------------------------------------------
def test_center_has_the_published_layout():
    head: CenterHead = instantiate(detector("center").objective.detector)(256, **KITTI)
    outs = {name: branch[-1].out_channels for name, branch in head.outs.items()}
    assert outs == {"heat": 3, "offset": 2, "z": 1, "size": 3, "heading": 2}
    assert head.outs["heat"][-1].bias.unique().tolist() == pytest.approx([-2.19])
    shared = 9 * 512 * 64 + 64 + 128
    branches = 5 * (9 * 64 * 64 + 64 + 128) + (9 * 64 + 1) * sum(outs.values())
    assert sum(p.numel() for p in head.parameters()) == 4_613_704 - (512 + 1) * 72 + shared + branches


def test_radius_by_hand():
    """A car of 4.7 x 2.1 m on cells of 0.8 m: the case of a grown box decides, 1.655."""
    h, w, o = 4.7 / 0.8, 2.1 / 0.8, 0.1
    grown = (-2 * o * (h + w) + math.sqrt((2 * o * (h + w)) ** 2 + 16 * o * (1 - o) * h * w)) / 2
    assert gaussian_radius(torch.tensor([h, w]), o).item() == pytest.approx(grown) == pytest.approx(1.655, abs=1e-3)
    assert gaussian_radius(torch.tensor([[40.0, 30.0], [0.0, 0.0]]), o).tolist()[1] == 0


def test_heat_map_equals_a_slow_reference():
    head = tiny("center")
    boxes = torch.rand(3, 9, 7) * torch.tensor([14, 14, 1, 30, 9, 2, 6.0]) - torch.tensor([0.5, 7, 1, 0, 0, 0, 3])
    box_class = torch.randint(-1, 3, (3, 9))
    centre, place = head.places(boxes)
    found = head.heat_map(boxes, box_class, place)
    expected = torch.zeros_like(found)
    radii = set()
    for sample in range(3):
        for box, kind in zip(boxes[sample], box_class[sample].tolist(), strict=True):
            if kind < 0:
                continue
            column = min(max(math.floor(box[0] / 0.8), 0), 15)
            row = min(max(math.floor((box[1] + 6.4) / 0.8), 0), 15)
            radius = max(2, int(gaussian_radius(box[3:5] / 0.8, 0.1)))
            radii.add(radius)
            for y in range(max(0, row - radius), min(16, row + radius + 1)):
                for x in range(max(0, column - radius), min(16, column + radius + 1)):
                    squared = (x - column) ** 2 + (y - row) ** 2
                    height = math.exp(-squared / (2 * ((2 * radius + 1) / 6) ** 2))
                    expected[sample, kind, y, x] = max(expected[sample, kind, y, x].item(), height)
    assert len(radii) > 2
    torch.testing.assert_close(found, expected)
    assert ((centre - place) >= 0).all()
    assert ((centre - place) < 1).all()


def test_center_decodes_what_loss_encodes(scene):
    _, boxes, box_class = scene
    head = tiny("center")
    centre, place = head.places(boxes)
    raw = {"heat": torch.full((2, 3, 16, 16), -9.0), "box": torch.zeros(2, 8, 16, 16)}
    numbers = head.numbers(boxes, centre - place)
    for sample, box in (box_class >= 0).nonzero().tolist():
        x, y = place[sample, box].tolist()
        raw["heat"][sample, box_class[sample, box], y, x] = 9.0
        raw["box"][sample, :, y, x] = numbers[sample, box] * torch.tensor([1, 1, 1, 1, 1, 1, 3, 3.0])  # any length
    assert_gives_back(head.decode(raw), boxes, box_class)
    raw["box"][:, 6:] /= 3
    losses = head.loss(raw, boxes, box_class)
    assert losses["box"].item() == pytest.approx(0, abs=1e-5)
    raw["box"][:, 2] += 0.5  # z off by half a metre at every centre
    assert head.loss(raw, boxes, box_class)["box"].item() == pytest.approx(0.5, abs=1e-5)


def test_center_drops_centres_outside_the_range():
    head = tiny("center")
    raw = {"heat": torch.full((1, 3, 16, 16), -9.0), "box": torch.zeros(1, 8, 16, 16)}
    raw["heat"][0, 0, 8, [0, 15]] = 9.0
    raw["box"][0, 0, 8, 15] = 1.5  # beyond x = 12.8
    found = head.decode(raw)
    assert (found.labels >= 0).sum() == 1
    assert found.boxes[0, 0, :2].tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_heads_need_no_particular_backbone():
    """Anything with a width and a grid serves."""

    class Same(torch.nn.Identity):
        def __init__(self, in_dim: int, *, grid: tuple[int, int]) -> None:
            super().__init__()
            self.dim, self.grid = in_dim, grid

    head = functools.partial(CenterHead, backbone=Same)(8, low=(0, 0, 0), high=(8, 8, 2), grid=(4, 4), classes=("Car",))
    assert head(torch.randn(1, 8, 4, 4))["heat"].shape == (1, 1, 4, 4)
