"""The OGBench source: published layouts as they are, local data where none is, one clear line for everything else."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from envs import ogbench_files
from envs.ogbench import OGBench
from envs.ogbench_names import find_dataset

MAZE = "pointmaze-medium-stitch-v0"  # as the fixture ``maze``
MakeFile = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's data nor the network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OGBENCH_DATA_DIR", raising=False)


def _source(path: Path, name: str = MAZE, **options) -> OGBench:
    return OGBench(dataset=name, data_dir=path.parent, download=False, collect=False, **options)


def test_sample_gives_what_the_spec_promises(maze: Path) -> None:
    source = _source(maze)
    batch = source.sample(16, 2, Generator().manual_seed(0))
    assert source.spec.expand(16, 2).is_in(batch.auto_batch_size_(2))
    assert not batch["terminated"].any()
    assert source.store.num_transitions == 10_050
    assert "physics" not in batch.keys()


def test_batches_are_transitions_of_the_file(maze: Path) -> None:
    """Every sampled pair is one of ogbench's own (observation, action, next observation)."""
    from ogbench.utils import load_dataset

    data = load_dataset(str(maze))
    theirs = np.concatenate([data["observations"], data["actions"], data["next_observations"]], -1)
    batch = _source(maze).sample(500, 2, Generator().manual_seed(0))
    state = batch["observation", "state"]
    ours = torch.cat([state[:, 0], batch["action"][:, 0], state[:, 1]], -1).numpy()
    assert {row.tobytes() for row in ours} <= {row.tobytes() for row in theirs}


def test_labelled_states_come_with_the_action_and_physics_that_belong_to_them(maze: Path) -> None:
    source = _source(maze)
    labelled = source.labelled(500, Generator().manual_seed(0))
    assert labelled.batch_size == (500,)
    qpos = labelled["physics", "qpos"]
    assert qpos.dtype == torch.float64
    assert torch.equal(qpos.float(), labelled["observation", "state"]), "a point's state is its qpos"
    raw = np.load(maze)
    pairs = np.concatenate([raw["actions"][:-1], raw["observations"][1:]], -1)
    ours = torch.cat([labelled["action"], labelled["observation", "state"]], -1).numpy()
    assert {row.tobytes() for row in ours} <= {row.tobytes() for row in pairs}


def test_validation_split(maze: Path) -> None:
    assert _source(maze, split="val").store.num_transitions == 1_005
    with pytest.raises(ValueError, match="split='test'"):
        _source(maze, split="test")


def test_max_episodes_keeps_the_first(maze: Path) -> None:
    few = _source(maze, max_episodes=3)
    assert (few.store.num_trajectories, few.store.num_rows) == (3, 603)
    assert torch.equal(
        few.store.rows(torch.arange(603))["action"], _source(maze).store.rows(torch.arange(603))["action"]
    )
    with pytest.raises(ValueError, match="max_episodes=0"):
        _source(maze, max_episodes=0)


@pytest.mark.parametrize(
    ("name", "physics"),
    [
        ("antmaze-large-navigate-v0", True),
        ("scene-play-v0", True),
        ("puzzle-4x5-noisy-v0", True),
        ("humanoidmaze-medium-stitch-v0", False),
    ],
)
def test_state_layouts(name: str, physics: bool, make_file: MakeFile) -> None:
    changes = {} if physics else {"qpos": None, "qvel": None}
    source = _source(make_file(name, **changes), name)
    facts = find_dataset(name)
    labelled = source.labelled(4, Generator().manual_seed(0))
    assert labelled["observation", "state"].shape == (4, *facts.observation_shape)
    assert ("physics" in labelled.keys()) == physics
    if facts.num_buttons:
        assert labelled["physics", "button_states"].dtype == torch.int64
        assert labelled["physics", "button_states"].shape == (4, facts.num_buttons)


def test_picture_layout(make_file: MakeFile) -> None:
    name = "visual-cube-single-play-v0"
    path = make_file(name)
    source = _source(path, name, frame_stack=3)
    batch = source.sample(8, 2, Generator().manual_seed(0))
    assert source.spec.expand(8, 2).is_in(batch.auto_batch_size_(2))
    raw = np.load(path)["observations"]
    rows = _source(path, name).store.rows(torch.arange(9))["observation", "pixels"].numpy()
    np.testing.assert_array_equal(rows, np.moveaxis(raw, -1, 1))


def test_compact_layout(make_file: MakeFile) -> None:
    """As ``load_dataset(compact_dataset=True)`` gives it: two terminals a trajectory, and which rows are valid."""
    terminals = np.array([0, 0, 0, 1, 1, 0, 0, 1, 1], np.float32)
    valids = np.array([1, 1, 1, 1, 0, 1, 1, 1, 0], np.float32)
    source = _source(make_file(MAZE, terminals=terminals, valids=valids))
    assert source.store.lengths.tolist() == [5, 4]


def test_large_data_stays_on_disk(make_file: MakeFile) -> None:
    name = "visual-cube-single-play-v0"
    path = make_file(name)
    memory = _source(path, name)
    disk = _source(path, name, max_device_bytes=1000)
    folder = next(path.parent.glob(".*.unpacked-*"))
    before = folder.stat().st_mtime_ns
    again = _source(path, name, max_device_bytes=1000)
    assert folder.stat().st_mtime_ns == before, "unpacked once"
    a, b, c = (source.sample(8, 2, Generator().manual_seed(3)) for source in (memory, disk, again))
    assert (a == b).all()
    assert (a == c).all()


def test_folders_are_searched_in_order(make_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / name for name in ("given", "environment", "home/.ogbench/data")]
    monkeypatch.setenv("OGBENCH_DATA_DIR", str(folders[1]))
    for folder in reversed(folders):
        folder.mkdir(parents=True)
        make_file(MAZE, folder=folder)
        source = OGBench(dataset=MAZE, data_dir=folders[0], download=False, collect=False)
        assert source.path.parent == folder


def test_absent_data_is_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"dataset": MAZE, "data_dir": tmp_path / "d", "download": False, "transitions": 450, "workers": 1}
    source = OGBench(**options)
    assert source.store.num_transitions == 450
    assert source.provenance is not None
    errors = capsys.readouterr().err
    assert "collecting it on this machine" in errors
    assert "450 of 1,000,000 published transitions" in errors
    with pytest.raises(ValueError, match="exists with transitions=450"):
        OGBench(**(options | {"transitions": 600}))
    assert OGBench(**(options | {"transitions": None})).store.num_transitions == 450, (
        "any size will do if none is asked"
    )
    with pytest.raises(ValueError, match="exists with seed=0"):
        OGBench(**(options | {"seed": 1}))


@pytest.mark.parametrize("name", ["antmaze-medium-navigate-v0", "humanoidmaze-large-stitch-v0", "visual-scene-play-v0"])
def test_experts_are_asked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name}.npz and {name}-val.npz .* put both into {tmp_path}"):
        OGBench(dataset=name, data_dir=tmp_path, download=False)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served on this machine in the place of ogbench's server."""
    from ogbench import utils

    folder = tmp_path / "server"
    folder.mkdir()
    handler = partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(utils, "DATASET_URL", f"http://127.0.0.1:{running.server_port}")
        yield folder
        running.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # ogbench leaves the socket to the garbage collector
def test_downloads_where_the_network_allows(server: Path, make_file: MakeFile, tmp_path: Path) -> None:
    name = "antmaze-medium-navigate-v0"
    make_file(name, folder=server)
    os.link(server / f"{name}.npz", server / f"{name}-val.npz")
    source = OGBench(dataset=name, data_dir=tmp_path / "got")
    assert source.path.parent == tmp_path / "got"
    assert source.provenance is None
    assert sorted(p.name for p in source.path.parent.iterdir() if p.suffix != ".lock") == [
        f"{name}-val.npz",
        f"{name}.npz",
    ]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_failed_download_leaves_nothing(server: Path, make_file: MakeFile, tmp_path: Path) -> None:
    name = "antmaze-medium-navigate-v0"
    make_file(name, folder=server)  # the second file is not there
    with pytest.raises(ValueError, match="cannot be collected here"):
        OGBench(dataset=name, data_dir=tmp_path / "got")
    assert not [p for p in (tmp_path / "got").iterdir() if p.suffix != ".lock"]


def test_no_server_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ogbench import utils

    monkeypatch.setattr(utils, "DATASET_URL", "http://127.0.0.1:9")  # nobody listens
    assert not ogbench_files.download(find_dataset(MAZE), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "actions is missing; it has observations, qpos, qvel, terminals"),
        ({"observations": np.zeros((9, 3), np.float32)}, r"observations has shape \[9, 3\].* needs \[9, 2\]"),
        ({"actions": np.zeros((8, 2), np.float32)}, r"actions has shape \[8, 2\].* needs \[9, 2\]"),
        ({"qpos": np.zeros((7, 2), np.float32)}, r"qpos has shape \[7, 2\]"),
        ({"terminals": np.zeros(9, bool)}, "terminals does not end the last trajectory: row 8 is 0"),
        ({"next_observations": np.zeros((9, 2), np.float32)}, "expanded layout"),
        ({"actions": np.array([None] * 9)}, "actions is not a plain array"),
        (
            {"observations": np.array([[0, 0]] * 4 + [[np.nan, 1]] + [[0, 0]] * 4, np.float32)},
            r"observations is not finite in row 4: \[nan, 1.0\]",
        ),
        ({"actions": np.array([[0, np.inf]] + [[0, 0]] * 8, np.float32)}, "actions is not finite in row 0"),
    ],
)
def test_wrong_files_are_named(changes: dict, message: str, make_file: MakeFile) -> None:
    path = make_file(MAZE, **changes)
    with pytest.raises(ValueError, match=message) as error:
        _source(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.98])
def test_damaged_files_are_named(keep: float, maze: Path, tmp_path: Path) -> None:
    content = maze.read_bytes()
    path = tmp_path / maze.name
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="the file is damaged") as error:
        _source(path)
    assert str(path) in str(error.value)


def test_a_flipped_byte_is_found(make_file: MakeFile) -> None:
    path = make_file(MAZE, lengths=(900, 900))
    content = bytearray(path.read_bytes())
    content[3000] ^= 0xFF  # within the observations
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="observations, the file is damaged"):
        _source(path)


def test_impossible_settings(maze: Path) -> None:
    with pytest.raises(ValueError, match="did you mean pointmaze-medium-stitch-v0"):
        _source(maze, "pointmaze-medium-stich-v0")
    with pytest.raises(ValueError, match="only pictures are stacked"):
        _source(maze, frame_stack=3)
    with pytest.raises(ValueError, match="collecting is off"):
        OGBench(dataset=MAZE, data_dir=maze.parent / "empty", download=False, collect=False)
