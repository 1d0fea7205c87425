"""Files of every kind: rows by time stamps, without decoding what nobody needs, and what is wrong with broken ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from envs.image_files import Unreadable
from envs.video_files import Place, all_rows, examine, read_rows
from tests.video_files import (
    SIZE,
    level,
    truncate,
    write_no_frames,
    write_only_sound,
    write_shard,
    write_video,
)

FAST = {"libx264": "mp4", "mpeg4": "avi"}


def rows_of(path: Path | Place, first: int, num: int, *, rate: int | float, size: tuple[int, int] = SIZE) -> np.ndarray:
    place = path if isinstance(path, Place) else Place(str(path))
    return read_rows(place, examine(place, rate), first, num, frame_rate=rate, size=size)


def levels(rows: np.ndarray) -> list[int]:
    """Number of the frame that each row shows, by its grey."""
    found = []
    for row in rows:
        assert row.std() < 2  # nothing but grey
        found.append(round((row.mean() - 16) / 3))
        assert abs(row.mean() - level(found[-1])) < 1.4
    return found


@pytest.mark.parametrize(
    ("codec", "ending"),
    [
        ("libx264", "mp4"),
        ("libx264", "mkv"),
        ("libx264", "mts"),
        ("mpeg4", "mp4"),
        ("mpeg4", "avi"),
        ("mpeg1video", "mpg"),
    ],
)
def test_rows_show_the_frames_on_display(tmp_path: Path, codec: str, ending: str):
    path = write_video(tmp_path / f"a.{ending}", num=48, codec=codec)
    place = Place(str(path))
    facts = examine(place, 24)
    assert (facts.rows, facts.is_timed) == (48, True)
    assert levels(rows_of(path, 0, 48, rate=24)) == list(range(48))
    assert examine(place, 8).rows == 16
    assert levels(rows_of(path, 0, 16, rate=8)) == list(range(0, 48, 3))
    for first in (1, 7, 8, 9, 20, 46):  # behind a key frame, on it, just before it
        assert levels(rows_of(path, first, 4, rate=24)) == [min(first + i, 47) for i in range(4)]


@pytest.mark.parametrize(("codec", "ending"), list(FAST.items()))
def test_clips_are_bit_for_bit_those_of_the_whole_video(tmp_path: Path, codec: str, ending: str):
    """What is skipped, because no row shows it and no frame refers to it, leaves others as they are."""
    path = write_video(tmp_path / f"a.{ending}", num=50, codec=codec, options={"qp": "30", "g": "20", "b": "40000"})
    place = Place(str(path))
    whole = rows_of(path, 0, 50, rate=24, size=(20, 28))
    every_third = examine(place, 8)
    for first in (0, 3, 11):
        clip = read_rows(place, every_third, first, 4, frame_rate=8, size=(20, 28))
        assert np.array_equal(clip, whole[3 * first : 3 * first + 12 : 3])
    pieces = np.concatenate(list(all_rows(place, every_third, frame_rate=8, size=(20, 28))))
    assert np.array_equal(pieces, whole[::3])


def test_decoding_reads_no_more_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_video(tmp_path / "a.mp4", num=120)
    place, shown = Place(str(path)), []
    facts = examine(place, 24)
    original = sys.modules["envs.video_files"]._decode

    def watched(stream, packets, wanted, size, **options):
        shown.append(len(packets))
        return original(stream, packets, wanted, size, **options)

    monkeypatch.setattr("envs.video_files._decode", watched)
    read_rows(place, facts, 97, 4, frame_rate=24, size=SIZE)
    assert shown[0] <= 12  # of 120: from the key frame at 96 on, and what is decoded before it is shown


def test_variable_and_low_frame_rates_are_told_by_time_stamps(tmp_path: Path):
    stamps = [0, 1, 2, 3, 30, 31, 60]  # of 24 a second
    path = write_video(tmp_path / "a.mp4", num=7, stamps=stamps)
    shown = [max(i for i, stamp in enumerate(stamps) if stamp <= 3 * row) for row in range(21)]
    assert levels(rows_of(path, 0, 21, rate=8)) == shown
    assert levels(rows_of(path, 9, 4, rate=8)) == shown[9:13]
    slow = write_video(tmp_path / "slow.mp4", num=4, rate=3)
    assert levels(rows_of(slow, 0, 9, rate=6)) == [0, 0, 1, 1, 2, 2, 3, 3, 3]


def test_short_videos_repeat_their_last_frame(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", num=5)
    assert levels(rows_of(path, 0, 8, rate=24)) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert levels(rows_of(write_video(tmp_path / "b.mp4", num=1), 0, 3, rate=24)) == [0, 0, 0]


def test_frames_without_time_stamps_are_numbered(tmp_path: Path):
    path = write_video(tmp_path / "a.h264", num=20, options={"bf": "0"})
    facts = examine(Place(str(path)), 24)
    assert not facts.is_timed
    shown = levels(read_rows(Place(str(path)), facts, 4, 3, frame_rate=24, size=SIZE))
    assert np.diff(shown).tolist() == [1, 1]


@pytest.mark.parametrize("size", [(31, 45), (33, 47), (33, 48)])
def test_odd_sizes_cover_the_rows_and_keep_the_middle(tmp_path: Path, size: tuple[int, int]):
    path = write_video(tmp_path / "a.mp4", num=3, size=size)
    for wanted in ((16, 16), (17, 29), (40, 64)):
        rows = rows_of(path, 0, 3, rate=24, size=wanted)
        assert rows.shape == (3, 3, *wanted)
        assert levels(rows) == [0, 1, 2]


def test_the_middle_is_kept_upright(tmp_path: Path):
    path = tmp_path / "a.mp4"
    import av

    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 16:48] = 128  # what a square of the middle shows
    picture[:8, 16:48, 0] = 255  # red above
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.options = {"b": "4000000"}
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    rows = rows_of(path, 0, 1, rate=24, size=(32, 32))[0].astype(int)
    assert (rows[:, 12:, 2:-2].mean((1, 2)) - 128 < 6).all()
    assert rows[0, :6, 2:-2].mean() > 230
    unit = [value.to_bytes(4, "big") for value in (65536, 0, 0, 0, 65536, 0)]
    turn = [value.to_bytes(4, "big") for value in (0, 65536, 0, 2**32 - 65536, 0, 0)]
    data = path.read_bytes()
    at = data.index(b"".join(unit), data.index(b"tkhd"))
    path.write_bytes(data[:at] + b"".join(turn) + data[at + 24 :])
    turned = rows_of(path, 0, 1, rate=24, size=(32, 32))[0].astype(int)
    assert turned[0, 2:-2, -6:].mean() > 230  # a quarter with the clock: red at the right
    assert turned[0, 2:-2, :6].mean() < 140


def test_members_of_archives_are_read_where_they_lie(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", num=30)
    data = path.read_bytes()
    shard = write_shard(tmp_path / "a.tar", {"x.txt": b"abc", "a.mp4": data, "b.txt": b"behind it"})
    place = Place(str(shard), shard.read_bytes().index(data), len(data))
    assert examine(place, 24) == examine(Place(str(path)), 24)
    assert np.array_equal(rows_of(place, 20, 5, rate=24), rows_of(path, 20, 5, rate=24))


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path):
    from PIL import Image

    Image.fromarray(np.full((*SIZE, 3), level(4), np.uint8)).save(tmp_path / "a.png")
    assert levels(rows_of(tmp_path / "a.png", 0, 2, rate=8)) == [4, 4]


def broken(kind: str, folder: Path) -> Path:
    path = folder / "a.mp4"
    if kind == "missing":
        return path
    if kind == "empty":
        path.write_bytes(b"")
        return path
    if kind == "text":
        path.write_text("no video at all\n" * 50)
        return path
    if kind == "sound":
        return write_only_sound(path)
    if kind == "no frames":
        return write_no_frames(path)
    if kind == "no index":  # as a recording that was stopped: what tells where frames are stands at the end
        return truncate(write_video(path, num=60), 0.6)
    if kind == "cut short":
        noisy = {"qp": "0", "x264-params": "keyint=8"}
        return truncate(write_video(path, num=60, options=noisy, muxing={"movflags": "faststart"}), 0.7)
    assert kind == "cut matroska"
    return truncate(write_video(folder / "a.mkv", num=96, options={"qp": "0"}), 0.6)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "is not there"),
        ("empty", "is empty: 0 bytes"),
        ("text", "cannot be decoded: Invalid data"),
        ("sound", "has no pictures, only sound"),
        ("no frames", "has no frames|has no pictures|cannot be decoded"),
        ("no index", "cannot be decoded"),
        ("cut short", r"is cut short: \d+ of 60 frames|cannot be decoded"),
        ("cut matroska", r"is cut short: \d\.\d of 4\.0 s"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, kind: str, reason: str):
    with pytest.raises(Unreadable, match=reason):
        examine(Place(str(broken(kind, tmp_path))), 8)


def test_damage_inside_is_found_when_it_is_reached(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", num=48, codec="mpeg4", muxing={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    place = Place(str(path))
    facts = examine(place, 24)  # all packets are there, and the first one is whole
    with pytest.raises(Unreadable, match=r"cannot be decoded|damaged"):
        read_rows(place, facts, 40, 4, frame_rate=24, size=SIZE)
    assert read_rows(place, facts, 0, 4, frame_rate=24, size=SIZE).shape == (4, 3, *SIZE)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "envs.video_files")
    with pytest.raises(ImportError, match=r"PyAV: pip install 'worldmodels\[video\]'"):
        __import__("envs.video_files")
