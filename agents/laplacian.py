"""Laplacian features: neighbours in time are close, all else is spread: the smoothest eigenvectors of the data's walk.

psi minimises mean (psi(s) - psi(s'))^2 while the orthonormality regulariser keeps its dimensions apart; successor
features of psi then act for any reward, as in ``agents.sf``.

Papers: Wu, Tucker and Nachum, "The Laplacian in RL" (2019); Touati, Rapin and Ollivier 2023 for zero-shot use; scales
as in TD-JEPA's comparison (sheet td_jepa, section 1.8), whose regulariser is twice ours: its lambda is half our weight.
"""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor, nn

from agents.sf import SuccessorFeatures
from agents.zero_shot import Transition
from worldmodels.keys import OBSERVATION, POOLED
from worldmodels.losses import orthonormality


class Laplacian(SuccessorFeatures):
    """Successor features of Laplacian features."""

    def feature_groups(self) -> dict[str, list[nn.Parameter]]:
        """Psi, with its encoder."""
        return {"task_net": self.task_parameters()}

    def feature_losses(self, batch: TensorDict, step: Transition, state: Tensor) -> dict[str, Tensor]:
        """Mean (psi(s) - psi(s'))^2 over samples and dimensions, + lambda R(psi(s)). Both states carry a gradient."""
        task = self.task_net(step.task_x)  # [B, d]
        next_task = self.task_net(self.task_encoder(batch[OBSERVATION][:, 1])[POOLED])  # [B, d]
        smoothness = (task - next_task).float().square().mean()
        return {"smoothness": smoothness, "orthonormality_task": orthonormality(task)}
