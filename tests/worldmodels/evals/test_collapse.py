import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Composite, Unbounded

from worldmodels.core import Objective, Phase
from worldmodels.evals.collapse import CollapseMonitor, spread
from worldmodels.evals.results import judging, unpack


class Points:
    """Source: observations are standard normal points."""

    spec = Composite(observation=Composite(state=Unbounded((6,))))

    def sample(self, batch_size: int, window: int, generator: torch.Generator) -> TensorDict:
        state = torch.randn(batch_size, window, 6, generator=generator)
        return TensorDict({"observation": {"state": state}}, [batch_size])

    def attach(self, policy: object) -> None:
        pass


class Linear(Objective):
    """Objective with one representation: a linear map, whose rank and offset the test chooses."""

    window = 1

    def __init__(self, weight: torch.Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = bias
        self.dropout = nn.Dropout(0.5)

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def embed(self, obs: TensorDict) -> TensorDict:
        latent = self.dropout(obs["state"]) @ self.weight + self.bias
        return TensorDict({"state": latent}, [latent.shape[0]])


def test_rankme_of_known_matrices():
    orthogonal = torch.linalg.qr(torch.randn(64, 8)).Q
    assert spread(orthogonal)["rankme"] == pytest.approx(8.0, rel=1e-5)
    assert spread(torch.ones(64, 8))["rankme"] == pytest.approx(1.0, rel=1e-5)
    assert spread(torch.zeros(64, 8))["rankme"] == 0.0
    two = torch.zeros(4, 3)
    two[0, 0], two[1, 1] = 3.0, 1.0  # entropy of (3/4, 1/4)
    assert spread(two)["rankme"] == pytest.approx(4 / 27**0.25, rel=1e-6)
    assert spread(torch.full((4, 3), float("nan")))["rankme"] != spread(torch.zeros(4, 3))["rankme"]


def test_uniformity_of_known_directions():
    assert spread(torch.ones(64, 8))["uniformity"] == pytest.approx(0.0, abs=1e-9)
    opposite = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])  # length does not matter
    assert spread(opposite)["uniformity"] == pytest.approx(-8.0)
    torch.manual_seed(0)
    assert spread(torch.randn(500, 256))["uniformity"] == pytest.approx(-4.0, abs=0.05)  # nearly orthogonal pairs


def test_a_healthy_representation_gives_numbers_and_no_warning():
    monitor = CollapseMonitor(source=Points(), every=10)
    result = unpack(monitor(Linear(torch.eye(6)), 10))
    assert result.warnings == []
    assert result.metrics["state/rankme"] == pytest.approx(6.0, rel=0.05)
    assert result.metrics["state/std_mean"] == pytest.approx(1.0, rel=0.1)
    assert unpack(monitor(Linear(torch.eye(6)), 20)).metrics == result.metrics  # the same batch


@pytest.mark.parametrize(
    ("objective", "piece"),
    [
        (Linear(torch.ones(6, 32)), "state is collapsing: its effective rank is 1.0 of 32"),
        (Linear(torch.eye(6) * 1e-3, bias=1.0), "state hardly depends on the state"),
        (Linear(torch.zeros(6, 6)), "state is collapsing"),
        (Linear(torch.full((6, 6), float("nan"))), "state is collapsing"),
    ],
)
def test_collapse_warns(objective, piece):
    warnings = unpack(CollapseMonitor(source=Points(), every=10)(objective, 30)).warnings
    assert any(piece in warning for warning in warnings)
    assert all(warning.startswith("step 30: ") for warning in warnings)


def test_judging_leaves_no_trace():
    objective = Linear(torch.eye(6)).train()
    objective.dropout.eval()
    state = torch.get_rng_state()
    with judging(objective):
        assert not objective.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
    assert objective.training
    assert not objective.dropout.training  # each module gets back what it had
    assert torch.equal(torch.get_rng_state(), state)


def test_an_objective_without_embed_is_refused():
    class Blind(Objective):
        window = 1

        def phases(self) -> tuple[Phase, ...]:
            return ()

    with pytest.raises(ValueError, match="needs an objective with embed"):
        CollapseMonitor(source=Points(), every=1)(Blind(), 1)


def test_parts_of_a_joint_objective_are_looked_at_on_their_own_data():
    class Both(Linear):
        def __init__(self) -> None:
            super().__init__(torch.eye(6))
            self.objectives = {"agent": Linear(torch.eye(6)), "objective": Linear(torch.zeros(6, 6))}

    mixture = Points()
    mixture.sources = {"agent": Points(), "objective": Points()}
    result = unpack(CollapseMonitor(source=mixture, every=10)(Both(), 10))
    assert result.metrics["agent/state/rankme"] > 5
    assert result.metrics["objective/state/rankme"] == 0
    assert all("objective/state" in warning for warning in result.warnings)
