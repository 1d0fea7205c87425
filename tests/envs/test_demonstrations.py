"""What all sources of demonstrations share: padding, labels, statistics, and data that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator
from torchrl.data import Categorical, Unbounded

from envs.demonstrations import Demonstration, Demonstrations


def _episode(length: int, task: int = 0, **changes: Any) -> Demonstration:
    rng = np.random.default_rng(length)
    observation = {
        "state": rng.standard_normal((length, 3), np.float32),
        "environment_state": np.full((length, 2), 5.0, np.float32),  # never changes
        "task_index": np.full(length, task),
    }
    action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    fields = {"observation": observation, "action": action, "is_success": True}
    return Demonstration(**(fields | changes))


class _Given(Demonstrations):
    """Episodes as they come."""

    def __init__(self, episodes: Sequence[Demonstration], **options: Any) -> None:
        seen = {
            "state": Unbounded((3,)),
            "environment_state": Unbounded((2,)),
            "task_index": Categorical(2, shape=(), dtype=torch.int64),
        }
        super().__init__(seen, 2, device="cpu", **options)
        self._parts = {"train": episodes, "test": episodes[:1]}
        self.use("train")

    def read(self, part: str) -> Sequence[Demonstration]:
        return self._parts[part]


def test_rows_are_the_episodes_and_windows_are_padded() -> None:
    episodes = [_episode(4), _episode(2, task=1), _episode(7, is_success=False)]
    source = _Given(episodes)
    assert source.store.num_rows == 13
    batch = source.sample(500, 5, Generator().manual_seed(0))
    assert set(batch.keys(True, True)) == set(source.spec.keys(True, True))
    for key, entry in source.spec.items(True, True):
        assert batch[key].shape == (500, 5, *entry.shape)
        assert batch[key].dtype == entry.dtype
    short = batch["observation", "task_index"][:, 0] == 1
    assert short.any()
    assert batch["is_padded"][short][:, 2:].all(), "an episode shorter than the window"
    rows = source.store.rows(torch.arange(13))
    assert torch.equal(
        rows["observation", "state"], torch.cat([torch.from_numpy(e.observation["state"]) for e in episodes])
    )
    assert torch.equal(rows["action"], torch.cat([torch.from_numpy(e.action) for e in episodes]))
    assert rows["terminated"].nonzero().flatten().tolist() == [3, 5], "a failure does not end its task"
    assert rows["has_action"].tolist() == [True] * 6 + [False] * 7


@pytest.mark.parametrize(("share", "wanted"), [(0.1, 1), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_a_share_of_each_tasks_episodes_is_labelled(share: float, wanted: int) -> None:
    episodes = [_episode(3 + i, task=i % 2) for i in range(8)]
    source, again, other = (_Given(episodes, labelled_share=share, seed=seed) for seed in (0, 0, 3))
    labels = [s.store.rows(s.store.ends)["has_action"] for s in (source, again, other)]  # of each episode
    assert labels[0].view(-1, 2).sum(0).tolist() == [wanted, wanted]
    assert torch.equal(labels[0], labels[1])
    assert (share == 1.0) == torch.equal(labels[0], labels[2])
    every = source.store.rows(torch.arange(source.store.num_rows))["has_action"]
    assert torch.equal(every, labels[0].repeat_interleave(source.store.lengths)), "whole episodes"
    assert source.split("test").store.rows(torch.arange(3))["has_action"].all(), "tests know all actions"


def test_statistics_are_of_all_rows_and_of_actions_that_count() -> None:
    episodes = [_episode(4), _episode(6), _episode(9, is_success=False)]
    found = _Given(episodes).statistics()
    state = np.concatenate([episode.observation["state"] for episode in episodes]).astype(np.float64)
    action = np.concatenate([episode.action for episode in episodes[:2]]).astype(np.float64)
    for key, values in (("state", state), ("action", action)):
        torch.testing.assert_close(found["mean", key], torch.from_numpy(values.mean(0)).float())
        torch.testing.assert_close(found["std", key], torch.from_numpy(values.std(0)).float())
    assert found["mean", "environment_state"].tolist() == [5.0, 5.0]
    assert found["std", "environment_state"].tolist() == pytest.approx([0.01, 0.01]), "it never changes"
    assert set(found["std"].keys()) == {"state", "environment_state", "action"}


def test_another_part_leaves_the_first_as_it_was() -> None:
    source = _Given([_episode(4), _episode(2)])
    other = source.split("test")
    assert (source.store.num_rows, other.store.num_rows) == (6, 4)
    assert other.split("train").store.num_rows == 6
    with pytest.raises(ValueError, match="no part val; parts are train, test"):
        source.split("val")


def _broken_action(value: float) -> np.ndarray:
    action = np.zeros((4, 2), np.float32)
    action[2, 1] = value
    return action


_OTHER_KEYS = {"state": np.zeros((4, 3), np.float32), "task_index": np.zeros(4, np.int64)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": np.zeros((4, 3), np.float32)}, r"train episode 1: action is \[4, 3\], needed is \[T, 2\]"),
        ({"action": np.zeros((0, 2), np.float32)}, "T at least 1"),
        ({"action": np.zeros((3, 2), np.float32)}, r"observations are .*needed are environment_state \[3, 2\]"),
        ({"action": _broken_action(np.nan)}, "action is not finite in row 2"),
        ({"action": _broken_action(7.0)}, "an action of 7; actions lie within"),
        ({"observation": _OTHER_KEYS}, r"observations are state \[4, 3\], task_index \[4\], needed are env"),
    ],
)
def test_unusable_episodes_are_refused_by_number(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _Given([_episode(4), _episode(4, **changes)])


def test_no_demonstrations_and_impossible_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="no demonstrations for train"):
        _Given([])
    with pytest.raises(ValueError, match="none of the 2 train episodes solves its task"):
        _Given([_episode(4, is_success=False)] * 2)
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=r"env.labelled_share=.* must be above 0"):
            _Given([_episode(4)], labelled_share=share)
