"""Lists, folders and shards of videos: what is found, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envs.image_files import Tree
from envs.video_files import Place
from envs.video_lists import Listing, find_videos, joined, numbered
from tests.picture_files import write_class_folders, write_tar
from tests.video_files import write_list, write_shard


def found(path: object) -> Listing:
    listing = find_videos(str(path))
    assert isinstance(listing, Listing)
    return listing


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_a_list_has_a_path_and_a_label_a_line(tmp_path: Path):
    listing = found(write_list(tmp_path / "train.csv", ["a.mp4 3", "/far/b.avi 0", "", "c/d.webm -1"]))
    assert [place.path for place in listing.places] == [f"{tmp_path}/a.mp4", "/far/b.avi", f"{tmp_path}/c/d.webm"]
    assert listing.labels == ("3", "0", "-1")
    assert set(listing.parts) == {""}
    assert listing.layout == "list"
    spaced = found(write_list(tmp_path / "spaced.csv", ["my clip.mp4::run fast", "a b/c.mp4::sit"]))
    assert [Path(place.path).name for place in spaced.places] == ["my clip.mp4", "c.mp4"]
    assert spaced.labels == ("run fast", "sit")
    bare = found(write_list(tmp_path / "bare.txt", ["a.mp4", "b.mp4"]))
    assert bare.labels == ("", "")


def test_lists_that_are_none(tmp_path: Path):
    with pytest.raises(ValueError, match=r"b.csv, line 2: 3 fields.*write :: between"):
        find_videos(write_list(tmp_path / "b.csv", ["a.mp4 1", "my clip.mp4 2"]))
    with pytest.raises(ValueError, match="the list is empty"):
        find_videos(write_list(tmp_path / "c.csv", [" "]))
    (tmp_path / "d.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="it is no text"):
        find_videos(tmp_path / "d.csv")
    with pytest.raises(FileNotFoundError, match="there is no such list, folder or shard"):
        find_videos(tmp_path / "e.csv")
    touch(tmp_path, "one.mp4")
    with pytest.raises(ValueError, match="is one video"):
        find_videos(tmp_path / "one.mp4")


def test_folders_name_parts_and_classes(tmp_path: Path):
    touch(tmp_path, "top/train/run/x/1.mp4", "top/train/sit/2.avi", "top/val/run/3.MKV", "top/train/sit/cover.jpg")
    listing = found(tmp_path)
    assert listing.names == ("train/run/x/1.mp4", "train/sit/2.avi", "val/run/3.MKV")
    assert listing.places[0] == Place(str(tmp_path / "top/train/run/x/1.mp4"))
    assert (listing.parts, listing.labels) == (("train", "train", "val"), ("run", "sit", "run"))
    assert "1 pictures beside the videos" in listing.notes[0]
    touch(tmp_path / "loose", "a.mp4", "b.mp4")
    assert found(tmp_path / "loose").labels == ("", "")
    touch(tmp_path / "loose", "c/d.mp4")
    with pytest.raises(ValueError, match=r"2 videos lie beside the class folders: a.mp4"):
        find_videos(tmp_path / "loose")
    touch(tmp_path / "text", "a.txt")
    with pytest.raises(ValueError, match=r"no video .* and no picture among 1 files"):
        find_videos(tmp_path / "text")


def test_shards_tell_where_members_lie(tmp_path: Path):
    first = {"0/a.mp4": b"video a", "0/a.cls": b"3\n", "0/b.mp4": b"video b", "0/b.json": b'{"label": 1, "x": "y"}'}
    second = {"c.webm": b"video c", "c.json": json.dumps({"fps": 3}).encode(), "d.avi": b"video d", "d.cls": b"0"}
    write_shard(tmp_path / "s-00.tar", first)
    write_shard(tmp_path / "s-01.tar", second)
    for path in (f"{tmp_path}/s-{{00..01}}.tar", f"{tmp_path}/s-*.tar", tmp_path):
        listing = found(path)
        assert listing.names == ("s-00.tar/0/a.mp4", "s-00.tar/0/b.mp4", "s-01.tar/c.webm", "s-01.tar/d.avi")
        assert listing.labels == ("3", "1", "", "0")
        content = [Path(p.path).read_bytes()[p.offset : p.offset + p.size] for p in listing.places]
        assert content == [b"video a", b"video b", b"video c", b"video d"]
    one = found(tmp_path / "s-01.tar")
    assert len(one.names) == 2
    folders = write_shard(tmp_path / "folders.tar", {"val/run/a.mp4": b"x", "train/sit/b.mp4": b"y"})
    assert (found(folders).parts, found(folders).labels) == (("val", "train"), ("run", "sit"))


def test_shards_that_are_none(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"2 shards are not there, first .*s-3.tar"):
        find_videos(f"{tmp_path}/s-{{3..4}}.tar")
    with pytest.raises(FileNotFoundError, match="there is no such shard"):
        find_videos(f"{tmp_path}/s-*.tar")
    (tmp_path / "a.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match=r"a.tar is no readable tar of videos"):
        find_videos(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"x.json is damaged"):
        find_videos(write_shard(tmp_path / "b.tar", {"x.mp4": b"x", "x.json": b"{"}))
    touch(tmp_path / "v", "run/a.mp4", "sit/b.mp4")
    write_tar(tmp_path / "v.tar.gz", tmp_path / "v")
    with pytest.raises(ValueError, match=r"must be a plain .tar"):
        find_videos(tmp_path / "v.tar.gz")


def test_pictures_are_left_to_their_own_readers(tmp_path: Path):
    write_class_folders(tmp_path / "pictures", num=2)
    assert isinstance(find_videos(tmp_path / "pictures"), Tree)
    write_tar(tmp_path / "p.tar", tmp_path / "pictures")
    tree = find_videos(tmp_path / "p.tar")
    assert isinstance(tree, Tree)
    assert len(tree.names) == 4


def test_labels_are_numbers_or_names(tmp_path: Path):
    codes, classes = numbered(["3", "0", "", "-1", "3"])
    assert (codes.tolist(), classes) == ([3, 0, -1, -1, 3], ("0", "1", "2", "3"))
    codes, classes = numbered(["sit", "run", "", "sit"])
    assert (codes.tolist(), classes) == ([1, 0, -1, 1], ("run", "sit"))
    assert numbered(["", ""])[1] == ()
    with pytest.raises(ValueError, match="numbers or names, not both: there are 0 and 'label'"):
        numbered(["0", "1", "label"])


def test_several_listings_are_one(tmp_path: Path):
    train = found(write_list(tmp_path / "train.csv", ["a.mp4 1"]))
    touch(tmp_path / "v", "test/1/b.mp4", "test/0/c.mp4")
    both = joined([("train", train), ("val", found(tmp_path / "v"))])
    assert both.parts == ("train", "test", "test")
    assert both.labels == ("1", "0", "1")
    assert both.layout == "list+folder"
    marks = both.marks
    touch(tmp_path, "a.mp4")
    assert both.marks != marks
