"""Encoder for vector observations: a normaliser, no weights. Methods put their own networks on top."""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite

from perception.normalize import RunningNorm
from worldmodels.core import Encoder
from worldmodels.keys import OBSERVATION, POOLED, STATE, TOKENS


class StateEncoder(Encoder):
    """Hands the state on as one token, normalised by running statistics when asked.

    Args:
        spec: one step; needs ("observation", "state") of shape [S].
        is_normalized: whether observations are centred and scaled (see ``RunningNorm`` for when this is vital).
        momentum: of the running statistics.

    Raises:
        ValueError: if the spec has no state.
    """

    grid = ()

    def __init__(self, spec: Composite, *, is_normalized: bool = True, momentum: float = 0.01) -> None:
        super().__init__()
        if (OBSERVATION, STATE) not in spec.keys(True):
            have = sorted(map(str, spec[OBSERVATION].keys())) if OBSERVATION in spec.keys() else []
            raise ValueError(
                f"encoder=state needs observation/state in the data; it has {have}. Use encoder=pixels for pictures."
            )
        self.dim = spec[OBSERVATION, STATE].shape[-1]
        self.norm = RunningNorm(self.dim, momentum=momentum) if is_normalized else None

    def observe(self, obs: TensorDict) -> None:
        """Update the running statistics from states [B, S]."""
        if self.norm is not None:
            self.norm.observe(obs[STATE])

    def forward(self, obs: TensorDict, keep: Tensor | None = None) -> TensorDict:
        """Return "tokens" [B, 1, S] and "pooled" [B, S]; ``keep`` has nothing to drop and must be None."""
        if keep is not None:
            raise ValueError("a state is a single token: keep must be None")
        state = obs[STATE]
        state = state if self.norm is None else self.norm(state)
        return TensorDict({TOKENS: state.unsqueeze(-2), POOLED: state}, batch_size=obs.batch_size)
