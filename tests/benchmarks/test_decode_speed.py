"""The benchmark of decoding compares ways to the same clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import decode_speed


def test_all_contenders_decode_the_same_clip(tmp_path: Path):
    side = decode_speed.SIDE
    path = decode_speed.encode(tmp_path / "a.mp4", "libx264", decode_speed.pictures(side, side, 80), {"g": "12"})
    file = decode_speed._file("a", path)
    assert file.facts.rows == 20
    for first in (0, 4):
        clips = [contender(file, first) for contender in decode_speed.CONTENDERS.values()]
        assert clips[0].shape == (decode_speed.ROWS, 3, side, side)
        assert clips[0].std() > 10
        assert all(np.array_equal(clip, clips[0]) for clip in clips)
    found = decode_speed.measure([file], rounds=1)
    assert len(found) == 6
    assert min(found.values()) > 0
    assert "| a |  | " in decode_speed.report([file], found, 0.5)
