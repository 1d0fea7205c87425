"""Many environments stepped as one, TensorDict in and out. An evaluation of N episodes is one run of N rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from envs.stepping import Arrays, EnvGroup, RemoteGroup
from worldmodels.keys import ACTION, OBSERVATION, PHYSICS, PIXELS, REWARD, STATE, TERMINATED

SUCCESS, COVERAGE, TRUNCATED, ALIVE = "success", "coverage", "truncated", "alive"
Entries = Callable[[Tensor], dict[str, Tensor]]
"""Takes flat observations float32 [N, S] apart into entries [N, ...] by name."""


def as_state(flat: Tensor) -> dict[str, Tensor]:
    """All of it is the "state"."""
    return {STATE: flat}


class VectorEnv:
    """N environments of one task, in this process or spread over others. Deterministic, whatever the spread.

    There is no automatic reset: a finished environment keeps its last row, with reward and success 0, and is not
    stepped. ``alive`` says which rows still run. Close it, or use it in a ``with`` block.

    Args:
        groups: the environments, in order.
        is_visual: whether observations are pictures.
        frame_stack: pictures joined along channels, oldest first, as in the training data.
        entries: what numbers that environments see are called, where they are no pictures.
        device: of what ``reset`` and ``step`` return; physics stays on the CPU.
        on_close: called once, at the end.
    """

    def __init__(
        self,
        groups: Sequence[EnvGroup | RemoteGroup],
        *,
        is_visual: bool = False,
        frame_stack: int = 1,
        entries: Entries = as_state,
        device: torch.device | str = "cpu",
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._groups = list(groups)
        self._sizes = [group.size for group in self._groups]
        self._is_visual, self._frame_stack, self._entries = is_visual, frame_stack, entries
        self._device, self._on_close = torch.device(device), on_close
        self._frames: np.ndarray | None = None
        self._alive = torch.ones(self.num_envs, dtype=torch.bool)

    @property
    def num_envs(self) -> int:
        """N."""
        return sum(self._sizes)

    @property
    def alive(self) -> Tensor:
        """Bool [N], on the CPU: which environments still run."""
        return self._alive

    def reset(self) -> TensorDict:
        """Begin the N episodes of the seed; the same ones at every call. Keys as in ``step``, all rewards 0.

        "success" tells which start states already solve the task, where tasks have a success.
        """
        self._frames = None
        return self._tensors(self._ask("reset"))

    def step(self, td: TensorDict) -> TensorDict:
        """Step every running environment.

        Args:
            td: batch size [N] with "action" [N, A]; clipped to [-1, 1].

        Returns:
            batch size [N]: "observation"; "reward" and where defined "success", "coverage" float32 [N]; "terminated"
            and "truncated" bool [N], which stay true; "alive" bool [N], whether the environment runs on; "physics", on
            the CPU.
        """
        actions = td[ACTION].detach().to("cpu", torch.float32).numpy()
        if len(actions) != self.num_envs:
            raise ValueError(f"action has {len(actions)} rows for {self.num_envs} environments")
        cuts = np.cumsum(self._sizes)[:-1]
        return self._tensors(self._ask("step", *np.split(actions, cuts)))

    def render(self, index: int) -> np.ndarray:
        """A picture of environment ``index``, uint8 [H, W, 3].

        Raises:
            RenderError: if there is no renderer here; the message says what to do.
        """
        for group, size in zip(self._groups, self._sizes, strict=True):
            if index < size:
                group.start("render", index)
                return group.finish()
            index -= size
        raise ValueError(f"there are {self.num_envs} environments")

    def close(self) -> None:
        """Free the environments; may be called twice."""
        for group in self._groups:
            group.start("close")
        for group in self._groups:
            group.finish()
        self._groups = []
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _ask(self, command: str, *arguments: np.ndarray) -> Arrays:
        for index, group in enumerate(self._groups):
            group.start(command, *arguments[index : index + 1])
        answers = [group.finish() for group in self._groups]
        return {key: np.concatenate([answer[key] for answer in answers]) for key in answers[0]}

    def _tensors(self, arrays: Arrays) -> TensorDict:
        num = [self.num_envs]
        seen = arrays["observation"]
        if self._is_visual:
            observation = {PIXELS: torch.from_numpy(self._stack(np.moveaxis(seen, -1, 1)))}
        else:
            observation = self._entries(torch.from_numpy(seen.astype(np.float32)))
        self._alive = torch.from_numpy(~(arrays["terminated"] | arrays["truncated"]))
        out = TensorDict(
            {
                OBSERVATION: TensorDict(observation, num),
                REWARD: torch.from_numpy(arrays["reward"]).float(),
                TERMINATED: torch.from_numpy(arrays["terminated"]),
                TRUNCATED: torch.from_numpy(arrays["truncated"]),
                ALIVE: self._alive.clone(),
            },
            num,
        )
        for key in (SUCCESS, COVERAGE):
            if key in arrays:
                out[key] = torch.from_numpy(arrays[key]).float()
        out = out.to(self._device)
        out.clear_device_()  # physics stays on the CPU, whatever the device of the rest
        physics = {key.removeprefix("physics/"): value for key, value in arrays.items() if key.startswith("physics/")}
        if physics:
            out[PHYSICS] = TensorDict({key: torch.from_numpy(value) for key, value in physics.items()}, num)
        return out

    def _stack(self, frame: np.ndarray) -> np.ndarray:
        """Pictures of the last rows [N, k * C, H, W]; the first one fills the past of an episode."""
        if self._frames is None:
            self._frames = np.repeat(frame[:, None], self._frame_stack, axis=1)
        else:
            self._frames = np.concatenate([self._frames[:, 1:], frame[:, None]], axis=1)
        return self._frames.reshape(len(frame), -1, *frame.shape[2:])
