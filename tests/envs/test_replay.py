"""The trajectory store: windows stay in their trajectory, every one is equally likely, disk and memory agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Generator
from torch.utils._python_dispatch import TorchDispatchMode

from envs.replay import TrajectoryStore, from_disk, to_disk


def _store(lengths: list[int], **options) -> TrajectoryStore:
    """Rows that carry their trajectory and their place in it."""
    num = sum(lengths)
    trajectory = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.cat([torch.arange(length) for length in lengths])
    ends = torch.zeros(num, dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    state = torch.stack([trajectory, place], -1).float()
    picture = torch.arange(num, dtype=torch.uint8).reshape(num, 1, 1, 1).expand(num, 3, 2, 2).contiguous()
    rows = TensorDict({"observation": {"state": state, "pixels": picture}, "action": state + 0.5}, batch_size=[num])
    return TrajectoryStore(rows, ends, **options)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 5), st.integers(0, 2**31))
def test_windows_never_cross_a_trajectory_end(lengths: list[int], window: int, seed: int) -> None:
    store = _store(lengths)
    if max(lengths) < window:
        with pytest.raises(ValueError, match="the longest of"):
            store.sample(4, window, Generator().manual_seed(seed))
        return
    state = store.sample(64, window, Generator().manual_seed(seed))["observation", "state"]
    assert state.shape == (64, window, 2)
    trajectory, place = state.unbind(-1)
    assert (trajectory == trajectory[:, :1]).all()
    assert (place - place[:, :1] == torch.arange(window)).all()
    assert len(store.starts(window)) == sum(max(0, length - window + 1) for length in lengths)


def test_every_window_is_equally_likely() -> None:
    store = _store([5, 2, 3])
    state = store.sample(70_000, 2, Generator().manual_seed(0))["observation", "state"][:, 0]
    count = torch.unique(state, dim=0, return_counts=True)[1]
    assert len(count) == 4 + 1 + 2
    assert (count - 10_000).abs().max() < 500


def test_the_last_action_is_never_that_of_a_transition() -> None:
    store = _store([4, 4])
    action = store.sample(500, 2, Generator().manual_seed(0))["action"][:, 0]
    assert action[:, 1].max() == 2.5, "the action of place 3 led nowhere"
    assert store.num_transitions == 6


def test_a_batch_is_a_function_of_the_generator() -> None:
    store = _store([9, 9])
    first, again = (store.sample(8, 3, Generator().manual_seed(5)) for _ in range(2))
    other = store.sample(8, 3, Generator().manual_seed(6))
    assert (first == again).all()
    assert not (first == other).all()
    assert first.batch_size == (8,)


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**31)
)
def test_a_chunk_joins_the_actions_between_two_rows(lengths: list[int], window: int, chunk: int, seed: int) -> None:
    store = _store(lengths, action_chunk=chunk)
    reach = (window - 1) * chunk
    if max(lengths) <= reach:
        with pytest.raises(ValueError, match="the longest of"):
            store.sample(4, window, Generator().manual_seed(seed))
        return
    batch = store.sample(64, window, Generator().manual_seed(seed))
    trajectory, place = batch["observation", "state"].unbind(-1)  # [64, T]
    assert (trajectory == trajectory[:, :1]).all()
    assert (place == place[:, :1] + chunk * torch.arange(window)).all()
    assert len(store.starts(window)) == sum(max(0, length - reach) for length in lengths)
    last = torch.tensor(lengths)[trajectory.long()] - 1
    taken = torch.minimum(place[..., None] + torch.arange(chunk), last[..., None])  # [64, T, h]
    actions = batch["action"].unflatten(-1, (chunk, 2))
    assert torch.equal(actions[..., 1], taken + 0.5)
    assert (actions[..., 0] == trajectory[..., None] + 0.5).all()


def test_a_chunk_terminates_if_any_of_its_steps_did() -> None:
    terminated = torch.tensor([False, False, False, True, False])  # the step from row 3 to row 4 ended the task
    rows = TensorDict({"action": torch.arange(5.0)[:, None], "terminated": terminated}, batch_size=[5])
    ends = torch.tensor([False, False, False, False, True])
    store = TrajectoryStore(rows, ends, action_chunk=2)
    batch = store.windows(torch.arange(3), 2)
    assert batch["terminated"][:, 0].tolist() == [False, False, True]


def test_pictures_are_stacked_within_their_trajectory() -> None:
    store = _store([3, 4], frame_stack=3)
    pixels = store.rows(torch.tensor([[2, 3], [4, 6]], dtype=torch.int32))["observation", "pixels"]
    assert pixels.shape == (2, 2, 9, 2, 2)
    frames = pixels[..., ::3, 0, 0]  # one value a picture
    assert frames.tolist() == [[[0, 1, 2], [3, 3, 3]], [[3, 3, 4], [4, 5, 6]]], "oldest first; the first row repeats"


def test_disk_and_memory_give_the_same_batches(tmp_path: Path) -> None:
    memory = _store([6, 7])
    flat = {key: memory._leaves[key] for key in memory._leaves}
    names = {"/".join(key) if isinstance(key, tuple) else key: key for key in flat}
    shapes = {name: (tuple(flat[key].shape[1:]), flat[key].dtype) for name, key in names.items()}
    mapped = to_disk(tmp_path / "rows", 13, shapes)
    for key in flat:
        mapped[key][:] = flat[key]
    ends = torch.zeros(13, dtype=torch.bool)
    ends[[5, 12]] = True
    disk = TrajectoryStore(from_disk(tmp_path / "rows"), ends)
    a, b = (store.sample(32, 2, Generator().manual_seed(1)) for store in (memory, disk))
    assert (a == b).all()


def test_unfinished_data_is_refused() -> None:
    rows = TensorDict({"action": torch.zeros(3, 1)}, batch_size=[3])
    with pytest.raises(ValueError, match="must mark the last"):
        TrajectoryStore(rows, torch.tensor([False, True, False]))
    with pytest.raises(ValueError, match="window=0"):
        _store([3]).starts(0)


@pytest.mark.gpu
def test_sampling_on_a_gpu_never_waits() -> None:
    lengths = [50] * 4
    cpu = _store(lengths)
    rows = TensorDict(dict(cpu._leaves), batch_size=[200]).to("cuda")
    ends = torch.zeros(200, dtype=torch.bool)
    ends[49::50] = True
    store, generator = TrajectoryStore(rows, ends), Generator("cuda").manual_seed(0)
    store.sample(8, 2, generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = store.sample(8, 2, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch["action"].is_cuda


class _Gathered(TorchDispatchMode):
    """Counts the pictures that index_select copies."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_select.default and args[0].dtype == torch.uint8:
            self.count += args[2].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("frame_stack", "window", "chunk", "touched"),
    [(3, 2, 1, 4), (3, 4, 1, 6), (3, 2, 2, 5), (3, 2, 5, 6), (1, 2, 1, 2)],
)
def test_windows_of_stacks_touch_each_picture_once(frame_stack: int, window: int, chunk: int, touched: int) -> None:
    """Two rows of three pictures touch four, not six; and are what stacking by hand gives."""
    lengths = [13, 9, 11]
    rows = TensorDict(
        {
            "observation": {"pixels": torch.randint(0, 256, (sum(lengths), 3, 4, 5), dtype=torch.uint8)},
            "action": torch.randn(sum(lengths), 2),
        },
        batch_size=[sum(lengths)],
    )
    ends = torch.zeros(sum(lengths), dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    store = TrajectoryStore(rows, ends, frame_stack=frame_stack, action_chunk=chunk)
    first = store.starts(window)
    with _Gathered() as gathered:
        found = store.windows(first, window)["observation", "pixels"]
    assert gathered.count == touched * len(first)
    begins = [0, 13, 22]
    wanted = []
    for start in first.tolist():
        begin = max(b for b in begins if b <= start)
        at = [start + t * chunk for t in range(window)]
        frames = [[max(begin, row + back) for back in range(1 - frame_stack, 1)] for row in at]
        wanted.append(rows["observation", "pixels"][torch.tensor(frames)].flatten(1, 2))
    assert torch.equal(found, torch.stack(wanted))


def test_rows_of_some_keys_gather_nothing_else() -> None:
    store = _store([3, 4], frame_stack=3)
    with _Gathered() as gathered:
        rows = store.rows(torch.tensor([2, 5]), ["action"])
    assert set(rows.keys()) == {"action"}
    assert gathered.count == 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 3), st.integers(0, 2**31)
)
def test_padded_windows_begin_at_every_row_and_repeat_the_last_one(
    lengths: list[int], window: int, chunk: int, seed: int
) -> None:
    store = _store(lengths, is_padded=True, action_chunk=chunk)
    assert store.starts(window).tolist() == list(range(sum(lengths)))
    batch = store.sample(64, window, Generator().manual_seed(seed))
    trajectory, place = batch["observation", "state"].unbind(-1)  # [64, T]
    last = torch.tensor(lengths)[trajectory.long()] - 1
    asked = place[:, :1] + chunk * torch.arange(window)
    assert (trajectory == trajectory[:, :1]).all()
    assert torch.equal(place, torch.minimum(asked, last))
    assert torch.equal(batch["is_padded"], asked > last)
    assert not batch["is_padded"][:, 0].any()


def test_stacked_pictures_of_padded_rows_are_those_of_the_last_row() -> None:
    store = _store([3, 4], frame_stack=3, is_padded=True)
    batch = store.windows(torch.tensor([1, 6]), 3)
    frames = batch["observation", "pixels"][..., ::3, 0, 0]  # one value a picture
    assert frames.tolist() == [[[0, 0, 1], [0, 1, 2], [0, 1, 2]], [[4, 5, 6]] * 3]
    assert batch["is_padded"].tolist() == [[False, False, True], [False, True, True]]


def test_windows_say_nothing_of_padding_where_there_is_none() -> None:
    assert "is_padded" not in _store([3]).windows(torch.tensor([0]), 2).keys()
