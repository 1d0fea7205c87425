"""A real, tiny benchmark: a point in a walled room walks to a corner; and an agent that solves it exactly."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Generator, Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded

from worldmodels.core import Objective, Phase

SIZE, STEP, TOLERANCE = 4.0, 0.5, 0.5  # metres
LIMIT = 30
CORNERS = {"east": (3.0, 3.0), "west": (-3.0, 3.0), "here": (0.0, 0.0)}


class Room:
    """N points in a square room of side 2 SIZE, each with a start; no automatic reset."""

    is_dark = False

    def __init__(self, start: Tensor, goal: Tensor, ends_on_success: bool) -> None:
        self.start, self.goal, self.ends_on_success, self.is_closed = start, goal, ends_on_success, False

    def reset(self) -> TensorDict:
        self.position, self.time = self.start.clone(), 0
        return self._observe(torch.zeros(len(self.start)))

    def step(self, td: TensorDict) -> TensorDict:
        self.position = (self.position + STEP * td["action"].clamp(-1, 1)).clamp(-SIZE, SIZE)
        self.time += 1
        return self._observe((self._distance() < TOLERANCE).float() - 1)

    def _distance(self) -> Tensor:
        return (self.position - self.goal).norm(dim=-1)

    def _observe(self, reward: Tensor) -> TensorDict:
        num = len(self.position)
        success = self._distance() < TOLERANCE
        return TensorDict(
            {
                "observation": {"state": self.position.float()},
                "physics": {"qpos": self.position.double()},
                "reward": reward,
                "success": success,
                "terminated": success & (self.time > 0) & self.ends_on_success,
                "truncated": torch.full((num,), self.time >= LIMIT),
            },
            [num],
        )

    def render(self, index: int) -> np.ndarray:
        if self.is_dark:
            raise RuntimeError("no display\nhere")
        frame = np.zeros((33, 33, 3), dtype=np.uint8)
        x, y = ((self.position[index] / SIZE + 1) * 16).int().tolist()
        frame[y, x] = 255
        return frame

    def close(self) -> None:
        self.is_closed = True


class RoomTasks:
    """Two corners to reach; "here" is solved at every start that lies in its reach."""

    tolerance = TOLERANCE
    max_steps = LIMIT

    def __init__(self, names: tuple[str, ...], has_map: bool) -> None:
        self.names = self.goal_names = names
        self.has_map = has_map
        self.made: list[Room] = []

    def reward(self, task: str, td: TensorDict) -> Tensor:
        goal = torch.tensor(CORNERS[task])
        return ((td["observation", "state"] - goal).norm(dim=-1) < TOLERANCE).float() - 1

    def fields(self, td: TensorDict) -> dict[str, Tensor]:
        qpos = td["physics", "qpos"]
        return {"state": td["observation", "state"], "qpos": qpos, "xy": qpos, "action": torch.zeros_like(qpos)}

    def goal_observation(self, values: list[float]) -> TensorDict:
        if len(values) != 2:
            raise ValueError(f"goal {values}: 2 numbers are needed")
        return TensorDict({"state": torch.tensor(values)})

    def goal_of(self, task: str) -> TensorDict:
        return TensorDict({"state": torch.tensor(CORNERS[task])})

    def make(self, task: str, *, num_envs: int, seed: int, workers: int = 0, ends_on_success: bool = True) -> Room:
        generator = Generator().manual_seed(seed)
        start = 2 * torch.rand(num_envs, 2, generator=generator) - 1
        self.made.append(Room(start, torch.tensor(CORNERS[task]), ends_on_success))
        return self.made[-1]

    def maze(self) -> SimpleNamespace | None:
        if not self.has_map:
            return None
        walls = np.zeros((11, 11), dtype=bool)
        walls[[0, -1]] = walls[:, [0, -1]] = True
        return SimpleNamespace(walls=walls, unit=1.0, origin=(-5.0, -5.0))


class RoomSource:
    """Uniform states of the room."""

    def __init__(
        self, names: tuple[str, ...] = ("east", "west"), *, has_map: bool = True, action_chunk: int = 1
    ) -> None:
        self.tasks, self.action_chunk = RoomTasks(names, has_map), action_chunk
        self.spec = Composite(observation=Composite(state=Unbounded((2,))), action=Bounded(-1, 1, (2 * action_chunk,)))

    def labelled(self, num: int, generator: Generator) -> TensorDict:
        state = SIZE * (2 * torch.rand(num, 2, generator=generator) - 1)
        return TensorDict({"observation": {"state": state}, "physics": {"qpos": state.double()}}, [num])

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        return TensorDict({"observation": {"state": torch.zeros(batch_size, window, 2)}}, [batch_size])

    def attach(self, policy: object) -> None:
        pass


class Walker(Objective):
    """Zero-shot agent whose z is the mean of the rewarded states, or the goal; it walks straight to z."""

    window = 1

    def __init__(self, noise_scale: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.noise_scale = noise_scale
        self.calls: list[int] = []

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def infer_task(
        self,
        obs: TensorDict,
        reward: Tensor | None = None,
        goal: TensorDict | None = None,
        demonstration: TensorDict | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        if goal is not None:
            return goal["state"]
        if demonstration is not None:
            return demonstration["state"].mean(0)
        assert reward is not None
        reward = reward if weight is None else reward * weight
        return (obs["state"] * reward[:, None]).sum(0) / reward.sum()

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        assert not self.training
        assert not explore
        self.calls.append(td.batch_size[0])
        action = (self.scale * (td["z"] - td["observation", "state"])).clamp(-1, 1)
        chunk = action.repeat(1, td["noise", "action"].shape[1] // 2)
        return TensorDict({"action": chunk + self.noise_scale * td["noise", "action"]}, td.batch_size)


@pytest.fixture
def room() -> RoomSource:
    return RoomSource()


@pytest.fixture
def make_room() -> type[RoomSource]:
    return RoomSource


@pytest.fixture
def walker() -> Walker:
    return Walker().train()
