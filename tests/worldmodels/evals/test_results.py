import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from worldmodels.evals.bootstrap import bootstrap_interval
from worldmodels.evals.results import pack, save_evaluation, unpack


def test_pack_and_unpack_are_inverse():
    result = pack({"task1/success": 0.25, "success": 1.0}, files={"a.png": b"\x89P\n"}, warnings=["w 1", "w 2"])
    evaluation = unpack(result)
    assert evaluation.metrics == {"task1/success": 0.25, "success": 1.0}
    assert evaluation.files == {"a.png": b"\x89P\n"}
    assert evaluation.warnings == ["w 1", "w 2"]
    assert evaluation.notes == []


def test_nested_scalars_are_joined():
    assert unpack(TensorDict({"a": {"b": torch.tensor(2.0)}})).metrics == {"a/b": 2.0}


def test_saving_writes_media_and_gives_the_block(tmp_path):
    block = save_evaluation(
        tmp_path, "zero_shot", 300, pack({"success": 0.5}, files={"maze.png": b"x"}, notes=["no video"])
    )
    assert block == {
        "step": 300,
        "metrics": {"success": 0.5},
        "warnings": [],
        "notes": ["no video"],
        "media": ["media/zero_shot/00000300/maze.png"],
    }
    assert (tmp_path / block["media"][0]).read_bytes() == b"x"


def test_bootstrap_covers_the_mean():
    """95 % intervals of 20 coin flips with p = 0.3 hold p nearly that often (percentile intervals are a bit narrow)."""
    generator = Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval([(torch.rand(20, generator=generator) < 0.3).float()], generator)
        covered += low <= 0.3 <= high
    assert 0.85 <= covered / 200 <= 0.99


def test_bootstrap_resamples_within_tasks():
    solved, failed = torch.ones(10), torch.zeros(3)
    generator = Generator().manual_seed(0)
    assert bootstrap_interval([solved, failed, torch.empty(0)], generator) == (0.5, 0.5)
    assert bootstrap_interval([torch.empty(0)], generator) == pytest.approx((float("nan"),) * 2, nan_ok=True)
