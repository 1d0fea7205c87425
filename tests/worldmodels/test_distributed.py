"""Data parallelism: free on one process, and two real processes agree."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worldmodels import distributed

CPU = torch.device("cpu")
WORKER = """
import torch
from worldmodels import distributed as d
device = d.start(torch.device("cpu"))
rank = d.rank()
assert d.world_size() == 2
assert d.is_main() == (rank == 0)
one, two = torch.tensor([[1.0, 2.0]]) + rank, torch.tensor(10.0 * rank)
d.average_([one, two])
assert one.tolist() == [[1.5, 2.5]], one
assert two.item() == 5.0
assert d.average_([]) is None
same = torch.full((3,), float(rank + 7))
d.broadcast_([same])
assert same.tolist() == [7.0] * 3
assert d.any_process(rank == 1, device) is True
assert d.any_process(False, device) is False
assert d.share({"run": f"from {rank}"}) == {"run": "from 0"}
d.barrier()
d.stop()
assert d.world_size() == 1
"""


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.start(CPU) == CPU
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.start(CPU) == CPU
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    tensor = torch.tensor([3.0])
    distributed.average_([tensor])
    distributed.broadcast_([tensor])
    assert tensor.item() == 3.0
    assert [distributed.any_process(flag, CPU) for flag in (True, False)] == [True, False]
    assert distributed.share("name") == "name"
    distributed.barrier()
    distributed.stop()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_average_broadcast_and_stop_together():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=Path(__file__).parents[2],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
