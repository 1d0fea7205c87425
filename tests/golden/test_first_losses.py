"""The first losses of every system equal the stored ones: a refactoring changes no number.

If a change of numbers is meant, run ``python -m tests.golden.regenerate <system>`` and give the reason in
``CHANGELOG.md`` in the same commit.
"""

from __future__ import annotations

import json

import pytest

from tests.golden.regenerate import FOLDER, STEPS, SYSTEMS, first_losses, path_of

RELATIVE = 1e-5  # processors round differently, and updates carry that on


@pytest.mark.parametrize("system", SYSTEMS)
def test_first_losses_are_the_stored_ones(system):
    assert path_of(system).is_file(), f"a new system needs its numbers: python -m tests.golden.regenerate {system}"
    stored = json.loads(path_of(system).read_text())
    found = first_losses(system)
    assert found.keys() == stored.keys()
    assert max(map(len, found.values())) == STEPS or sum(map(len, found.values())) == STEPS  # phases one after another
    for name, values in found.items():
        assert values == pytest.approx(stored[name], rel=RELATIVE, abs=RELATIVE), name


def test_no_numbers_are_left_of_systems_that_are_gone():
    assert {path.name for path in FOLDER.iterdir()} == {path_of(system).name for system in SYSTEMS}
