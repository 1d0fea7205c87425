"""Demonstrations: observations from a file that an agent shall behave like, and how near an episode comes to them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite

from worldmodels.keys import OBSERVATION


def load(path: Path, spec: Composite) -> TensorDict:
    """Read the observations of a demonstration from an .npz file.

    Args:
        path: holds one array [T, ...] for each entry of the observation, under its name ("state", "pixels"), as the
            source gives it. Other arrays are left alone.
        spec: one step of the source.

    Returns:
        batch size [T].

    Raises:
        ValueError: one line, for a file that is none, misses an entry, or holds another shape or no finite numbers.
    """
    wanted = dict(spec[OBSERVATION].items())
    arrays, leaves = _read(path, list(wanted)), {}
    for name, leaf in wanted.items():
        if name not in arrays:
            have = ", ".join(arrays) or "nothing"
            raise ValueError(f"demonstration={path} needs an array {name} [T, ...]; it has {have}")
        array, shape = arrays[name], tuple(leaf.shape)
        if array.shape[1:] != shape or array.ndim == 0 or len(array) == 0:
            raise ValueError(f"demonstration={path}: {name} is {list(array.shape)}, not {['T', *shape]}")
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise ValueError(f"demonstration={path}: {name} holds what is no finite number")
        leaves[name] = torch.from_numpy(array).to(leaf.dtype)
    lengths = {name: len(leaf) for name, leaf in leaves.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"demonstration={path}: its arrays have different lengths: {lengths}")
    return TensorDict(leaves, batch_size=[next(iter(lengths.values()))])


def _read(path: Path, wanted: list[str]) -> dict[str, np.ndarray]:
    """The arrays of ``path``; those that are not ``wanted`` are named, not read."""
    if not path.is_file():
        raise ValueError(f"demonstration={path} does not exist")
    try:
        with path.open("rb") as file:  # numpy does not close what it cannot read
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise ValueError("it is a single array; np.savez names them")
            return {name: content[name] if name in wanted else np.empty(0) for name in content.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"demonstration={path} cannot be read: {' '.join(str(error).split())}") from error


class Likeness:
    """Minus the distance of observations to the nearest one shown, in standard deviations of the data.

    Args:
        shown: [T] observations of a demonstration; data: [N] observations that give each number its unit.
    """

    def __init__(self, shown: TensorDict, data: TensorDict) -> None:
        rows = _flat(data)
        self.scale = rows.std(0).clamp(min=1e-6)  # [S]
        self.shown = _flat(shown) / self.scale  # [T, S]

    def __call__(self, obs: TensorDict) -> Tensor:
        """Minus the root mean square over entries, for ``obs`` [E]: float64 [E], 0 at best."""
        rows = _flat(obs) / self.scale
        away = torch.cdist(rows, self.shown, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        return -away / len(self.scale) ** 0.5


def _flat(obs: TensorDict) -> Tensor:
    leaves = [leaf.cpu().double().flatten(1) for _, leaf in sorted(obs.items())]
    return torch.cat(leaves, 1)
