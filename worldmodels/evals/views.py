"""Pairs of views of an objective's data as matrices: of raw entries, with their names, and of representations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn.functional import one_hot
from torchrl.data import Composite, MultiCategorical

from worldmodels.core import Embeds, Objective, TwoViews
from worldmodels.keys import LATENT, MISSING, NUMERICAL, OBSERVATION, SHOWN

CHUNK = 64  # samples drawn and embedded at a time; not more, as sizes of masks may be one draw a batch
RAW = "input"


class Pairs(NamedTuple):
    """Rows of x and y belong together; float64 [N, D], centred, hidden entries 0."""

    x: Tensor
    y: Tensor


class Views(NamedTuple):
    """Everything there is to compare, by name; ``RAW`` is the input itself."""

    pairs: dict[str, Pairs]
    names: list[str]  # of raw entries [D]
    notes: list[str]
    warnings: list[str]


def draw_views(
    objective: Objective, source: Any, num: int, generator: Generator, *, is_standardized: bool, max_dim: int
) -> Views:
    """Draw ``num`` pairs: the objective's own views of samples or, if it names none, two consecutive steps.

    Args:
        objective: in evaluation mode; source: of its data; generator: on the objective's device.
        is_standardized: whether each raw column is scaled to variance 1; the one-hot entries of a category together.
        max_dim: wider matrices are left out, with a note.

    Raises:
        ValueError: if there are no views: no ``views`` of the objective, and no consecutive steps in the source.
    """
    sizes = [CHUNK] * (num // CHUNK) + [num % CHUNK] * (num % CHUNK > 0)
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
    notes: dict[str, None] = {}
    warnings: list[str] = []
    layout = Layout(source, max_dim)
    for size in sizes:
        x, y = _one_draw(objective, source, size, generator)
        if layout.dim <= max_dim:
            rows.setdefault(RAW, []).append((layout.flatten(x), layout.flatten(y)))
        for name, (one, other) in _latents(objective, x, y, notes).items():
            rows.setdefault(name, []).append((one.flatten(1).double(), other.flatten(1).double()))
    if layout.dim > max_dim:
        notes[f"the input has {layout.dim} entries, more than max_dim={max_dim}: only representations are shown"] = None
    pairs = {}
    for name, chunks in rows.items():
        one, other = (torch.cat(side) for side in zip(*chunks, strict=True))
        hidden = one.isnan() & (name == RAW), other.isnan() & (name == RAW)
        if one.shape[1] > max_dim:
            notes[f"{name} is left out: {one.shape[1]} dimensions, more than max_dim={max_dim}"] = None
        elif not bool((one.isfinite() | hidden[0]).all() & (other.isfinite() | hidden[1]).all()):
            warnings.append(f"{name} is left out: it is not finite")
        elif name == RAW:
            pairs[name] = centred(one, other, layout.groups if is_standardized else None)
        else:
            pairs[name] = centred(one, other, None)
    return Views(pairs, layout.names if RAW in pairs else [], list(notes), warnings)


def _one_draw(objective: Objective, source: Any, size: int, generator: Generator) -> tuple[TensorDict, TensorDict]:
    if isinstance(objective, TwoViews):
        batch = source.sample(size, objective.window, generator)
        for transform in objective.transforms():
            batch = transform(batch, generator)
        return objective.views(batch)
    try:
        batch = source.sample(size, max(2, objective.window), generator)
    except ValueError as error:
        raise ValueError(
            f"diagnostics.influence needs two views of a sample: {type(objective).__name__} has no views(batch), and "
            f"the data have no consecutive steps ({error})"
        ) from error
    now, later = (TensorDict({OBSERVATION: batch[OBSERVATION][:, t]}, [size]) for t in (0, 1))
    return now, later


def _latents(
    objective: Objective, x: TensorDict, y: TensorDict, notes: dict[str, None]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Representations of both views: those the views bring, else ``embed``, which knows whole observations only."""
    if LATENT in x.keys():
        return {str(name): (x[LATENT, name], y[LATENT, name]) for name in x[LATENT].keys()}
    if not isinstance(objective, Embeds):
        return {}
    if SHOWN in x.keys():
        notes["no representation: embed(obs) is of whole samples, and the views bring no latent of their own"] = None
        return {}
    one, other = objective.embed(x[OBSERVATION]), objective.embed(y[OBSERVATION])
    return {str(name): (one[name], other[name]) for name in one.keys()}


def centred(x: Tensor, y: Tensor, groups: Tensor | None) -> Pairs:
    """Views [N, D] without their means; NaN, which is hidden, becomes 0.

    Args:
        x, y: float64.
        groups: int64 [D], entries whose summed variance (of both views) is scaled to 1; None scales none.
    """
    x, y = x - _nanmean(x), y - _nanmean(y)
    if groups is not None:
        groups = groups.to(x.device)
        variance = _nanmean(torch.cat([x, y]).square())  # [D]
        total = variance.new_zeros(int(groups.max()) + 1).index_add_(0, groups, variance)[groups]
        scale = torch.where(total > 0, total, 1).rsqrt()  # a constant column stays 0
        x, y = x * scale, y * scale
    return Pairs(x.nan_to_num(nan=0.0), y.nan_to_num(nan=0.0))


def _nanmean(rows: Tensor) -> Tensor:
    """Mean of what is shown [D]; 0 for an entry that never is."""
    return rows.nanmean(0).nan_to_num(nan=0.0)


class Layout:
    """How an observation becomes a row: entries in order, their names, and which belong to one column.

    Categories become one-hot entries; missing numbers are hidden. The source names entries if it has ``entry_names``.

    Args:
        source: with a spec; max_dim: names are not spelt out beyond.
    """

    def __init__(self, source: Any, max_dim: int) -> None:
        observation: Any = source.spec[OBSERVATION]
        assert isinstance(observation, Composite)
        self.cardinalities: dict[str, tuple[int, ...]] = {}
        self.leaves = [str(key) for key in observation.keys() if key != MISSING]
        widths = {}
        for key in self.leaves:
            leaf = observation[key]
            if isinstance(leaf, MultiCategorical):
                self.cardinalities[key] = tuple(int(n) for n in leaf.nvec)
                widths[key] = sum(self.cardinalities[key])
            else:
                widths[key] = leaf.shape.numel()
        self.dim = sum(widths.values())
        self.names: list[str] = []
        groups: list[int] = []
        if self.dim > max_dim:
            return
        known: Mapping[str, Sequence[str]] = source.entry_names() if hasattr(source, "entry_names") else {}
        for key in self.leaves:
            self.names += known.get(key) or [f"{key}[{i}]" for i in range(widths[key])]
            first = groups[-1] + 1 if groups else 0
            sizes = self.cardinalities.get(key, (1,) * widths[key])
            groups += [first + column for column, size in enumerate(sizes) for _ in range(size)]
        self.groups = torch.tensor(groups, device=observation.device)

    def flatten(self, view: TensorDict) -> Tensor:
        """The observation of a view as float64 [B, D], NaN where the view does not show it."""
        obs, parts = view[OBSERVATION], []
        for key in self.leaves:
            leaf, shown = obs[key], view.get((SHOWN, key), None)
            if key in self.cardinalities:
                columns = []
                for i, num in enumerate(self.cardinalities[key]):
                    column = one_hot(leaf[..., i], num).double()
                    columns.append(column if shown is None else _hide(column, shown[..., i : i + 1]))
                parts += columns
                continue
            values = leaf.double()
            if shown is not None:
                values = _hide(values, shown)
            if key == NUMERICAL:
                values = _hide(values, ~obs[MISSING])
            parts.append(values.flatten(1))
        return torch.cat(parts, 1)


def _hide(values: Tensor, shown: Tensor) -> Tensor:
    return torch.where(shown, values, torch.nan)
