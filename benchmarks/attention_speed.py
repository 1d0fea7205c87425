"""Attention of few tokens on a CPU: ours at once over heads and rows, torch's kernel one by one.

    python -m benchmarks.attention_speed

Processor time of a forward and a backward pass, one thread; the smallest of several rounds in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.runs import command, save_table, today, version_list
from benchmarks.update_speed import hardware
from worldmodels import build
from worldmodels.nn.transformer import attend

SHAPES = (
    ("T-JEPA's predictor, Jannis", (1024, 2, 31, 16), 41),
    ("T-JEPA's teacher, Jannis", (256, 2, 55, 16), 55),
    ("T-JEPA's context, Jannis", (256, 2, 18, 16), 18),
    ("ViT-B, 196 patches", (16, 12, 196, 64), 196),
    ("ViT-B, 512 tokens", (4, 12, 512, 64), 512),
)
ROUNDS = 7


def milliseconds(function: Callable[..., Tensor], parts: list[Tensor]) -> float:
    """Processor time of a forward and a backward pass."""
    start = time.process_time()
    function(*parts).sum().backward()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    """Time both for every shape, print and save the table."""
    torch.set_num_threads(1)
    build.use_fast_matmul(torch.device("cpu"))
    rows = ["| of | query | keys | torch, ms | ours, ms | ratio |", "|---|---|---|---|---|---|"]
    for name, shape, num_keys in SHAPES:
        key = (*shape[:2], num_keys, shape[3])
        parts = [torch.randn(size, requires_grad=True) for size in (shape, key, key)]
        rounds = [
            [milliseconds(function, parts) for function in (F.scaled_dot_product_attention, attend)]
            for _ in range(ROUNDS)
        ]
        theirs, ours = (min(column) for column in zip(*rounds[1:], strict=True))  # the first one warms up
        rows.append(f"| {name} | {list(shape)} | {num_keys} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.1f} |")
    where = hardware(torch.device("cpu"))
    head = [
        f"# Attention on a CPU, {where}, {today()}",
        "",
        f"{command('attention_speed')}; {version_list('torch')}",
        "",
    ]
    save_table(f"attention-{where}", "\n".join([*head, *rows, ""]))


if __name__ == "__main__":
    main()
