from __future__ import annotations

from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torch.nn import functional as F

from perception.augment import AugmentedViews
from perception.image import ResNet18
from perception.resample import fitted
from tests.systems import composed
from tests.worldmodels.objectives.pictures import batch_of, check_compiles_whole, i_jepa, spec
from worldmodels.core import Embeds, TwoViews
from worldmodels.masking import padding
from worldmodels.nn.positions import grid_sinusoids
from worldmodels.objectives.i_jepa import IJEPA
from worldmodels.predictors.masked_tokens import MaskedTokenPredictor


@pytest.mark.parametrize("has_squared_loss", [False, True])
def test_the_loss_is_that_of_each_block_by_itself(has_squared_loss):
    objective = i_jepa(has_squared_loss=has_squared_loss)
    batch = batch_of(objective)
    obs = batch["observation"][:, 0]
    whole = objective.target.module(obs)["tokens"]
    whole = (whole - whole.mean(-1, keepdim=True)) / (whole.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    latent, errors = objective.encoder(obs, batch["context"])["tokens"], []
    for block in range(4):
        index = batch["targets"][:, block : block + 1]
        prediction = objective.predictor(latent, batch["context"], index)[:, 0]
        goal = torch.stack([whole[row, places] for row, places in enumerate(index[:, 0])])
        measure = F.mse_loss if has_squared_loss else F.smooth_l1_loss
        errors.append(measure(prediction, goal))
    torch.testing.assert_close(objective.loss(batch)["loss", "prediction"], torch.stack(errors).mean())


def test_padding_changes_neither_loss_nor_statistics(monkeypatch):
    objective = i_jepa()
    cut = objective.loss(batch_of(objective))
    with monkeypatch.context() as patch:
        patch.setattr(padding, "is_cut", lambda device: False)
        padded_batch = batch_of(objective)
    assert bool((padded_batch["context"] == -1).any())
    assert bool((padded_batch["targets"] == -1).any())
    padded = objective.loss(padded_batch)
    for kind in ("loss", "stat"):
        for name, value in cut[kind].items():
            torch.testing.assert_close(padded[kind, name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_loss_compiles_whole(unchecked):
    check_compiles_whole(i_jepa())


def test_targets_get_no_gradient_and_follow():
    objective = i_jepa()
    objective.loss(batch_of(objective))["loss", "prediction"].backward()
    assert all(p.grad is None for p in objective.target.parameters())
    assert all(p.grad is not None for name, net in objective.trained().items() for p in net.parameters()), "trained"
    groups = objective.phases()[0].params
    assert {id(p) for ps in groups.values() for p in ps} == {
        id(p) for net in objective.trained().values() for p in net.parameters()
    }


def test_hidden_patches_do_not_reach_the_prediction():
    objective = i_jepa()
    batch = batch_of(objective, 1)
    other = batch.clone()
    hidden = sorted(set(range(48)) - set(batch["context"][0].tolist()))[0]
    row, column = 4 * (hidden // 8), 4 * (hidden % 8)
    other["observation", "pixels"][..., row : row + 4, column : column + 4] += 50
    obs = [b["observation"][:, 0] for b in (batch, other)]
    first, second = (objective.context(o, batch["context"]) for o in obs)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(objective.goal(batch), objective.goal(other))


def test_statistics_tell_a_collapse_within_pictures_from_one_between_them():
    objective = i_jepa()
    is_asked, context = torch.ones(3, 2, 5), torch.zeros(3, 12, dtype=torch.int64)
    between = torch.randn(3, 1, 1, 16).expand(-1, 2, 5, -1)  # every patch of a picture alike
    found = objective.health(between, between, is_asked, context)
    assert float(found["target_variance_within"]) == pytest.approx(0, abs=1e-10)
    assert float(found["target_variance_between"]) > 0.3
    assert float(found["cosine"]) == pytest.approx(1)
    assert float(found["context_share"]) == pytest.approx(12 / 48)
    within = torch.randn(1, 2, 5, 16).expand(3, -1, -1, -1)  # every picture alike
    found = objective.health(within, within, is_asked, context)
    assert float(found["target_variance_within"]) > 0.3
    assert float(found["target_variance_between"]) == pytest.approx(0, abs=1e-10)


def test_what_evaluators_ask_for_is_the_target_encoders():
    objective = i_jepa()
    assert isinstance(objective, Embeds)
    assert isinstance(objective, TwoViews)
    batch = batch_of(objective)
    obs = batch["observation"][:, 0]
    objective.encoder.embed_patch.weight.data.zero_()
    patches = objective.patches(obs)
    assert patches.shape == (4, 48, 16)
    torch.testing.assert_close(objective.embed(obs)["picture"], patches.mean(1))
    shown = [view["shown", "pixels"] for view in objective.views(batch)]
    assert shown[0].shape == (4, 1, 24, 32)
    assert not bool((shown[0] & shown[1]).any())
    assert shown[1].sum((1, 2, 3)).tolist() == [16 * batch["targets"].shape[2]] * 4


def test_pictures_of_another_size_are_embedded_like_their_middle_at_the_size_of_views():
    objective = i_jepa(views=partial(AugmentedViews, num_views=1, size=(24, 32)))
    pixels = torch.randint(0, 256, (2, 3, 60, 64), dtype=torch.uint8)
    small = TensorDict({"pixels": fitted(pixels, (24, 32))}, [2])
    found = objective.embed(TensorDict({"pixels": pixels}, [2]))["picture"]
    assert torch.equal(found, objective.embed(small)["picture"])


def test_predictors_of_pictures_know_rows_and_columns():
    predictor = MaskedTokenPredictor(16, (6, 8), width=8, depth=1, num_heads=2, hidden=16)
    assert torch.equal(predictor.positions.code, grid_sinusoids((6, 8), 8))


def test_encoders_without_patches_are_refused():
    with pytest.raises(ValueError, match="ResNet18 has none"):
        i_jepa(encoder=partial(ResNet18, has_small_stem=True, width=4))
    assert isinstance(i_jepa(encoder=i_jepa().encoder), IJEPA)  # one shared with other objectives
    assert spec()["observation", "pixels"].shape == (3, 24, 32)


def test_several_views_are_refused():
    with pytest.raises(ValueError, match=r"views.num_views=2: i_jepa and dmt_jepa look at one view.*views=crop"):
        i_jepa(views=partial(AugmentedViews, num_views=2))


@pytest.mark.parametrize("method", ["i_jepa", "dmt_jepa"])
def test_weight_decay_grows_as_published_but_not_at_small_scale(method):
    cfg = composed(f"objective={method}", "scale=paper")
    factor = instantiate(cfg.weight_decay_schedule)
    decays = [cfg.optim.weight_decay * factor(step) for step in (0, cfg.steps // 2, cfg.steps)]
    assert decays == pytest.approx([0.04, 0.22, 0.4])
    vectors = [name for name in cfg.param_groups if name.endswith("_vectors")]
    assert len(vectors) == 2 + (method == "dmt_jepa")
    assert all(cfg.param_groups[name].weight_decay == 0 for name in vectors)
    assert composed(f"objective={method}").weight_decay_schedule is None
