"""Masks for a whole batch at once, on its device: int64 token indices, -1 for padding.

On a GPU shapes depend on the configuration only (a CUDA graph needs that) and what is short is padded. On a CPU, where
looking at a size costs no wait, there is no padding.
"""

from __future__ import annotations

from worldmodels.masking.blocks import MultiBlock
from worldmodels.masking.padding import Subsets, counts, first, is_cut, union, validity
from worldmodels.masking.subsets import RandomSubsets, rounded_uniform
from worldmodels.masking.video import Families, RandomTokens, RandomTubes, VideoMask
from worldmodels.masking.video_blocks import TemporalBlocks, VideoBlocks

__all__ = [
    "Families",
    "MultiBlock",
    "RandomSubsets",
    "RandomTokens",
    "RandomTubes",
    "Subsets",
    "TemporalBlocks",
    "VideoBlocks",
    "VideoMask",
    "counts",
    "first",
    "is_cut",
    "rounded_uniform",
    "union",
    "validity",
]
