"""Small real videos of any kind, and broken ones. Frame i is grey, of a level that tells i; video v may have two."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (32, 48)  # height, width


def level(frame: int) -> int:
    """Grey of a frame: 3 levels apart from the next one."""
    return 16 + 3 * frame % 220


def numbered_level(frame: int) -> int:
    """Grey of the left half of a frame, of at most 24, of a video with a number: frames are told after scaling, too."""
    return 16 + 8 * frame


def number_level(video: int) -> int:
    """Grey of the right half of the frames of a video with a number."""
    return 16 + 18 * video


def write_video(
    path: Path,
    *,
    num: int = 24,
    codec: str = "libx264",
    rate: int = 24,
    size: tuple[int, int] = SIZE,
    video: int | None = None,
    stamps: Sequence[int] | None = None,
    has_sound: bool = False,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
) -> Path:
    """Encode ``num`` grey frames. Key frames every 8, two frames in between that none refers to.

    Args:
        video: its number; None: frames are of one grey.
        stamps: of the frames in units of 1 / rate s; None: one after the other.
        options: of the encoder. muxing: of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxing or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        sound: Any = container.add_stream("aac", rate=16_000) if has_sound else None
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        usual = {"bf": "2", "g": "8", "qp": "4"} if codec == "libx264" else {"bf": "2", "g": "8", "b": "2000000"}
        stream.options = usual | (options or {})
        stream.codec_context.time_base = Fraction(1, rate)
        for i in range(num):
            picture = np.full((*size, 3), level(i), np.uint8)
            if video is not None:
                picture[:, : size[1] // 2], picture[:, size[1] // 2 :] = numbered_level(i), number_level(video)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i if stamps is None else stamps[i], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            write_sound(container, sound)
    return path


def write_sound(container: Any, stream: Any) -> None:
    """A second of silence."""
    for i in range(16):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 1024 * i
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_only_sound(path: Path) -> Path:
    """A file with one stream, of sound."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        write_sound(container, stream)
    return path


def write_no_frames(path: Path) -> Path:
    """A file with a stream of pictures that has none."""
    data = bytearray(write_video(path, num=1, codec="mpeg4").read_bytes())
    for box in (b"stsz", b"stts", b"stsc", b"stco", b"stss", b"ctts"):  # sample tables with no entries
        if (at := data.find(box)) >= 0:
            count = at + (12 if box == b"stsz" else 8)
            data[count : count + 4] = bytes(4)
    path.write_bytes(data)
    return path


def truncate(path: Path, share: float) -> Path:
    """Cut a file off."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    """A plain tar."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_list(path: Path, lines: Sequence[str]) -> Path:
    """A list of videos."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_folders(folder: Path, *, parts: Sequence[str] = ("",), classes: str = "ab", num: int = 5) -> Path:
    """Class folders [part/]class/i.mp4; the number of each video is its place in their order."""
    video = 0
    for part in parts:
        for name in classes:
            for index in range(num):
                write_video(folder / part / name / f"{index}.mp4", num=12 + index, video=video)
                video += 1
    return folder
