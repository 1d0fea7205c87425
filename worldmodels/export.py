"""Take the representation of a finished table run into any scikit-learn pipeline.

    python -m worldmodels.export run_dir=runs/a [to=exported] [checkpoint=newest]

needs the run's folder only, not its data, and writes ``encoder.safetensors`` and ``export.json`` (columns, scales,
categories, sizes: nothing is pickled), which

    from worldmodels.export import TableEmbedding
    make_pipeline(TableEmbedding("exported"), LogisticRegression())

reads again. Rows go in as a data frame with the columns of training; missing values and unseen categories are allowed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tensordict import TensorDict

from envs.table_columns import TablePreprocessor, pd, table_spec
from worldmodels import build, checkpoint
from worldmodels.cli import one_line_errors
from worldmodels.environment import versions
from worldmodels.evals.results import in_chunks
from worldmodels.files import atomic_write_json
from worldmodels.keys import POOLED
from worldmodels.nn.transformer import all_tokens
from worldmodels.pretrained import pretrained

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError as error:
    raise ImportError("worldmodels.export needs scikit-learn: pip install 'worldmodels[tabular]'") from error


class TableEmbedding(TransformerMixin, BaseEstimator):
    """A frozen encoder of table rows as a scikit-learn transformer.

    Args:
        folder: what ``python -m worldmodels.export`` wrote.
        output: "row", all tokens of a row joined, or "pooled", their mean.
        batch_size: rows encoded at a time.
    """

    def __init__(self, folder: str | Path, output: str = "row", batch_size: int = 4096) -> None:
        self.folder, self.output, self.batch_size = folder, output, batch_size

    def fit(self, X: pd.DataFrame, y: Any = None) -> TableEmbedding:
        """Load the encoder; ``X`` must have its columns. Nothing is learned."""
        if self.output not in ("row", "pooled"):
            raise ValueError(f"output={self.output}: an embedding is row or pooled")
        described = json.loads((Path(self.folder) / "export.json").read_text())
        self.preprocessor_ = TablePreprocessor.from_dict(described["preprocessing"])
        encoder = instantiate(described["encoder"])(table_spec(self.preprocessor_, "cpu"))
        checkpoint.copy_tensors(Path(self.folder), load_file(Path(self.folder) / "encoder.safetensors"), encoder)
        self.encoder_ = encoder.eval().requires_grad_(False)
        self.feature_names_in_ = np.array(self.preprocessor_.columns.names, dtype=object)
        self.preprocessor_.transform(X.iloc[:1])  # raises for a table of another kind
        return self

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        """Embed rows: float32 [N, F]."""
        arrays = self.preprocessor_.transform(X)
        obs = TensorDict({name: torch.from_numpy(array) for name, array in arrays.items()}, [len(X)])
        return in_chunks(self._embed, obs, self.batch_size).numpy()

    def _embed(self, obs: TensorDict) -> torch.Tensor:
        out = self.encoder_(obs)
        return out[POOLED] if self.output == "pooled" else all_tokens(out).flatten(1)


def export(run_dir: str, to: str | None = None, step: int | None = None) -> Path:
    """Write the target encoder of the run in ``run_dir`` and its preprocessing to the folder ``to``; returns it.

    Raises:
        ValueError: if the run is not of a table.
    """
    cfg, path = build.load_config(Path(run_dir)), Path(run_dir) / build.SOURCE_FILE
    about = json.loads(path.read_text()) if path.is_file() else {}
    if "preprocessing" not in about:
        raise ValueError(f"the run in {run_dir} is not of a table; only encoders of tables are exported")
    spec = table_spec(TablePreprocessor.from_dict(about["preprocessing"]), "cpu")
    encoder = pretrained(spec, run_dir=run_dir, checkpoint_step=step)
    folder = Path(to or Path(run_dir) / "exported")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = checkpoint.model_tensors(encoder)
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / "encoder.safetensors")
    described = {
        "encoder": OmegaConf.to_container(cfg.encoder, resolve=True),
        "preprocessing": about["preprocessing"],
        "versions": versions(),
    }
    atomic_write_json(folder / "export.json", described)
    return folder


def main(arguments: list[str]) -> None:
    """Run the command line."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if unknown := sorted(set(given) - {"run_dir", "to", "checkpoint"}) or "run_dir" not in given:
        raise ValueError(f"{unknown}: python -m worldmodels.export run_dir=... [to=...] [checkpoint=STEP]")
    step = None if given.get("checkpoint", "newest") == "newest" else int(given["checkpoint"])
    print(f"exported to {export(given['run_dir'], given.get('to'), step)}")


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
