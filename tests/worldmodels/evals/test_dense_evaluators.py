"""Evaluators of patches: linear segmentation, contrast of objects, label propagation, and their pictures."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Composite

from tests.worldmodels.evals.toy_scenes import GRID, PATCH, SIZE, SPEC, VOID, Looker, Scenes, dense, halves, patchwork
from worldmodels.core import Objective
from worldmodels.evals.dense_patches import (
    cut_crops,
    label_patches,
    random_boxes,
    raw_patches,
    segmentation_metrics,
)
from worldmodels.evals.dense_probe import DenseProbe, object_contrast
from worldmodels.evals.label_propagation import LabelPropagation, clips_of, films, near
from worldmodels.evals.patch_pictures import PatchPictures, mask_rows
from worldmodels.evals.picture_rows import first_of_each
from worldmodels.evals.probes import confusion
from worldmodels.evals.results import unpack


def test_labels_that_follow_position_are_known_by_position():
    noise = torch.randint(0, 255, (20, 3, *SIZE), dtype=torch.uint8)
    found = unpack(DenseProbe(source=Scenes(dense(halves(20), noise)), every=0, crop=None)(Looker(is_blind=True), 0))
    assert found.metrics["position/accuracy"] == found.metrics["position/miou"] == 1
    assert found.metrics["patches/accuracy"] < 0.7
    assert "position/border_accuracy" not in found.metrics  # every patch is of one class


def test_labels_that_follow_pixels_are_known_by_what_looks():
    parts = [dense(patchwork(60, seed)) for seed in range(3)]
    evaluator = DenseProbe(source=Scenes(*parts), every=0, crop=None)
    found = unpack(evaluator(Looker(), 0)).metrics
    for row in ("patches", "raw"):
        assert found[f"{row}/accuracy"] > 0.99
        assert found[f"{row}/miou"] > 0.99
    assert found["position/accuracy"] == pytest.approx(1 / 3, abs=0.06)
    blind = unpack(evaluator(Looker(is_blind=True), 0)).metrics
    assert blind["patches/accuracy"] == pytest.approx(1 / 3, abs=0.06)
    assert blind["position/miou"] == found["position/miou"]
    assert blind["patches/contrast"] == pytest.approx(0, abs=0.01)


def test_miou_is_that_of_a_confusion_counted_by_hand():
    target, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 2, 2])
    counts = confusion(predicted, target, 5)  # classes 3 and 4 do not occur
    assert counts[:3, :3].tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    found = segmentation_metrics(counts)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["miou"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)


def test_patches_are_labelled_by_most_of_their_pixels_and_void_ones_left_out():
    labels = torch.full((1, 4, 8), VOID)
    labels[0, :2, :4], labels[0, 2, :3] = 1, 2  # of 16 pixels: 8 of class 1, 3 of 2, 5 void
    labels[0, :1, 4:], labels[0, 1, 4:7] = 0, 2  # 4 of class 0, 3 of 2, 9 void
    crops = label_patches(torch.zeros(1, 3, 4, 8, dtype=torch.uint8), labels.byte(), (1, 2), 3, VOID)
    assert crops.label.tolist() == [[1, 0]]
    assert crops.purity.tolist() == [[8 / 16, 4 / 16]]
    assert crops.is_valid.tolist() == [[True, False]]
    assert label_patches(crops.obs["pixels"], labels.byte(), (1, 2), 3, 1).label.tolist() == [[2, 0]]  # 1 is void now


def test_border_accuracy_is_of_patches_that_are_not_pure():
    labels = halves(10).clone()
    labels[:, :PATCH, :1] = 1  # a quarter of the first patch is of the other class: pure to 75 %
    probe = DenseProbe(source=Scenes(dense(labels)), every=0, crop=None)
    probe(Looker(), 0)
    crops = probe._crops["test"]
    everything = torch.ones(int(crops.is_valid.sum()), dtype=torch.int64)
    assert probe._scores(0 * everything)["border_accuracy"] == 1  # the first patch is mostly 0
    assert probe._scores(everything)["border_accuracy"] == 0
    assert probe._scores(everything)["accuracy"] == 0.5


def test_contrast_of_objects():
    crops = label_patches(torch.zeros(1, 3, *SIZE, dtype=torch.uint8), halves(1).byte(), GRID, 3, VOID)
    features = nn.functional.one_hot(crops.label, 3).float()
    assert object_contrast(features, crops) == {"same": 1, "different": 0, "contrast": 1}
    assert object_contrast(-5 * features, crops)["contrast"] == 1
    same = object_contrast(torch.ones_like(features), crops)
    assert same["contrast"] == pytest.approx(0, abs=1e-6)
    single = label_patches(crops.obs["pixels"], 0 * halves(1).byte(), GRID, 3, VOID)
    assert np.isnan(object_contrast(features, single)["contrast"])


def test_crops_cut_pixels_and_labels_at_the_same_place():
    labels = torch.zeros(3, 90, 120, dtype=torch.int64)
    labels[:, :, 60:] = 2
    scene = dense(labels)
    crops = cut_crops(scene, size=SIZE, grid=GRID, crop=(0.3, 0.9), num=4, seed=0)
    again = cut_crops(scene, size=SIZE, grid=GRID, crop=(0.3, 0.9), num=4, seed=0)
    assert crops.obs["pixels"].shape == (12, 3, *SIZE)
    assert torch.equal(crops.obs["pixels"], again.obs["pixels"])
    color = raw_patches(crops.obs["pixels"], GRID).unflatten(2, (3, -1)).mean(-1).argmax(-1)
    pure = crops.purity == 1
    assert pure.float().mean() > 0.7
    assert torch.equal(color[pure], crops.label[pure])
    assert crops.label[pure].unique().tolist() == [0, 2]
    whole = cut_crops(dense(patchwork(2)), size=SIZE, grid=GRID, crop=None, num=1, seed=0)
    assert torch.equal(whole.obs["pixels"], dense(patchwork(2)).pixels)
    assert (whole.purity == 1).all()


@settings(max_examples=50)
@given(
    of=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    seed=st.integers(0, 1000),
)
def test_boxes_lie_inside(of, size, crop, seed):
    boxes = random_boxes(of, size, sorted(crop), (5, 3), seed)
    assert boxes.shape == (5, 3, 4)
    assert (boxes[..., :2] >= 0).all()
    assert (boxes[..., 2:] >= 1).all()
    assert (boxes[..., 0] + boxes[..., 2] <= of[0]).all()
    assert (boxes[..., 1] + boxes[..., 3] <= of[1]).all()


def film(num: int) -> Tensor:
    """A square of two by two patches that moves a patch to the right each frame."""
    labels = torch.zeros(num, *SIZE, dtype=torch.int64)
    for t in range(num):
        labels[t, PATCH : 3 * PATCH, t * PATCH : (t + 2) * PATCH] = 1
    return labels


def propagation(**options) -> LabelPropagation:
    source = Scenes(dense(film(5)))
    return LabelPropagation(source=source, every=0, **{"length": 5, "temperature": 0.01, **options})


def test_labels_follow_what_moves():
    found = unpack(propagation()(Looker(), 0)).metrics
    for row in ("patches", "raw", "ceiling"):
        assert found[f"{row}/accuracy"] == found["ceiling/accuracy"]
        assert found[f"{row}/miou"] > 0.85  # enlarging rounds the corners
    assert found["copy/miou"] < 0.6
    blind = unpack(propagation()(Looker(is_blind=True), 0)).metrics
    assert blind["patches/miou"] < 0.6
    assert blind["copy/miou"] == found["copy/miou"]


def test_labels_that_may_not_move_are_the_first_frames():
    found = unpack(propagation(radius=0)(Looker(), 0)).metrics
    assert found["patches/miou"] == pytest.approx(found["copy/miou"])
    assert found["raw/accuracy"] == pytest.approx(found["copy/accuracy"])


def test_neighbourhoods_are_squares():
    is_near = near((3, 4), 1, torch.device("cpu"))
    assert is_near.sum(1).reshape(3, 4).tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]
    assert near((3, 4), None, torch.device("cpu")).all()


def test_clips_never_join_two_films():
    sequence = [4, 4, 4, 4, 4, 7, 2, 2, 2]
    assert clips_of(sequence, 2, "x").tolist() == [[0, 1], [2, 3], [6, 7]]
    with pytest.raises(ValueError, match="length=6"):
        clips_of(sequence, 6, "x")


def test_films_are_told_by_names():
    assert films(["0001TP_006690", "0001TP_006720", "Seq05VD_f00030", "Seq05VD_f00060"]) == [0, 0, 1, 1]
    assert films(["bear/00", "bear/01", "bear/02", "bear/05", "bear/06", "camel/07"]) == [0, 0, 0, 1, 1, 2]
    assert films(["1", "2", "3"]) == [0, 0, 0]
    assert films(["a9", "a8"]) == [0, 1]  # out of order
    assert films([]) == []
    with pytest.raises(ValueError, match="frame last ends in no number"):
        films(["a1", "last"])


@pytest.mark.parametrize("kind", [DenseProbe, LabelPropagation])
def test_evaluation_leaves_no_trace(kind):
    source = Scenes(dense(film(5)))
    evaluator = kind(source=source, every=0, **({"length": 5} if kind is LabelPropagation else {}))
    objective, before = Looker().train(), torch.get_rng_state()
    first = unpack(evaluator(objective, 0)).metrics
    assert torch.equal(before, torch.get_rng_state())
    assert objective.training
    assert unpack(evaluator(objective, 9)).metrics == first


def test_bad_input_is_named():
    for kind in (DenseProbe, LabelPropagation):
        with pytest.raises(ValueError, match=r"no dense\(name\)"):
            kind(source=object(), every=0)
    convolutional = Looker()
    convolutional.encoder = SimpleNamespace(grid=())
    with pytest.raises(ValueError, match="i_jepa"):
        DenseProbe(source=Scenes(dense(halves(2))), every=0)(convolutional, 0)
    with pytest.raises(ValueError, match=r"crop=\[0.5, 0.2\]"):
        DenseProbe(source=Scenes(dense(halves(2))), every=0, crop=[0.5, 0.2])(Looker(), 0)
    with pytest.raises(ValueError, match="length=1"):
        propagation(length=1)


# --- pictures ------------------------------------------------------------------------------------------------------
class Labelled:
    """Pictures of one colour; the label is whether they are bright."""

    spec = SPEC

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        value = torch.randint(0, 256, (batch_size, 1), generator=generator)
        pixels = value[..., None, None, None].expand(-1, -1, 3, *SIZE).byte()
        return TensorDict({"observation": {"pixels": pixels}, "label": (value > 127).long()}, [batch_size])


class Masking(Looker):
    """Draws masks, too, and knows how bright a picture is."""

    def transforms(self):
        return (self.draw,)

    def draw(self, batch: TensorDict, generator: Generator) -> TensorDict:
        order = torch.rand(len(batch), GRID[0] * GRID[1], generator=generator).argsort(1)
        targets = torch.stack([order[:, 10:14], order[:, 14:18]], 1)
        targets[:, 1, 3] = -1
        return batch.copy().update({"context": order[:, :10], "targets": targets})

    def embed(self, obs: TensorDict) -> TensorDict:
        angle = obs["pixels"].float().mean((1, 2, 3)) / 255
        return TensorDict({"picture": torch.stack([angle.cos(), angle.sin()], 1)}, obs.batch_size)


def test_pictures_of_masks_features_and_neighbours():
    evaluator = PatchPictures(source=Labelled(), every=0, num=3, num_neighbours=2, num_pool=64)
    objective, before = Masking().train(), torch.get_rng_state()
    found = unpack(evaluator(objective, 0))
    assert set(found.files) == {"masks.png", "features.png", "patch_neighbours.png", "neighbours.png"}
    for content in found.files.values():
        assert min(Image.open(io.BytesIO(content)).size) > 100
    assert found.metrics["neighbour_same_class"] > 0.9
    assert found.metrics["chance_same_class"] == pytest.approx(0.5, abs=0.1)
    assert found.metrics["explained"] == pytest.approx(1)  # patches differ in brightness only
    assert torch.equal(before, torch.get_rng_state())
    assert objective.training
    assert set(unpack(evaluator(Looker(), 0)).files) == {"features.png", "patch_neighbours.png"}


def test_masks_show_the_tokens_that_they_name():
    image = np.full((*SIZE, 3), 200, dtype=np.uint8)
    context, targets = torch.tensor([[0, 7, -1]]), torch.tensor([[[23]]])
    ((picture, shown, asked),) = mask_rows(image[None], context, targets, GRID)
    assert np.allclose(picture.image, 200 / 255)
    is_shown = np.isclose(shown.image, 200 / 255).all(-1)
    expected = np.zeros(SIZE, dtype=bool)
    expected[:PATCH, :PATCH] = expected[PATCH : 2 * PATCH, PATCH : 2 * PATCH] = True  # token 7: row 1, column 1
    assert (is_shown == expected).all()
    is_asked = ~np.isclose(asked.image, asked.image[0, 0]).all(-1)
    assert is_asked[-PATCH:, -PATCH:].all()
    assert is_asked.sum() == PATCH * PATCH


def test_neighbours_mark_the_patch_that_is_alike():
    images = np.zeros((2, *SIZE, 3), dtype=np.uint8)
    features = torch.zeros(2, GRID[0] * GRID[1], 2)
    features[..., 0] = 1
    features[0, 2 * GRID[1] + 3] = features[1, 5] = torch.tensor([0.0, 1.0])  # the middle of one, a corner of the other
    evaluator = PatchPictures(source=Labelled(), every=0, num=1, num_neighbours=1, num_pool=2)
    ((query, nearest),) = evaluator.patch_rows(images, features, GRID)
    assert query.box == (3 * PATCH, 2 * PATCH, PATCH, PATCH)
    assert nearest.box == (5 * PATCH, 0, PATCH, PATCH)
    assert nearest.title == "1.00"


def test_a_picture_drawn_again_is_no_neighbour_of_itself():
    pixels = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)[[2, 0, 2, 1, 0, 2]]
    assert first_of_each(pixels).tolist() == [0, 1, 3]


def test_pictures_name_what_is_missing():
    with pytest.raises(ValueError, match="env=images"):
        PatchPictures(source=SimpleNamespace(spec=Composite()), every=0)
    with pytest.raises(ValueError, match="num_pool=3"):
        PatchPictures(source=Labelled(), every=0, num_pool=3)

    class Nothing(Objective):
        window = 1

        def phases(self):
            return ()

    with pytest.raises(ValueError, match="Nothing has no masks"):
        PatchPictures(source=Labelled(), every=0, num_pool=16)(Nothing(), 0)
