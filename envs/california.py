"""California Housing from scikit-learn's download, turned back into the published rows.

scikit-learn gives rooms, bedrooms and people per household; T-JEPA reads the counts of the census (sheet t_jepa,
section 2). Counts are whole numbers, so the ratios give them back exactly. Bedrooms are complete in this source; the
file of Kaggle blanks 207 of them.
"""

from __future__ import annotations

import tempfile
import warnings

import numpy as np

from envs.table_columns import pd

ROWS = 20_640
FROM_SKLEARN = ("MedInc", "HouseAge", "AveRooms", "AveBedrms", "Population", "AveOccup", "Latitude", "Longitude")


def download_california() -> pd.DataFrame:
    """The rows with counts, in dollars, and the split of RTDL: nothing differs from the published table.

    scikit-learn's cache is a pickle, so it is not kept.

    Raises:
        OSError: if the network does not answer, or the file is not the one scikit-learn knows.
        ValueError: if it is but its rows are not.
    """
    from sklearn.datasets import fetch_california_housing

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Retry downloading")  # the error says it once
        frame = fetch_california_housing(data_home=folder, as_frame=True, n_retries=1).frame
    if len(frame) != ROWS:
        raise ValueError(f"scikit-learn's California Housing has {len(frame)} rows; the published table has {ROWS}")
    return with_split(with_counts(frame))


def with_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``fetch_california_housing(as_frame=True)`` as the census counts them, the value in dollars.

    Columns are named and ordered as in Kaggle's file, but for the complete bedrooms, which come last.

    Raises:
        ValueError: if a column is missing, or a count is no whole number.
    """
    if missing := [name for name in (*FROM_SKLEARN, "MedHouseVal") if name not in frame.columns]:
        raise ValueError(f"California Housing lacks the columns {missing}")
    households = _whole(frame["Population"] / frame["AveOccup"], "households")
    return pd.DataFrame(
        {
            "longitude": frame["Longitude"],
            "latitude": frame["Latitude"],
            "housing_median_age": _whole(frame["HouseAge"], "housing_median_age"),
            "total_rooms": _whole(frame["AveRooms"] * households, "total_rooms"),
            "population": _whole(frame["Population"], "population"),
            "households": households,
            "median_income": frame["MedInc"],
            "median_house_value": _whole(frame["MedHouseVal"] * 1e5, "median_house_value"),
            "total_bedrooms_full": _whole(frame["AveBedrms"] * households, "total_bedrooms_full"),
        }
    )


def with_split(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with a column "rtdl_split": a fifth of the rows for test, a fifth of the others for val, both seed 0.

    Source: "Revisiting deep learning models for tabular data"; equal to its published row numbers (tests).
    """
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(len(frame)), test_size=0.2, random_state=0)
    part = np.full(len(frame), "train")
    part[test] = "test"
    part[train_test_split(train, test_size=0.2, random_state=0)[1]] = "val"
    return frame.assign(rtdl_split=part)


def _whole(values: pd.Series, name: str) -> pd.Series:
    whole = values.round()
    is_whole = (values - whole).abs() < 1e-6  # ratios are off by 1e-10 at most; not so for what is not finite
    if not is_whole.all():
        row = int(is_whole.argmin())
        raise ValueError(f"California Housing: {name} of row {row} is {values.iloc[row]}, no whole number")
    return whole.astype("int64")
