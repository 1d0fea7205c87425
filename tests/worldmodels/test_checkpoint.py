"""Checkpoints: whole or not there, and refused by another configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from perception.normalize import RunningNorm
from tests.disk import small_disk
from worldmodels import checkpoint
from worldmodels.targets import EMA


def model(width: int = 3) -> nn.Module:
    """Weights, a 0-dimensional buffer, a shared parameter, a transposed one, and a target."""
    torch.manual_seed(width)
    net = nn.Sequential(nn.Linear(2, width), RunningNorm(width), nn.Linear(width, 2))
    net.again = net[0]
    net.turned = nn.Parameter(torch.randn(4, 3).T)
    net.target = EMA(net[0], 0.1)
    return net


def save(folder: Path, step: int, **options) -> Path:
    return checkpoint.save(folder, step, **{"model": model(), "optimizer": {}, "state": {}, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_saved_comes_back(tmp_path):
    one, other = model(), model()
    one[1].observe(torch.randn(5, 3))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    optimizer = {"actor/0/step": torch.tensor(3.0), "actor/0/exp_avg": torch.randn(2, 3).T}
    path = save(tmp_path / "new" / "folder", 7, model=one, optimizer=optimizer, state={"config": {"lr": 1e-3}})
    assert path == checkpoint.path_of(tmp_path / "new" / "folder", 7)
    checkpoint.load_model(path, other)
    mine, theirs = checkpoint.model_tensors(one), checkpoint.model_tensors(other)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert other[1].count == 1
    loaded = checkpoint.load_optimizer(path)
    assert loaded.keys() == optimizer.keys()
    assert all(torch.equal(loaded[name], optimizer[name]) for name in loaded)
    assert checkpoint.read_state(path) == {"config": {"lr": 1e-3}, "step": 7}
    assert sorted(p.name for p in path.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]


def test_a_full_disk_leaves_earlier_checkpoints_and_no_half_folder(tmp_path):
    save(tmp_path, 1)
    before = contents(tmp_path)
    message = r"could not write checkpoint .*step_000000002: .*earlier checkpoints are unt"
    with small_disk(1000), pytest.raises(OSError, match=message):
        save(tmp_path, 2, optimizer={"big": torch.zeros(10_000)})
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000001"]
    assert checkpoint.steps(tmp_path) == [1]


def test_a_state_that_is_no_json_leaves_the_same_step_as_it_was(tmp_path):
    save(tmp_path, 1, state={"best": 0.5})
    before = contents(tmp_path)
    with pytest.raises(OSError, match="not JSON serializable"):
        save(tmp_path, 1, state={"best": object()})
    assert contents(tmp_path) == before
    save(tmp_path, 1, state={"best": 0.7})  # the same step again, whole this time
    assert checkpoint.read_state(checkpoint.path_of(tmp_path, 1))["best"] == 0.7


def test_what_a_killed_process_left_is_ignored_and_cleaned(tmp_path):
    """A process that dies in the middle of a write, for real: by its own hand, while the state becomes JSON."""
    code = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from worldmodels import checkpoint\n"
        "class Dies(dict):\n"
        "    def items(self):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.save(Path(sys.argv[1]), 2, model=torch.nn.Linear(2, 2), optimizer={}, state={'a': Dies(b=1)})\n"
    )
    save(tmp_path, 1)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == [".step_000000002.tmp", "step_000000001"]
    assert checkpoint.steps(tmp_path) == [1]
    save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["step_000000001", "step_000000002"]


def test_prune_keeps_what_it_is_told_and_drops_half_folders(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    (tmp_path / ".step_000000025.tmp").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.prune(tmp_path, keep={20, 10})
    assert checkpoint.steps(tmp_path) == [10, 20]
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "step_000000010", "step_000000020"]


def test_steps_counts_finished_checkpoints_in_order(tmp_path):
    assert checkpoint.steps(tmp_path / "nowhere") == []
    for step in (1_000_000_000, 5, 40):
        save(tmp_path, step)
    (tmp_path / "step_000000050").mkdir()  # without state.json it is none
    assert checkpoint.steps(tmp_path) == [5, 40, 1_000_000_000]


class Extended(nn.Module):
    """The model with one more layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.extra = model(), nn.Linear(2, 2)


class Wide(nn.Linear):
    """Differs in its last tensor only."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.bias = nn.Parameter(torch.zeros(5))


@pytest.mark.parametrize(
    ("saved", "wanted", "message"),
    [
        (lambda: model(3), lambda: model(4), r"0\.weight is \(3, 2\), this configuration needs \(4, 2\)"),
        (lambda: nn.Linear(2, 1), lambda: Wide(2, 1), r"bias is \(1,\), this configuration needs \(5,\)"),
        (lambda: Extended().base, Extended, "has an extra tensor 0.bias: it comes from another configuration"),
        (nn.Module, lambda: nn.Linear(2, 1), "has no tensor bias: it comes from another configuration"),
        (lambda: nn.Linear(2, 1), nn.Module, "has an extra tensor bias: it comes from another configuration"),
    ],
    ids=["shape", "later-shape", "extra", "missing", "none"],
)
def test_another_configuration_is_refused_by_the_first_tensor_that_differs(saved, wanted, message, tmp_path):
    path = save(tmp_path, 1, model=saved())
    target = wanted()
    before = {name: t.clone() for name, t in checkpoint.model_tensors(target).items()}
    with pytest.raises(ValueError, match=message):
        checkpoint.load_model(path, target)
    for name, tensor in checkpoint.model_tensors(target).items():
        assert torch.equal(tensor, before[name]), f"{name} was written although the checkpoint was refused"
