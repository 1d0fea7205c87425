"""Columns of a table: what each one is, and how its values become numbers a network can read.

Everything is fitted on training rows only, by scikit-learn, and is plain data afterwards: ``TablePreprocessor.to_dict``
holds numbers and names that JSON can carry, so a finished run needs no pickle to treat new rows as it treated its own.

Codes of a categorical column: 0 a category that training never saw, 1 missing, 2 and on the categories in sorted order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torchrl.data import Categorical, Composite, MultiCategorical, Unbounded

from worldmodels.keys import CATEGORICAL, MISSING, NUMERICAL, OBSERVATION

try:
    import pandas as pd
    from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, StandardScaler
except ImportError as error:
    raise ImportError(f"env=tables needs {error.name}: pip install 'worldmodels[tabular]'") from error

Kind = Literal["numerical", "categorical", "ignore"]
UNSEEN_CODE, MISSING_CODE = 0, 1  # codes of a categorical column before its categories

_SCALERS = {"quantile": QuantileTransformer, "minmax": MinMaxScaler, "standard": StandardScaler}
_FITTED = {  # what each fitted scaler is made of
    "quantile": ("quantiles_", "references_"),
    "minmax": ("scale_", "min_"),
    "standard": ("mean_", "scale_"),
}


@dataclass(frozen=True)
class Columns:
    """Which columns a network sees, in the order of its tokens: numerical ones, then categorical ones."""

    numerical: tuple[str, ...]
    categorical: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Columns left out, and why; one line each."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return self.numerical + self.categorical


def infer_columns(frame: pd.DataFrame, *, types: Mapping[str, str] | None = None) -> Columns:
    """Decide what each column of ``frame`` (training rows, without the target) is.

    Numbers are numerical; texts, categories and truth values are categorical. ``types`` overrides by name. Columns that
    hold nothing, or one value only, carry no information: they are left out with a note.

    Raises:
        ValueError: if ``types`` names an absent column or an unknown kind, a column looks like dates or like the name
            of a row, or nothing is left.
    """
    types = dict(types or {})
    if unknown := sorted(set(types) - set(frame.columns)):
        raise ValueError(
            f"types names {unknown}, which the table does not have; it has {sorted(map(str, frame.columns))}"
        )
    numerical, categorical, notes = [], [], []
    for name in frame.columns:
        kind = types.get(name) or _infer(str(name), frame[name])
        if kind == "ignore":
            continue
        if kind not in ("numerical", "categorical"):
            raise ValueError(f"types.{name}={kind}: a column is numerical, categorical or ignore")
        values = to_numbers(str(name), frame[name]) if kind == "numerical" else frame[name]
        distinct = values.nunique(dropna=True)
        if distinct == 0:
            notes.append(f"column {name} is left out: all of its training values are missing")
        elif distinct == 1 and not values.isna().any():
            notes.append(f"column {name} is left out: it is constant in the training rows")
        else:
            (numerical if kind == "numerical" else categorical).append(str(name))
    if not numerical and not categorical:
        raise ValueError(f"no column is left to learn from: {'; '.join(notes) or 'the table has none but the target'}")
    return Columns(tuple(numerical), tuple(categorical), tuple(notes))


def _infer(name: str, values: pd.Series) -> Kind:
    if pd.api.types.is_datetime64_any_dtype(values):
        raise ValueError(
            f"column {name} holds dates: turn it into numbers first, or leave it out with env.types.{name}=ignore"
        )
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return "numerical"
    distinct, present = values.nunique(dropna=True), int(values.notna().sum())
    if present > 50 and distinct > 0.5 * present:
        raise ValueError(
            f"column {name} has {distinct} distinct texts in {present} rows, as names or broken numbers would: "
            f"say env.types.{name}=ignore, categorical or numerical"
        )
    return "categorical"


def to_numbers(name: str, values: pd.Series) -> pd.Series:
    """``values`` as float64 with NaN where missing.

    Raises:
        ValueError: if a value is no number, or is infinite.
    """
    if pd.api.types.is_bool_dtype(values):
        values = values.astype("float64")
    numbers = pd.to_numeric(values, errors="coerce")
    if (broken := numbers.isna() & values.notna()).any():
        example = values[broken].iloc[0]
        raise ValueError(
            f"column {name} is numerical but {int(broken.sum())} of its {len(values)} values are not, "
            f"such as {example!r} in row {values.index[broken][0]}; clean it, or say env.types.{name}=categorical"
        )
    numbers = numbers.astype("float64")
    if np.isinf(numbers.to_numpy()).any():
        raise ValueError(f"column {name} holds infinite values")
    return numbers


class TablePreprocessor:
    """Turns rows of a data frame into arrays, as fitted on training rows.

    Args:
        columns: what each column is.
        scale: of numerical columns: "quantile" (to a normal distribution), "standard" or "minmax".
        seed: of the rows that the quantiles are estimated on when there are more than 10,000.
    """

    def __init__(self, columns: Columns, *, scale: str = "quantile", seed: int = 0) -> None:
        if scale not in _SCALERS:
            raise ValueError(f"scale={scale}: numerical columns are scaled by {', '.join(_SCALERS)}")
        self.columns, self.scale, self.seed = columns, scale, seed
        self.categories: dict[str, list[str]] = {}
        self.scaler: Any = None

    def fit(self, frame: pd.DataFrame) -> TablePreprocessor:
        """Learn scales and categories from training rows."""
        if self.columns.numerical:
            options: dict[str, Any] = {}
            if self.scale == "quantile":
                options = {
                    "output_distribution": "normal",
                    "n_quantiles": min(1000, len(frame)),
                    "random_state": self.seed,
                }
            self.scaler = _SCALERS[self.scale](**options).fit(self._numbers(frame))
        for name in self.columns.categorical:
            self.categories[name] = sorted({str(value) for value in frame[name].dropna()})
        return self

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Codes of each categorical column, "unseen" and "missing" included."""
        return tuple(2 + len(self.categories[name]) for name in self.columns.categorical)

    def transform(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """Arrays of ``frame`` [N]: "numerical" float32 [N, Dn], "missing" bool [N, Dn], "categorical" int64 [N, Dc].

        A kind without columns is left out. Missing numbers are 0, the middle of the scaled column, and marked.

        Raises:
            ValueError: if a column is absent or a number is none.
        """
        if absent := [name for name in self.columns.names if name not in frame.columns]:
            raise ValueError(f"the table lacks the columns {absent}")
        arrays: dict[str, np.ndarray] = {}
        if self.columns.numerical:
            raw = self._numbers(frame)
            arrays[MISSING] = np.isnan(raw)
            arrays[NUMERICAL] = np.where(arrays[MISSING], 0.0, self.scaler.transform(raw)).astype(np.float32)
        if self.columns.categorical:
            arrays[CATEGORICAL] = np.stack([self._codes(name, frame[name]) for name in self.columns.categorical], -1)
        return arrays

    def _numbers(self, frame: pd.DataFrame) -> np.ndarray:
        return np.stack([to_numbers(name, frame[name]).to_numpy() for name in self.columns.numerical], -1)

    def _codes(self, name: str, values: pd.Series) -> np.ndarray:
        code = {category: 2 + i for i, category in enumerate(self.categories[name])}
        texts = values.astype("object")
        found = texts.map(lambda value: MISSING_CODE if pd.isna(value) else code.get(str(value), UNSEEN_CODE))
        return found.to_numpy(np.int64)

    # --- as plain data ------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Numbers and names from which ``from_dict`` rebuilds this."""
        fitted = {name: np.asarray(getattr(self.scaler, name)).tolist() for name in _FITTED[self.scale] if self.scaler}
        return {
            "numerical": list(self.columns.numerical),
            "categories": {name: self.categories[name] for name in self.columns.categorical},
            "scale": self.scale,
            "fitted": fitted,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TablePreprocessor:
        """The preprocessor that ``to_dict`` described."""
        columns = Columns(tuple(data["numerical"]), tuple(data["categories"]))
        self = cls(columns, scale=data["scale"])
        self.categories = {name: list(values) for name, values in data["categories"].items()}
        if columns.numerical:
            options = {"output_distribution": "normal"} if self.scale == "quantile" else {}
            self.scaler = _SCALERS[self.scale](**options)
            for name, value in data["fitted"].items():
                setattr(self.scaler, name, np.asarray(value))
            self.scaler.n_features_in_ = len(columns.numerical)
        return self


def encode_target(values: pd.Series, *, task: str | None) -> tuple[str, np.ndarray, Sequence[str]]:
    """Decide what the target is and number its classes.

    Args:
        values: the target of all rows; task: "classification", "regression", or None to decide: numbers with more than
            20 distinct values are to be regressed.

    Returns:
        the task, the target (int64 codes [N] or float64 [N]) and the names of the classes (none for regression).

    Raises:
        ValueError: if values are missing, or there is a single one.
    """
    name = str(values.name)
    if values.isna().any():
        raise ValueError(
            f"target {name} is missing in {int(values.isna().sum())} of {len(values)} rows; drop these first"
        )
    if values.nunique() < 2:
        raise ValueError(f"target {name} has a single value, {values.iloc[0]!r}: there is nothing to learn")
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    task = task or ("regression" if is_number and values.nunique() > 20 else "classification")
    if task == "regression":
        return task, to_numbers(name, values).to_numpy(), ()
    if task != "classification":
        raise ValueError(f"env.task={task}: a target is for classification or regression")
    classes = sorted(values.unique()) if is_number else sorted(map(str, values.unique()))
    code = {str(c): i for i, c in enumerate(classes)}
    return task, values.map(lambda value: code[str(value)]).to_numpy(np.int64), [str(c) for c in classes]


def table_spec(preprocessor: TablePreprocessor, device: torch.device | str) -> Composite:
    """What one row looks like after ``preprocessor``."""
    numbers, cards = len(preprocessor.columns.numerical), preprocessor.cardinalities
    parts: dict[str, Any] = {}
    if numbers:
        parts[NUMERICAL] = Unbounded((numbers,), device=device)
        parts[MISSING] = Categorical(2, shape=(numbers,), dtype=torch.bool, device=device)
    if cards:
        parts[CATEGORICAL] = MultiCategorical(cards, device=device)
    return Composite({OBSERVATION: Composite(parts, device=device)}, device=device)
