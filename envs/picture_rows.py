"""ExoRL's rows with pictures in the place of states. Apart from ``envs.dmc_pixels``, whose workers never load torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from tensordict import TensorDict

from envs.dmc_domains import Domain
from envs.dmc_pixels import SIZE, draw_episodes, read_pictures
from envs.replay import load_rows
from worldmodels.keys import ACTION, OBSERVATION, PIXELS, TERMINATED


def with_pictures(
    rows: TensorDict,
    files: Sequence[Path],
    *,
    domain: Domain,
    device: torch.device,
    is_fast: bool = True,
    workers: int | None = None,
    max_device_bytes: int = 8 * 2**30,
) -> TensorDict:
    """Rows [N] with "observation", "pixels" uint8 [N, 3, 64, 64], "action" and "terminated".

    Args:
        rows: [N] with "action" and "terminated", the rows of all files in order.
        files: episodes; pictures that are not there yet are drawn.
        domain: facts.
        device: where rows are wanted.
        is_fast: see ``envs.rendering.StatePainter``.
        workers: processes that draw.
        max_device_bytes: larger data stays on disk, memory-mapped: 12 kB a row.

    Raises:
        RenderError: if pictures are missing and there is no renderer.
        ValueError: if pictures cannot be read, or physics is not this domain's.
    """
    drawn = draw_episodes(domain.name, files, is_fast=is_fast, workers=workers)

    def fill(out: TensorDict) -> None:
        start, pixels = 0, out[OBSERVATION, PIXELS]
        for path in drawn:
            shown = torch.from_numpy(read_pictures(path))
            pixels[start : start + len(shown)] = shown
            start += len(shown)
        if start != len(rows):
            raise ValueError(
                f"{drawn[0].parent} has {start} pictures for {len(rows)} rows; delete it to draw them again"
            )
        for key in (ACTION, TERMINATED):
            out[key].copy_(rows[key])

    marks = [f"{path}/{path.stat().st_size}/{path.stat().st_mtime_ns}" for path in drawn]
    name = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:10]
    shapes = {
        f"{OBSERVATION}/{PIXELS}": ((3, SIZE, SIZE), torch.uint8),
        ACTION: ((domain.action_dim,), torch.float32),
        TERMINATED: ((), torch.bool),
    }
    return load_rows(
        shapes,
        len(rows),
        fill,
        device=device,
        max_device_bytes=max_device_bytes,
        unpacked=drawn[0].parent / f".unpacked-{name}",
    )
