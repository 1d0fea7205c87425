"""Pickles of plain data are read as pickle reads them; whatever names something else is refused, and nothing runs."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.python_2_pickle import python_2_pickle
from worldmodels.formats.plain_pickle import load_plain_pickle, read_plain_pickle

PLAIN = {
    "names": np.array(["Vehicle", "Sign"]),
    "boxes": np.arange(6, dtype=np.float64).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big endian": np.array([1, 2], dtype=">i4"),
    "flags": np.array([True, False]),
    "nothing": np.array([]),
    "scalar": np.float64(2.5),
    "nested": [(1, 2.0, None, True), {"pose": np.eye(4, dtype=np.float32)}, b"bytes"],
}


def written(folder: Path, content: Any, protocol: int | None = None) -> Path:
    path = folder / "infos.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_data_come_back_as_they_were(tmp_path: Path, protocol: int) -> None:
    found = read_plain_pickle(written(tmp_path, PLAIN, protocol))
    assert found.keys() == PLAIN.keys()
    for name, value in PLAIN.items():
        if isinstance(value, np.ndarray):
            assert type(found[name]) is np.ndarray
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
    assert found["scalar"] == 2.5
    assert found["nested"][0] == (1, 2.0, None, True)
    np.testing.assert_array_equal(found["nested"][1]["pose"], np.eye(4))
    assert found["nested"][2:] == [b"bytes"]


def test_names_as_numpy_1_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(PLAIN["boxes"], 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(read_plain_pickle(path), PLAIN["boxes"])


def test_pickles_of_python_2_come_with_bytes_for_text(tmp_path: Path) -> None:
    """As CIFAR's are written; the array's bytes are a text to Python 2."""
    content = {"data": np.arange(250, 262, dtype=np.int64).astype(np.uint8).reshape(2, 6), "labels": [3, 1]}
    written = python_2_pickle(content)
    assert pickle.loads(written, encoding="bytes")[b"labels"] == [3, 1]
    found = load_plain_pickle(io.BytesIO(written), name="data_batch_1", is_python_2=True)
    assert found.keys() == {b"data", b"labels"}
    assert found[b"labels"] == [3, 1]
    np.testing.assert_array_equal(found[b"data"], content["data"])
    with pytest.raises(ValueError, match="data_batch_1 is no pickle of plain data"):
        load_plain_pickle(io.BytesIO(written), name="data_batch_1")


class Evil:
    """Makes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_whatever_is_not_plain_is_refused_and_not_run(tmp_path: Path) -> None:
    evil = written(tmp_path, [{"annos": Evil(tmp_path / "made")}])
    with pytest.raises(ValueError, match=r"infos.pkl is no pickle of plain data: it wants \w+.mkdir; only"):
        read_plain_pickle(evil)
    assert not (tmp_path / "made").exists()
    for content, message in (
        (OrderedDict(a=1), "it wants collections.OrderedDict"),
        (Path("a"), "it wants pathlib"),
        (np.array([1, None], dtype=object), "it has an array of dtype O8"),
        (np.zeros(2, dtype=[("a", "f4")]), "it has an array of dtype V4"),
        ({1, 2}, "it holds set"),
        (np.ndarray, "it holds type"),
        (np.dtype("f4"), "it holds Dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            read_plain_pickle(written(tmp_path, content))


def test_states_that_do_not_fit_their_array_are_refused(tmp_path: Path) -> None:
    good = pickle.dumps(np.arange(4, dtype=np.float64), 4)
    path = tmp_path / "infos.pkl"
    path.write_bytes(good.replace(b"K\x04\x85", b"K\x7f\x85"))  # a shape of 127 for the bytes of 4
    assert path.read_bytes() != good
    with pytest.raises(ValueError, match="no pickle of plain data: cannot reshape"):
        read_plain_pickle(path)
    path.write_bytes(good[:-20])
    with pytest.raises(ValueError, match="no pickle of plain data"):
        read_plain_pickle(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="no pickle of plain data"):
        read_plain_pickle(path)
    with pytest.raises(FileNotFoundError, match=r"none.pkl: there is no such file"):
        read_plain_pickle(tmp_path / "none.pkl")
