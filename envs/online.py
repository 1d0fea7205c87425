"""Experience gathered while training: a Source that plays a task with the attached policy and keeps what happened.

``TaskEnv`` makes torchrl environments of a benchmark's tasks, torchrl's Collector steps them, ``Ring`` keeps the rows.
A row is one decision: with ``action_chunk`` = h its action is h steps, played without looking.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.collectors import Collector
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from envs.relabel import Wrapper
from envs.rewards import with_reward
from envs.ring import Ring
from envs.stepping import task_number
from envs.vector import TRUNCATED
from worldmodels.core import Policy
from worldmodels.keys import ACTION, NOISE, OBSERVATION, PHYSICS, REWARD, TERMINATED

_DONE = "done"


@runtime_checkable
class Recorder(Protocol):
    """Sees every step of every environment, also those that a resumed run replays."""

    def begin(self, number: int, rows: TensorDict, *, is_replayed: bool) -> None:
        """The ``number``-th episodes of all environments begin, counted from 1, with these rows [N]."""
        ...

    def step(self, action: Tensor, rows: TensorDict) -> None:
        """Actions [N, A] of one step led to these rows [N]."""
        ...


class TaskEnv(EnvBase):
    """N environments of one task as a torchrl environment; all begin their next episode when the last one ends.

    Environments do not end on success: as in relabelled data, the reward of a goal is paid for as long as it lasts, and
    "terminated" stays false. An episode ends, truncated, after the last whole decision within the benchmark's limit:
    all environments at once. The reward of a decision is that of the state it led to, computed as for relabelling, not
    the environment's own.

    Args:
        source: data with ``tasks``, whose spec and ``action_chunk`` are kept to.
        task: one of its tasks; None plays the first one and pays nothing. shift: added to rewards.
        num_envs: N; seed: the episodes number k are a function of (seed, k).
        workers: processes that step the environments; 0 steps them in this one. The episodes are the same.
        max_steps: of an episode; None takes the benchmark's limit.
        recorder: sees every step.
    """

    def __init__(
        self,
        source: Any,
        task: str | None,
        *,
        num_envs: int,
        seed: int,
        shift: float = 0.0,
        workers: int = 0,
        max_steps: int | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(device=source.device, batch_size=[num_envs])
        self.source, self.task, self.shift = source, task, shift
        self.num_envs, self.seed, self.workers, self.recorder = num_envs, seed, workers, recorder
        self.chunk: int = source.action_chunk
        self.limit = (max_steps or source.tasks.max_steps) // self.chunk * self.chunk  # only whole decisions
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool, device=self.device)
        self.observation_spec = Composite({OBSERVATION: source.spec[OBSERVATION].expand(num_envs)}, shape=[num_envs])
        self.action_spec = source.spec[ACTION].expand(num_envs, *source.spec[ACTION].shape)
        self.reward_spec = Unbounded((num_envs, 1), device=self.device)
        self.done_spec = Composite({name: flag.clone() for name in (_DONE, TERMINATED, TRUNCATED)}, shape=[num_envs])
        self.number = 0  # of the running episodes, counted from 1
        self.envs: Any = None
        self.now = TensorDict({})  # the last rows [N]
        self.is_restored = False  # the next reset changes nothing

    def restore(self, number: int, past: Tensor) -> TensorDict:
        """Bring the environments to where they were: in episode ``number``, after the decisions ``past`` [n, N, A].

        The next reset leaves them there. Returns what is seen.
        """
        self.number, self.is_restored = number, True
        self._begin(is_replayed=True)
        for decision in past:
            self._play(decision)
        return self._seen()

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free the simulators."""
        if self.envs is not None:
            self.envs.close()
        self.envs = None
        super().close(raise_if_closed=raise_if_closed)

    def _reset(self, tensordict: TensorDict | None = None, **_: Any) -> TensorDict:
        """Begin the next episodes, or go on with those just restored."""
        wanted = None if tensordict is None else tensordict.get("_reset", None)
        assert wanted is None or bool(wanted.all()), "episodes are equally long"
        if not self.is_restored:
            self.number += 1
            self._begin(is_replayed=False)
        self.is_restored = False
        return self._seen()

    def _step(self, tensordict: TensorDict) -> TensorDict:
        """Play one decision in every environment."""
        self._play(tensordict[ACTION])
        reward = torch.zeros(self.num_envs, device=self.device)
        if self.task is not None:
            rows = self.now.select(OBSERVATION, PHYSICS, strict=False)
            rows[ACTION] = tensordict[ACTION].unflatten(-1, (self.chunk, -1))[:, -1]  # the step that led there
            reward = self.source.tasks.reward(self.task, rows).to(self.device) + self.shift
        return self._seen().set(REWARD, reward[:, None])

    def _set_seed(self, seed: int | None) -> None:
        """The seed is given once, to ``__init__``."""

    def _begin(self, *, is_replayed: bool) -> None:
        if self.envs is not None:
            self.envs.close()
        (seed,) = np.random.SeedSequence([self.seed, 0, self.number]).generate_state(1)
        options = {"max_steps": self.limit, "ends_on_success": False, "workers": self.workers}
        task = self.task or self.source.tasks.names[0]  # bodies and starts are those of every task
        self.envs = self.source.tasks.make(task, num_envs=self.num_envs, seed=int(seed), **options)
        self.now = self.envs.reset()
        if self.recorder is not None:
            self.recorder.begin(self.number, self.now, is_replayed=is_replayed)

    def _play(self, decision: Tensor) -> None:
        """One decision [N, A] of every environment."""
        for action in decision.unflatten(-1, (self.chunk, -1)).unbind(1):
            self.now = self.envs.step(TensorDict({ACTION: action}, [self.num_envs]))
            if self.recorder is not None:
                self.recorder.step(action, self.now)

    def _seen(self) -> TensorDict:
        """Observations and flags of the last rows."""
        flags = {name: self.now[name][:, None] for name in (TERMINATED, TRUNCATED)}
        flags[_DONE] = flags[TERMINATED] | flags[TRUNCATED]
        seen = {OBSERVATION: self.now[OBSERVATION].copy(), **flags}
        return TensorDict(seen, batch_size=self.batch_size, device=self.device)


class Online(Wrapper):
    """Plays ``task`` with the attached policy, some transitions an update, and samples windows of the latest ones.

    Transitions are decisions (see above). All randomness of collecting is drawn from the generator that ``sample`` is
    given, and episodes are functions of ``seed``: so batch t depends on (seed, t) and on the policies that collected.

    **Resume is exact.** What ``gathered`` returns goes into checkpoints: the ring and the counts. Simulators cannot be
    saved, so ``restore`` begins their episodes again from the same seeds and replays the decisions made so far.

    Args:
        source: data with ``tasks``: its spec, chunk and tasks are those of the environments.
        task: what is played and paid; None for an agent that needs no reward: rows then have none.
        shift: added to rewards, as in ``envs.rewards.Rewards``.
        num_envs: environments that run side by side; each decides once when a transition of all of them is due.
        workers: processes that step them; 0 steps them in this one.
        capacity: transitions kept, over all environments.
        first_transitions: collected before the first update; random_transitions: of them, by uniform actions.
        transitions_per_update: collected before every later one; the update-to-data ratio is its inverse.
        seed: of the episodes; max_steps: of an episode; None takes the benchmark's limit.
        recorder: factory, ``recorder(source, num_envs=..., seed=...)``, of what sees every step; None: nothing does.

    Raises:
        ValueError: an unknown task, a ring that cannot hold an episode, impossible counts; several processes.
    """

    def __init__(
        self,
        source: Any,
        *,
        task: str | None = None,
        shift: int | float = 0.0,
        num_envs: int = 1,
        workers: int = 0,
        capacity: int = 200_000,
        first_transitions: int = 5_000,
        random_transitions: int = 0,
        transitions_per_update: int | float = 1.0,
        seed: int = 0,
        max_steps: int | None = None,
        recorder: Callable[..., Recorder] | None = None,
    ) -> None:
        super().__init__(source)
        if min(num_envs, first_transitions) < 1 or transitions_per_update < 0 or random_transitions < 0:
            raise ValueError(
                f"{num_envs=}, {first_transitions=}, {transitions_per_update=}, {random_transitions=}: at least one "
                "environment and first transition, and nothing negative"
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise ValueError("an online source collects in one process; run without torchrun")
        if task is not None:
            elsewhere = getattr(source.tasks, "names_elsewhere", {})
            task_number(task, source.tasks.names, of="this env", elsewhere=elsewhere)
        self.recorder = None if recorder is None else recorder(source, num_envs=num_envs, seed=seed)
        self.env = TaskEnv(
            source,
            task,
            num_envs=num_envs,
            seed=seed,
            shift=float(shift),
            workers=workers,
            max_steps=max_steps,
            recorder=self.recorder,
        )
        decisions = self.env.limit // self.env.chunk
        if decisions < 1 or capacity // num_envs < decisions + 2:
            raise ValueError(
                f"capacity={capacity}: each of {num_envs} environments needs room for an episode of {decisions} "
                f"decisions of {self.env.chunk} steps, and two rows"
            )
        self.spec, self.policy = source.spec if task is None else with_reward(source.spec), None
        self.first_transitions, self.random_transitions = first_transitions, random_transitions
        self.transitions_per_update = float(transitions_per_update)
        self.ring = Ring(num_envs, capacity // num_envs)
        self.due, self.collected = float(first_transitions), 0
        self._generator = Generator()
        self._batches: Iterator[TensorDict] | None = None

    def attach(self, policy: Policy | None) -> None:
        """Collect with ``policy`` from now on; with uniform actions if it is None."""
        self.policy = policy

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Collect what is due for one update, then draw windows [B, T] uniformly."""
        num = self.env.num_envs
        if self.collected == 0:
            print(f"collecting {self.first_transitions:,} transitions of {self._what}", file=sys.stderr)
        if self._batches is None:  # torchrl tries the policy once: not with this generator, so that resume is exact
            self._generator = Generator(generator.device)
            options = {"frames_per_batch": num, "total_frames": -1, "exploration_type": None}
            self._batches = iter(Collector(self.env, self._choose, trust_policy=True, **options))
        self._generator = generator
        while self.due >= num:
            self._collect()
            self.due -= num
        self.due += self.transitions_per_update
        return self.ring.sample(batch_size, window, generator)

    def gathered(self) -> dict[str, Tensor]:
        """Ring, counts and episodes, for a checkpoint; {} before anything was collected."""
        if self.collected == 0:
            return {}
        counts = torch.tensor([self.due, self.collected], dtype=torch.float64)
        return {**self.ring.tensors(), "counts": counts, "episodes": torch.tensor([self.env.number])}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``gathered`` gave, and the environments to where they were.

        Raises:
            ValueError: if the ring is of another size, or a simulator does not come back to the same state.
        """
        if not tensors:
            return
        self.ring.load(tensors, self.env.device)
        self.due, collected = tensors["counts"].tolist()
        self.collected = int(collected)
        number, past = int(tensors["episodes"][0]), torch.stack(self.ring.actions_since_reset(), 1)  # [n, N, A]
        self._batches = None  # the next collector resets once, which leaves all as it is
        found, wanted = self.env.restore(number, past)[OBSERVATION], self.ring.newest()
        for i in range(self.env.num_envs if len(past) else 0):
            if not bool((found[i] == wanted[i]).all()):
                raise ValueError(
                    f"environment {i} of {self._what} is elsewhere after its {len(past)} decisions; "
                    "is the simulator another version? Begin a new run_dir"
                )

    @property
    def _what(self) -> str:
        return self.env.task or "no task"

    def _collect(self) -> None:
        """One transition of every environment."""
        assert self._batches is not None
        step = next(self._batches)[:, 0]  # [N]
        then = step["next"]
        row = step.select(OBSERVATION, ACTION)
        row[TERMINATED] = then[TERMINATED][:, 0]
        if self.env.task is not None:
            row[REWARD] = then[REWARD][:, 0]
        self.ring.append(row, then[OBSERVATION], then[_DONE][:, 0])
        self.collected += self.env.num_envs

    @torch.no_grad()
    def _choose(self, td: TensorDict) -> TensorDict:
        """Actions for the observations of a collector."""
        shape, generator = self.env.action_spec.shape, self._generator
        noise = torch.randn(shape, generator=generator, device=generator.device).to(self.env.device)
        if self.policy is None or self.collected < self.random_transitions:
            action = torch.special.ndtr(noise) * 2 - 1
        else:
            seen = {OBSERVATION: td[OBSERVATION], NOISE: TensorDict({ACTION: noise}, td.batch_size)}
            action = self.policy.act(TensorDict(seen, td.batch_size), explore=True)[ACTION]
        return td.copy().set(ACTION, action)
