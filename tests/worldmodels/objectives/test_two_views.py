from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tests.hand_made_views import ACTION_DIM, GivenViews, PooledPixels, batch_of, parts, spec_of
from worldmodels.core import Embeds
from worldmodels.nn.projector import Projector
from worldmodels.objectives.byol_image import BYOLImage
from worldmodels.objectives.cond_byol import ConditionalBYOL
from worldmodels.objectives.equimod import EquiMod
from worldmodels.objectives.sen import SEN
from worldmodels.objectives.sie import SIE
from worldmodels.objectives.simclr import SimCLR
from worldmodels.objectives.vicreg import VICReg
from worldmodels.predictors.hypernetwork import ActionMap
from worldmodels.targets import EMA

PROJECTOR = {"projector": functools.partial(Projector, widths=[12, 6])}
FOLLOWED = {"hidden": [10], "target": functools.partial(EMA, tau=0.1, has_own_statistics=True)}
METHODS = {
    SimCLR: PROJECTOR,
    VICReg: PROJECTOR,
    BYOLImage: PROJECTOR | FOLLOWED,
    ConditionalBYOL: PROJECTOR | FOLLOWED | {"action_width": 4},
    EquiMod: PROJECTOR | {"action_width": 4},
    SEN: PROJECTOR | {"action_width": 4},
    SIE: PROJECTOR,
}
CONDITIONAL = [ConditionalBYOL, EquiMod, SEN, SIE]


def make(method, num: int = 2, **choices):
    torch.manual_seed(0)
    return method(spec_of(), **parts(num), **{**METHODS[method], **choices})


def apart(objective):
    """Move targets away from what they follow."""
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            if name.startswith("target"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return objective


# --- the losses, written once more in numpy -----------------------------------------------------------------------
def run(net, x):
    """A net of Linear, batch norm (while training) and ReLU layers, in numpy."""
    for layer in net:
        if isinstance(layer, torch.nn.Linear):
            x = x @ layer.weight.detach().numpy().T + (0 if layer.bias is None else layer.bias.detach().numpy())
        elif isinstance(layer, torch.nn.BatchNorm1d):
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + layer.eps)
            if layer.affine:
                x = x * layer.weight.detach().numpy() + layer.bias.detach().numpy()
        else:
            x = np.maximum(x, 0)
    return x


def contrast(first, second, temperature):
    unit = np.concatenate([first, second])
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    num, terms = len(first), []
    for i in range(2 * num):
        scores = np.exp(unit @ unit[i] / temperature)
        terms.append(-np.log(scores[(i + num) % (2 * num)] / (scores.sum() - scores[i])))
    return np.mean(terms)


def cosine(first, second):
    return np.mean((first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1))


def hinge(x):
    return np.maximum(0, 1 - np.sqrt(x.var(0, ddof=1) + 1e-4)).mean()


def off_diagonal(x):
    covariance = np.cov(x.T)
    return (covariance**2).sum() / len(covariance) - (np.diag(covariance) ** 2).sum() / len(covariance)


def expected_losses(objective, batch) -> dict[str, float]:
    pictures = batch["observation", "pixels"].numpy() / 255 - 0.5
    action = batch["action"][:, 0].numpy()
    one, two = (run(objective.encoder.layers, pictures[:, t].reshape(len(pictures), -1)) for t in (0, 1))
    if isinstance(objective, SIE):
        inner, outer = objective.invariant_projector.layers, objective.projector.layers
        first, second = run(inner, one[:, :4]), run(inner, two[:, :4])
        start, goal = run(outer, one[:, 4:]), run(outer, two[:, 4:])
        matrices = objective.predictor.weights.weight.detach().numpy().reshape(6, ACTION_DIM, 6)  # [to, action, from]
        guess = np.stack([np.einsum("k,okd->od", a, matrices) @ s for a, s in zip(action, start, strict=True)])
        whole = [np.concatenate(x, 1) for x in ((first, start), (second, goal))]
        return {
            "invariance": ((first - second) ** 2).mean(),
            "equivariance": ((guess - goal) ** 2).mean(),
            "variance": (hinge(whole[0]) + hinge(whole[1])) / 2,
            "variance_prediction": hinge(guess) / 2,
            "covariance": off_diagonal(whole[0]) + off_diagonal(whole[1]),
        }
    first, second = run(objective.projector.layers, one), run(objective.projector.layers, two)
    if isinstance(objective, SimCLR):
        return {"contrast": contrast(first, second, 0.5)}
    if isinstance(objective, VICReg):
        return {
            "invariance": ((first - second) ** 2).mean(),
            "variance": (hinge(first) + hinge(second)) / 2,
            "covariance": off_diagonal(first) + off_diagonal(second),
        }
    if isinstance(objective, BYOLImage | ConditionalBYOL):
        nets = objective.target.module.layers, objective.target_projector.module.layers
        goals = [run(nets[1], run(nets[0], pictures[:, t].reshape(len(pictures), -1))) for t in (0, 1)]
    if isinstance(objective, BYOLImage):
        guesses = [run(objective.predictor.layers, x) for x in (first, second)]
        return {"prediction": 4 - 2 * cosine(guesses[0], goals[1]) - 2 * cosine(guesses[1], goals[0])}
    guess = run(objective.predictor.layers, np.concatenate([first, run(objective.action_net.layers, action)], 1))
    if isinstance(objective, ConditionalBYOL):
        return {"prediction": 2 - 2 * cosine(guess, goals[1])}
    if isinstance(objective, SEN):
        return {"equivariant": contrast(guess, second, 0.5)}
    net = objective.invariant_projector.layers
    return {"invariant": contrast(run(net, one), run(net, two), 0.1), "equivariant": contrast(guess, second, 0.1)}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", METHODS)
def test_losses_equal_ones_written_from_the_papers(method):
    objective, batch = apart(make(method)), batch_of(8, 2, dtype=torch.float64)
    found = {name: value.item() for name, value in objective.loss(batch)["loss"].items()}
    assert found == pytest.approx(expected_losses(objective, batch), rel=1e-9)


# --- what all share -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_all_that_is_trained_and_no_target(method):
    objective, batch = make(method), batch_of(8, 2)
    sum(objective.loss(batch)["loss"].values()).backward()
    trained = {id(p) for group in objective.phases()[0].params.values() for p in group}
    for name, parameter in objective.named_parameters():
        assert (id(parameter) in trained) == (not name.startswith("target")), name
        assert (parameter.grad is not None) == (id(parameter) in trained), name


@pytest.mark.parametrize("method", METHODS)
def test_only_the_first_two_views_count(method):
    objective, batch = make(method, num=4), batch_of(8, 4)
    expected = objective.loss(batch)["loss"]
    batch["observation", "pixels"][:, 2:] = 0
    batch["action"][:, 1:] = 9.0
    torch.testing.assert_close(objective.loss(batch)["loss"], expected)


@pytest.mark.parametrize("method", METHODS)
def test_losses_read_the_action_where_the_method_is_conditional(method):
    objective, batch = make(method), batch_of(8, 2)
    total = lambda: float(sum(objective.loss(batch)["loss"].values()).detach())  # noqa: E731
    before = total()
    batch["action"][:, 0] = torch.randn(8, ACTION_DIM)
    assert (total() != before) == (method in CONDITIONAL)


@pytest.mark.parametrize("method", METHODS)
def test_embeds_with_the_encoder(method):
    objective, obs = make(method).eval(), batch_of(5, 1)["observation"][:, 0]
    assert isinstance(objective, Embeds)
    torch.testing.assert_close(objective.embed(obs)["view"], objective.encoder(obs)["pooled"])
    assert hasattr(objective, "foresee") == hasattr(objective, "anchor") == (method in CONDITIONAL)


@pytest.mark.parametrize("method", CONDITIONAL)
def test_foresees_from_the_last_view_and_the_last_action(method):
    objective, views = apart(make(method)).eval(), batch_of(5, 3)
    views["action"][:, -1] = torch.randn(5, ACTION_DIM)
    found = objective.foresee(views)
    assert found.shape == objective.anchor(views["observation"][:, 0]).shape == (5, 6)
    earlier = views.clone()
    earlier["observation", "pixels"][:, :-1] = 0
    earlier["action"][:, :-1] = 0
    torch.testing.assert_close(objective.foresee(earlier), found)
    later = views.clone()
    later["action"][:, -1] += 1
    assert not torch.allclose(objective.foresee(later), found, atol=1e-3)


def test_what_is_predicted_while_training_is_what_is_foreseen():
    objective, batch = apart(make(ConditionalBYOL)).eval(), batch_of(8, 2)
    foreseen = objective.foresee(
        TensorDict({"observation": batch["observation"][:, :1], "action": batch["action"]}, [8])
    )
    goal = objective.anchor(batch["observation"][:, 1])
    expected = 2 - 2 * torch.nn.functional.cosine_similarity(foreseen, goal).mean()
    torch.testing.assert_close(objective.loss(batch)["loss", "prediction"].detach(), expected)


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match=r"views\.num_views=1: SimCLR needs at least 2 views"):
        make(SimCLR, num=1)
    with pytest.raises(ValueError, match="halves the latent"):
        SIE(spec_of(), **{**parts(2), "encoder": functools.partial(PooledPixels, dim=7)}, **PROJECTOR)
    with pytest.raises(ValueError, match="widths is empty"):
        make(SimCLR, projector=functools.partial(Projector, widths=[]))
    spec = spec_of()
    del spec["action"]
    with pytest.raises(ValueError, match="SEN needs the action between views"):
        SEN(spec, **parts(2), **PROJECTOR)
    SimCLR(spec, **parts(2), **PROJECTOR)  # which needs none
    with pytest.raises(ValueError, match="batch_size=1: SimCLR needs at least 2 samples"):
        make(SimCLR).prepare(batch_of(1, 2))


def test_a_shared_encoder_is_used_as_it_is():
    encoder = PooledPixels(spec_of())
    objective = VICReg(spec_of(), encoder=encoder, views=functools.partial(GivenViews, num=2), **PROJECTOR)
    assert objective.encoder is encoder


# --- the parts ----------------------------------------------------------------------------------------------------
def test_action_map_is_the_matrix_that_the_action_chooses():
    net = ActionMap(4, 3)
    latent, action = torch.randn(5, 4), torch.randn(5, 3)
    blocks = net.weights.weight.unflatten(1, (3, 4))  # [to, action, from]
    expected = torch.einsum("bk,okd,bd->bo", action, blocks, latent)
    torch.testing.assert_close(net(latent, action), expected)
    assert bool((net(latent, torch.zeros(5, 3)) == 0).all())


def test_projector_layers():
    net = Projector(5, [7, 3])
    kinds = [type(layer).__name__ for layer in net.layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert net.layers[0].bias is None
    assert net.layers[3].bias is not None
    assert net.dim == 3
    linear, norm = Projector(5, [3], has_last_norm=True).layers
    assert linear.bias is None
    assert not norm.affine
