"""The learner on an objective small enough to follow by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from worldmodels import build
from worldmodels.core import Objective, Phase, Span
from worldmodels.learner import Learner
from worldmodels.schedules import Cosine, Linear, OneCycle
from worldmodels.targets import EMA

SGD = partial(torch.optim.SGD, lr=0.1)
WEIGHTS = {"pull": 1.0, "size": 2.0, "climb": 1.0}


class Pair(Objective):
    """A critic pulled to the mean of the batch, a bias kept small, an actor that climbs the critic; a target."""

    window = 1

    def __init__(self, *, every: int = 1) -> None:
        super().__init__()
        self.critic, self.bias, self.actor = (nn.Parameter(torch.tensor(v)) for v in ([1.0], [2.0], [0.0]))
        self.every, self.num_prepared = every, 0
        holder = nn.Module()
        holder.weight = self.critic
        self.holder, self.target = holder, EMA(holder, 0.5)
        self.dtypes: list[torch.dtype] = []

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("critic", self.critic_loss, {"critic": [self.critic], "bias": [self.bias]}),
            Phase("actor", self.actor_loss, {"actor": [self.actor]}, self.every),
        )

    def prepare(self, batch: TensorDict) -> TensorDict:
        self.num_prepared += 1
        return batch.copy().set("mean", batch["x"].mean(0, keepdim=True).expand(len(batch)))

    def critic_loss(self, batch: TensorDict) -> TensorDict:
        losses = {"pull": (self.critic - batch["mean"]).square().mean(), "size": self.bias.square().sum()}
        return TensorDict({"loss": losses, "stat": {"critic": self.critic.detach().mean()}})

    def actor_loss(self, batch: TensorDict) -> TensorDict:
        product = self.actor[:, None] @ self.critic.detach()[:, None]
        self.dtypes.append(product.dtype)
        return TensorDict({"loss": {"climb": -product.sum()}})


def batch(mean: float = 3.0) -> TensorDict:
    return TensorDict({"x": torch.tensor([mean - 1, mean + 1])}, batch_size=[2])


def learner(objective: Pair, **options) -> Learner:
    return Learner(objective, **{"optimizer": SGD, "weights": WEIGHTS, **options})


def test_one_update_by_hand():
    """Critic 1 + 0.1 * 2 (3 - 1), bias 2 - 0.1 * 2 * 2 * 2; the actor then climbs the updated critic."""
    objective = Pair()
    learner(objective).update(batch(), 0)
    assert objective.critic.item() == pytest.approx(1.4)
    assert objective.bias.item() == pytest.approx(1.2)
    assert objective.actor.item() == pytest.approx(0.14)
    assert objective.target.module.weight.item() == pytest.approx(1.2)  # half way from 1 to 1.4
    assert objective.num_prepared == 1  # once an update, for all phases
    assert all(p.grad is None for p in objective.parameters())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"pull": 1.0, "climb": 1.0}, r"losses without a weight: \['size'\]"),
        (
            {**WEIGHTS, "typo": 1.0},
            r"weights without a loss: \['typo'\]; this objective's losses are \['climb', 'pull'",
        ),
    ],
)
def test_losses_and_weights_must_match(weights, message):
    with pytest.raises(ValueError, match=message):
        learner(Pair(), weights=weights).update(batch(), 0)


def test_unknown_groups_and_precisions_are_refused():
    with pytest.raises(ValueError, match=r"names \['actr'\], which no phase has; the phases have \['actor', 'bias'"):
        learner(Pair(), groups={"actr": {"lr": 1.0}})
    with pytest.raises(ValueError, match="fp32 or bf16; got fp16"):
        learner(Pair(), precision="fp16")


def test_phase_runs_on_every_nth_step():
    objective = Pair(every=3)
    machine = learner(objective)
    actors = []
    for step in range(7):
        machine.update(batch(), step)
        actors.append(objective.actor.item())
    has_moved = [later != before for before, later in zip([0.0, *actors], actors, strict=False)]
    assert has_moved == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_metrics_are_means_since_they_were_last_read(every):
    objective = Pair(every=every)
    machine = learner(objective, optimizer=partial(torch.optim.SGD, lr=0.0))
    assert machine.metrics() == {}
    step = 0
    for means in ([3.0, 5.0, 4.0], [9.0]):  # windows that are no multiple of ``every``
        ran = False
        for mean in means:
            machine.update(batch(mean), step)
            ran |= step % every == 0
            step += 1
        found = machine.metrics()
        assert found["loss/pull"] == pytest.approx(sum((1 - m) ** 2 for m in means) / len(means))
        assert found["loss/size"] == 4.0  # unweighted
        assert found["stat/critic"] == 1.0
        if ran:
            assert found["loss/climb"] == 0.0


def test_mean_of_a_rare_phase_counts_its_own_runs():
    objective = Pair(every=2)
    with torch.no_grad():
        objective.actor.fill_(2.0)
    machine = learner(objective, optimizer=partial(torch.optim.SGD, lr=0.0))
    for step in range(3):  # the actor ran on steps 0 and 2
        machine.update(batch(), step)
    assert machine.metrics()["loss/climb"] == -2.0
    machine.update(batch(), 3)  # it did not run: there is nothing to report
    assert "loss/climb" not in machine.metrics()


def test_nan_is_reported_by_name_when_metrics_are_read():
    machine = learner(Pair())
    machine.update(batch(), 0)
    machine.update(batch(float("nan")), 1)
    with pytest.raises(FloatingPointError, match="loss/pull is nan"):
        machine.metrics()


@pytest.mark.parametrize("is_tensor", [False, True])
def test_schedule_scales_the_base_rate_of_every_group(is_tensor):
    lr = torch.tensor(0.1) if is_tensor else 0.1
    machine = learner(
        Pair(), optimizer=partial(torch.optim.SGD, lr=lr), groups={"bias": {"lr": 0.4}}, schedule=Linear(1.0, 0.0, 10)
    )
    for step, factor in ((0, 1.0), (5, 0.5), (6, 0.4), (10, 0.0)):
        machine.update(batch(), step)
        rates = [float(g["lr"]) for runner in machine.runners for g in runner.optimizer.param_groups]
        assert rates == pytest.approx([0.1 * factor, 0.4 * factor, 0.1 * factor])


@pytest.mark.parametrize(
    "optimizer",
    [partial(torch.optim.AdamW, lr=0.1, betas=(0.5, 0.99)), partial(torch.optim.SGD, lr=0.1, momentum=0.5)],
)
def test_momentum_follows_its_schedule_and_nothing_else_changes(optimizer):
    machine = learner(Pair(), optimizer=optimizer, momentum=Linear(0.9, 0.8, 10), schedule=Linear(1.0, 0.0, 10))
    for step, expected in ((0, 0.9), (5, 0.85), (10, 0.8)):
        machine.update(batch(), step)
        for group in (g for runner in machine.runners for g in runner.optimizer.param_groups):
            found = group["betas"] if "betas" in group else (group["momentum"], 0.99)
            assert found == pytest.approx((expected, 0.99))
            assert group["lr"] == pytest.approx(0.1 * (1 - step / 10))


def test_adamw_under_one_cycle_by_hand():
    """Momentum 0.95, then 0.9 at step 2 of 10; decay is decoupled: p (1 - lr wd) before the step."""
    objective = Pair()
    optimizer = partial(torch.optim.AdamW, lr=0.1, betas=(0.95, 0.99), weight_decay=0.01)
    cycle = {"schedule": OneCycle(10), "momentum": OneCycle(10, start=0.95, peak=0.85, end=0.95)}
    machine = learner(objective, optimizer=optimizer, **cycle)
    weight, first, second = 2.0, 0.0, 0.0  # of the bias: loss 2 b^2
    for step, (factor, beta) in enumerate([(0.1, 0.95), (None, None), (0.55, 0.9)]):
        if factor is None:
            factor, beta = cycle["schedule"](step), cycle["momentum"](step)
        gradient = 4 * weight
        first, second = beta * first + (1 - beta) * gradient, 0.99 * second + 0.01 * gradient**2
        ratio = first / (1 - beta ** (step + 1)) / (second / (1 - 0.99 ** (step + 1))) ** 0.5
        weight = weight * (1 - 0.1 * factor * 0.01) - 0.1 * factor * ratio
        machine.update(batch(), step)
        assert objective.bias.item() == pytest.approx(weight, rel=1e-5)


def test_momentum_needs_an_optimizer_that_has_one_and_no_graph():
    with pytest.raises(ValueError, match="Adagrad has no momentum for the schedule"):
        learner(Pair(), optimizer=torch.optim.Adagrad, momentum=Linear(0.9, 0.8, 10)).update(batch(), 0)
    with pytest.raises(ValueError, match="use cuda_graph=false or momentum=null"):
        learner(Pair(), momentum=Linear(0.9, 0.8, 10), is_captured=True)


ADAMW = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.04, fused=True)
GROWING = {"schedule": Linear(1.0, 0.5, 10), "weight_decay_schedule": Cosine(1.0, 10.0, 10)}


def test_weight_decay_grows_like_that_of_an_optimizer_told_anew_at_every_step():
    """0.04 to 0.4 along a cosine, 0 where a group has none, 0.8 at first where it has another."""
    objectives = Pair(), Pair()
    groups = {"bias": {"weight_decay": 0.0}, "actor": {"weight_decay": 0.8}}
    scheduled = learner(objectives[0], optimizer=ADAMW, groups=groups, **GROWING)
    told = learner(objectives[1], optimizer=ADAMW, groups=groups, schedule=GROWING["schedule"])
    kept = [tensor for runner in scheduled.runners for _, _, tensor in runner.decays]
    for step in range(10):
        for runner in told.runners:
            for group in runner.optimizer.param_groups:
                start = group.setdefault("at_first", group["weight_decay"])
                group["weight_decay"] = start * GROWING["weight_decay_schedule"](step)
        scheduled.update(batch(), step)
        told.update(batch(), step)
        for one, other in zip(objectives[0].parameters(), objectives[1].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    rates = [0.1 * 0.55, 0.1 * 0.55]  # of the critic and the actor at step 9
    decays = [d * (10 - 9 * (1 + math.cos(0.9 * math.pi)) / 2) for d in (0.04, 0.8)]
    assert [float(t) for t in kept] == pytest.approx([1 - r * d for r, d in zip(rates, decays, strict=True)])


def test_nothing_but_tensors_changes_when_weight_decay_does():
    """What a CUDA graph has captured stays: the same tensors, the same numbers."""
    machine = learner(Pair(), optimizer=ADAMW, **GROWING)
    before = [[t.data_ptr() for _, _, t in r.decays] for r in machine.runners]
    for step in range(3):
        machine.update(batch(), step)
        assert [[t.data_ptr() for _, _, t in r.decays] for r in machine.runners] == before
        assert all(g["weight_decay"] == 0 for r in machine.runners for g in r.optimizer.param_groups)


@pytest.mark.gpu
def test_a_captured_update_follows_the_schedules_of_rate_and_decay():
    device, ends = torch.device("cuda"), []
    for is_captured in (False, True):
        objective = Pair().to(device)
        optimizer = partial(build.capturable, ADAMW, 0.1, device) if is_captured else ADAMW
        machine = learner(objective, optimizer=optimizer, is_captured=is_captured, **GROWING)
        for step in range(10):
            machine.update(batch().to(device), step)
        ends.append([p.item() for p in objective.parameters()])
    assert ends[1] == pytest.approx(ends[0], rel=1e-5)


def test_a_schedule_of_weight_decay_resumes_bit_for_bit():
    objectives = Pair(), Pair()
    machines = [learner(o, optimizer=ADAMW, **GROWING) for o in objectives]
    for step in range(3):
        machines[0].update(batch(), step)
    machines[1].load_optimizer_tensors({k: t.clone() for k, t in machines[0].optimizer_tensors().items()})
    objectives[1].load_state_dict(objectives[0].state_dict())
    for step in range(3, 6):
        for machine in machines:
            machine.update(batch(), step)
    for one, other in zip(objectives[0].parameters(), objectives[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_weight_decay_that_is_part_of_the_step_has_no_schedule():
    with pytest.raises(ValueError, match="SGD has none: use optim=adamw or weight_decay_schedule=null"):
        learner(Pair(), weight_decay_schedule=Linear(1.0, 10.0, 10))


def test_gradients_of_a_phase_are_clipped_together():
    objective = Pair()
    before = torch.stack([objective.critic, objective.bias]).detach()
    learner(objective, max_grad_norm=0.5).update(batch(), 0)
    moved = torch.stack([objective.critic, objective.bias]).detach() - before
    assert moved.norm().item() == pytest.approx(0.1 * 0.5, rel=1e-4)
    expected = torch.tensor([4.0, -8.0]) / 80**0.5 * 0.05  # both scaled by one factor
    torch.testing.assert_close(moved.flatten(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("every", [1, 2])
def test_accumulating_parts_equals_the_whole_batch(every):
    """Pair's losses are means over samples, so two and four parts give the same update and the same metrics."""
    data = TensorDict({"x": torch.tensor([1.0, -2.0, 4.0, 7.0])}, batch_size=[4])
    ends, logged = [], []
    for accumulate in (1, 2, 4):
        objective = Pair(every=every)
        mine = learner(objective, accumulate=accumulate)
        for step in range(3):
            mine.update(data, step)
        ends.append([p.item() for p in objective.parameters()])
        logged.append(mine.metrics())
        assert objective.num_prepared == 3  # on whole batches
    for end, values in zip(ends[1:], logged[1:], strict=True):
        assert end == pytest.approx(ends[0])
        assert values == pytest.approx(logged[0])


def test_parts_must_divide_the_batch():
    with pytest.raises(ValueError, match="accumulate=3 does not divide the 2 samples"):
        learner(Pair(), accumulate=3).update(batch(), 0)
    with pytest.raises(ValueError, match="accumulate=0"):
        learner(Pair(), accumulate=0)


def test_bf16_computes_products_in_bf16_and_keeps_the_rest_in_fp32():
    objective = Pair()
    machine = learner(objective, precision="bf16", optimizer=partial(torch.optim.Adam, lr=0.1))
    for step in range(3):
        machine.update(batch(), step)
    assert set(objective.dtypes) == {torch.bfloat16}
    tensors = [*objective.parameters(), *machine.optimizer_tensors().values()]
    assert {t.dtype for t in tensors} == {torch.float32}
    assert objective.actor.item() > 0
    plain = Pair()
    learner(plain).update(batch(), 0)
    assert plain.dtypes == [torch.float32]


def test_optimizer_state_comes_back_as_it_was():
    adam = partial(torch.optim.Adam, lr=0.1)
    objectives = Pair(), Pair()
    machines = [learner(o, optimizer=adam) for o in objectives]
    for step in range(2):
        machines[0].update(batch(), step)
    saved = {name: tensor.clone() for name, tensor in machines[0].optimizer_tensors().items()}
    assert "actor/0/exp_avg" in saved
    machines[1].load_optimizer_tensors(saved)
    objectives[1].load_state_dict(objectives[0].state_dict())
    for machine in machines:
        machine.update(batch(7.0), 2)
    for one, other in zip(objectives[0].parameters(), objectives[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_phase_of_a_part_of_the_run_goes_through_the_whole_schedule_there():
    objective = Pair()
    phases = objective.phases()
    objective.phases = lambda: (
        phases[0]._replace(span=Span(0, 4, 10)),
        phases[1]._replace(every=2, span=Span(4, 10, 10)),
    )
    learner = Learner(objective, optimizer=SGD, weights=WEIGHTS, schedule=Linear(1.0, 0.0, 10))
    rates: dict[str, list[float]] = {"critic": [], "actor": []}
    for step in range(10):
        before = [objective.critic.clone(), objective.actor.clone()]
        learner.update(batch(), step)
        moved = [not torch.equal(a, b) for a, b in zip(before, (objective.critic, objective.actor), strict=True)]
        assert moved == [step < 4, step in (4, 6, 8)]
        for runner, has_moved in zip(learner.runners, moved, strict=True):
            if has_moved:
                rates[runner.phase.name].append(runner.optimizer.param_groups[0]["lr"])
    assert rates["critic"] == pytest.approx([0.1, 0.08, 0.05, 0.03])  # steps 0, 2, 5 and 7 of ten
    assert rates["actor"] == pytest.approx([0.1, 0.07, 0.04])
    assert [r.phase.num_runs(10) for r in learner.runners] == [4, 3]


@pytest.mark.parametrize("span", [None, Span(3, 9, 12), Span(0, 0, 12)])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_runs_of_a_phase_are_counted(every, span):
    phase = Phase("one", lambda td: td, {}, every, span)
    for step in range(13):
        assert phase.num_runs(step) == sum(phase.is_due(earlier) for earlier in range(step))
