"""BYOL-gamma*: features that predict their own value at a random later time of the same trajectory.

As BYOL*, but the target is psi^-(s+) with s+ = s_{t+k}, k ~ Geometric(1 - gamma_f): in expectation the discounted
future of the data's behaviour. Needs futures: ``relabel`` in its config, whose discount is gamma_f.

Source: BYOL-gamma (2025) as in TD-JEPA's comparison (sheet td_jepa, sections 1.8 and 1.9).
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from agents.byol import BYOL
from agents.zero_shot import Transition
from worldmodels.keys import FUTURE, OBSERVATION, POOLED


class BYOLGamma(BYOL):
    """Successor features of features that predict the future at a geometric horizon."""

    @torch.no_grad()
    def predicted(self, batch: TensorDict, step: Transition) -> Tensor:
        """Encoded states [B, X'] of the trajectory's future."""
        return self.task_encoder(batch[FUTURE][OBSERVATION])[POOLED]
