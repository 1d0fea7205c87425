"""Clips by number of video and first row: gathered from decoded rows, or decoded by ``envs.video_stream``."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from envs.image_cache import Decoded
from envs.images import PictureStore, to_device
from envs.video_files import Facts, Place
from envs.video_stream import Clip, ClipReaders, Read

CANDIDATES = 8  # clips drawn for each of a batch: the first is taken that can be decoded
_CHUNK = 64  # clips that are decoded at a time for evaluations


class Plan(NamedTuple):
    """Which clips a batch has."""

    videos: Tensor
    """int64 [B, C], candidates."""
    first: Tensor
    """int64 [B, C], first row of each."""
    window: int
    name: tuple[str | int, ...]
    """Of the batch, among all that are expected."""


class Clips(Protocol):
    """Where clips come from."""

    lengths: Tensor
    """int64 [N], rows of each video."""

    def read(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Pixels uint8 [B, T, 3, H, W] on the device, and of which video each clip is, int64 [B]."""
        ...


def host_seed(generator: Generator) -> int:
    """A seed made of the state of ``generator``, which moves on.

    What is read from disk is drawn on the CPU. A number drawn on a GPU would have to be waited for; the state of its
    generator is known here.
    """
    seed = int.from_bytes(hashlib.sha256(generator.get_state().numpy().tobytes()).digest()[:8], "little") >> 1
    torch.rand((), generator=generator, device=generator.device)
    return seed


class StoredClips:
    """Clips of decoded videos, on the device or in a mapped file.

    Args:
        pixels: uint8 [R, 3, H, W]. begins: int64 [N], first row of each video. lengths: int64 [N].
        device, max_device_bytes: see ``envs.images.PictureStore``.
    """

    def __init__(
        self, pixels: np.ndarray, begins: np.ndarray, lengths: Tensor, *, device: torch.device, max_device_bytes: int
    ) -> None:
        nothing = np.empty(0, np.int64)
        rows = np.arange(len(pixels))
        data = Decoded(pixels, rows, nothing, nothing, nothing, (), "", ())
        self._store = PictureStore(data, rows, device=device, max_device_bytes=max_device_bytes)
        self._begins, self.lengths = torch.from_numpy(np.ascontiguousarray(begins)), lengths

    def read(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """See ``Clips``; the first candidates, as all can be read."""
        videos = plan.videos[:, 0]
        row = plan.first[:, :1] + torch.arange(plan.window)
        row = self._begins[videos, None] + torch.minimum(row, self.lengths[videos, None] - 1)  # [B, T]
        return self._store.gather(row.flatten()).unflatten(0, row.shape), videos


class DecodedClips:
    """Clips decoded when they are asked for, or before, if they are expected.

    Args:
        places, facts, names: of the videos, [N].
        device: of clips. frame_rate, size, workers: see ``ClipReaders``. ahead: batches beside the present one.
    """

    def __init__(
        self,
        places: Sequence[Place],
        facts: Sequence[Facts],
        names: Sequence[str],
        *,
        device: torch.device,
        frame_rate: int | float,
        size: tuple[int, int],
        workers: int | None,
        ahead: int,
    ) -> None:
        self._places, self._facts, self._names, self._device = places, facts, names, device
        self._reading = {"frame_rate": frame_rate, "size": size, "workers": workers, "num_blocks": ahead + 2}
        self._ahead = ahead
        self._clip_bytes = 3 * size[0] * size[1]
        self.lengths = torch.tensor([one.rows for one in facts])
        self._readers: ClipReaders | None = None
        self._tickets: dict[tuple[str | int, ...], int] = {}  # of batches that are expected
        self._told: set[int] = set()  # videos whose failure was printed

    def expect(self, plans: Sequence[Plan]) -> None:
        """Begin with these batches, in order, as far as there is room; forget others."""
        if self._reading["workers"] == 0 or not plans:
            return
        readers = self._ready(max(self._bytes(plan) for plan in plans))
        names = {self._name(plan) for plan in plans}
        for name in [name for name in self._tickets if name not in names]:
            readers.give_back(self._tickets.pop(name))
        for plan in plans[: self._ahead + 1]:  # one block is left for what nobody expected
            if (name := self._name(plan)) not in self._tickets:
                if not readers.has_room:  # yet: what was forgotten is still being decoded
                    return
                self._tickets[name] = readers.begin(self._clips(plan), plan.window)

    def read(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """See ``Clips``.

        Raises:
            ValueError: if no candidate of a clip can be decoded.
        """
        ticket = self._tickets.pop(self._name(plan), None)
        if ticket is not None:
            return self._finish(self._ready(0), ticket, plan)
        chunks = [plan]
        if plan.name[-1] == "part":
            chunks = [
                plan._replace(videos=videos, first=first)
                for videos, first in zip(plan.videos.split(_CHUNK), plan.first.split(_CHUNK), strict=True)
            ]
        readers = self._ready(max(self._bytes(chunk) for chunk in chunks))
        read = [self._finish(readers, readers.begin(self._clips(chunk), chunk.window), chunk) for chunk in chunks]
        if len(read) == 1:
            return read[0]
        return torch.cat([pixels for pixels, _ in read]), torch.cat([videos for _, videos in read])

    def close(self) -> None:
        """End the processes; they are started again when they are needed."""
        if self._readers is not None:
            self._readers.close()
        self._readers, self._tickets = None, {}

    def _ready(self, block_bytes: int) -> ClipReaders:
        if self._readers is None or self._readers.block_bytes < block_bytes:
            self.close()
            self._readers = ClipReaders(block_bytes=block_bytes, **self._reading)
        return self._readers

    def _bytes(self, plan: Plan) -> int:
        return len(plan.videos) * plan.window * self._clip_bytes

    def _name(self, plan: Plan) -> tuple[str | int, ...]:
        return (*plan.name, plan.window)

    def _clips(self, plan: Plan) -> list[list[Clip]]:
        pairs = zip(plan.videos.tolist(), plan.first.tolist(), strict=True)
        return [
            [Clip(self._places[video], self._facts[video], first) for video, first in zip(videos, firsts, strict=True)]
            for videos, firsts in pairs
        ]

    def _finish(self, readers: ClipReaders, ticket: int, plan: Plan) -> tuple[Tensor, Tensor]:
        found = readers.finish(ticket)
        self._tell(found, plan)
        pixels = torch.from_numpy(found.pixels)  # a GPU's copy is made of another one, pinned
        pixels = pixels.clone() if self._device.type == "cpu" else to_device(pixels, self._device)
        readers.give_back(ticket)
        return pixels, plan.videos.gather(1, torch.from_numpy(found.used)[:, None])[:, 0]

    def _tell(self, found: Read, plan: Plan) -> None:
        """Print once what is wrong with each video; raise if a clip has no candidate left."""
        reasons = [(int(plan.videos[clip, number]), reason) for clip, number, reason in found.failed]
        for video, reason in reasons:
            if video not in self._told:
                self._told.add(video)
                print(f"{self._names[video]} {reason}: other clips are taken instead", file=sys.stderr)
        if (found.used < 0).any():
            some = "; ".join(f"{self._names[video]} {reason}" for video, reason in reasons[-3:])
            raise ValueError(
                f"{CANDIDATES} clips in a row cannot be decoded: {some}. With env.is_cached=true every video is "
                "decoded to its end first, and broken ones are left out"
            )
