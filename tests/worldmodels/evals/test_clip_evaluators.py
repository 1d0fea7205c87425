"""Evaluators of clips on small real scenes and a small real objective: probes, surprise, held-out losses, pictures."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from tensordict import TensorDict
from torch import Generator, Tensor

from envs.moving_scenes import Part
from perception.video import VideoTransformer
from tests.systems import CONF
from tests.worldmodels.evals.toy_clips import FRAMES, SIZE, TinyClips, scenes
from worldmodels.core import Evaluator, Objective
from worldmodels.evals.attentive_probe import AttentiveProbe
from worldmodels.evals.clip_pictures import ClipPictures, mask_strips, strip
from worldmodels.evals.clip_probe import ClipProbe, Clips, chance
from worldmodels.evals.clip_tokens import Tokens, encoded, pixel_tokens
from worldmodels.evals.held_out import HeldOut
from worldmodels.evals.knn import nearest, weighted_means
from worldmodels.evals.picture_rows import covered, same_class
from worldmodels.evals.results import unpack
from worldmodels.evals.surprise import Surprise, preferred

NUM = {"num_train": 24, "num_val": 12, "num_test": 12}
SMALL = AttentiveProbe(epochs=1, batch_size=8, lr=(1e-3, 3e-3), weight_decay=(0.1,), mlp_ratio=1)
KINDS = ("vanish", "identity")


@pytest.fixture(scope="module")
def objective() -> TinyClips:
    return TinyClips().train()


def evaluators() -> dict[str, Evaluator]:
    source = {"source": scenes(), "every": 0}
    return {
        "clip_probe": ClipProbe(**source, **NUM, attentive=SMALL, k=3, penalties=(0.1,)),
        "surprise": Surprise(**source, kinds=KINDS, num=4, chunk=3),
        "held_out": HeldOut(**source, num_batches=2, batch_size=3),
        "clip_pictures": ClipPictures(**source, num_masks=1, num=2, num_neighbours=2, num_pool=8),
    }


@pytest.mark.parametrize("name", ["clip_probe", "surprise", "held_out", "clip_pictures"])
def test_evaluation_repeats_itself_and_leaves_no_trace(name, objective):
    evaluator, before = evaluators()[name], torch.get_rng_state()
    weights = {key: value.clone() for key, value in objective.state_dict().items()}
    first = unpack(evaluator(objective, 0))
    torch.rand(1)
    torch.set_rng_state(before)
    again = unpack(evaluator(objective, 0))
    assert first.metrics
    assert again.metrics == pytest.approx(first.metrics, nan_ok=True, abs=1e-6)
    assert again.files == first.files
    assert torch.equal(before, torch.get_rng_state())
    assert objective.training
    after = objective.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    assert all(parameter.grad is None for parameter in objective.parameters())


@pytest.mark.parametrize("name", ["clip_probe", "surprise", "held_out", "clip_pictures"])
def test_evaluator_is_built_and_runs_as_configured(name, objective):
    small = {
        "clip_probe": {**NUM, "attentive.epochs": 1, "attentive.lr": [1e-3], "labels": ["direction"]},
        "surprise": {"num": 2},
        "held_out": {"num_batches": 1, "batch_size": 2},
        "clip_pictures": {"num_pool": 8},
    }
    cfg = OmegaConf.create({"eval_every": 50, "eval": OmegaConf.load(CONF / "eval" / f"{name}.yaml")})
    for option, value in small[name].items():
        OmegaConf.update(cfg.eval[name], option, value, force_add=False)
    evaluator = instantiate(cfg.eval[name])(source=scenes())
    assert isinstance(evaluator, Evaluator)
    assert evaluator.name == name
    assert evaluator.every == (0 if name == "surprise" else 50)
    assert unpack(evaluator(objective, 0)).metrics


# --- probes ----------------------------------------------------------------------------------------------------------
class Altered:
    """The scenes, with test clips and labels of another part in another order."""

    label_classes = property(lambda self: scenes().label_classes)

    def part(self, name: str, num: int) -> Part:
        if name != "test":
            return scenes().part(name, num)
        part = scenes().part("val", num)
        order = torch.arange(num).flip(0)
        return Part(part.obs[order], part.target[order.roll(1)])


def test_choices_never_look_at_test_clips(objective):
    options = {"every": 0, **NUM, "attentive": SMALL, "raw_side": None, "penalties": (0.1,)}
    probes = [ClipProbe(source=source, **options) for source in (scenes(), Altered())]
    found = [unpack(probe(objective, 0)).metrics for probe in probes]
    chosen = ("_val", "_lr", "_weight_decay")
    honest = [{key: value for key, value in metrics.items() if key.endswith(chosen)} for metrics in found]
    assert len(honest[0]) == 4 * 6
    assert honest[1] == pytest.approx(honest[0], nan_ok=True)
    judged = [{key: value for key, value in metrics.items() if not key.endswith(chosen)} for metrics in found]
    assert judged[1] != judged[0]


def test_probes_of_every_label_and_representation(objective):
    found = unpack(evaluators()["clip_probe"](objective, 0)).metrics
    for row in ("clip", "raw"):
        for label, classes in scenes().label_classes.items():
            keys = {key.split("/")[-1] for key in found if key.startswith(f"{row}/{label}/")}
            assert keys >= {"attentive", "attentive_val", "linear", "linear_val", "knn", "recall_1", "recall_5"}
            assert 0 <= found[f"{row}/{label}/attentive"] <= 1
            assert found[f"{row}/{label}/recall_1"] <= found[f"{row}/{label}/recall_5"]
            assert 0 <= found[f"chance/{label}/accuracy"] < 1 or len(classes) < 3
        assert f"{row}/speed/knn" in found
        assert f"{row}/speed/recall_1" not in found
        assert found[f"{row}/speed/attentive"] < 1


def test_tokens_are_those_of_the_objective_and_pixels_lie_on_its_grid():
    objective, obs = TinyClips().eval(), scenes().part("val", 5).obs
    tokens = objective.embed_tokens(obs)["clip"]
    found = encoded(objective, obs, chunk=2)["clip"]
    torch.testing.assert_close(found.mean, tokens.mean(1))
    torch.testing.assert_close(found.mean, objective.embed(obs)["clip"], atol=1e-5, rtol=1e-4)
    assert found.normalized.dtype == torch.float16
    assert found.normalized.float().mean(-1).abs().max() < 1e-2
    encoder: VideoTransformer = objective.encoder
    cuboids = torch.addcmul(encoder.shift, encoder.cut(obs["pixels"]).float(), encoder.scale)  # by channel, frame, ...
    cuboids = cuboids.unflatten(2, (3, 2, -1)).transpose(2, 3).flatten(2)
    raw = pixel_tokens(obs["pixels"], encoder.grid, side=8)
    torch.testing.assert_close(raw, cuboids, atol=1e-5, rtol=1e-4)
    small = pixel_tokens(obs["pixels"], encoder.grid, side=2)
    assert small.shape == (5, math.prod(encoder.grid), 2 * 3 * 2 * 2)
    torch.testing.assert_close(small.mean(2), raw.mean(2), atol=1e-5, rtol=1e-4)


def test_labels_that_clips_lack_are_left_out(objective):
    class Lacking(Altered):
        def part(self, name: str, num: int) -> Part:
            part = scenes().part(name, num)
            target = part.target.clone()
            target["collision"].fill_(-1)
            target["speed"][: num // 2] = math.nan
            return Part(part.obs, target)

    options = {**NUM, "attentive": SMALL, "raw_side": None, "labels": ["collision", "speed", "direction"]}
    found = unpack(ClipProbe(source=Lacking(), every=0, **options)(objective, 0))
    assert {key.split("/")[1] for key in found.metrics} == {"speed", "direction"}
    assert math.isfinite(found.metrics["clip/speed/attentive"])
    assert found.notes == ["no clip of a part has the label collision: left out"]
    options["labels"] = ["collision"]
    with pytest.raises(ValueError, match="collision"):
        ClipProbe(source=Lacking(), every=0, **options)(objective, 0)
    options["labels"] = ["weather"]
    with pytest.raises(ValueError, match="weather"):
        ClipProbe(source=scenes(), every=0, **options)(objective, 0)


def test_neighbours_and_recalls_of_vectors_on_a_circle(objective):
    angle = torch.tensor([0.0, 0.1, 0.2, 2.0, 2.1, 4.0])
    bank, label = torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([0, 1, 0, 1, 1, 2])
    cosine, index = nearest(bank, bank[[0, 3]] * 7, 3)
    assert index.tolist() == [[0, 1, 2], [3, 4, 2]]
    assert cosine[0, 0] == pytest.approx(1)
    queries = torch.tensor([-0.01, 2.2, 4.1])
    queries = torch.stack([queries.cos(), queries.sin()], 1)
    probe = ClipProbe(source=scenes(), every=0, k=1)
    found = probe.neighbours(bank, label, queries, torch.tensor([1, 1, 0]), 3)
    assert found == {"knn": pytest.approx(1 / 3), "recall_1": pytest.approx(1 / 3), "recall_5": 1}
    means = weighted_means(bank, torch.arange(6.0), queries, k=2, temperature=1e6)
    assert means.tolist() == pytest.approx([0.5, 3.5, 4.5], abs=1e-4)


def test_chance_is_that_of_the_training_labels():
    def part(*labels: int) -> Clips:
        return Clips(Tokens(torch.empty(0), torch.empty(0)), {"kind": torch.tensor(labels), "speed": torch.rand(2)})

    found = chance([part(0, 0, 0, 1, -1), part(1), part(0, 1, 1, -1)], {"kind": 2, "speed": 0})
    assert found["chance/kind/accuracy"] == pytest.approx(1 / 3)
    assert found["chance/kind/recall_1"] == pytest.approx((0.75 + 0.25 + 0.25) / 3)
    assert found["chance/kind/recall_5"] == pytest.approx((3 - 0.25**5 - 2 * 0.75**5) / 3)
    assert len(found) == 3


# --- surprise --------------------------------------------------------------------------------------------------------
class Persistent(TinyClips):
    """Expects that every place looks as it did in the last step that is seen."""

    def prediction_error(self, obs: TensorDict, context: Tensor, targets: Tensor) -> Tensor:
        tokens = pixel_tokens(obs["pixels"], self.encoder.grid, side=8)
        area = self.encoder.grid[1] * self.encoder.grid[2]
        last = tokens.gather(1, context[:, -area:, None].expand(-1, -1, tokens.shape[2]))
        asked = tokens.gather(1, targets[:, 0, :, None].expand(-1, -1, tokens.shape[2]))
        return (asked - last.repeat(1, asked.shape[1] // area, 1)).abs().mean(2)


class Flicker:
    """Pictures that stand still, and twins that change in the middle, or not at all."""

    def pairs(self, num: int, kind: str) -> SimpleNamespace:
        still = torch.randint(0, 256, (num, 1, 3, SIZE, SIZE), generator=Generator().manual_seed(0), dtype=torch.uint8)
        still = still.expand(-1, FRAMES, -1, -1, -1)
        changed = still.clone()
        changed[:, FRAMES // 2 :] = 255 - changed[:, FRAMES // 2 :]
        clips = {"jump": (still, changed), "calm": (changed, still), "same": (changed, changed)}[kind]
        possible, impossible = (TensorDict({"pixels": pixels}, [num]) for pixels in clips)
        return SimpleNamespace(possible=possible, impossible=impossible)


def test_what_stands_still_is_expected_and_a_jump_is_not():
    evaluator = Surprise(source=Flicker(), every=0, kinds=("jump", "calm", "same"), num=5, chunk=2)
    found = unpack(evaluator(Persistent(), 0)).metrics
    for key in ("accuracy", "accuracy_mean"):
        assert found[f"jump/{key}"] == 1
        assert found[f"calm/{key}"] == 0
        assert found[f"same/{key}"] == found[key] == 0.5


def test_what_is_seen_comes_before_what_is_predicted():
    evaluator = Surprise(source=Flicker(), every=0, kinds=("jump",), contexts=(0.1, 0.26, 0.5, 0.99), horizon=0.5)
    masks = evaluator.masks((4, 2, 1))
    assert [(seen.tolist(), asked.tolist()) for seen, asked in masks] == [
        ([0, 1], [2, 3, 4, 5]),
        ([0, 1, 2, 3], [4, 5, 6, 7]),
    ]
    with pytest.raises(ValueError, match="one step"):
        evaluator.masks((1, 4, 4))


def test_errors_are_those_of_every_clip_alone():
    objective, pairs = TinyClips().eval(), scenes().split("test").pairs(3, "vanish")
    evaluator = Surprise(source=scenes(), every=0, kinds=("vanish",), num=3, chunk=2)
    masks = evaluator.masks(objective.encoder.grid)
    found = evaluator.errors(objective, pairs.possible, pairs.impossible, masks)
    assert found.shape == (2, 3, 3)
    seen, asked = masks[1]
    alone = objective.prediction_error(pairs.impossible[2:], seen[None], asked[None, None]).mean()
    assert float(found[1, 2, 1]) == pytest.approx(float(alone), rel=1e-4)


def test_ties_count_half_and_contexts_weigh_alike():
    errors = torch.tensor([[[9.0, 1.0], [9.0, 1.0], [9.0, 1.0]], [[9.0, 2.0], [9.0, 1.0], [9.0, 0.5]]]).double()
    found = preferred(errors)  # of [2, N, t]: the first context tells nothing, and its errors are greater
    assert found["accuracy_mean"] == 0.5
    assert found["accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)  # the third one is lower than the first context's
    with pytest.raises(ValueError, match="diverged"):
        preferred(errors * math.nan)


# --- held-out losses -------------------------------------------------------------------------------------------------
def test_held_out_losses_are_means_over_fixed_batches(objective):
    evaluator = evaluators()["held_out"]
    found = unpack(evaluator(objective, 0)).metrics
    assert set(found) == {"tiny/prediction", "tiny/long", "tiny/short"}
    generator, losses = Generator().manual_seed(0), []
    for _ in range(2):
        batch = scenes().split("val").sample(3, FRAMES, generator)
        for transform in objective.transforms():
            batch = transform(batch, generator)
        with torch.no_grad():
            losses.append(float(objective.eval().loss(batch)["loss", "prediction"]))
    objective.train()
    assert found["tiny/prediction"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert unpack(evaluator(TinyClips(seed=1), 0)).metrics != pytest.approx(found)


# --- pictures --------------------------------------------------------------------------------------------------------
def test_pictures_of_clips(objective):
    found = unpack(evaluators()["clip_pictures"](objective, 0))
    assert set(found.files) == {"masks.png", "features.png", "neighbours.png"}
    for content in found.files.values():
        assert min(Image.open(io.BytesIO(content)).size) > 100
    assert 0 < found.metrics["explained"] <= 1
    assert 0 <= found.metrics["direction/neighbour_same_class"] <= 1
    assert 0 < found.metrics["identity/chance_same_class"] < 1


def test_strips_show_the_tokens_that_masks_name():
    images, grid = np.full((1, 2, 8, 8, 3), 200, dtype=np.uint8), (2, 2, 2)
    families = TensorDict({"a": {"context": torch.tensor([[0, 7, -1]]), "targets": torch.tensor([[[5]]])}}, [1])
    (clip,), (seen,), (asked,) = mask_strips(images, families, grid)
    assert clip.image.shape == (8, 2 * 8 + 3, 3)
    is_shown = np.isclose(seen.image, 200 / 255).all(-1)
    expected = np.zeros((8, 19), dtype=bool)
    expected[:4, :4] = expected[4:, 15:] = True  # the first token of step 0, the last one of step 1
    assert (is_shown == expected).all()
    assert seen.title == "a: seen, 2 of 8 tokens"
    is_asked = ~np.isclose(asked.image, asked.image[0, 0]).all(-1)
    assert is_asked[:4, 15:].all()
    assert not is_asked[:, :8].any()
    assert strip(np.zeros((3, 4, 5, 3))).shape == (4, 21, 3)
    assert covered(torch.tensor([3, -1]), (2, 2), (4, 4))[..., 0].sum() == 4


def test_neighbours_without_a_class_do_not_count():
    label, neighbours = torch.tensor([0, 0, 1, -1]), torch.tensor([[1], [3], [0], [2]])
    assert same_class(neighbours, label) == {"neighbour_same_class": 1 / 2, "chance_same_class": 2 / 6}
    assert same_class(neighbours, torch.tensor([-1, -1, -1, 3])) == {}


# --- bad input -------------------------------------------------------------------------------------------------------
class Nothing(Objective):
    window = 1

    def phases(self):
        return ()


def test_bad_input_is_named(objective):
    for kind, options in ((ClipProbe, {}), (ClipPictures, {}), (HeldOut, {}), (Surprise, {"kinds": KINDS})):
        with pytest.raises(ValueError, match="env=moving_scenes"):
            kind(source=object(), every=0, **options)
    for name in ("clip_probe", "surprise", "clip_pictures"):
        with pytest.raises(ValueError, match="objective=v_jepa"):
            evaluators()[name](Nothing(), 0)
    source = {"source": scenes(), "every": 0}
    with pytest.raises(ValueError, match="num_test=1"):
        ClipProbe(**source, num_test=1)
    with pytest.raises(ValueError, match="kinds="):
        Surprise(**source, kinds=())
    with pytest.raises(ValueError, match="horizon=1"):
        Surprise(**source, kinds=KINDS, horizon=1)
    with pytest.raises(ValueError, match="batch_size=0"):
        HeldOut(**source, batch_size=0)
    with pytest.raises(ValueError, match="num_pool=3"):
        ClipPictures(**source, num_pool=3)
    with pytest.raises(ValueError, match="entry=teacher: there are clip"):
        ClipPictures(**source, num_masks=1, num=2, num_neighbours=2, num_pool=8, entry="teacher")(objective, 0)
