"""A zero-shot method learns to reach places it was never told about, and beats what knows nothing.

The others run in ``benchmarks.toy_learning``; their losses and answers are held against closed forms in tests/agents.
"""

from __future__ import annotations

import pytest

from agents.td_jepa import TDJEPA
from benchmarks.toy_learning import MARGIN, learn

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.slow
def test_reaches_places_it_was_never_told_about():
    found = learn(TDJEPA, seed=1)
    assert found["trained"] > max(found["untrained"], found["random"]) + MARGIN
