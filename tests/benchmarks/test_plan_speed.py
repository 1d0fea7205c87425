"""The speed of planning is measured for every planner and shape."""

from __future__ import annotations

import functools

import torch

from benchmarks import plan_speed
from worldmodels.predictors.dynamics import LatentDynamics


def test_table_has_a_row_for_every_planner_and_shape() -> None:
    make = functools.partial(LatentDynamics, 16, 2, width=8, depth=1, num_members=1)
    rows = plan_speed.table(make, ((1, 4, 2), (2, 32, 3)), rounds=1, device=torch.device("cpu"))
    assert len(rows) == 2 + 2 * 3
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[2:]]
    assert {row[0] for row in cells} == {"cem", "mppi", "gradient"}
    assert [row[2] for row in cells if row[0] == "gradient"] == ["2", "2"]
    assert all(float(row[5]) > 0 and 0 < int(row[6].rstrip("%")) <= 100 for row in cells)
