"""One file's bytes become red, green and blue, whatever kind of picture it is; what is no picture says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="needs the images extra: pip install 'worldmodels[images]'")

from envs.image_files import Unreadable, decode, open_tree, upright_size  # noqa: E402
from tests.picture_files import encoded, random_picture, write_class_folders, write_tar  # noqa: E402


def test_colours_come_back_as_they_were():
    picture = random_picture(0, size=(5, 7))
    np.testing.assert_array_equal(decode(encoded(picture, "PNG"), None), picture.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_modes_become_colours(mode):
    picture = Image.fromarray(random_picture(1)).convert(mode)
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    made = decode(encoded(picture, kind), None)
    np.testing.assert_array_equal(made, np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
    if mode in ("L", "1"):
        assert (made[0] == made[1]).all()
        assert (made[1] == made[2]).all()


def test_cmyk_ink_is_taken_from_white():
    ink = Image.new("CMYK", (2, 2), (255, 0, 51, 0))
    np.testing.assert_array_equal(decode(encoded(ink, "TIFF"), None)[:, 0, 0], [0, 255, 204])
    jpeg = decode(encoded(ink.resize((16, 16)), "JPEG"), None)[:, 8, 8]
    np.testing.assert_allclose(jpeg.astype(int), [0, 255, 204], atol=4)


def test_sixteen_bits_are_scaled():
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    made = decode(encoded(Image.fromarray(values), "PNG"), None)
    np.testing.assert_array_equal(made, np.broadcast_to(np.array([[0, 100, 255]], np.uint8), (3, 1, 3)))
    with pytest.raises(Unreadable, match=r"mode I from -5 to 3 are not 16 bits"):
        decode(encoded(Image.fromarray(np.array([[-5, 3]], np.int32)), "TIFF"), None)
    with pytest.raises(Unreadable, match="mode F"):
        decode(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), None)


def test_what_is_transparent_lies_on_white():
    picture = np.zeros((1, 3, 4), np.uint8)
    picture[0, :, 3] = 0, 255, 102  # through, not at all, two fifths
    made = decode(encoded(Image.fromarray(picture), "PNG"), None)
    np.testing.assert_array_equal(made[:, 0], np.broadcast_to(np.array([255, 0, 153], np.uint8), (3, 3)))
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(decode(encoded(palette, "PNG"), None).flatten(), [255, 255, 255])


def test_photographs_are_turned_as_the_camera_noted():
    picture = Image.fromarray(random_picture(2, size=(4, 6)))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    import io

    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    expected = np.asarray(picture.transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(file.getvalue(), None), expected)
    assert upright_size(file.getvalue()) == expected.shape[1:] == (6, 4)
    assert upright_size(encoded(picture, "PNG")) == (4, 6)


def test_the_middle_is_kept_and_resized():
    picture = np.zeros((4, 10, 3), np.uint8)
    picture[:, 3:7] = 200  # the middle square
    made = decode(encoded(picture, "PNG"), 4)
    np.testing.assert_array_equal(made, np.full((3, 4, 4), 200))
    assert decode(encoded(picture, "PNG"), 3).shape == (3, 3, 3)
    assert decode(encoded(picture, "PNG"), 9).shape == (3, 9, 9)  # enlarged
    with pytest.raises(Unreadable, match=r"is 10 x 4 pixels, smaller than env.size=9"):
        decode(encoded(picture, "PNG"), 9, is_enlarged=False)
    large = decode(encoded(np.full((400, 300, 3), 77, np.uint8), "JPEG"), 16)  # decoded at a fraction
    assert large.shape == (3, 16, 16)
    assert int(np.abs(large.astype(int) - 77).max()) <= 1


def test_broken_files_say_what_is_wrong():
    whole = encoded(random_picture(3, size=(64, 64)), "PNG")
    with pytest.raises(Unreadable, match=r"is empty \(0 bytes\)"):
        decode(b"", None)
    for data in (b"no picture at all", whole[: len(whole) // 2], encoded(random_picture(3), "JPEG")[:120]):
        with pytest.raises(Unreadable, match=r"is no readable picture: .+"):
            decode(data, None)
    with pytest.raises(Unreadable, match=r"is no readable picture: its content is of no known kind$"):
        decode(b"no picture at all", None)


@pytest.mark.parametrize(("ending", "top"), [("tar", "."), ("tar.gz", "set"), ("tgz", "a/b")])
def test_an_archive_holds_the_files_of_its_folder(tmp_path: Path, ending: str, top: str):
    write_class_folders(tmp_path / "set", num=3)
    (tmp_path / "set" / ".hidden").write_text("no")
    folder = open_tree(tmp_path / "set")
    write_tar(tmp_path / f"set.{ending}", tmp_path / "set", top=top)
    archive = open_tree(tmp_path / f"set.{ending}")
    assert archive.names == folder.names == tuple(f"{c}/0{i}.png" for c in "ab" for i in range(3))
    assert dict(archive.contents(["b/01.png", "a/00.png"])) == dict(folder.contents(["b/01.png", "a/00.png"]))
    assert archive.read("a/02.png") == (tmp_path / "set/a/02.png").read_bytes()


def test_marks_tell_when_a_file_has_changed(tmp_path: Path):
    write_class_folders(tmp_path, num=2)
    before = open_tree(tmp_path).marks
    assert open_tree(tmp_path).marks == before
    (tmp_path / "a" / "00.png").write_bytes(b"other")
    assert open_tree(tmp_path).marks != before


def test_paths_that_are_no_data_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"env.path=.*none: there is no such folder or archive"):
        open_tree(tmp_path / "none")
    (tmp_path / "file.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a folder of pictures or a tar archive \(.tar"):
        open_tree(tmp_path / "file.zip")
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"bad.tar is no readable tar archive"):
        _ = open_tree(tmp_path / "bad.tar").names
