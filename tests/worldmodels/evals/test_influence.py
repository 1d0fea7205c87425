"""The lambda/rho spectrum of tables, trajectories and representations: readable, and off unless asked for."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Categorical, Composite, MultiCategorical, Unbounded

from envs.linear_features import LinearFeatures, Masked, Static
from envs.toy import Toy
from worldmodels import build
from worldmodels.core import Objective, Phase
from worldmodels.evals.influence import InfluenceSpectrum
from worldmodels.evals.results import Evaluation, unpack
from worldmodels.evals.spectrum import influence_spectrum
from worldmodels.evals.views import centred
from worldmodels.masking import RandomSubsets


# --- views --------------------------------------------------------------------------------------------------------
def test_hidden_entries_count_as_the_mean_and_columns_get_variance_one():
    nan = float("nan")
    x = torch.tensor([[1.0, nan, 5.0], [3.0, 7.0, 5.0]]).double()
    y = torch.tensor([[2.0, 4.0, 5.0], [4.0, nan, 5.0]]).double()
    one, other = centred(x, y, None)
    assert one.tolist() == [[-1, 0, 0], [1, 0, 0]]
    assert other.tolist() == [[-1, 0, 0], [1, 0, 0]]
    x, y = torch.randn(500, 3).double() * 9, torch.randn(500, 3).double() * 4
    one, other = centred(x, y, torch.tensor([0, 1, 1]))
    variance = torch.cat([one, other]).square().mean(0)
    assert variance[0] == pytest.approx(1)
    assert variance[1] + variance[2] == pytest.approx(1)


class Still(Objective):
    """An objective that is a map of states, or says nothing."""

    window = 2

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2) if weight is None else weight)

    def phases(self) -> tuple[Phase, ...]:
        return ()


class Seen(Still):
    def embed(self, obs: TensorDict) -> TensorDict:
        return TensorDict({"map": obs["state"] @ self.weight}, obs.batch_size)


def judge(objective: Objective, source=None, **choices) -> Evaluation:
    return unpack(InfluenceSpectrum(**{"source": source or Toy(), "every": 0, "num": 1500, **choices})(objective, 7))


def test_steps_of_trajectories_are_the_views_and_rho_is_the_same_in_every_linear_representation():
    found = judge(Seen(torch.tensor([[1.0, 2.0], [0.5, -3.0]])))
    for i in (1, 2):  # a point that moves by 0.1: slow
        assert 0.9 < found.metrics[f"input.{i}/rho"] < 1.1  # walks spread
        assert found.metrics[f"input.{i}/lambda"] / found.metrics[f"input.{i}/variance"] == pytest.approx(
            found.metrics[f"input.{i}/rho"]
        )
    rhos = [sorted(found.metrics[f"{name}.{i}/rho"] for i in (1, 2)) for name in ("input", "map")]
    assert rhos[0] == pytest.approx(rhos[1], abs=0.01)
    assert found.metrics["input/chance"] < 0.1
    assert found.metrics["input/above_chance"] == 2
    assert found.metrics["input.1/mae_rank"] == 1
    assert set(found.files) == {"input.png", "input.json", "map.png", "map.json"}
    assert found.files["input.png"].startswith(b"\x89PNG")
    content = json.loads(found.files["map.json"])
    assert content["entries"] == ["state[0]", "state[1]"]
    assert np.array(content["weights"]).shape == (2, 2)
    assert any("map.1: JEPA" in note and "state[0]" in note for note in found.notes)


def test_scale_of_columns_moves_lambda_and_not_rho():
    plain, scaled, again = (judge(Still(), is_standardized=choice).metrics for choice in (False, True, True))
    assert scaled == again  # the same pairs
    assert scaled["input.1/variance"] + scaled["input.2/variance"] == pytest.approx(2, rel=0.02)
    assert plain["input.1/variance"] + plain["input.2/variance"] < 1
    assert plain["input.1/rho"] == pytest.approx(scaled["input.1/rho"], abs=0.02)


def test_what_cannot_be_compared_is_said():
    found = judge(Seen(torch.full((2, 2), float("nan"))))
    assert found.warnings == ["step 7: map is left out: it is not finite"]
    assert "input/features" in found.metrics
    assert judge(Seen(torch.zeros(2, 2))).warnings == ["step 7: map is left out: it does not vary"]
    found = judge(Seen(torch.randn(2, 5)), max_dim=4)
    assert any("map is left out: 5 dimensions, more than max_dim=4" in note for note in found.notes)
    found = judge(Seen(), max_dim=2)
    assert found.metrics["map/dropped"] == 0
    with pytest.raises(ValueError, match="nothing to compare: the input has 2 entries, more than max_dim=1"):
        judge(Still(), max_dim=1)
    with pytest.raises(ValueError, match=r"scale=2\.0 between 0 and 1"):
        InfluenceSpectrum(source=Toy(), every=0, scale=2.0)


class Rows:
    """Source: three numbers that share a factor, one of them at times missing, and a category that follows it."""

    spec = Composite(
        observation=Composite(
            numerical=Unbounded((3,)),
            missing=Categorical(2, shape=(3,), dtype=torch.bool),
            categorical=MultiCategorical((4,)),
        )
    )

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        if window > 1:
            raise ValueError("rows have no order")
        factor = torch.randn(batch_size, 1, 1, generator=generator)
        noise = torch.randn(batch_size, 1, 3, generator=generator)
        missing = torch.rand(batch_size, 1, 3, generator=generator) < torch.tensor([0.0, 0.0, 0.3])
        category = torch.where(factor > 0, 2, 3)
        obs = {"numerical": 5 + factor + noise, "missing": missing, "categorical": category}
        return TensorDict({"observation": obs}, [batch_size]).auto_batch_size_(1)

    def attach(self, policy: object) -> None:
        pass

    def entry_names(self) -> dict[str, list[str]]:
        return {"numerical": ["a", "b", "c"]}


class Masking(Still):
    """Views: two columns of the row each, drawn by a transform."""

    window = 1
    has_latent = False

    def transforms(self):
        def draw(batch: TensorDict, generator: Generator) -> TensorDict:
            draw_masks = RandomSubsets(4, context=(2, 2), target=(2, 2), num_targets=1)
            masks = draw_masks(batch.batch_size[0], generator)
            return batch.copy().update({"context": masks.context, "targets": masks.targets[:, 0]})

        return (draw,)

    def views(self, batch: TensorDict) -> tuple[TensorDict, TensorDict]:
        def view(index: Tensor) -> TensorDict:
            shown = torch.zeros(len(index), 4, dtype=torch.bool).scatter_(1, index, True)
            parts = {"observation": batch["observation"][:, 0]}
            parts["shown"] = {"numerical": shown[:, :3], "categorical": shown[:, 3:]}
            if self.has_latent:
                parts["latent"] = {"count": shown.float()}
            return TensorDict(parts, [len(index)])

        return view(batch["context"]), view(batch["targets"])


def test_masks_of_an_objective_are_the_views():
    found = judge(Masking(), Rows(), num=20_000)
    assert found.metrics["input/features"] + found.metrics["input/dropped"] == 7
    assert found.metrics["input/dropped"] == 3  # two categories that never occur; the other two are complementary
    assert found.metrics["input/above_chance"] == 1
    # Moments of masked columns: S_xx = C (C_ii: 1/2, else 1/6), S_yx = 1/3 C off the diagonal, 0 on it. C: correlations
    # of shown columns, 1/2 between numbers and sqrt(1/pi) with the category; c is seen in 7 of 10 rows.
    seen = torch.tensor([1, 1, 0.7, 1]).double()
    corr = torch.full((4, 4), 0.5).double()
    corr[3] = corr[:, 3] = math.sqrt(1 / math.pi)
    corr = corr * seen[:, None] * seen
    off = corr - corr.diag().diag()
    wanted = influence_spectrum(off / 6 + (seen / 2).diag(), off / 3)
    assert found.metrics["input.1/rho"] == pytest.approx(float(wanted.rho[0]), rel=0.05)
    assert found.metrics["input.1/lambda"] == pytest.approx(float(wanted.lam[0]), rel=0.05)
    (line,) = [note for note in found.notes if note.startswith("input.1: JEPA 1., MAE 1.; ")]
    assert all(name in line for name in ("a +0.5", "b +0.5", "c +", "categorical["))
    assert not any(name.startswith("count") for name in found.metrics)


def test_views_may_bring_representations():
    class Counting(Masking):
        has_latent = True

    assert judge(Counting(), Rows()).metrics["count/dropped"] == 1  # there are always two

    class Whole(Masking, Seen):
        pass

    assert any("views bring no latent" in note for note in judge(Whole(), Rows()).notes)


def test_single_rows_without_views_are_refused():
    with pytest.raises(ValueError, match=r"Still has no views\(batch\), and the data have no consecutive steps \(rows"):
        judge(Still(), Rows())


# --- runs ---------------------------------------------------------------------------------------------------------
def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", overrides=["threads=1", "logger=csv", *overrides])


def test_it_is_off_until_asked_for():
    cpu = torch.device("cpu")
    source = Toy()
    for is_on in (False, True):
        cfg = composed("env=toy", "objective=latent_prediction", *["diagnostics.influence=true"] * is_on)
        assert [e.name for e in build.build_evaluators(cfg, source)] == ["collapse"] + ["influence"] * is_on
    cfg.eval.influence = None
    assert [e.name for e in build.build_evaluators(cfg, source)] == ["collapse"]
    cfg = composed("env=toy", "objective=latent_prediction", "+diagnostics.sizes=true")
    with pytest.raises(ValueError, match=r"diagnostics.sizes=true: eval has no such evaluator; it has collapse, infl"):
        build.build_evaluators(cfg, build.build_source(cfg, cpu))


def test_a_run_on_a_table_reports_its_features(tmp_path):
    pytest.importorskip("sklearn")
    from worldmodels.session import run

    small = ["encoder.dim=8", "encoder.depth=1", "encoder.hidden=16", "batch_size=16", "eval.influence.num=1500"]
    overrides = ["objective=t_jepa", "env.dataset=breast_cancer", "steps=2", f"run_dir={tmp_path}/a", *small]
    assert run(composed(*overrides, "diagnostics.influence=true"), command="") == 0
    first, last = json.loads((tmp_path / "a" / "summary.json").read_text())["evaluations"]["influence"]
    assert (first["step"], last["step"]) == (0, 2)
    metrics = last["metrics"]
    assert metrics["input/features"] == 30
    assert metrics["input.1/rho"] > 1  # thirty columns, nearly all about size: two of them tell a lot
    assert metrics["input.1/jepa_rank"] == metrics["input.1/mae_rank"] == 1
    assert metrics["input.1/rho"] == first["metrics"]["input.1/rho"]
    assert {"pooled/features", "pooled.1/lambda"} <= metrics.keys()
    (line,) = [note for note in last["notes"] if note.startswith("input.1:")]
    assert "concav" in line or "concave" in line
    report = (tmp_path / "a" / "report.html").read_text()
    assert "input.1" in report
    assert "figcaption>input<" in report


def test_views_of_t_jepa_show_what_its_masks_say():
    cfg = composed("objective=t_jepa", "env.dataset=breast_cancer", "encoder.dim=8", "encoder.depth=1")
    pytest.importorskip("sklearn")
    source = build.build_source(cfg, torch.device("cpu"))
    objective = build.build_objective(cfg, source, torch.device("cpu"))
    (draw,) = objective.transforms()
    batch = draw(source.sample(40, 1, Generator().manual_seed(0)), Generator().manual_seed(1))
    x, y = objective.views(batch)
    for view, index in ((x, batch["context"]), (y, batch["targets"][:, 0])):
        shown = view["shown", "numerical"]
        columns = [sorted(row[row >= 0].tolist()) for row in index]
        assert [row.nonzero()[:, 0].tolist() for row in shown] == columns  # padding shows nothing
        expected = objective.target(batch["observation"][:, 0], index)["pooled"]
        torch.testing.assert_close(view["latent", "pooled"], expected)
    assert not bool((x["shown", "numerical"] & y["shown", "numerical"]).any())


def test_categories_have_names():
    pd = pytest.importorskip("pandas")
    from envs.tables import Tables

    frame = pd.DataFrame({"size": [1.0, 2.0, 3.0, 4.0] * 5, "hue": ["red", "blue"] * 10, "target": [0, 1] * 10})
    source = Tables(path=frame)
    names = {"numerical": ["size"], "categorical": ["hue=(unseen)", "hue=(missing)", "hue=blue", "hue=red"]}
    assert source.entry_names() == names


def test_a_run_without_views_ends_before_training(tmp_path):
    pytest.importorskip("sklearn")
    from worldmodels.session import run

    cfg = composed("objective=supervised", "env.dataset=breast_cancer", "diagnostics.influence=true", "steps=2")
    cfg.run_dir = str(tmp_path / "a")
    with pytest.raises(ValueError, match=r"Supervised has no views\(batch\)"):
        run(cfg, command="")
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_an_agent_and_an_objective_are_looked_at_one_by_one():
    cfg = composed("env=toy", "agent=sf", "objective=latent_prediction", "diagnostics.influence=true")
    source = build.build_source(cfg, torch.device("cpu"))
    objective = build.build_objective(cfg, source, torch.device("cpu"))
    found = judge(objective, source)
    assert {"agent/input/features", "objective/input/features", "objective/latent/features"} <= found.metrics.keys()


def test_known_moments_are_taken_as_they_are():
    static = Static([2.0, 1.0, 0.5, 0.25], [1.0, 0.3, 0.6, 0.01])
    source = LinearFeatures(panels={"static": static, "masked": Masked([2.0, 1.0, 0.5, 0.25], keep_x=0.5, keep_y=0.3)})
    found = judge(Still(), source, depth=3)
    assert found.metrics["static.1/lambda"] == pytest.approx(2.0)
    assert found.metrics["static.1/rho"] == pytest.approx(2 / 3)
    assert found.metrics["masked.4/lambda"] == pytest.approx(0.5 * 0.3 * 0.25)
    assert found.metrics["static/chance"] == 0
