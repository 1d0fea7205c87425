"""One update of all phases: losses, gradients, optimizer steps, targets.

Per phase: loss -> weighted sum -> backward -> average over processes -> clip -> step; then every Target follows. With
``accumulate`` = n, loss and backward run n times on n parts of the batch, for batches larger than memory.
Nothing here waits for the device: losses are summed on it and read when the trainer logs.

On a GPU the whole update, from task vectors to targets, is captured in one CUDA graph; the static input buffers are the
batch. That is why an update draws no random numbers (transforms do) and why a learning rate is a tensor there. Fused
optimizers take weight decay as a number only, so a decay that changes is applied here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from worldmodels import distributed
from worldmodels.core import Objective, Phase, Target
from worldmodels.keys import LOSS, STAT

WARMUP_UPDATES = 3  # eager updates before capture, so that lazily made buffers exist


def split(batch: TensorDict, num: int) -> list[TensorDict]:
    """Cut a batch into ``num`` equal parts; one with a sub-batch a source (``Mixture``) gives each part a share of all.

    Raises:
        ValueError: if ``num`` does not divide the samples.
    """
    if num == 1:
        return [batch]
    if not batch.batch_size:
        shares = {name: split(batch[name], num) for name in batch.keys()}
        return [TensorDict({name: share[i] for name, share in shares.items()}) for i in range(num)]
    if batch.batch_size[0] % num:
        raise ValueError(f"accumulate={num} does not divide the {batch.batch_size[0]} samples of a batch")
    return list(batch.chunk(num))


class PhaseRunner:
    """A phase with its optimizer, its loss weights and its running metrics."""

    def __init__(
        self,
        phase: Phase,
        *,
        optimizer: Callable[..., Any],
        groups: Mapping[str, Mapping[str, Any]],
        is_compiled: bool,
        is_decay_scheduled: bool = False,
    ) -> None:
        self.phase = phase
        self.params = [p for group in phase.params.values() for p in group]
        self.optimizer = optimizer([{"params": ps, **groups.get(g, {})} for g, ps in phase.params.items() if ps])
        self.base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.lr_factor = 1.0
        self.decays: list[tuple[list[nn.Parameter], float, Tensor]] = self._take_decays() if is_decay_scheduled else []
        self.loss = torch.compile(phase.loss, fullgraph=True, dynamic=False) if is_compiled else phase.loss
        self.loss_names: list[str] = []
        self.stat_names: list[str] = []
        self.sums: Tensor | None = None  # running sums of all losses and stats since the last log
        self.num_summed = 0  # runs in them

    def name_terms(self, out: TensorDict) -> None:
        """Fix the order of the phase's metrics from its first output."""
        self.loss_names = sorted(out[LOSS].keys())
        self.stat_names = sorted(out[STAT].keys()) if STAT in out.keys() else []
        size = len(self.loss_names) + len(self.stat_names)
        self.sums = torch.zeros(size, device=out[LOSS][self.loss_names[0]].device)

    def set_lr(self, factor: float) -> None:
        """Scale every group's learning rate."""
        self.lr_factor = factor
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor

    def _take_decays(self) -> list[tuple[list[nn.Parameter], float, Tensor]]:
        """Take every group's decay from the optimizer: its parameters, lr times decay, and what a step keeps of them.

        Raises:
            ValueError: if the optimizer's decay is not decoupled from its step.
        """
        if not isinstance(self.optimizer, torch.optim.AdamW):
            raise ValueError(
                f"weight_decay_schedule needs a decay of its own and {type(self.optimizer).__name__} has none: "
                "use optim=adamw or weight_decay_schedule=null"
            )
        found = []
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            if group["weight_decay"]:
                kept = torch.ones((), device=group["params"][0].device)
                found.append((group["params"], lr * group["weight_decay"], kept))
            group["weight_decay"] = 0.0
        return found

    def set_decay(self, factor: float) -> None:
        """Scale every group's weight decay; after ``set_lr``."""
        for _, rate, kept in self.decays:
            kept.fill_(1 - self.lr_factor * rate * factor)

    @torch.no_grad()
    def decay(self) -> None:
        """Shrink what has a gradient, as AdamW does before its step."""
        for params, _, kept in self.decays:
            if moved := [p for p in params if p.grad is not None]:
                torch._foreach_mul_(moved, kept)

    def set_momentum(self, value: float) -> None:
        """Set the first beta of an Adam, or the momentum of an SGD, in every group.

        Raises:
            ValueError: if the optimizer has neither.
        """
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (value, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = value
            else:
                raise ValueError(f"{type(self.optimizer).__name__} has no momentum for the schedule in `momentum`")


class Learner:
    """Applies the phases of an objective.

    Args:
        objective: what is minimised; already on its device.
        optimizer: factory of an optimizer, ``optimizer(param_groups)``.
        weights: weight of every named loss. A loss without a weight, or a weight without a loss, raises.
        groups: options of named parameter groups, such as their own learning rate.
        schedule: factor on all learning rates at a step; None is 1 throughout.
        weight_decay_schedule: factor on the weight decay of all groups at a step, so that those without stay without;
            None is 1 throughout. Needs AdamW.
        momentum: the first beta of Adam, or SGD's momentum, at a step; None leaves the optimizer's own. It is a plain
            number that a CUDA graph would freeze, so a captured update refuses it.
        max_grad_norm: gradients of a phase are clipped to this norm; None does not clip.
        accumulate: parts of a batch whose gradients are added up before a step. A loss that is a mean over samples is
            unchanged; one that compares samples with each other (orthonormality, a measure) compares within a part.
        precision: "fp32" or "bf16" (autocast; weights and optimizer stay fp32).
        is_compiled: whether each phase's loss is compiled whole-graph.
        is_captured: whether the update becomes one CUDA graph; needs a GPU.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        optimizer: Callable[..., Any],
        weights: Mapping[str, float],
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        schedule: Callable[[int], float] | None = None,
        weight_decay_schedule: Callable[[int], float] | None = None,
        momentum: Callable[[int], float] | None = None,
        max_grad_norm: int | float | None = None,
        accumulate: int = 1,
        precision: str = "fp32",
        is_compiled: bool = False,
        is_captured: bool = False,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16; got {precision}")
        if accumulate < 1:
            raise ValueError(f"accumulate={accumulate}: a batch has at least one part")
        if momentum is not None and is_captured:
            raise ValueError("a schedule of momentum cannot be in a CUDA graph: use cuda_graph=false or momentum=null")
        self.objective, self.weights = objective, dict(weights)
        self.schedule, self.momentum, self.accumulate = schedule, momentum, accumulate
        self.weight_decay_schedule = weight_decay_schedule
        self.max_grad_norm, self.precision, self.is_captured = max_grad_norm, precision, is_captured
        phases, groups = objective.phases(), dict(groups or {})
        known = {name for phase in phases for name in phase.params}
        if unknown := sorted(set(groups) - known):
            raise ValueError(f"param_groups names {unknown}, which no phase has; the phases have {sorted(known)}")
        options = {
            "groups": groups,
            "is_compiled": is_compiled,
            "is_decay_scheduled": weight_decay_schedule is not None,
        }
        self.runners = [PhaseRunner(p, optimizer=optimizer, **options) for p in phases]
        self.targets = [m for m in objective.modules() if isinstance(m, Target)]
        trained = {id(p) for r in self.runners for p in r.params}
        self.buffers = [b for b in objective.buffers() if b.is_floating_point() and id(b) not in trained]
        self.device = next(iter(objective.parameters())).device
        self.graphs: dict[tuple[str, ...], tuple[torch.cuda.CUDAGraph, TensorDict]] = {}
        self.eager_updates = 0
        distributed.broadcast_([*objective.parameters(), *objective.buffers()])

    # --- one update ---------------------------------------------------------------------------------------------
    def update(self, batch: TensorDict, step: int) -> None:
        """Do update number ``step`` (counted from 0) on ``batch``."""
        due = [r for r in self.runners if r.phase.is_due(step)]
        for runner in due:
            time = runner.phase.time(step)
            if self.schedule is not None:
                runner.set_lr(self.schedule(time))
            if self.weight_decay_schedule is not None:
                runner.set_decay(self.weight_decay_schedule(time))
            if self.momentum is not None:
                runner.set_momentum(self.momentum(time))
        if self.is_captured:
            self._replay(batch, due)
        else:
            self._update(batch, due)
        for target in self.targets:
            if not (self.is_captured and target.is_static):
                target.update(step)
        for runner in due:
            runner.num_summed += 1

    def _update(self, batch: TensorDict, due: list[PhaseRunner]) -> None:
        batch = self.objective.prepare(batch)
        parts = split(batch, self.accumulate)
        for runner in due:
            for part in parts:
                self._add_gradients(runner, part)
            self._step(runner)
        distributed.average_(self.buffers)

    def _add_gradients(self, runner: PhaseRunner, batch: TensorDict) -> None:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            out = runner.loss(batch)
        if runner.sums is None:
            runner.name_terms(out)
            self._check_weights()
        assert runner.sums is not None
        losses = out[LOSS]
        terms = [losses[name] for name in runner.loss_names]
        total = sum(self.weights[name] * term for name, term in zip(runner.loss_names, terms, strict=True))
        (total / self.accumulate).backward()
        stats = [out[STAT, name] for name in runner.stat_names]
        values = torch.stack([t.detach().float() for t in (*terms, *stats)])
        runner.sums.add_(values, alpha=1 / self.accumulate)

    def _step(self, runner: PhaseRunner) -> None:
        distributed.average_([p.grad for p in runner.params if p.grad is not None])
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(runner.params, self.max_grad_norm, foreach=True)
        runner.decay()
        runner.optimizer.step()
        runner.optimizer.zero_grad(set_to_none=True)

    def _check_weights(self) -> None:
        """Every loss has a weight, and once all phases have run every weight has a loss."""
        names = {n for r in self.runners for n in r.loss_names}
        if missing := sorted(names - set(self.weights)):
            raise ValueError(f"losses without a weight: {missing}; give each one in `weights` of the agent's config")
        if all(r.loss_names for r in self.runners) and (extra := sorted(set(self.weights) - names)):
            raise ValueError(f"weights without a loss: {extra}; this objective's losses are {sorted(names)}")

    # --- CUDA graph ---------------------------------------------------------------------------------------------
    def _replay(self, batch: TensorDict, due: list[PhaseRunner]) -> None:
        """Replay the graph of these phases, capturing it first; the first few updates run eagerly to warm up."""
        key = tuple(r.phase.name for r in due)
        if key not in self.graphs:
            if self.eager_updates < WARMUP_UPDATES:
                self.eager_updates += 1
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    self._captured_part(batch, due)
                torch.cuda.current_stream().wait_stream(stream)
                return
            graph, static = torch.cuda.CUDAGraph(), batch.clone()
            with torch.cuda.graph(graph):
                self._captured_part(static, due)
            self.graphs[key] = (graph, static)
        graph, static = self.graphs[key]
        static.copy_(batch, non_blocking=True)
        graph.replay()

    def _captured_part(self, batch: TensorDict, due: list[PhaseRunner]) -> None:
        self._update(batch, due)
        for target in self.targets:
            if target.is_static:
                target.update(0)

    # --- reading ------------------------------------------------------------------------------------------------
    def metrics(self) -> dict[str, float]:
        """Mean of every loss and stat since the last call; the only place that waits for the device.

        Raises:
            FloatingPointError: if any of them is not finite, naming the first.
        """
        values: dict[str, float] = {}
        for runner in self.runners:
            if runner.sums is None or runner.num_summed == 0:
                continue
            means = (runner.sums / runner.num_summed).tolist()
            kinds = [LOSS] * len(runner.loss_names) + [STAT] * len(runner.stat_names)
            names = runner.loss_names + runner.stat_names
            values |= {f"{k}/{n}": v for k, n, v in zip(kinds, names, means, strict=True)}
            runner.sums.zero_()
            runner.num_summed = 0
        for name, value in values.items():
            if name.startswith(LOSS) and not abs(value) < float("inf"):
                raise FloatingPointError(f"{name} is {value}")
        return values

    # --- saving -------------------------------------------------------------------------------------------------
    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Every tensor of every optimizer, under "phase/parameter/name"."""
        return {
            f"{r.phase.name}/{i}/{k}": v
            for r in self.runners
            for i, entries in r.optimizer.state_dict()["state"].items()
            for k, v in entries.items()
        }

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``optimizer_tensors`` gave."""
        for runner in self.runners:
            state: dict[int, dict[str, Tensor]] = {}
            for path, value in tensors.items():
                phase, index, name = path.split("/")
                if phase == runner.phase.name:
                    state.setdefault(int(index), {})[name] = value
            groups = runner.optimizer.state_dict()["param_groups"]
            runner.optimizer.load_state_dict({"state": state, "param_groups": groups})
