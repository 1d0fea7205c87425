"""Clips a second and core that env=video decodes, against decoding every frame.

    python -m benchmarks.decode_speed
    python -m benchmarks.decode_speed --rounds 10 --files a.mp4 b.webm

A clip is 16 rows, 7.5 a second (every fourth frame of 30 a second), scaled to 128 x 128. Processor time of one thread,
which other processes disturb less than wall time; the median of several rounds in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch

from benchmarks.runs import command, save_table, today, version_list
from benchmarks.update_speed import hardware
from envs import video_files
from envs.video_files import Facts, Place, examine, read_rows

RATE, ROWS, SIDE = 7.5, 16, 128
FRAMES = 300  # of 30 a second
PUBLISHED = {"h264 340 x 256": "9-13", "h264 426 x 240": "21", "mpeg4 320 x 240": "69"}
"""Clips a second by PyAV, every frame decoded: sheet salt_video, section 4; another machine and other pictures."""


class File(NamedTuple):
    """A video that is measured."""

    name: str
    place: Place
    facts: Facts


def pictures(width: int, height: int, num: int) -> np.ndarray:
    """Frames uint8 [num, H, W, 3]: a smooth texture that drifts, squares that cross it, and a little noise."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (height // 16 + 8, width // 16 + 24, 3)).astype(np.uint8)
    wide = av.VideoFrame.from_ndarray(np.ascontiguousarray(small), format="rgb24")
    texture = wide.reformat(16 * small.shape[1], 16 * small.shape[0], interpolation="BICUBIC").to_ndarray()
    frames = np.empty((num, height, width, 3), np.uint8)
    for i in range(num):
        top, left = round(30 + 28 * np.sin(i / 20)), i
        frames[i] = texture[top : top + height, left : left + width]
        for number in range(4):
            y, x = (37 * number + 2 * i) % (height - 40), (91 * number + 3 * i) % (width - 40)
            frames[i, y : y + 40, x : x + 40] = 60 * number
        frames[i, ::4, ::4] += random.integers(0, 6, frames[i, ::4, ::4].shape).astype(np.uint8)
    return frames


def encode(path: Path, codec: str, frames: np.ndarray, options: dict[str, str]) -> Path:
    """Write a video of 30 frames a second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = options
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def made(folder: Path) -> list[File]:
    """Videos as data sets have them: x264's and MPEG-4's usual settings, and key frames every 12 frames."""
    found = []
    for width, height, codec, name in (
        (340, 256, "libx264", "h264"),
        (426, 240, "libx264", "h264"),
        (320, 240, "mpeg4", "mpeg4"),
    ):
        frames = pictures(width, height, FRAMES)
        usual = {"crf": "23"} if codec == "libx264" else {"b": "1000000", "g": "250"}
        for suffix, more in (("", {}), (", key frames every 12", {"g": "12"})):
            path = encode(folder / f"{len(found)}.mp4", codec, frames, usual | more)
            found.append(_file(f"{name} {width} x {height}{suffix}", path))
    return found


def _file(name: str, path: Path) -> File:
    place = Place(str(path))
    return File(name, place, examine(place, RATE))


def every_frame(file: File, first: int) -> np.ndarray:
    """The same clip by decoding all frames from the first on, as a plain loop over a video does."""
    rows = np.empty((ROWS, 3, SIDE, SIDE), np.uint8)
    with av.open(file.place.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        origin, row = None, 0
        for frame in container.decode(stream):
            origin = frame.time if origin is None else origin
            if frame.time - origin + 1e-3 >= (first + row) / RATE:
                picture = frame.to_ndarray(width=SIDE, height=SIDE, format="rgb24", interpolation="BILINEAR")
                rows[row] = picture.transpose(2, 0, 1)
                row += 1
            if row == ROWS:
                break
    return rows


def ours(file: File, first: int) -> np.ndarray:
    """As env=video decodes it."""
    return read_rows(file.place, file.facts, first, ROWS, frame_rate=RATE, size=(SIDE, SIDE))


def ours_without_skipping(file: File, first: int) -> np.ndarray:
    """As env=video decodes it, but all frames from the key frame on."""
    usual, video_files._SKIPPED = video_files._SKIPPED, "DEFAULT"
    try:
        return ours(file, first)
    finally:
        video_files._SKIPPED = usual


CONTENDERS: dict[str, Callable[[File, int], np.ndarray]] = {
    "every frame": every_frame,
    "from the key frame": ours_without_skipping,
    "env=video": ours,
}


def measure(files: Sequence[File], rounds: int) -> dict[tuple[str, str, str], float]:
    """Clips a second of processor time by file, place and contender."""
    random = np.random.default_rng(0)
    spent: dict[tuple[str, str, str], list[float]] = {}
    for turn in range(rounds + 1):  # the first one warms up
        for file in files:
            anywhere = int(random.integers(0, max(file.facts.rows - ROWS, 0) + 1))
            for where, first in (("beginning", 0), ("anywhere", anywhere)):
                for name, contender in CONTENDERS.items():
                    start = time.process_time()
                    contender(file, first)
                    if turn:
                        spent.setdefault((file.name, where, name), []).append(time.process_time() - start)
    # At the beginning all rounds do the same: the median. Anywhere, clips differ: the mean.
    return {
        key: 1 / (statistics.median(times) if key[1] == "beginning" else statistics.mean(times))
        for key, times in spent.items()
    }


def report(files: Sequence[File], found: dict[tuple[str, str, str], float], load: float) -> str:
    """The table."""
    head = " | ".join(f"{where}: {name}" for where in ("beginning", "anywhere") for name in CONTENDERS)
    rows = []
    for file in files:
        cells = [f"{found[file.name, where, name]:.1f}" for where in ("beginning", "anywhere") for name in CONTENDERS]
        rows.append(f"| {file.name} | {PUBLISHED.get(file.name, '')} | {' | '.join(cells)} |")
    device = torch.device("cpu")
    return "\n".join(
        [
            f"# Decoding videos, {hardware(device)}, {today()}",
            "",
            f"{command('decode_speed')}; av {av.__version__}, {version_list('numpy')}; load average {load:.1f} on "
            f"{os.cpu_count()} cores.",
            "",
            f"Clips a second of processor time, one thread. A clip is {ROWS} rows, {RATE} a second, of videos of 10 s "
            f"and 30 frames a second, scaled to {SIDE} x {SIDE}. *Every frame* is a loop over the video from its first "
            "frame to the clip's last. *From the key frame* begins at the key frame before the clip. *env=video* also "
            "skips frames that are neither shown nor referred to. The sheet's figures are of another machine and other "
            "pictures, clips of 64 frames.",
            "",
            f"| video | sheet | {head} |",
            f"|---|---|{'---|' * 2 * len(CONTENDERS)}",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--files", nargs="*", type=Path, help="measure these instead of videos made here")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        files = [_file(path.name, path) for path in options.files or ()] or made(Path(folder))
        found = measure(files, options.rounds)
    save_table(f"decoding-{hardware(torch.device('cpu'))}", report(files, found, load))


if __name__ == "__main__":
    main()
