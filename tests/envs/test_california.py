"""California Housing as scikit-learn downloads it, against the published table. No network is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pd = pytest.importorskip("pandas", reason="needs the tabular extra: pip install 'worldmodels[tabular]'")
pytest.importorskip("sklearn", reason="needs the tabular extra: pip install 'worldmodels[tabular]'")

from envs.california import with_counts, with_split  # noqa: E402
from envs.table_files import load_named, read_table  # noqa: E402
from envs.tables import Tables  # noqa: E402

FILE = Path(__file__).resolve().parents[3] / "shared/data/tabular/california_housing.csv.gz"
shared = pytest.mark.skipif(not FILE.is_file(), reason="needs ../shared/data/tabular/california_housing.csv.gz")


def counts(num: int = 500) -> pd.DataFrame:
    """Made-up rows, in the columns of the published file that models read."""
    random = np.random.default_rng(0)
    whole = {
        "housing_median_age": random.integers(1, 53, num),
        "total_rooms": random.integers(2, 40_000, num),
        "population": random.integers(3, 36_000, num),
        "households": random.integers(1, 6_100, num),
        "median_house_value": random.integers(14_999, 500_002, num),
        "total_bedrooms_full": random.integers(1, 6_500, num),
    }
    real = {
        "longitude": random.uniform(-124, -114, num).round(2),
        "latitude": random.uniform(32, 42, num).round(2),
        "median_income": random.uniform(0.5, 15, num).round(4),
    }
    return pd.DataFrame({**real, **whole})


def as_sklearn(rows: pd.DataFrame) -> pd.DataFrame:
    """What ``fetch_california_housing`` makes of counts: means per household, the value in 100,000 dollars."""
    rows = rows.astype({name: float for name in rows.columns if rows[name].dtype == np.int64})
    return pd.DataFrame(
        {
            "MedInc": rows["median_income"],
            "HouseAge": rows["housing_median_age"],
            "AveRooms": rows["total_rooms"] / rows["households"],
            "AveBedrms": rows["total_bedrooms_full"] / rows["households"],
            "Population": rows["population"],
            "AveOccup": rows["population"] / rows["households"],
            "Latitude": rows["latitude"],
            "Longitude": rows["longitude"],
            "MedHouseVal": rows["median_house_value"] / 100_000.0,
        }
    )


def test_counts_come_back_from_ratios():
    rows = counts()
    found = with_counts(as_sklearn(rows))
    pd.testing.assert_frame_equal(found[rows.columns], rows, check_exact=True)


def test_rows_that_are_not_these_are_refused():
    rows = as_sklearn(counts())
    with pytest.raises(ValueError, match=r"lacks the columns \['AveOccup'\]"):
        with_counts(rows.drop(columns="AveOccup"))
    rows.loc[3, "AveRooms"] += 0.3 / round(rows.loc[3, "Population"] / rows.loc[3, "AveOccup"])
    with pytest.raises(ValueError, match=r"total_rooms of row 3 is \d+\.\d+, no whole number"):
        with_counts(rows)
    rows.loc[2, "AveOccup"] = 0.0
    with pytest.raises(ValueError, match="households of row 2 is inf, no whole number"):
        with_counts(rows)


def test_without_a_network_one_line_says_so(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy"):  # a closed port: refused at once, here and on machines with a network
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request._opener", None)  # it remembers its proxies, also for later tests
    message = r"^california: none of .* scikit-learn did not give it \(.+\)\. Give env"
    with pytest.raises(FileNotFoundError, match=message) as found:
        load_named("california", data_dir=tmp_path, download=True)
    assert "\n" not in str(found.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"and env\.download=false\. Give env\.data_dir="):
        load_named("california", data_dir=tmp_path, download=False)


@shared
@pytest.mark.data
def test_the_download_is_the_published_table(tmp_path):
    """Every value, the order of rows and columns, and the split; also after a round through the file that is kept."""
    published = read_table(FILE)
    rows = with_split(with_counts(as_sklearn(published)))
    pd.testing.assert_frame_equal(rows, published[rows.columns], check_exact=True, check_dtype=False)
    assert set(published.columns) - set(rows.columns) == {"ocean_proximity", "total_bedrooms"}  # no model reads them
    rows.to_csv(tmp_path / "california_housing.csv", index=False)
    mine, theirs = (Tables(dataset="california", data_dir=folder, download=False) for folder in (tmp_path, FILE.parent))
    assert mine.columns.names == theirs.columns.names
    for name in ("train", "val", "test"):
        assert bool((mine.part(name).obs == theirs.part(name).obs).all())
        assert torch.equal(mine.part(name).target, theirs.part(name).target)
