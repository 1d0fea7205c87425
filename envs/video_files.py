"""One video file: examined, and frames of it decoded by their time stamps.

Time is cut into rows, ``frame_rate`` a second from the first frame on; a row shows the frame that is on display then.
So clips are right where frame rates vary or are low, and rows of two files are equally far apart.

To decode a clip, packets from the key frame before it are read first. Frames that no row shows and that no other frame
is made from are then never decoded. Needs PyAV: pip install 'worldmodels[video]'.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.image_files import Unreadable

try:
    import av
    from av.stream import Disposition
    from av.video.reformatter import VideoReformatter
except ImportError as error:
    raise ImportError("video files need PyAV: pip install 'worldmodels[video]'") from error

ENDINGS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv", ".mts")
_SLACK = 1e-3  # s: Matroska rounds time stamps to milliseconds
_WHOLE = 0.9  # of the frames that a header promises, if the file counts as whole
_LONGEST = 48 * 3600  # s: beyond it time stamps are taken to be wrong
_PIECE = 256  # rows decoded at a time
_SKIPPED = "NONREF"  # of packets whose frame no row shows: those that no other frame is made from


class Place(NamedTuple):
    """Where a video lies."""

    path: str
    offset: int = 0
    """Bytes before it: it may be a member of an archive."""
    size: int = -1
    """Bytes; -1: to the end of the file."""


class Facts(NamedTuple):
    """What decoding must know of a file."""

    rows: int
    first: int
    """Time stamp of the first frame, in the stream's unit."""
    is_timed: bool
    """Whether every frame has a time stamp; else they are numbered, and there is no jumping."""


def is_video(name: str) -> bool:
    """Whether a file's name ends like a video's."""
    return name.lower().endswith(ENDINGS)


def examine(place: Place, frame_rate: int | float) -> Facts:
    """Read a file through, decode its first frame.

    Raises:
        Unreadable: if it is missing, empty, no video, without pictures or frames, cut short, or cannot be decoded.
    """
    if not Path(place.path).is_file():
        raise Unreadable("is not there")
    if place.size == 0 or (place.size < 0 and not Path(place.path).stat().st_size):
        raise Unreadable("is empty: 0 bytes")
    with _opened(place) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
        stamps = [packet.pts for packet in packets if not packet.is_discard]
        is_timed = None not in stamps and len(set(stamps)) == len(stamps)
        if not stamps:
            raise Unreadable("has no frames")
        if len(packets) < _WHOLE * stream.frames:
            raise Unreadable(f"is cut short: {len(packets)} of {stream.frames} frames are there")
        first = min(stamps) if is_timed else 0
        if is_timed:
            length = float((max(stamps) - first) * stream.time_base)
        elif stream.average_rate:
            length = float((len(stamps) - 1) / stream.average_rate)
        else:
            raise Unreadable("has neither time stamps nor a frame rate")
        promised = (container.duration or 0) / av.time_base  # s; Matroska does not count frames
        if "matroska" in container.format.name and length + 1 / frame_rate < _WHOLE * promised:
            raise Unreadable(f"is cut short: {length:.1f} of {promised:.1f} s are there")
    if length > _LONGEST:
        raise Unreadable(f"has time stamps that are {length / 3600:,.0f} hours apart")
    facts = Facts(int((length + _SLACK) * frame_rate) + 1, first, is_timed)
    read_rows(place, facts, 0, 1, frame_rate=frame_rate, size=(16, 16))
    return facts


def read_rows(
    place: Place, facts: Facts, first: int, num: int, *, frame_rate: int | float, size: Sequence[int]
) -> np.ndarray:
    """Rows ``first``, ``first`` + 1, ...; beyond the last row the last one again.

    Args:
        place, facts: of the file. first: row, from 0. num: rows, n.
        frame_rate: rows a second, as the file was examined.
        size: height and width. A frame is scaled so that it covers them, and its middle is kept.

    Returns:
        uint8 [n, 3, H, W], red, green, blue.

    Raises:
        Unreadable: if one of the frames cannot be decoded.
    """
    rows = np.minimum(np.arange(first, first + num), facts.rows - 1)
    instants = rows / frame_rate + _SLACK
    if facts.is_timed and rows[0] > 0:
        try:
            return _read(place, facts, instants, size, is_jumping=True)
        except Unreadable:  # some formats and streams cannot jump
            pass
    return _read(place, facts, instants, size, is_jumping=False)


def all_rows(place: Place, facts: Facts, *, frame_rate: int | float, size: Sequence[int]) -> Iterator[np.ndarray]:
    """All rows of a file in pieces uint8 [n, 3, H, W]."""
    for first in range(0, facts.rows, _PIECE):
        num = min(_PIECE, facts.rows - first)
        yield read_rows(place, facts, first, num, frame_rate=frame_rate, size=size)


def _read(place: Place, facts: Facts, instants: np.ndarray, size: Sequence[int], *, is_jumping: bool) -> np.ndarray:
    """Frames on display at ``instants``, seconds after the first frame, rising."""
    with _opened(place) as (container, stream):
        if facts.is_timed:
            limits = facts.first + instants / float(stream.time_base)  # [n] the latest stamp that shows then
            packets = _packets(container, stream, limits, is_jumping=is_jumping)
            stamps = np.sort([packet.pts for packet in packets if not packet.is_discard])
        else:
            packets = list(container.demux(stream))
            stamps = np.arange(sum(bool(packet.size) and not packet.is_discard for packet in packets))
            limits = instants * float(stream.average_rate)
        place_of_row = np.searchsorted(stamps, limits, "right") - 1
        if not len(stamps) or place_of_row[0] < 0:
            raise Unreadable("has no frame where one is to be")
        shown = stamps[place_of_row]  # [n]
        pictures = _decode(stream, packets, set(shown.tolist()), size, is_timed=facts.is_timed)
    return np.stack([pictures[stamp] for stamp in shown.tolist()])


def _packets(container: Any, stream: Any, limits: np.ndarray, *, is_jumping: bool) -> list[Any]:
    """Packets from the key frame before ``limits`` [n], or the beginning, to the last one that can show in them."""
    if is_jumping:
        container.seek(int(limits[0]), stream=stream, backward=True)
    packets = []
    for packet in container.demux(stream):
        if packet.dts is not None and packet.dts > limits[-1]:  # none is shown before it is decoded
            break
        if packet.size:
            packets.append(packet)
    if is_jumping and packets and not (packets[0].is_keyframe and packets[0].pts <= limits[0]):
        raise Unreadable("does not let itself be entered at a key frame")
    return packets


def _decode(
    stream: Any, packets: Sequence[Any], wanted: set[int], size: Sequence[int], *, is_timed: bool
) -> dict[int, np.ndarray]:
    """Pictures uint8 [3, H, W] of the ``wanted`` frames, by time stamp or number."""
    context, reformatter = stream.codec_context, VideoReformatter()
    found: dict[int, np.ndarray] = {}
    number = 0
    for packet in [*packets, None]:  # None: what the decoder still holds
        if is_timed and packet is not None:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else _SKIPPED
        for frame in context.decode(packet):
            stamp = frame.pts if is_timed else number
            number += 1
            if stamp in wanted and stamp not in found:
                if frame.is_corrupt:
                    raise Unreadable(f"has a damaged frame, time stamp {stamp}")
                found[stamp] = _picture(frame, size, reformatter)
        if len(found) == len(wanted):
            return found
    raise Unreadable(f"has {len(wanted) - len(found)} frames that cannot be decoded")


def _picture(frame: Any, size: Sequence[int], reformatter: Any) -> np.ndarray:
    """A frame upright, covering ``size``, its middle: uint8 [3, H, W]."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # quarters, against the clock
    height, width = (size[1], size[0]) if turns % 2 else (size[0], size[1])
    scale = max(height / frame.height, width / frame.width)
    tall, wide = max(height, round(scale * frame.height)), max(width, round(scale * frame.width))
    # Widened filters where it shrinks, as in swscale's other kernels than FAST_BILINEAR.
    scaled = reformatter.reformat(frame, width=wide, height=tall, format="rgb24", interpolation="BILINEAR")
    top, left = (tall - height) // 2, (wide - width) // 2
    picture = scaled.to_ndarray()[top : top + height, left : left + width]
    return np.ascontiguousarray(np.rot90(picture, turns).transpose(2, 0, 1))


@contextmanager
def _opened(place: Place) -> Iterator[tuple[Any, Any]]:
    """The container and its stream of pictures; whatever FFmpeg finds wrong is ``Unreadable``."""
    file = place.path if place.size < 0 else _Member(place)
    try:
        with av.open(file, metadata_errors="ignore") as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise Unreadable("has no pictures" + (", only sound" if container.streams.audio else ""))
            stream = streams[0]
            stream.codec_context.thread_count = 1  # there is a process a core
            yield container, stream
    except FileNotFoundError as error:
        raise Unreadable("is not there") from error
    except (av.FFmpegError, OSError) as error:
        raise Unreadable(f"cannot be decoded: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if isinstance(file, _Member):
            file.close()


class _Member(io.RawIOBase):
    """A part of a file, read as if it were a file."""

    def __init__(self, place: Place) -> None:
        self._file = open(place.path, "rb")  # noqa: SIM115
        self._offset, self._size, self._at = place.offset, place.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._offset + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()
