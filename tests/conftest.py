"""What every test shares: one thread, fixed seeds, annotations checked while tests run, the real data where present."""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two OpenMP threads on a busy core are slower than one
os.environ.setdefault("RL_WARNINGS", "0")  # torchrl announces missing optional parts otherwise
if "MUJOCO_GL" not in os.environ:  # read when mujoco is imported, which fails if the renderer's library is missing
    try:
        ctypes.CDLL("libEGL.so.1")
        os.environ["MUJOCO_GL"] = "egl"
    except OSError:
        os.environ["MUJOCO_GL"] = "disabled"

import jaxtyping

from tests import annotations

annotations.install()  # before the first import of our packages; JAXTYPING_DISABLE=1 pauses it

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
SLOW = hypothesis.HealthCheck.too_slow  # a busy machine is no failure
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[SLOW])
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same numbers in every run, whatever order pytest-randomly chose."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """For tests that compile or learn: torch.compile cannot trace the annotation checks, and thousands of updates with
    them take an eighth longer. They pause."""
    was_disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was_disabled)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, also where code leaves bfloat16 autocast with ``.float()``."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the repository; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real data in {SHARED_DATA}")
    return SHARED_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip gpu tests where no GPU is."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
