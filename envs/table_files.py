"""Where tables come from: a file, a named data set in a folder, scikit-learn's own, or a download."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.california import download_california
from envs.table_columns import pd
from worldmodels.files import atomic_write
from worldmodels.spelling import did_you_mean

FOLDER = "~/.worldmodels/tables"  # where named data sets are looked for and kept


@dataclass(frozen=True)
class Named:
    """Facts of a published data set."""

    target: str
    files: tuple[str, ...] = ()
    """Names it goes by in a folder."""
    openml: int | None = None
    download: Callable[[], pd.DataFrame] | None = None
    """What OpenML does not have in this form: gives the rows as the first of ``files`` would."""
    bundled: str | None = None
    """Function of sklearn.datasets that needs no network."""
    split_column: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    unit: float = 1.0
    """The target is divided by this."""
    task: str | None = None
    """What the target is, where its values do not tell: 1,000 classes are numbers in a file."""


NAMED: dict[str, Named] = {
    "adult": Named("income", ("adult.csv", "adult.csv.gz"), openml=1590, split_column="uci_part"),
    "california": Named(
        "median_house_value",
        ("california_housing.csv", "california_housing.csv.gz"),
        download=download_california,
        split_column="rtdl_split",
        types={"ocean_proximity": "ignore", "total_bedrooms": "ignore"},  # the 8 columns of T-JEPA, complete bedrooms
        unit=1e5,
    ),
    "jannis": Named(
        "class", ("jannis.csv", "jannis.csv.gz", "jannis_valtest.csv.gz"), openml=41168, split_column="rtdl_split"
    ),
    "higgs": Named("class", ("higgs.csv", "higgs.csv.gz"), openml=23512, task="classification"),
    "helena": Named("class", ("helena.csv", "helena.csv.gz"), openml=41169, task="classification"),
    "aloi": Named("target", ("aloi.csv", "aloi.csv.gz"), openml=42396, task="classification"),
    "digits": Named("target", bundled="load_digits"),
    "breast_cancer": Named("target", bundled="load_breast_cancer"),
    "wine": Named("target", bundled="load_wine"),
    "iris": Named("target", bundled="load_iris"),
    "diabetes": Named("target", bundled="load_diabetes"),
}


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a CSV (also compressed) or Parquet file.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no table, or has no rows.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"env.path={path}: there is no such file")
    try:
        frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (ValueError, OSError, EOFError) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"{file} is no readable table: {str(error).splitlines()[0]}") from error
    if not len(frame):
        raise ValueError(f"{file} has no rows")
    return frame


def load_named(name: str, *, data_dir: str | os.PathLike[str] | None, download: bool) -> pd.DataFrame:
    """The rows of a named data set, in the order of its file.

    Raises:
        ValueError: if there is no such name.
        FileNotFoundError: if it is in no folder and cannot be downloaded.
    """
    if name not in NAMED:
        hint = did_you_mean(name, NAMED, num=2) or "."
        raise ValueError(
            f"env.dataset={name}: no such table{hint} There are {', '.join(NAMED)}; your own goes in env.path"
        )
    facts = NAMED[name]
    if facts.bundled:
        import sklearn.datasets

        bunch: Any = getattr(sklearn.datasets, facts.bundled)(as_frame=True)
        return bunch.frame
    folder = Path(data_dir or FOLDER).expanduser()
    for file in facts.files:
        if (folder / file).is_file():
            return read_table(folder / file)
    problem = "env.download=false"
    if download:
        try:
            return _download(facts, folder)
        except (OSError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            problem = f"{'OpenML' if facts.openml else 'scikit-learn'} did not give it ({reason})"
    raise FileNotFoundError(f"{name}: none of {', '.join(facts.files)} in {folder}, and {problem}. Give env.data_dir=")


def _download(facts: Named, folder: Path) -> pd.DataFrame:
    """The rows, which are also kept in ``folder``."""
    if facts.download is not None:
        frame = facts.download()
        atomic_write(folder / facts.files[0], frame.to_csv(index=False))
        return frame
    from sklearn.datasets import fetch_openml

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A network error occurred")  # the error says it once
        frame = fetch_openml(data_id=facts.openml, as_frame=True, data_home=str(folder)).frame
    return frame.rename(columns={frame.columns[-1]: facts.target}) if facts.target not in frame else frame
