"""V-JEPA, V-Pixel and SALT against what their formulas say, written out clip by clip."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator
from torch.nn import functional as F
from torchrl.data import Bounded, Composite

from perception.clips import ClipViews
from perception.image import VisionTransformer
from perception.video import VideoTransformer
from worldmodels.core import Costed, Embeds, TwoViews
from worldmodels.flops import spent
from worldmodels.learner import Learner
from worldmodels.masking import Families, VideoBlocks, padding
from worldmodels.nn.rotary import RotaryPositions
from worldmodels.objectives.clips import ClipObjective
from worldmodels.objectives.salt import SALT
from worldmodels.objectives.v_jepa import VJEPA
from worldmodels.objectives.v_pixel import VPixel
from worldmodels.predictors.masked_tokens import MaskedTokenPredictor
from worldmodels.schedules import Linear
from worldmodels.targets import EMA

FRAMES, SIDE, PATCH = 4, 24, 4  # 2 x 6 x 6 tokens


def spec() -> Composite:
    pixels = Bounded(0, 255, (3, SIDE, SIDE), dtype=torch.uint8)
    return Composite({"observation": Composite({"pixels": pixels})})


def network(dim: int = 24, patch: int = PATCH):
    options = {"depth": 2, "num_heads": 2, "positions": RotaryPositions}
    return partial(VideoTransformer, patch=patch, tubelet=2, dim=dim, **options)


def parts() -> dict[str, Any]:
    families = {
        "short": partial(VideoBlocks, num_blocks=3, spatial_scale=0.15),
        "long": partial(VideoBlocks, num_blocks=2, spatial_scale=0.5),
    }
    predictor = partial(MaskedTokenPredictor, width=24, depth=1, num_heads=2, hidden=32, positions=RotaryPositions)
    return {
        "views": partial(ClipViews, num_frames=FRAMES),
        "masks": partial(Families, families=families),
        "predictor": predictor,
    }


def v_jepa(**options: Any) -> VJEPA:
    torch.manual_seed(0)
    return VJEPA(spec(), encoder=network(), target=partial(EMA, tau=0.1), **parts(), **options)


def v_pixel(**options: Any) -> VPixel:
    torch.manual_seed(0)
    return VPixel(spec(), encoder=network(), **parts(), **options)


def salt(*, teacher: Any = None, dim: int = 24, **options: Any) -> SALT:
    torch.manual_seed(0)
    first_stage = partial(VPixel, predictor=parts()["predictor"], exponent=2)
    settings = {"steps": 10, "batch_size": 4, "teacher_share": 0.3} | options
    return SALT(
        spec(), encoder=network(dim), teacher=teacher or network(), first_stage=first_stage, **parts(), **settings
    )


def batch_of(objective: ClipObjective, num: int = 4, *, seed: int = 0) -> TensorDict:
    generator = Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num, FRAMES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    batch = TensorDict({"observation": {"pixels": pixels}}, [num])
    for transform in objective.transforms():
        batch = transform(batch, generator)
    return batch


def learner(objective: ClipObjective, **options: Any) -> Learner:
    weights = {"pixels": 1.0, "prediction": 1.0} if isinstance(objective, SALT) else {"prediction": 1.0}
    return Learner(objective, optimizer=partial(torch.optim.SGD, lr=0.1), weights=weights, **options)


def by_hand(objective: ClipObjective, batch: TensorDict, goal: torch.Tensor, exponent: int) -> torch.Tensor:
    """Mean over families of the mean over clips and hidden tokens; one clip at a time."""
    families = []
    for number, family in enumerate(("short", "long")):
        errors = []
        for row in range(len(goal)):
            obs = batch["observation"][row : row + 1, 0]
            context = batch["families", family, "context"][row : row + 1]
            targets = batch["families", family, "targets"][row : row + 1]
            latent = objective.encoder(obs, context)["tokens"]
            given = objective.predictor(latent, context, targets, query=number)[0, 0]
            errors.append(((given - goal[row, targets[0, 0]]).abs() ** exponent).mean() / exponent)
        families.append(torch.stack(errors).mean())
    return torch.stack(families).mean()


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("has_normalized_targets", [True, False])
def test_v_jepa_is_the_error_of_hidden_tokens_latents(exponent, has_normalized_targets):
    objective = v_jepa(exponent=exponent, has_normalized_targets=has_normalized_targets)
    batch = batch_of(objective)
    with torch.no_grad():
        goal = objective.target.module(batch["observation"][:, 0])["tokens"]
        if has_normalized_targets:
            goal = (goal - goal.mean(-1, keepdim=True)) / (goal.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    found = objective.loss(batch)["loss", "prediction"]
    torch.testing.assert_close(found, by_hand(objective, batch, goal, exponent))


@pytest.mark.parametrize("has_normalized_pixels", [True, False])
def test_v_pixel_is_the_error_of_hidden_tokens_pixels(has_normalized_pixels):
    objective = v_pixel(exponent=2, has_normalized_pixels=has_normalized_pixels)
    batch = batch_of(objective)
    clips, goal = batch["observation", "pixels"][:, 0] / 255, []  # [B, T, 3, S, S]
    for t in range(0, FRAMES, 2):
        for row in range(0, SIDE, PATCH):
            for column in range(0, SIDE, PATCH):
                cuboid = clips[:, t : t + 2, :, row : row + PATCH, column : column + PATCH].transpose(1, 2).flatten(2)
                if has_normalized_pixels:
                    cuboid = (cuboid - cuboid.mean(-1, keepdim=True)) / cuboid.std(-1, correction=0, keepdim=True)
                goal.append(cuboid.flatten(1))
    expected = by_hand(objective, batch, torch.stack(goal, 1), 2)
    torch.testing.assert_close(objective.loss(batch)["loss", "pixels"], expected, rtol=1e-4, atol=1e-5)


def test_a_student_predicts_the_latents_of_its_teacher_wider_or_narrower():
    for dim, teacher in ((24, 36), (36, 24)):
        objective = salt(teacher=network(teacher), dim=dim)
        batch = batch_of(objective)
        with torch.no_grad():
            goal = F.layer_norm(objective.teacher(batch["observation"][:, 0])["tokens"], (teacher,))
        found = objective.loss(batch)["loss", "prediction"]
        torch.testing.assert_close(found, by_hand(objective, batch, goal, 1))


def test_the_teacher_learns_first_and_then_stands_still():
    objective = salt()
    assert 0 < objective.turn < 10
    trained = learner(objective)

    def weights(module: torch.nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in module.parameters()])

    for step in range(10):
        teacher, student = weights(objective.first_stage), weights(objective.encoder)
        trained.update(batch_of(objective, seed=step), step)
        is_first = step < objective.turn
        assert torch.equal(teacher, weights(objective.first_stage)) != is_first
        assert torch.equal(student, weights(objective.encoder)) == is_first
        kinds = {"loss/pixels"} if is_first else {"loss/prediction"}
        assert {name for name in trained.metrics() if name.startswith("loss")} == kinds


def test_each_part_of_a_run_goes_through_the_whole_schedule():
    objective = salt(steps=100)
    factors: dict[str, list[float]] = {"teacher": [], "student": []}
    schedule = Linear(1.0, 0.0, 100)
    for phase in objective.phases():
        factors[phase.name] = [schedule(phase.time(step)) for step in range(100) if phase.is_due(step)]
    for found in factors.values():
        assert found[0] == 1.0
        assert found == sorted(found, reverse=True)
        assert found[-1] < 1.5 / len(found)
    assert sum(map(len, factors.values())) == 100


@pytest.mark.parametrize("share", [0.05, 0.17, 0.5])
def test_the_run_turns_where_the_teacher_has_had_its_share_of_operations(share):
    objective = salt(steps=10_000, teacher_share=share)
    assert isinstance(objective, Costed)
    costs = objective.costs(4)
    at = [spent(objective.phases(), costs, batch_size=4, step=step) for step in (objective.turn, 10_000)]
    assert at[0] / at[1] == pytest.approx(share, rel=2e-3)
    assert at[0] == pytest.approx(4 * objective.turn * costs["teacher"])
    assert costs["student"] > costs["teacher"]  # it watches the teacher


def test_a_teacher_may_come_as_it_is():
    objective = salt(teacher_share=0)
    assert [phase.is_due(0) for phase in objective.phases()] == [False, True]
    with pytest.raises(ValueError, match="teacher_share=1"):
        salt(teacher_share=1)


def test_a_teacher_of_other_tokens_is_refused():
    with pytest.raises(
        ValueError, match=r"the teacher cuts a clip into \(2, 3, 3\) tokens, the student into \(2, 6, 6\)"
    ):
        salt(teacher=network(patch=8))


@pytest.mark.parametrize("make", [v_jepa, v_pixel, salt])
def test_padding_changes_neither_loss_nor_statistics(make, monkeypatch):
    objective = make()
    batch = batch_of(objective)
    cut = objective.loss(batch)
    padded = batch.clone()
    for family in ("short", "long"):
        for key in ("context", "targets"):
            padded["families", family, key] = F.pad(batch["families", family, key], (0, 3), value=-1)
    found = objective.loss(padded)
    for kind in ("loss", "stat"):
        for name, value in cut[kind].items():
            torch.testing.assert_close(found[kind, name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("make", [v_jepa, v_pixel, salt])
def test_hidden_tokens_do_not_reach_the_prediction(make):
    objective = make()
    batch = batch_of(objective, 1)
    other = batch.clone()
    seen = set(batch["families", "short", "context"][0].tolist())
    hidden = min(set(range(36)) - seen)  # of the first two frames
    row, column = PATCH * (hidden // 6), PATCH * (hidden % 6)
    other["observation", "pixels"][:, 0, :2, :, row : row + PATCH, column : column + PATCH] += 50
    masks = [padding.Subsets(*(b["families", "short", key] for key in ("context", "targets"))) for b in (batch, other)]
    first, second = (
        objective.predict(b["observation"][:, 0], mask, 0) for b, mask in zip((batch, other), masks, strict=True)
    )
    torch.testing.assert_close(first, second)
    assert not torch.allclose(*(objective.goal(b["observation"][:, 0]) for b in (batch, other)))


@pytest.mark.parametrize("make", [v_jepa, v_pixel, salt])
def test_what_evaluators_ask_for(make):
    objective = make()
    assert isinstance(objective, Embeds)
    assert isinstance(objective, TwoViews)
    batch = batch_of(objective, 3)
    obs = batch["observation"][:, 0]
    tokens = objective.embed_tokens(obs)
    assert set(tokens.keys()) == ({"clip", "teacher"} if make is salt else {"clip"})
    torch.testing.assert_close(tokens["clip"].mean(1), objective.embed(obs)["clip"])
    torch.testing.assert_close(tokens["clip"], objective.patches(obs))
    mask = batch["families", "long"]
    error = objective.prediction_error(obs, mask["context"], F.pad(mask["targets"], (0, 2), value=-1))
    assert error.shape == (3, mask["targets"].shape[-1] + 2)
    assert bool((error[:, :-2] > 0).all())
    assert not error[:, -2:].any()
    context, target = objective.views(batch)
    for view, index in (
        (context, batch["families", "short", "context"]),
        (target, batch["families", "short", "targets"]),
    ):
        share = index.shape[-1] / objective.num_tokens
        assert view["shown", "pixels"].float().mean().item() == pytest.approx(share)
        assert view["latent", "pooled"].shape == (3, 24)


def test_v_jepa_is_judged_by_its_moving_average():
    objective = v_jepa()
    obs = batch_of(objective)["observation"][:, 0]
    with torch.no_grad():
        for parameter in objective.encoder.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(objective.patches(obs), objective.target.module(obs)["tokens"])


def test_every_family_has_a_query_that_is_trained():
    objective = v_jepa()
    objective.loss(batch_of(objective))["loss", "prediction"].backward()
    queries = [p for name, p in objective.predictor.named_parameters() if "quer" in name]
    assert len(queries) == 2
    assert all(query.grad is not None and bool(query.grad.any()) for query in queries)


def test_encoders_without_time_and_several_views_are_refused():
    shared = parts()

    class TwoClips(ClipViews):
        num = 2

    with pytest.raises(ValueError, match="looks at one clip"):
        VPixel(spec(), encoder=network(), **shared | {"views": partial(TwoClips, num_frames=FRAMES)})
    still = VisionTransformer(spec(), patch=4, dim=24, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="use encoder=video_tiny"):
        VPixel(spec(), encoder=still, **shared)
