"""Checkpoints: safetensors for tensors, JSON for the rest, written under another name and then renamed.

A checkpoint is a folder ``checkpoints/step_000001000/`` with ``model.safetensors`` (weights, buffers and targets; loads
without an optimizer), ``optimizer.safetensors``, ``source.safetensors`` where the source gathers experience, and
``state.json`` (step, configuration, spec, versions, commit). An interrupted write leaves a folder with a dot in front,
which nobody reads and the next write removes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

NAME = re.compile(r"step_(\d+)$")


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of ``module``; one that two names share appears once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(
    folder: Path,
    step: int,
    *,
    model: nn.Module,
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    source: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint of ``step`` finished steps atomically; returns its path.

    Raises:
        OSError: if it could not be written (a full disk, say); earlier checkpoints are untouched.
    """
    final, temporary = folder / f"step_{step:09d}", folder / f".step_{step:09d}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        save_file(
            {k: v.detach().contiguous() for k, v in model_tensors(model).items()}, temporary / "model.safetensors"
        )
        save_file({k: v.contiguous() for k, v in optimizer.items()}, temporary / "optimizer.safetensors")
        if source:
            save_file({k: v.contiguous() for k, v in source.items()}, temporary / "source.safetensors")
        (temporary / "state.json").write_text(json.dumps({**state, "step": step}, indent=1))
        for file in temporary.iterdir():
            _sync(file)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync(folder)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"could not write checkpoint {final}: {error}; earlier checkpoints are untouched") from error
    return final


def steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in ``folder``, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := NAME.match(p.name)) and (p / "state.json").is_file())


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return folder / f"step_{step:09d}"


def prune(folder: Path, *, keep: set[int]) -> None:
    """Remove every checkpoint but those of the steps to ``keep``, and what interrupted writes left."""
    for path in folder.iterdir():
        match = NAME.match(path.name)
        if (match and int(match[1]) not in keep) or path.name.startswith(".step_"):
            shutil.rmtree(path, ignore_errors=True)


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of the checkpoint at ``path``."""
    return json.loads((path / "state.json").read_text())


@torch.no_grad()
def load_model(path: Path, model: nn.Module) -> None:
    """Copy the weights of the checkpoint at ``path`` into ``model``.

    Raises:
        ValueError: if a tensor is missing, unknown or of another shape: the checkpoint is of another configuration.
    """
    copy_tensors(path, load_file(path / "model.safetensors"), model)


@torch.no_grad()
def load_part(path: Path, module: nn.Module, name: str) -> None:
    """Copy the weights of one module of the checkpoint's model, such as "target.module", into ``module``.

    Raises:
        ValueError: if there is no such part, or its tensors are not those of ``module``.
    """
    saved, prefix = load_file(path / "model.safetensors"), f"{name}."
    found = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
    if not found:
        known = sorted({key.split(".")[0] for key in saved})
        raise ValueError(f"checkpoint {path} has no part {name}; its parts begin with {', '.join(known)}")
    copy_tensors(path, found, module)


@torch.no_grad()
def copy_tensors(path: Path, saved: dict[str, Tensor], model: nn.Module) -> None:
    """Copy the tensors ``saved`` at ``path`` into ``model``; all of them must match."""
    mine = model_tensors(model)
    for name in sorted(saved.keys() ^ mine.keys()):
        side = "has no" if name in mine else "has an extra"
        raise ValueError(f"checkpoint {path} {side} tensor {name}: it comes from another configuration")
    for name, tensor in mine.items():
        if saved[name].shape != tensor.shape:
            have, want = tuple(saved[name].shape), tuple(tensor.shape)
            raise ValueError(f"checkpoint {path}: {name} is {have}, this configuration needs {want}")
    for name, tensor in mine.items():
        tensor.copy_(saved[name])


def load_optimizer(path: Path) -> dict[str, Tensor]:
    """The optimizer tensors of the checkpoint at ``path``."""
    return load_file(path / "optimizer.safetensors")


def load_source(path: Path) -> dict[str, Tensor]:
    """What the source had gathered by the checkpoint at ``path``; {} where it gathers nothing."""
    file = path / "source.safetensors"
    return load_file(file) if file.is_file() else {}
