"""A store that forgets: the last rows of several environments that run side by side, as windows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from worldmodels.keys import ACTION, OBSERVATION

_ROWS = "rows/"


class Ring:
    """Each environment writes into a lane of its own, row after row; when a lane is full, its oldest row goes.

    ::

        a lane of 8 rows, 11 written          a row has a number, counted from the lane's beginning,
        place      0   1   2   3 | 4   5 ...  and the number of the first row of its episode
        number     8   9  10  11 | 4   5
        first      7   7   7   7 | 0   0      row 6 was the last of its episode: a state, from which no action went
        state      s1  s2  s3 (s4) s4  s5     s4 in brackets: reached, its action is still to come
                          newest | oldest

    A window of T rows begins at row n where row n + T - 1 is there too and belongs to the same episode. So it crosses
    neither an episode's end nor the write head. Each such n is equally likely.

    Args:
        lanes: environments, N.
        capacity: rows a lane, C, at least 2.
    """

    def __init__(self, lanes: int, capacity: int) -> None:
        if lanes < 1 or capacity < 2:
            raise ValueError(f"a ring of {lanes} lanes and {capacity} rows: at least 1 lane and 2 rows are needed")
        self.lanes, self.capacity = lanes, capacity
        self._rows: TensorDict | None = None  # [N * C], made when the first row tells its shape and device
        self._is_start: dict[
            int, Tensor
        ] = {}  # {window: bool [N * C]}, kept up to date: a full look takes milliseconds
        self._number = self._first = self.written = self.begin = torch.empty(0)

    def append(self, row: TensorDict, reached: TensorDict, has_ended: Tensor) -> None:
        """Write one transition of every environment.

        Args:
            row: [N] "observation", "action", "terminated", and whatever else every row has, such as "reward".
            reached: [N] the observation that the action led to.
            has_ended: bool [N], whether that was the last of its episode, for whatever reason.
        """
        if self._rows is None:
            self._make(row)
        # The state reached is a row of its own at once; the next transition of the same episode writes over it.
        end = row.exclude(OBSERVATION).apply(torch.zeros_like)
        self._put(self.written + 1, end.set(OBSERVATION, reached))
        self._put(self.written, row)
        for window, is_start in self._is_start.items():
            touched = torch.arange(1 - window, 2, device=is_start.device)
            near = self._ahead(self._place(self.written)[:, None], touched).flatten()
            is_start[near] = self._begins(near, window)
        self.written = self.written + 1 + has_ended.to(self.written)
        self.begin = torch.where(has_ended.to(self.begin.device), self.written, self.begin)

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw windows uniformly: batch size [B], leaves [B, T, ...].

        Raises:
            ValueError: if there is no window of that length yet.
        """
        starts = self.starts(window)
        if len(starts) == 0:
            raise ValueError(
                f"window={window}: no episode collected so far is that long; collect more before the first update"
            )
        pick = torch.randint(len(starts), (batch_size,), generator=generator, device=generator.device)
        return self.windows(starts[pick.to(starts.device)], window)

    def starts(self, window: int) -> Tensor:
        """Places [W] in the ring at which a window of ``window`` rows begins."""
        if self._rows is None or window > self.capacity:
            return torch.zeros(0, dtype=torch.int64)
        if window not in self._is_start:
            place = torch.arange(self.lanes * self.capacity, device=self._number.device)
            self._is_start[window] = self._begins(place, window)
        return torch.nonzero(self._is_start[window]).flatten()

    def windows(self, first: Tensor, window: int) -> TensorDict:
        """Copy the windows [B, T] that begin at places ``first`` [B]."""
        assert self._rows is not None
        index = self._ahead(first[:, None], torch.arange(window, device=first.device))  # [B, T]
        flat = self._rows[index.flatten()]
        leaves = {key: leaf.unflatten(0, index.shape) for key, leaf in flat.items(True, True)}
        return TensorDict(leaves, batch_size=index.shape[:1])

    def actions_since_reset(self) -> list[Tensor]:
        """For every environment the actions [n, A] of its running episode, if the lane still holds all of them.

        Raises:
            ValueError: if it does not.
        """
        found = []
        for lane, (begin, end) in enumerate(zip(self.begin.tolist(), self.written.tolist(), strict=True)):
            if end - begin >= self.capacity:
                raise ValueError(
                    f"an episode of {end - begin} rows is longer than the {self.capacity} rows of its lane"
                )
            number = torch.arange(begin, end, device=self.begin.device)
            assert self._rows is not None
            found.append(self._rows[ACTION][lane * self.capacity + number % self.capacity])
        return found

    def newest(self) -> TensorDict:
        """The observation [N] that each environment reached last; that of an ended episode if a new one has no row."""
        assert self._rows is not None
        number = torch.where(self.written > self.begin, self.written, self.written - 1)
        return self._rows[OBSERVATION][self._place(number)]

    def tensors(self) -> dict[str, Tensor]:
        """Everything, to be saved; {} before the first row."""
        if self._rows is None:
            return {}
        rows = {_ROWS + str(key): leaf for key, leaf in self._rows.flatten_keys("/").items()}
        return {**rows, "number": self._number, "first": self._first, "written": self.written, "begin": self.begin}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Put back what ``tensors`` gave.

        Raises:
            ValueError: if it comes from a ring of another size.
        """
        size = self.lanes * self.capacity
        if tensors["number"].shape != (size,) or tensors["written"].shape != (self.lanes,):
            raise ValueError(
                f"the saved ring has {len(tensors['written'])} lanes and {len(tensors['number'])} rows; this one has "
                f"{self.lanes} and {size}"
            )
        rows = {key.removeprefix(_ROWS): value.to(device) for key, value in tensors.items() if key.startswith(_ROWS)}
        self._rows = TensorDict(rows, batch_size=[size]).unflatten_keys("/")
        self._number, self._first = tensors["number"].to(device), tensors["first"].to(device)
        self.written, self.begin = tensors["written"].to(device), tensors["begin"].to(device)
        self._is_start = {}

    def _make(self, row: TensorDict) -> None:
        device, size = row[ACTION].device, self.lanes * self.capacity
        leaves = {key: leaf.new_zeros(size, *leaf.shape[1:]) for key, leaf in row.items(True, True)}
        self._rows = TensorDict(leaves, batch_size=[size])
        self._number = torch.full((size,), -1, dtype=torch.int64, device=device)
        self._first = self._number.clone()
        self.written = torch.zeros(self.lanes, dtype=torch.int64, device=device)
        self.begin = self.written.clone()

    def _begins(self, place: Tensor, window: int) -> Tensor:
        """Whether a window begins at each of these places, bool like ``place``."""
        last = self._ahead(place, window - 1)
        is_there = (self._number[place] >= 0) & (self._number[last] == self._number[place] + window - 1)
        return is_there & (self._first[last] == self._first[place])

    def _put(self, number: Tensor, row: TensorDict) -> None:
        """Write rows [N] under ``number`` [N], each in its lane."""
        assert self._rows is not None
        place = self._place(number)
        self._rows[place] = row
        self._number[place], self._first[place] = number, self.begin

    def _place(self, number: Tensor) -> Tensor:
        """Where in the ring the rows ``number`` [N] of the lanes lie."""
        lane = torch.arange(self.lanes, device=number.device)
        return lane * self.capacity + number % self.capacity

    def _ahead(self, place: Tensor, rows: Tensor | int) -> Tensor:
        """The place so many rows on, in the same lane."""
        lane = place // self.capacity
        return lane * self.capacity + (place + rows) % self.capacity
