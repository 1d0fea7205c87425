from __future__ import annotations

import subprocess
import sys

import pytest

from worldmodels.environment import keep_freed_memory

SCRIPT = """
import resource, sys
import torch
from worldmodels.environment import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(12_500_000)  # 50 MB: 12,207 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
assert keep_freed_memory()
for _ in range(6):
    faults()  # takes the memory it will keep
print(before, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="allocators of other systems are left alone")
def test_freed_memory_is_used_again_without_page_faults():
    # In a process of its own: the setting is for good.
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after < before / 10


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
