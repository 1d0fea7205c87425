"""BYOL*: features that predict their own next value, given the action taken; the plainest latent prediction.

P(psi(s), a) regresses on psi^-(s') of the behaviour in the data; successor features of psi then act for any reward, as
in ``agents.sf``. Against TD-JEPA it isolates *which* dynamics are predicted: one step of the data's behaviour here,
many steps of it in ``agents.byol_gamma``, many steps of pi_z in TD-JEPA.

Papers: Grill et al. 2020 (BYOL), Guo et al. 2022 (BYOL-Explore); scales as in TD-JEPA's comparison (sheet td_jepa,
section 1.8).
"""

from __future__ import annotations

from typing import Any

from tensordict import TensorDict
from torch import Tensor, nn

from agents.sf import SuccessorFeatures
from agents.zero_shot import Transition
from worldmodels.core import Target
from worldmodels.losses import orthonormality
from worldmodels.predictors.dynamics import LatentDynamics
from worldmodels.predictors.successor import latent_td_loss


class BYOL(SuccessorFeatures):
    """Successor features of latent-predictive features.

    Args:
        dynamics: factory of P, ``dynamics(task_dim, action_dim)``.
        **scaffold: see ``ZeroShotAgent``.
    """

    def __init__(self, spec: Any, *, dynamics: Any, target: Any, **scaffold: Any) -> None:
        super().__init__(spec, target=target, **scaffold)
        self.dynamics: LatentDynamics = dynamics(self.task_dim, self.action_dim)
        self.task_target: Target = target(self.task_net)

    def feature_groups(self) -> dict[str, list[nn.Parameter]]:
        """Psi with its encoder, and the latent predictor."""
        return {"task_net": self.task_parameters(), "dynamics": list(self.dynamics.parameters())}

    def predicted(self, batch: TensorDict, step: Transition) -> Tensor:
        """Encoded states [B, X'] whose features are to be predicted: the next ones."""
        return step.next_task_x

    def feature_losses(self, batch: TensorDict, step: Transition, state: Tensor) -> dict[str, Tensor]:
        """Mean over members and batch of || P(psi(s), a) - psi^-(s') ||^2, + lambda R(psi(s))."""
        task = self.task_net(step.task_x)  # [B, d]
        target = self.task_target(self.predicted(batch, step))  # [B, d]
        prediction = self.dynamics(task, step.action)  # [K, B, d]
        return {"latent": latent_td_loss(prediction, target), "orthonormality_task": orthonormality(task)}

    def imagine(self, latent: Tensor, actions: Tensor) -> Tensor:
        """See ``core.Dynamics``: of the features, "task"; differentiable in the actions."""
        return self.dynamics.imagine(latent, actions)
