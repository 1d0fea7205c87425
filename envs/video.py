"""Real videos as clips: decoded once into a mapped file of bytes, or as they are needed by processes that work ahead.

A window is one clip: rows ``frame_rate`` a second, from a row drawn at random of a video drawn at random; of a video
that is too short the last frame is repeated. Which clips a batch has is a function of its generator's state only, and
the same with and without a cache. Files: ``envs.video_lists``, ``envs.video_files``.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Bounded, Composite

from envs.image_cache import PARTS, Decoded
from envs.image_cache import decoded as decoded_pictures
from envs.image_files import Tree
from envs.image_layouts import UNKNOWN
from envs.images import JUDGED, split_parts, to_device
from envs.moving_scenes import Part
from envs.video_cache import FOLDER, decoded, examined, named, num_bytes
from envs.video_clips import CANDIDATES, Clips, DecodedClips, Plan, StoredClips, host_seed
from envs.video_lists import Listing, find_videos, joined, numbered
from worldmodels.core import Policy
from worldmodels.keys import LABEL, OBSERVATION, PIXELS

CLASS = "class"
_TOLD = 100  # broken files that a run's description names


class Videos:
    """Clips of videos in files.

    Where the data have one held-out part, that is the test, and val is drawn from train; where they have none, both are
    drawn. Drawn parts hold the same share of every class. Labels are ("label", "class"), int64, -1 where a video of
    labelled data has none.

    Args:
        device: of batches.
        path: a list, a folder or tar shards, see ``envs.video_lists``; or a folder or archive of pictures, see
            ``envs.image_layouts``: still clips.
        val_path, test_path: further ones, of these parts.
        size: side of the frames in pixels, or [height, width]: a frame is scaled so that it covers them, and its middle
            is kept.
        num_frames: of the clips of ``part``; batches have as many as they are asked for.
        frame_rate: rows a second, whatever a file's own rate is.
        is_cached: whether videos are decoded once to disk; None: if that takes no more than ``max_cache_bytes``, and
            less than is free.
        max_cache_bytes: see there. max_device_bytes: of decoded videos; more than that stay on disk, memory-mapped.
        max_bad_share: of files that cannot be used. Up to it they are left out, counted and named in ``notes``; beyond
            it data are refused.
        val_share, test_share, split_seed: of drawn parts.
        segments: equal ones that a video is cut into for ``part``; a clip is the middle of one.
        ahead: batches that are decoded while another one is trained on; without a cache.
        cache_dir: of decoded videos. workers: processes that decode; None one a core, 0 none.
        seed: of the videos that ``part`` takes.

    Raises:
        FileNotFoundError: if there is nothing at a path.
        ImportError: without PyAV.
        ValueError: for settings that cannot be, and data that are no videos, broken, or too few, by name.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        path: str | os.PathLike[str] | None = None,
        val_path: str | os.PathLike[str] | None = None,
        test_path: str | os.PathLike[str] | None = None,
        size: int | Sequence[int] = 112,
        num_frames: int = 16,
        frame_rate: int | float = 8,
        is_cached: bool | None = None,
        max_cache_bytes: int = 64 * 2**30,
        max_device_bytes: int = 8 * 2**30,
        max_bad_share: int | float = 0.1,
        val_share: int | float = 0.1,
        test_share: int | float = 0.1,
        split_seed: int = 42,
        segments: int = 1,
        ahead: int = 2,
        cache_dir: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        seed: int = 0,
    ) -> None:
        self.device, self.num_frames, self.segments, self.seed = torch.device(device), num_frames, segments, seed
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
        _check(self.size, size, val_share, test_share, num_frames=num_frames, frame_rate=frame_rate, segments=segments)
        if ahead < 0 or (workers is not None and workers < 0):
            raise ValueError(f"env.ahead={ahead}, env.workers={workers}: 0 or more")
        self.part_name, self.ahead, self.frame_rate = "train", ahead, float(frame_rate)
        self._max_device_bytes, self._max_bad_share = max_device_bytes, float(max_bad_share)
        self._cache_dir, self._workers = cache_dir, workers
        self.where = [os.fspath(p) for p in (path, val_path, test_path) if p is not None]
        if path is None:
            raise ValueError(
                "env.path=null: give a list of videos, a folder or tar shards of them, or use env=moving_scenes"
            )
        given = {"train": path, "val": val_path, "test": test_path}
        found = {name: find_videos(place) for name, place in given.items() if place is not None}
        trees = [tree for tree in found.values() if isinstance(tree, Tree)]
        if trees:
            if len(found) > 1:
                raise ValueError(f"{trees[0].path} has pictures: their parts come from env.path alone, in folders")
            facts = self._open_pictures(trees[0])
        else:
            listings = [(name if len(found) > 1 else "", one) for name, one in found.items()]
            facts = self._open_videos(joined(listings), is_cached, max_cache_bytes)
        shares = {"val_share": float(val_share), "test_share": float(test_share), "seed": split_seed}
        parts = split_parts(facts, **shares)
        parts["train"] = np.concatenate([parts["train"], parts.pop("unlabeled")])
        self._members = {name: torch.from_numpy(videos) for name, videos in parts.items()}
        self.layout, self.notes = facts.layout, facts.notes
        self._labels = torch.from_numpy(facts.labels)
        self.label_classes: dict[str, tuple[str, ...]] = {CLASS: facts.classes} if facts.classes else {}
        self.spec = self._make_spec()

    @property
    def is_stored(self) -> bool:
        """Whether clips are read from decoded videos."""
        return isinstance(self._clips, StoredClips)

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw clips of ``window`` rows.

        Returns:
            batch size [B]: pixels uint8 [B, T, 3, H, W]; ("label", "class") int64 [B, T], if there are labels.

        Raises:
            ValueError: if ``window`` is no row, or clip after clip cannot be decoded.
        """
        if window < 1:
            raise ValueError(f"window={window}: a clip has at least one frame")
        plan = self._plan(batch_size, window, host_seed(generator))
        pixels, videos = self._clips.read(plan)
        rows: dict[str, Any] = {OBSERVATION: {PIXELS: pixels}}
        if self.label_classes:
            rows[LABEL] = {CLASS: self._labels_of(videos)[:, None].repeat(1, window)}
        return TensorDict(rows, [batch_size])

    def announce(self, batch_size: int, window: int, seeds: Sequence[int]) -> None:
        """Be told the seeds of the generators of this batch and of those to come, so that decoding begins early."""
        generator = Generator(self.device)
        if isinstance(self._clips, DecodedClips):
            every = [host_seed(generator.manual_seed(seed)) for seed in seeds]
            self._clips.expect([self._plan(batch_size, window, seed) for seed in every])

    def attach(self, policy: Policy | None) -> None:
        """Nobody acts in videos."""

    def split(self, name: str) -> Videos:
        """The same source with the videos of "train", "val" or "test"."""
        self._of(name)
        other = copy.copy(self)
        other.part_name = name
        return other

    def part(self, name: str, num: int, window: int | None = None) -> Part:
        """Labelled clips of "train", "val" or "test", always the same ones.

        Every video is cut into ``segments`` equal ones, of which the middles are taken; those of a video follow each
        other. Videos come in an order that is drawn once.

        Args:
            name: of the part. num: N, of clips; fewer, where the part has no more. window: rows of each, T; None takes
                ``num_frames``.
        """
        frames = self.num_frames if window is None else window
        if frames < 1:
            raise ValueError(f"window={frames}: a clip has at least one frame")
        members = self._of(name)
        generator = Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        members = members[torch.randperm(len(members), generator=generator)]
        num = min(num, len(members) * self.segments)
        clip = torch.arange(num)
        # Should one of them not let itself be decoded, the next video stands in for it.
        turn = (clip // self.segments)[:, None] + torch.arange(CANDIDATES)  # [N, C]
        videos = members[turn % len(members)]
        lengths = self._clips.lengths[videos]
        middle = ((clip % self.segments)[:, None] + 0.5) * lengths / self.segments
        first = (middle - frames / 2).round().long().clamp(min=0)
        plan = Plan(videos, torch.minimum(first, (lengths - frames).clamp(min=0)), frames, (name, num, "part"))
        pixels, used = self._clips.read(plan)
        target = {CLASS: self._labels_of(used)} if self.label_classes else {}
        return Part(TensorDict({PIXELS: pixels}, [num]), TensorDict(target, [num]))

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, for JSON."""
        return {
            "path": self.where,
            "layout": self.layout,
            "shape": [3, *self.size],
            "frame_rate": self.frame_rate,
            "is_cached": self.is_stored,
            "videos": {name: len(members) for name, members in self._members.items()},
            "frames": {name: int(self._clips.lengths[members].sum()) for name, members in self._members.items()},
            "labels": {name: list(classes) for name, classes in self.label_classes.items()},
            "notes": list(self.notes),
            "left_out": len(self._bad),
            "left_out_files": [" ".join(entry) for entry in self._bad[:_TOLD]],
        }

    def _plan(self, batch_size: int, window: int, seed: int) -> Plan:
        """Clips of a batch, [B, C]: each with others in its place, should it not let itself be decoded."""
        generator, members = Generator().manual_seed(seed), self._members[self.part_name]
        videos = members[torch.randint(len(members), (batch_size, CANDIDATES), generator=generator)]
        room = (self._clips.lengths[videos] - window).clamp(min=0) + 1
        first = torch.rand(batch_size, CANDIDATES, generator=generator, dtype=torch.float64) * room
        return Plan(videos, first.long(), window, (self.part_name, batch_size, seed))

    def _open_videos(self, listing: Listing, is_cached: bool | None, max_cache_bytes: int) -> Decoded:
        """Examine all, decode them if they are to be; labels and parts of those that can be used."""
        if not listing.names:
            raise ValueError(f"env.path={self.where[0]}: there is no video")
        folder = Path(self._cache_dir or FOLDER).expanduser()
        codes, classes = numbered(listing.labels)
        reading = {"frame_rate": self.frame_rate, "workers": self._workers}
        index = examined(listing, folder=folder, **reading)
        self._refuse(index.bad, len(listing.names))
        if is_cached is None:
            is_cached = self._fits(num_bytes(index, self.size), index.home, max_cache_bytes)
        rows = decoded(listing, index, size=self.size, **reading) if is_cached else None
        bad = index.bad if rows is None else (*index.bad, *rows.bad)
        self._refuse(bad, len(listing.names))
        is_good = [facts is not None and (rows is None or rows.begins[i] >= 0) for i, facts in enumerate(index.facts)]
        good = np.flatnonzero(is_good)
        facts = [facts for i, facts in enumerate(index.facts) if facts is not None and is_good[i]]
        self._clips: Clips
        if rows is not None:
            lengths = torch.tensor([one.rows for one in facts])
            self._clips = StoredClips(
                rows.pixels, rows.begins[good], lengths, device=self.device, max_device_bytes=self._max_device_bytes
            )
        else:
            self._clips = DecodedClips(
                [listing.places[i] for i in good], facts, [listing.names[i] for i in good], device=self.device,
                frame_rate=self.frame_rate, size=self.size, workers=self._workers, ahead=self.ahead,
            )  # fmt: skip
        self._bad, notes = bad, [*listing.notes]
        if bad:
            notes.append(f"{len(bad)} of {len(listing.names)} videos are left out: {named(bad)}")
        for note in notes:
            print(note, file=sys.stderr)
        parts = np.asarray([PARTS.index(listing.parts[i]) for i in good])
        return Decoded(
            np.empty((0, 3, *self.size), np.uint8), np.arange(len(good)), codes[good], parts,
            np.full(len(good), UNKNOWN), classes if len(set(codes[good])) > 1 else (), listing.layout, tuple(notes),
        )  # fmt: skip

    def _open_pictures(self, tree: Tree) -> Decoded:
        """Pictures as clips that stand still, decoded by ``envs.image_cache``."""
        if self.size[0] != self.size[1]:
            raise ValueError(f"env.size={list(self.size)}: pictures are kept as squares, of one env.size")
        data = decoded_pictures(
            tree, size=self.size[0], is_enlarged=True, max_bad_share=self._max_bad_share,
            cache_dir=self._cache_dir, workers=self._workers or None,
        )  # fmt: skip
        self._bad = ()
        self._clips = StoredClips(
            data.pixels, data.order, torch.ones(len(data.order), dtype=torch.int64),
            device=self.device, max_device_bytes=self._max_device_bytes,
        )  # fmt: skip
        return data

    def _fits(self, needed: int, home: Path, most: int) -> bool:
        free = shutil.disk_usage(home).free
        if (home / f"rows_{self.size[0]}x{self.size[1]}.json").is_file():
            return True
        if needed <= most and needed < free:
            return True
        reason = f"more than env.max_cache_bytes={most:,}" if needed > most else f"and {free:,} are free"
        print(f"decoded videos take {needed:,} bytes, {reason}: they are decoded as they are needed", file=sys.stderr)
        return False

    def _refuse(self, bad: Sequence[tuple[str, str]], num: int) -> None:
        if len(bad) == num:
            raise ValueError(f"env.path={self.where[0]}: not one of {num} videos can be used: {named(bad)}")
        if len(bad) > self._max_bad_share * num:
            raise ValueError(
                f"env.path={self.where[0]}: {len(bad)} of {num} videos cannot be used: {named(bad)}. That is more than "
                f"env.max_bad_share={self._max_bad_share:g} of them: mend or remove them, or raise it"
            )

    def _make_spec(self) -> Composite:
        at = {"device": self.device}
        pixels = Bounded(0, 255, (3, *self.size), dtype=torch.uint8, **at)
        spec = Composite({OBSERVATION: Composite({PIXELS: pixels}, **at)}, **at)
        if self.label_classes:
            label = Bounded(UNKNOWN, len(self.label_classes[CLASS]) - 1, (), dtype=torch.int64, **at)
            spec[LABEL] = Composite({CLASS: label}, **at)
        return spec

    def _labels_of(self, videos: Tensor) -> Tensor:
        return to_device(self._labels[videos], self.device)

    def _of(self, name: str) -> Tensor:
        if name not in JUDGED:
            raise ValueError(f"there is no part {name}; parts are {', '.join(JUDGED)}")
        return self._members[name]


def _check(
    pair: tuple[int, int], size: Any, val_share: int | float, test_share: int | float, **at_least: int | float
) -> None:
    if min(pair) < 8 or (not isinstance(size, int) and len(size) != 2):
        raise ValueError(f"env.size={size}: a side of at least 8 pixels, or [height, width]")
    for name, value in at_least.items():
        if value <= 0:
            raise ValueError(f"env.{name}={value}: more than 0")
    if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
        raise ValueError(
            f"env.val_share={val_share}, env.test_share={test_share}: each above 0, and a rest for training"
        )
