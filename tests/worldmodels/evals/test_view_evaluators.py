"""Evaluators of views: what representations know of classes and transformations, path integration, retrieval."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.worldmodels.evals.toy_pictures import Collapsed, Flat, Pictures, Reader, ToyViews, Walker
from worldmodels.evals.path_integration import PathIntegration
from worldmodels.evals.regression import MLPRegressor, RidgeRegressor, r2_metrics, r2_scores
from worldmodels.evals.results import unpack
from worldmodels.evals.retrieval import Retrieval, reciprocal_ranks
from worldmodels.evals.view_probes import ViewProbe

SIZES = {"num_train": 500, "num_test": 300, "batch_size": 64}


def view_probe(**options):
    options = {"views": ToyViews, **SIZES, **options}
    return ViewProbe(source=Pictures(), every=0, raw=Flat, regressor=RidgeRegressor(), **options)


def path_integration(**options):
    return PathIntegration(
        source=Pictures(), every=0, views=ToyViews, regressor=RidgeRegressor(), **{**SIZES, **options}
    )


def retrieval(**options):
    return Retrieval(source=Pictures(), every=0, views=ToyViews, **{"num": 100, **options})


def test_what_is_in_a_representation_is_found_and_nothing_else():
    reads = {row: unpack(view_probe(lengths=[1, 9])(Reader(row), 0)).metrics for row in range(3)}
    assert reads[0]["relative/r2"] == pytest.approx(1, abs=1e-4)
    assert reads[0]["absolute/r2"] == pytest.approx(1, abs=1e-4)
    for row in (1, 2):
        assert abs(reads[row]["relative/r2"]) < 0.05
        assert abs(reads[row]["absolute/r2"]) < 0.05
    # the hint is right in 3 of 4 views, the majority of nine in 95 % of sequences (binomial)
    assert reads[1]["view/accuracy"] == pytest.approx(0.75, abs=0.06)
    assert reads[1]["mean_9/accuracy"] == pytest.approx(0.951, abs=0.04)
    for row in (0, 2):
        assert reads[row]["view/accuracy"] == pytest.approx(0.5, abs=0.1)
    # controls are of the data, whoever is judged
    for name in ("raw/accuracy", "majority/accuracy", "raw_relative/r2", "raw_absolute/r2"):
        assert reads[0][name] == reads[1][name]
    assert reads[0]["raw/accuracy"] == pytest.approx(0.75, abs=0.06)
    assert reads[0]["raw_relative/r2"] == pytest.approx(1, abs=1e-3)
    assert reads[0]["majority/accuracy"] == pytest.approx(0.5, abs=0.1)


def test_probes_regress_what_views_can_compare_whatever_networks_are_given():
    """Actions as released depend on all views of a sample: here, on a number drawn for each."""

    class Scaled(ToyViews):
        def __call__(self, batch, generator):
            made = super().__call__(batch, generator)
            scale = 1 + 9 * torch.rand(len(made), 1, 1, generator=generator)
            return made.copy().set("action", made["action"] * scale)

    found = unpack(view_probe(lengths=[1], views=Scaled)(Reader(), 0)).metrics
    assert found["relative/r2"] == pytest.approx(1, abs=1e-4)


def test_outputs_are_reported_one_by_one_without_those_that_never_vary():
    found = unpack(view_probe(lengths=[1])(Reader(), 0)).metrics
    assert {"relative/r2_0", "relative/r2_1"} <= found.keys()
    assert "relative/r2_2" not in found
    assert "aggregate_1/accuracy" not in found, "this objective aggregates nothing"


def test_aggregates_have_a_row_beside_the_mean_of_the_same_views():
    found = unpack(view_probe(lengths=[1, 3])(Walker(1), 0)).metrics
    assert {"aggregate_1/accuracy", "aggregate_3/accuracy", "mean_3/accuracy"} <= found.keys()
    assert "mean_1/accuracy" not in found  # is view/accuracy
    assert found["aggregate_1/accuracy"] == found["view/accuracy"]


def test_a_class_that_only_actions_tell_is_lost_without_them():
    class Telling(ToyViews):
        def __call__(self, batch, generator):
            made = super().__call__(batch, generator)
            made["action"][:, :-1, 2] = made["label"].float()
            return made

    found = unpack(view_probe(lengths=[1, 3], views=Telling)(Walker(2), 0)).metrics  # looks at noise
    assert found["aggregate_3/accuracy"] == 1
    assert found["aggregate_3_no_actions/accuracy"] == pytest.approx(0.5, abs=0.1)
    assert "aggregate_1_no_actions/accuracy" not in found, "one view has no actions"


def test_every_objective_sees_the_same_pictures_at_every_evaluation():
    one, other, evaluator = Reader(), Reader(2), view_probe()
    evaluator(one, 0)
    first = list(one.seen)
    evaluator(one, 100)
    evaluator(other, 0)
    assert one.seen[len(first) :] == first == other.seen


def test_path_integration_of_what_adds_up_is_exact():
    result = unpack(path_integration(lengths=[1, 2, 5])(Walker(), 0))
    for num in (1, 2, 5):
        for row in ("aggregate", "no_actions", "no_pixels"):  # each knows the way, by actions or by looking
            assert result.metrics[f"{row}/views_{num}"] == pytest.approx(1, abs=1e-4)
    # the last of M independent steps explains half of the variance of one end of two: R2 = 1/4, and all of it if M = 1
    assert result.metrics["last_action/views_1"] == pytest.approx(1, abs=1e-4)
    assert result.metrics["last_action/views_5"] == pytest.approx(0.25, abs=0.1)
    scores = json.loads(result.files["path_integration.json"])
    assert scores["aggregate/views_5"]["r2_0"] == pytest.approx(1, abs=1e-4)
    assert Image.open(io.BytesIO(result.files["path_integration.png"])).size[0] > 100


def test_path_integration_without_eyes_needs_its_actions():
    found = unpack(path_integration(lengths=[4])(Walker(2), 0)).metrics  # looks at noise
    assert found["aggregate/views_4"] == pytest.approx(1, abs=1e-4)
    assert found["no_actions/views_4"] == pytest.approx(0.25, abs=0.1)
    assert found["no_pixels/views_4"] == pytest.approx(1, abs=1e-4)


def test_path_integration_of_a_method_without_actions_has_no_row_of_them():
    class Without(Walker):
        def embed_action(self, action):
            return action[:, :0]

    found = unpack(path_integration(lengths=[2])(Without(), 0)).metrics
    assert "last_action/views_2" not in found
    assert found["no_actions/views_2"] < 0.8  # the target lies beyond the last view


def test_retrieval_of_what_is_foreseen_exactly():
    found = unpack(retrieval(lengths=[1, 3], num_candidates=6)(Walker(), 0)).metrics
    for num in (1, 3):
        for key in ("mrr", "hit_1", "hit_5"):
            assert found[f"foresee_{num}/{key}"] == pytest.approx(1, abs=0.02)
        assert found[f"shuffled_{num}/mrr"] < 0.7  # another's action leads elsewhere
    assert found["copy/hit_1"] < 0.05  # the view itself is the nearest one to it
    assert found["chance/mrr"] == pytest.approx(sum(1 / r for r in range(1, 7)) / 6)
    assert found["chance/hit_1"] == pytest.approx(1 / 6)
    assert found["chance/hit_5"] == pytest.approx(5 / 6)


def test_a_collapsed_latent_scores_what_chance_does():
    found = unpack(retrieval()(Collapsed(), 0)).metrics  # candidates: the views that objects of the part have
    for row in ("foresee_1", "shuffled_1", "copy"):
        for key in ("mrr", "hit_1", "hit_5"):
            assert found[f"{row}/{key}"] == pytest.approx(found[f"chance/{key}"])
    assert found["chance/hit_1"] == pytest.approx(1 / Pictures.num_views)


def test_ranks_with_ties():
    similarity = torch.tensor([[0.9, 0.5, 0.7, 0.1], [0.5, 0.5, 0.7, 0.1], [0.5, 0.5, 0.5, 0.5], [0.0, 0.9, 0.1, 0.2]])
    found = reciprocal_ranks(similarity, 0)
    expected = [[1, 1, 1], [(1 / 2 + 1 / 3) / 2, 0, 1], [(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, 1 / 4, 1], [1 / 4, 0, 1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    many = torch.zeros(1, 20)
    assert reciprocal_ranks(many, 3)[0, 2] == pytest.approx(5 / 20)


@settings(max_examples=50)
@given(st.integers(2, 30), st.integers(0, 29), st.integers(0, 10_000))
def test_ranks_are_those_of_sorting(num, index, seed):
    index %= num
    similarity = torch.randperm(num, generator=torch.Generator().manual_seed(seed)).float()[None]
    rank = 1 + int((similarity > similarity[0, index]).sum())
    assert reciprocal_ranks(similarity, index)[0].tolist() == pytest.approx(
        [1 / rank, float(rank <= 1), float(rank <= 5)]
    )


def test_r2_is_scikit_learns():
    from sklearn.metrics import r2_score

    predicted, target = torch.randn(2, 50, 3)
    expected = r2_score(target, predicted, multioutput="raw_values")
    assert r2_scores(predicted, target).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert r2_metrics(predicted, target)["r2"] == pytest.approx(expected.mean(), rel=1e-5)
    assert math.isnan(r2_metrics(predicted, torch.full_like(target, 0.1))["r2"])


def test_an_mlp_regresses_what_no_line_does_and_keeps_out_of_the_global_generator():
    x = torch.rand(1000, 2) * 2 - 1
    y = torch.stack([x.prod(1), torch.full((1000,), 7.0)], 1)  # a saddle, and a constant
    parts = (x[:600], x[600:800]), (y[:600], y[600:800])
    line, before = RidgeRegressor()(*parts), torch.get_rng_state()
    net = MLPRegressor(width=64, steps=400)(*parts)
    assert torch.equal(before, torch.get_rng_state())
    assert r2_scores(line(x[800:]), y[800:])[0] < 0.1
    assert r2_scores(net(x[800:]), y[800:])[0] > 0.9
    torch.testing.assert_close(net(x[800:])[:, 1], torch.full((200,), 7.0))
    assert torch.equal(net(x), MLPRegressor(width=64, steps=400)(*parts)(x))
    with pytest.raises(ValueError, match="diverged"):
        MLPRegressor(steps=2)((x * torch.nan, x), (y, y))
    with pytest.raises(ValueError, match="steps=0"):
        MLPRegressor(steps=0)


@pytest.mark.parametrize("make", [view_probe, path_integration, retrieval])
def test_evaluation_leaves_no_trace(make):
    objective = Walker().train()
    objective.dropout.eval()  # modes are kept one by one
    state = {key: value.clone() for key, value in objective.state_dict().items()}
    before = torch.get_rng_state()
    evaluator = make()
    first, second = unpack(evaluator(objective, 0)), unpack(evaluator(objective, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert objective.training
    assert not objective.dropout.training
    assert first.metrics == second.metrics
    for key, value in objective.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert objective.weight.grad is None


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="views is null"):
        ViewProbe(source=Pictures(), every=0, views=None, raw=Flat, regressor=RidgeRegressor())
    with pytest.raises(ValueError, match=r"lengths=\[0\]"):
        view_probe(lengths=[0])
    with pytest.raises(ValueError, match="entry=row is not among"):
        view_probe(entry="row")(Reader(), 0)
    with pytest.raises(ValueError, match="aggregate"):
        path_integration()(Reader(), 0)
    with pytest.raises(ValueError, match="foresee"):
        retrieval()(Reader(), 0)
    with pytest.raises(ValueError, match="from 1 to 4"):
        retrieval(lengths=[5])
    with pytest.raises(ValueError, match=r"no split\(name\)"):
        PathIntegration(source=object(), every=0, views=ToyViews, regressor=RidgeRegressor())

    with pytest.raises(ValueError, match=r"does not say how many.*eval.retrieval.num_candidates"):
        Retrieval(source=Unknown(), every=0, views=Rows)

    class Incomparable(ToyViews):
        action_between = property()

    with pytest.raises(ValueError, match="action_between"):
        ViewProbe(source=Pictures(), every=0, views=Incomparable, raw=Flat, regressor=RidgeRegressor())


def test_sequences_longer_than_objects_have_views_are_refused_before_training():
    class Few(Pictures):
        num_views = 3

    options = {"source": Few(), "every": 0, "raw": Flat, "regressor": RidgeRegressor()}
    with pytest.raises(
        ValueError, match=r"sequences of 6 views, and objects have 3 in train: .*eval.view_probe.lengths"
    ):
        ViewProbe(views=Rows, lengths=[1, 5], **options)
    ViewProbe(views=Rows, lengths=[2], **options)
    ViewProbe(views=ToyViews, lengths=[1, 5], **options)  # made of one row


def test_no_accuracy_of_objects_that_training_never_showed():
    class Others(Pictures):
        num_classes = 4

        def split(self, name):
            other = Others()
            other.first = 2 * (name == "test")
            return other

        def sample(self, batch_size, window, generator):
            batch = super().sample(batch_size, window, generator)
            return batch.set("label", batch["label"] + self.first)

    probe = ViewProbe(source=Others(), every=0, views=ToyViews, raw=Flat, regressor=RidgeRegressor(), **SIZES)
    found = unpack(probe(Reader(), 0)).metrics
    assert not [name for name in found if name.endswith("accuracy")]
    assert found["relative/r2"] == pytest.approx(1, abs=1e-4)


class Unknown(Pictures):
    """Does not say how many views its objects have."""

    num_views = property()


class Rows(ToyViews):
    """A row of the source each, as poses are."""

    def __init__(self, spec, *, num_views):
        super().__init__(spec, num_views=num_views)
        self.window = num_views


def test_candidates_are_the_views_that_the_source_has_of_an_object():
    class Objects(Pictures):
        num_views = 7

    assert Retrieval(source=Objects(), every=0, views=ToyViews).num_candidates == 7
    assert Retrieval(source=Unknown(), every=0, views=ToyViews).num_candidates == 20  # of one picture: any number
