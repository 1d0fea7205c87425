"""Tables as a source: rows on the training device, batches by index. Any CSV, Parquet file or data frame.

The objective sees training rows without their target. Probes and downstream models ask ``part`` for the labelled rows
of each part. Rows of a window lie next to each other in time elsewhere; here a window is one row, T = 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torchrl.data import Categorical, Composite, Unbounded

from envs.replay import draw_rows
from envs.table_columns import Columns, TablePreprocessor, encode_target, infer_columns, pd, table_spec
from envs.table_files import NAMED, Named, load_named, read_table
from worldmodels.core import Policy
from worldmodels.keys import CATEGORICAL, LABEL, NUMERICAL, OBSERVATION

PARTS = ("train", "val", "test")


class Part(NamedTuple):
    """Labelled rows."""

    frame: pd.DataFrame  # as read, without the target
    obs: TensorDict  # [N]
    target: Tensor  # int64 [N] classes, or float32 [N] in the target's unit


class Tables:
    """One table with a target column, cut into train, val and test.

    Args:
        device: of batches.
        dataset: one of ``envs.table_files.NAMED``; or
        path: a CSV or Parquet file, or a data frame; then ``dataset`` is not used.
        target: its column; None takes the named data set's.
        task: "classification" or "regression"; None decides by the target.
        types: kinds of columns that inference gets wrong: "numerical", "categorical" or "ignore".
        split_column: a column whose values are "train", "val", "test"; None takes the named data set's, if
            ``is_official_split``, and otherwise draws rows by ``split_seed``.
        is_official_split: whether a named data set's own split is used.
        val_share, test_share: of the rows, where they are drawn.
        split_seed: of the parts.
        scale: of numerical columns; see ``TablePreprocessor``.
        is_transductive: whether the objective also sees the rows of val and test (never their targets), as the
            published T-JEPA does. Preprocessing is fitted on train all the same.
        data_dir, download: where named data sets are looked for, and whether OpenML is asked.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        dataset: str | None = None,
        path: str | os.PathLike[str] | pd.DataFrame | None = None,
        target: str | None = None,
        task: str | None = None,
        types: Mapping[str, str] | None = None,
        split_column: str | None = None,
        is_official_split: bool = True,
        val_share: float = 0.1,
        test_share: float = 0.1,
        split_seed: int = 42,
        scale: str = "quantile",
        is_transductive: bool = False,
        data_dir: str | os.PathLike[str] | None = None,
        download: bool = True,
    ) -> None:
        self.device = torch.device(device)
        frame, facts = _load(dataset, path, data_dir, download)
        self.target = target or facts.target
        if self.target not in frame.columns:
            raise ValueError(f"env.target={self.target}: the table has {', '.join(map(str, frame.columns))}")
        own_split = facts.split_column if facts.split_column in frame.columns else None
        labels = frame.pop(self.target)
        if split_column is None and own_split is not None and is_official_split:
            split_column = own_split
        rows = split_rows(frame, split_column, val_share=val_share, test_share=test_share, seed=split_seed)
        frame = frame.drop(columns=[c for c in {split_column, own_split} if c])
        self.task, values, self.classes = encode_target(labels, task=task or facts.task)
        values = values / facts.unit if self.task == "regression" else values

        kinds = {**{k: v for k, v in facts.types.items() if k in frame.columns}, **(types or {})}
        train = frame.iloc[rows["train"]]
        self.columns: Columns = infer_columns(train, types=kinds)
        self.preprocessor = TablePreprocessor(self.columns, scale=scale).fit(train)
        self.notes = self.columns.notes
        self.parts = {name: self._part(frame.iloc[index], values[index]) for name, index in rows.items()}
        seen = PARTS if is_transductive else ("train",)
        rows = {OBSERVATION: torch.cat([self.parts[name].obs for name in seen])}
        self._rows = TensorDict(rows, device=self.device).auto_batch_size_(1)
        if not is_transductive:  # the labels of val and test are for judging only
            self._rows[LABEL] = self.parts["train"].target
        self._rows = self._rows.unsqueeze(1).auto_batch_size_(1)  # [N], leaves [N, 1, ...]
        self.spec = self._spec()

    @property
    def num_rows(self) -> int:
        """Rows the objective sees."""
        return len(self._rows)

    @property
    def num_classes(self) -> int:
        """Classes of the target; 0 for regression."""
        return len(self.classes)

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw rows uniformly: "observation" and, unless transductive, "label", [B, 1].

        Raises:
            ValueError: if ``window`` is not 1: rows of a table have no order.
        """
        return draw_rows(self._rows, batch_size, window, generator)

    def attach(self, policy: Policy | None) -> None:
        """Fixed data needs no policy."""

    def part(self, name: str) -> Part:
        """Labelled rows of "train", "val" or "test"."""
        return self.parts[name]

    def encode(self, frame: pd.DataFrame) -> TensorDict:
        """Observations [N] of new rows."""
        arrays = self.preprocessor.transform(frame)
        return TensorDict({name: torch.from_numpy(array) for name, array in arrays.items()}, [len(frame)]).to(
            self.device
        )

    def _part(self, frame: pd.DataFrame, values: np.ndarray) -> Part:
        target = torch.from_numpy(values).to(self.device)
        return Part(frame, self.encode(frame), target if self.task == "classification" else target.float())

    def _spec(self) -> Composite:
        spec = table_spec(self.preprocessor, self.device)
        if LABEL in self._rows.keys():
            is_class, at = self.task == "classification", {"device": self.device}
            spec[LABEL] = Categorical(self.num_classes, shape=(), **at) if is_class else Unbounded((), **at)
        return spec

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, for JSON: enough to preprocess and label new rows without the old ones."""
        return {
            "preprocessing": self.preprocessor.to_dict(),
            "target": self.target,
            "task": self.task,
            "classes": list(self.classes),
            "rows": {name: len(part.frame) for name, part in self.parts.items()},
            "notes": list(self.notes),
        }

    def entry_names(self) -> dict[str, list[str]]:
        """Name of every number and every one-hot entry of a category, by leaf of the observation."""
        codes = {
            name: ["(unseen)", "(missing)", *self.preprocessor.categories[name]] for name in self.columns.categorical
        }
        entries = [f"{name}={category}" for name, categories in codes.items() for category in categories]
        return {NUMERICAL: list(self.columns.numerical), CATEGORICAL: entries}


def _load(dataset: str | None, path: Any, data_dir: Any, download: bool) -> tuple[pd.DataFrame, Named]:
    if path is not None:
        return path.copy() if isinstance(path, pd.DataFrame) else read_table(path), Named(target="target")
    if dataset is None:
        raise ValueError(f"a table comes from env.dataset ({', '.join(NAMED)}) or from env.path; both are null")
    return load_named(dataset, data_dir=data_dir, download=download).copy(), NAMED[dataset]


def split_rows(
    frame: pd.DataFrame, column: str | None, *, val_share: float, test_share: float, seed: int
) -> dict[str, np.ndarray]:
    """Row numbers of each part.

    With a ``column``, rows named "train", "val" and "test" there. Where one of the last two has no row it is drawn from
    the training rows; where "train" has none, the rows of "val" are for training.

    Source of the drawn split: T-JEPA's, ``train_test_split`` of int(share * N) rows, test first (sheet section 1.7).
    """
    from sklearn.model_selection import train_test_split

    if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
        raise ValueError(f"val_share={val_share}, test_share={test_share}: each above 0, and a rest for training")
    parts: dict[str, np.ndarray] = {}
    train = np.arange(len(frame))
    if column is not None:
        if column not in frame.columns:
            raise ValueError(f"env.split_column={column}: the table has {', '.join(map(str, frame.columns))}")
        names = frame[column].map(str)
        if unknown := sorted(set(names) - set(PARTS)):
            raise ValueError(f"column {column} names the parts {unknown}; they must be {', '.join(PARTS)}")
        parts = {name: np.flatnonzero(names == name) for name in PARTS}
        if not len(parts["train"]):
            parts["train"], parts["val"] = parts["val"], parts["train"]
        train = parts["train"]
    for name, share in (("test", test_share), ("val", val_share)):
        if not len(parts.get(name, ())):
            size = int(share * (len(frame) if column is None else len(train)))
            if not 0 < size < len(train):
                raise ValueError(f"{len(train)} rows are too few to draw {name} of {share:.0%} from")
            train, parts[name] = train_test_split(train, test_size=size, random_state=seed)
    return {"train": train, "val": parts["val"], "test": parts["test"]}
