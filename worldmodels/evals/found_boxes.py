"""Boxes that an objective finds in frames, and pictures of them: shared by the evaluators of detection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from tensordict import TensorDict

from perception.detection.decoding import Detections
from worldmodels.core import Objective
from worldmodels.evals.results import judging
from worldmodels.evals.scan_pictures import bev_picture, scene_html
from worldmodels.keys import OBSERVATION


@runtime_checkable
class Detects(Protocol):
    """Finds boxes."""

    def detect(self, obs: TensorDict) -> Detections:
        """Boxes, scores and classes of scans, batch size [B]."""
        ...


class Found(NamedTuple):
    """What was found in one frame; N boxes."""

    boxes: np.ndarray  # float64 [N, 7]
    scores: np.ndarray  # float64 [N]
    labels: np.ndarray  # int [N]


def need_scans(source: Any, *, name: str, instead: str) -> None:
    """Refuse a source without labelled scans; ``name`` is the evaluator's, ``instead`` a setting that has them.

    Raises:
        ValueError: if ``source`` has no ``frames`` (``envs.scans``).
    """
    if not hasattr(source, "frames"):
        raise ValueError(f"{name} needs labelled scans; {type(source).__name__} has none. Use {instead}")


def find_boxes(objective: Objective, frames: Any, *, batch_size: int, name: str) -> list[Found]:
    """Detect in every frame of a split (``envs.scans``); ``name`` is the evaluator's, for the message.

    Raises:
        ValueError: if the objective does not detect.
    """
    if not isinstance(objective, Detects):
        raise ValueError(f"{name} needs an objective that detects; {type(objective).__name__} does not")
    found = []
    with judging(objective):
        for batch in frames.batches(batch_size):
            out = objective.detect(batch[OBSERVATION][:, 0])
            parts = zip(*(values.cpu().double().numpy() for values in out), strict=True)
            for boxes, scores, labels in parts:
                is_box = labels >= 0
                found.append(Found(boxes[is_box], scores[is_box], labels[is_box].astype(int)))
    return found


def draw_boxes(objective: Any, frames: Any, found: Sequence[Found], *, num: int) -> dict[str, bytes]:
    """The first frames from above, truth green and detections orange, and the first one in 3D, if plotly is there."""
    low, high, files = objective.encoder.low, objective.encoder.high, {}
    for index in range(min(num, len(frames))):
        frame, (boxes, scores, _) = frames[index], found[index]
        points, truth = frame.points.cpu().numpy(), frame.boxes.cpu().numpy()
        file = f"frame_{frame.name.replace('/', '_')}"
        files[f"{file}.png"] = bev_picture(
            points, low=low, high=high, truth=truth, boxes=boxes, scores=scores, title=f"frame {frame.name}"
        )
        if index == 0 and (html := scene_html(points, truth=truth, boxes=boxes, scores=scores)):
            files[f"{file}.html"] = html
    return files
