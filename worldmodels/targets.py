"""What follows an online module: a moving average, a frozen copy, or itself without gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from worldmodels.core import Target


def frozen(module: nn.Module, *args: Any) -> Any:
    """Call ``module`` with detached parameters: gradients reach ``args`` but never the module.

    Toggling ``requires_grad_`` would do the same in eager mode but breaks whole-graph compilation.
    """
    return functional_call(module, {name: p.detach() for name, p in module.named_parameters()}, args)


class EMA(Target):
    """Exponential moving average of a module: target <- (1 - tau) target + tau online, after every optimizer step.

    Floating-point parameters are averaged by two foreach kernels; buffers are copied.

    Args:
        online: the followed module; held without being registered, so that it is neither saved nor trained twice.
        tau: step towards the online module, within [0, 1]; or a function of the step (a momentum schedule).
        has_own_statistics: whether its batch norms look at its own batch while training, and keep buffers of their own,
            instead of using those of the online module.
    """

    def __init__(
        self, online: nn.Module, tau: float | Callable[[int], float], *, has_own_statistics: bool = False
    ) -> None:
        super().__init__()
        if not callable(tau) and not 0.0 <= tau <= 1.0:
            raise ValueError(f"EMA needs tau within [0, 1]; got {tau}")
        self.tau, self.has_own_statistics = tau, has_own_statistics
        self.module = copy.deepcopy(online).requires_grad_(False).train(has_own_statistics)
        object.__setattr__(self, "_online", online)

    @property
    def is_static(self) -> bool:
        """Whether an update is the same computation on every step, so that a CUDA graph may contain it."""
        return not callable(self.tau)

    def train(self, mode: bool = True) -> EMA:
        """Stay in evaluation mode whatever the parent does, but for statistics of its own."""
        return super().train(mode and self.has_own_statistics)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """Call the averaged module."""
        return self.module(*args)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the online module."""
        tau = self.tau(step) if callable(self.tau) else self.tau
        if mine := list(self.module.parameters()):  # a module without weights has nothing to average
            torch._foreach_lerp_(mine, list(self._online.parameters()), tau)
        if self.has_own_statistics:
            return
        for mine, theirs in zip(self.module.buffers(), self._online.buffers(), strict=True):
            mine.copy_(theirs)

    def restart(self) -> None:
        """Be a copy of the online module, as at first."""
        self.module.load_state_dict(self._online.state_dict())


class Frozen(Target):
    """A copy of a module that never moves; its weights may come from a checkpoint.

    Args:
        online: a module of the wanted architecture, copied.
        state: its weights; None keeps those ``online`` has now.
    """

    is_static = True

    def __init__(self, online: nn.Module, state: dict[str, torch.Tensor] | None = None) -> None:
        super().__init__()
        self.module = copy.deepcopy(online).requires_grad_(False).eval()
        if state is not None:
            self.module.load_state_dict(state)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode whatever the parent does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """Call the frozen module."""
        return self.module(*args)

    def update(self, step: int) -> None:
        """Do nothing."""


class StopGradient(Target):
    """The online module itself, without gradient: no averaging, no copy.

    It stays in the mode its owner gave it; networks here have no layer whose output depends on the mode.
    """

    is_static = True

    def __init__(self, online: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_online", online)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """Call the online module."""
        return self._online(*args)

    def update(self, step: int) -> None:
        """Do nothing."""
