"""One store for trajectories: flat rows on the training device, windows of them by index."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.keys import ACTION, IS_PADDED, OBSERVATION, PIXELS, TERMINATED

Key = str | tuple[str, ...]
_PICTURES = (OBSERVATION, PIXELS)


class TrajectoryStore:
    """Trajectories laid end to end; a batch of windows is one gather by one index tensor.

    ::

                  |<------ trajectory 1 ------>|<-- trajectory 2 -->|
        row         0    1    2    3    4    5    6    7    8    9
        state       s0   s1   s2   s3   s4   s5 | s0   s1   s2   s3
        action      a0   a1   a2   a3   a4   (-)| a0   a1   a2   (-)     (-) is stored, but led nowhere: no transition
        ends        0    0    0    0    0    1  | 0    0    0    1

        window=2    [0,1] [1,2] [2,3] [3,4] [4,5] [6,7] [7,8] [8,9]      never [5,6]: two rows are one transition
        window=4    [0..3] [1..4] [2..5] [6..9]
        padded      [0..3] [1..4] [2..5] [3,4,5,5] [4,5,5,5] [5,5,5,5] [6..9] [7,8,9,9] [8,9,9,9] [9,9,9,9]

    A row holds the observation at t and the action taken from it, so no next observation is stored twice. Each valid
    start is equally likely. The end of a trajectory is not the end of the task; "terminated" says where that is.

    Args:
        rows: [N] one row a step, trajectory after trajectory, on one device, or memory-mapped (see ``to_disk``).
        ends: bool [N], true on the last row of each trajectory and on row N - 1.
        device: where batches are wanted; None means where the rows are.
        frame_stack: pictures of this many consecutive rows are joined along channels, oldest first. The first picture
            of a trajectory stands in for those before it.
        action_chunk: rows of a window lie this many apart, and hold the actions in between joined, [h * A], and
            whether any of them terminated. Actions beyond the trajectory repeat its last one; they are in the last row
            of a window only, and lead nowhere.
        is_padded: whether windows begin at every row, as imitation wants them: rows beyond the trajectory's end repeat
            its last one, and "is_padded" [B, T] is true there. Nothing is stored twice.

    Raises:
        ValueError: if the last row ends no trajectory, or the lengths differ.
    """

    def __init__(
        self,
        rows: TensorDict,
        ends: Tensor,
        *,
        device: torch.device | str | None = None,
        frame_stack: int = 1,
        action_chunk: int = 1,
        is_padded: bool = False,
    ) -> None:
        if ends.shape != rows.batch_size or not bool(ends[-1]):
            raise ValueError(f"ends {list(ends.shape)} must mark the last of the {len(rows)} rows")
        leaves = dict(rows.items(include_nested=True, leaves_only=True))
        self._leaves: dict[Key, Tensor] = leaves
        self._rows_device = next(iter(leaves.values())).device
        self.device = self._rows_device if device is None else torch.device(device)
        self.frame_stack, self.action_chunk, self.is_padded = frame_stack, action_chunk, is_padded
        self.ends = torch.nonzero(ends.cpu()).flatten()  # [M] last row of each trajectory
        begins = torch.cat([self.ends.new_zeros(1), self.ends[:-1] + 1])
        self.lengths = self.ends - begins + 1  # [M] rows
        kind = torch.int32 if len(rows) < 2**31 else torch.int64  # half the memory of the index
        self._kind = kind
        self._last = torch.repeat_interleave(self.ends, self.lengths).to(self._rows_device, kind)  # [N]
        self._first = torch.repeat_interleave(begins, self.lengths).to(self._rows_device, kind)
        self._starts: dict[int, Tensor] = {}

    @property
    def num_rows(self) -> int:
        """Rows, N."""
        return len(self._last)

    @property
    def num_trajectories(self) -> int:
        """Trajectories, M."""
        return len(self.ends)

    @property
    def num_transitions(self) -> int:
        """Pairs of consecutive rows, N - M."""
        return self.num_rows - self.num_trajectories

    def starts(self, window: int) -> Tensor:
        """First rows of all windows of ``window`` rows [W], on the rows' device; computed once for each length.

        Raises:
            ValueError: if no trajectory is that long.
        """
        if window not in self._starts:
            if window < 1:
                raise ValueError(f"window={window}: a window has at least one row")
            row = torch.arange(self.num_rows, dtype=self._kind, device=self._last.device)
            reach = 0 if self.is_padded else (window - 1) * self.action_chunk
            found = torch.nonzero(self._last - row >= reach).flatten()
            if len(found) == 0:
                longest = int(self.lengths.max())
                raise ValueError(
                    f"window={window}: the longest of {self.num_trajectories} trajectories has {longest} rows"
                )
            self._starts[window] = found.to(self._rows_device, self._kind)
        return self._starts[window]

    def last_rows(self, index: Tensor) -> Tensor:
        """Last row of the trajectory of each row of ``index`` [B], on the rows' device."""
        return self._last[index]

    def draw(self, num: int, window: int, generator: Generator) -> Tensor:
        """First rows [num] of windows drawn uniformly and independently; no host sync when all is on one device."""
        starts = self.starts(window)
        pick = torch.randint(len(starts), (num,), generator=generator, device=generator.device)
        return starts[pick.to(starts.device)]

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw windows.

        Args:
            batch_size: windows, B.
            window: rows of each, T.
            generator: on the device of the batch; the batch is a function of its state alone.

        Returns:
            batch size [B], leaves [B, T, ...], on ``device``. Stacked pictures of neighbouring rows share memory.
        """
        return self.windows(self.draw(batch_size, window, generator), window)

    def windows(self, first: Tensor, window: int) -> TensorDict:
        """Copy windows of ``window`` rows, T, that begin at rows ``first`` [B]; see ``sample``."""
        step, first = self.action_chunk, first.unsqueeze(-1)
        offset = torch.arange(window * step, device=first.device, dtype=first.dtype)
        others = [key for key in self._leaves if not self._is_stacked(key)]
        index = first + offset[::step]  # [B, T]
        if self.is_padded:
            last = self._last[first]  # [B, 1]
            is_beyond, index = index > last, torch.minimum(index, last)
        out = self.rows(index, others)
        if self.is_padded:
            out[IS_PADDED] = is_beyond.to(self.device, non_blocking=True)
        if len(others) < len(self._leaves):
            pictures = self._leaves[_PICTURES]
            out[_PICTURES] = self._stacked(pictures, index) if self.is_padded else self._stacks(pictures, first, window)
        if step > 1:
            every = torch.minimum(first + offset, self._last[first])  # [B, T * h]
            out[ACTION] = self._gather(self._leaves[ACTION], every).unflatten(1, (window, step)).flatten(2)
            if TERMINATED in self._leaves:  # somewhere in the chunk
                out[TERMINATED] = self._gather(self._leaves[TERMINATED], every).unflatten(1, (window, step)).any(2)
        return out

    def rows(self, index: Tensor, keys: Sequence[Key] | None = None) -> TensorDict:
        """Copy rows to ``device``.

        Args:
            index: integers [B, ...], on the rows' device.
            keys: only these leaves, such as ["action"]; None copies all.

        Returns:
            batch size [B], leaves [B, ..., *row].
        """
        out = TensorDict({}, batch_size=index.shape[:1])
        for key in self._leaves if keys is None else keys:
            leaf = self._leaves[key]
            out[key] = self._stacked(leaf, index) if self._is_stacked(key) else self._gather(leaf, index)
        return out

    def _is_stacked(self, key: Key) -> bool:
        return self.frame_stack > 1 and key == _PICTURES

    def _gather(self, leaf: Tensor, index: Tensor) -> Tensor:
        found = leaf.index_select(0, index.flatten()).unflatten(0, index.shape)
        return found if found.device == self.device else found.to(self.device, non_blocking=True)

    def _stacked(self, leaf: Tensor, index: Tensor) -> Tensor:
        """Pictures [B, ..., k * C, H, W]: those of the k rows up to each row, within its trajectory."""
        back = torch.arange(1 - self.frame_stack, 1, device=index.device, dtype=index.dtype)  # oldest first
        frames = torch.maximum(index.unsqueeze(-1) + back, self._first[index].unsqueeze(-1))  # [B, ..., k]
        return self._gather(leaf, frames).flatten(-4, -3)

    def _stacks(self, leaf: Tensor, first: Tensor, window: int) -> Tensor:
        """Stacked pictures [B, T, k * C, H, W] of windows that begin at ``first`` [B, 1].

        Stacks of neighbouring rows share pictures. Each is gathered once, and stacks are overlapping views of them: two
        rows with three pictures each touch four.
        """
        step, k = self.action_chunk, self.frame_stack
        if step >= k:  # nothing is shared
            return self._stacked(leaf, first + step * torch.arange(window, device=first.device, dtype=first.dtype))
        back = torch.arange(1 - k, (window - 1) * step + 1, device=first.device, dtype=first.dtype)
        frames = self._gather(leaf, torch.maximum(first + back, self._first[first]))  # [B, (T - 1) * step + k, C, H, W]
        channels = frames.shape[-3]
        stacks = frames.flatten(1, 2).unfold(1, k * channels, step * channels)  # [B, T, H, W, k * C]
        return stacks.movedim(-1, 2)


Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


def load_rows(
    shapes: Shapes,
    num: int,
    fill: Callable[[TensorDict], None],
    *,
    device: torch.device,
    max_device_bytes: int,
    unpacked: Path,
) -> TensorDict:
    """Rows of packed files, on the device if they fit, else unpacked on disk, once: an archive has no random access.

    Args:
        shapes: see ``to_disk``.
        num: rows, N.
        fill: writes the rows into what it is given.
        device: where rows are wanted.
        max_device_bytes: larger ones stay on disk, memory-mapped; only sampled rows travel.
        unpacked: folder for that. Its name must tell which files it is of: where it exists, it is used.
    """
    size = num * sum(torch.Size(shape).numel() * kind.itemsize for shape, kind in shapes.values())
    if size <= max_device_bytes:
        flat = {key: torch.zeros(num, *shape, dtype=kind, device=device) for key, (shape, kind) in shapes.items()}
        rows = TensorDict(flat, batch_size=[num]).unflatten_keys("/")
        fill(rows)
        return rows
    if not unpacked.exists():
        print(f"unpacking {size / 2**30:.1f} GiB to {unpacked}: more than max_device_bytes", file=sys.stderr)
        unfinished = unpacked.with_name(f"{unpacked.name}.{os.getpid()}.tmp")
        try:
            fill(to_disk(unfinished, num, shapes))
            if not unpacked.exists():
                unfinished.rename(unpacked)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return from_disk(unpacked)


def to_disk(folder: Path, rows: int, shapes: Shapes) -> TensorDict:
    """Make empty memory-mapped rows in ``folder``, to be filled; ``from_disk`` opens them again.

    Args:
        folder: new or empty.
        rows: N.
        shapes: for each key, with "/" between nested names, the shape of one row and its type.
    """
    like = {key: torch.empty(1, dtype=kind).expand(rows, *shape) for key, (shape, kind) in shapes.items()}
    nested = TensorDict(like, batch_size=[rows]).unflatten_keys("/")
    return nested.memmap_like(str(folder))


def from_disk(folder: Path) -> TensorDict:
    """Open rows written through ``to_disk``; nothing is read until rows are gathered."""
    return TensorDict.load_memmap(str(folder))


def draw_rows(rows: TensorDict, batch_size: int, window: int, generator: Generator) -> TensorDict:
    """Draw from ``rows`` [N], leaves [N, 1, ...], uniformly; ``window`` must be 1."""
    if window != 1:
        raise ValueError(f"window={window}: rows of a table have no order in time. Use objective=t_jepa or env=ogbench")
    index = torch.randint(len(rows), (batch_size,), generator=generator, device=generator.device)
    return rows[index.to(rows.device)]
