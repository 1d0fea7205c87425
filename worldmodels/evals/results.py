"""What an evaluation gives back, and the conditions it runs under: shared by all evaluators.

An evaluator returns a TensorDict: scalars under names like "task1/success", and under "media" one uint8 vector a file
("maze.png", "episodes.json"). Warnings and notes travel as the files "warnings.txt" and "notes.txt", one a line.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tensordict import TensorDict

from worldmodels.core import Objective
from worldmodels.files import atomic_write
from worldmodels.keys import MEDIA

T = TypeVar("T", torch.Tensor, TensorDict)
CHUNK = 4096  # observations that evaluators encode at a time
_WARNINGS, _NOTES = "warnings.txt", "notes.txt"
_ROUND: ContextVar[dict[tuple[Any, ...], Any] | None] = ContextVar("round", default=None)


class Evaluation(NamedTuple):
    """An evaluator's result on the host."""

    metrics: dict[str, float]
    files: dict[str, bytes]
    warnings: list[str]
    notes: list[str]


def pack(
    metrics: Mapping[str, float],
    *,
    files: Mapping[str, bytes] | None = None,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> TensorDict:
    """Build an evaluator's result. Lines of warnings and notes must not contain a line break."""
    content = dict(files or {})
    content |= {name: "\n".join(lines).encode() for name, lines in ((_WARNINGS, warnings), (_NOTES, notes)) if lines}
    result = TensorDict({name: torch.tensor(float(value), dtype=torch.float64) for name, value in metrics.items()})
    media = {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in content.items() if data}
    return result.set(MEDIA, TensorDict(media)) if media else result


def unpack(result: TensorDict) -> Evaluation:
    """The inverse of ``pack``; scalars that an evaluator nested come back as "outer/inner"."""
    scalars = result.exclude(MEDIA).flatten_keys("/")
    files = {str(k): bytes(v.cpu().numpy()) for k, v in result.get(MEDIA, TensorDict({})).items()}
    warnings = files.pop(_WARNINGS, b"").decode().splitlines()
    notes = files.pop(_NOTES, b"").decode().splitlines()
    return Evaluation({str(k): float(v) for k, v in scalars.items()}, files, warnings, notes)


def save_evaluation(run_dir: str | Path, name: str, step: int, result: TensorDict) -> dict[str, Any]:
    """Write the files of an evaluation to ``run_dir/media/<name>/<step>`` and return its block for ``summary.json``.

    Returns:
        "step", "metrics" {name: number}, "warnings" and "notes" [line], "media" [path below run_dir].
    """
    evaluation = unpack(result)
    folder = Path("media") / name / f"{step:08d}"
    for file, data in evaluation.files.items():
        atomic_write(Path(run_dir) / folder / file, data)
    return {
        "step": step,
        "metrics": evaluation.metrics,
        "warnings": evaluation.warnings,
        "notes": evaluation.notes,
        "media": [(folder / file).as_posix() for file in evaluation.files],
    }


@contextmanager
def one_round() -> Iterator[None]:
    """Evaluators called within it judge the same weights: what several of them need is computed once, then let go."""
    token = _ROUND.set({})
    try:
        yield
    finally:
        _ROUND.reset(token)


def once_a_round(key: tuple[Any, ...], function: Callable[[], Any]) -> Any:
    """``function()``; within ``one_round``, what the first call with an equal ``key`` gave."""
    known = _ROUND.get()
    if known is None:
        return function()
    if key not in known:
        known[key] = function()
    return known[key]


@contextmanager
def judging(objective: Objective) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards modes and all global random states are as they were."""
    modes = [(module, module.training) for module in objective.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        objective.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy)


def in_chunks(function: Callable[[TensorDict], T], obs: TensorDict, size: int = CHUNK) -> T:
    """``function`` of observations [N], ``size`` of them at a time, its results joined along the first dimension."""
    return torch.cat([function(part) for part in obs.split(size)])  # type: ignore[arg-type, return-value]


def require_parts(source: Any, name: str) -> None:
    """Raise a ValueError in the words of ``name`` if the source has no labelled parts."""
    if not hasattr(source, "part"):
        raise ValueError(f"{name} needs labelled parts; {type(source).__name__} has none. Use env=tables or env=images")


def device_of(objective: Objective) -> torch.device:
    """Where the objective's parameters live; the CPU if it has none."""
    return next((parameter.device for parameter in objective.parameters()), torch.device("cpu"))


def parts_of(objective: Objective, source: Any) -> dict[str, tuple[Any, Any]]:
    """An objective with its source, under the prefix ""; of a joint one on a mixture each part, under "name/"."""
    parts, sources = getattr(objective, "objectives", None), getattr(source, "sources", None)
    if parts is None or sources is None:
        return {"": (objective, source)}
    return {f"{name}/": (part, sources[name]) for name, part in parts.items()}
