"""How well boxes are found by distance from the sensor: average precision of data without a camera (ONCE, Waymo)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensordict import TensorDict

from perception.detection.once_ap import MEAN, RANGES, Boxes, Group, evaluate
from worldmodels.core import Objective
from worldmodels.evals.found_boxes import Found, draw_boxes, find_boxes, need_scans
from worldmodels.evals.results import pack


class RangeScore:
    """AP in per cent of each group of classes, overall, 0-30, 30-50 and beyond 50 metres.

    With ONCE's groups this is ONCE's metric. With Waymo's classes and overlaps it resembles Waymo's AP (LEVEL_2: every
    object with a point), whose own program matches in another way. "score", to keep the best by, is the groups' mean.

    Args:
        source: with ``frames(split)`` (``envs.scans``).
        groups: what is scored as one and the 3D IoU of a hit: {"Vehicle": {"classes": ["Car", "Bus"], "overlap": 0.7}}.
        every: steps between two looks; 0 looks at the end only.
        split: "val", or "train" to see whether frames can be learned by heart at all.
        batch_size: scans at a time.
        num_pictures: frames drawn from above; the first one also as a 3D view, if plotly is installed.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no such frames or classes, or no frame has an object.
    """

    def __init__(
        self,
        *,
        source: Any,
        groups: Mapping[str, Mapping[str, Any]],
        every: int,
        split: str = "val",
        batch_size: int = 4,
        num_pictures: int = 4,
        name: str = "range_detection",
    ) -> None:
        need_scans(source, name=name, instead="env=once")
        wanted = [kind for group in groups.values() for kind in group["classes"]]
        if unknown := [kind for kind in wanted if kind not in source.classes]:
            have = ", ".join(source.classes)
            raise ValueError(f"eval.{name}.groups: there is no class {', '.join(unknown)}; env.classes has {have}")
        self.groups = {
            key: Group([source.classes.index(kind) for kind in group["classes"]], float(group["overlap"]))
            for key, group in groups.items()
        }
        self.frames, self.where, self.classes = source.frames(split), source.where, source.classes
        self.every, self.batch_size, self.num_pictures, self.name = every, batch_size, num_pictures, name
        labels = [(frame.boxes.cpu().double().numpy(), frame.box_class.cpu().numpy()) for frame in self.frames.labels]
        self.truth = _joined([Found(boxes, np.zeros(len(boxes)), kinds) for boxes, kinds in labels])
        if not len(self.truth.frame):
            raise ValueError(f"{name} needs labelled objects; {split} of {self.where} has none")

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Detect in all frames."""
        found = find_boxes(objective, self.frames, batch_size=self.batch_size, name=self.name)
        joined = _joined(found)
        result = evaluate(self.truth, joined, self.groups)
        metrics = {f"{name}/{key}": value for name, per_range in result.items() for key, value in per_range.items()}
        metrics["boxes"] = len(joined.frame) / len(self.frames)
        metrics["score"] = result[MEAN].get("overall", 0.0)
        files = {"ap.md": self.table(result).encode(), "results.npz": self.saved(joined)}
        return pack(metrics, files=files | draw_boxes(objective, self.frames, found, num=self.num_pictures))

    def table(self, result: Mapping[str, Mapping[str, float]]) -> str:
        """All AP in Markdown."""
        lines = ["| class | 3D IoU | " + " | ".join(RANGES) + " |", "|---" * (2 + len(RANGES)) + "|"]
        for name, found in result.items():
            overlap = f"{self.groups[name].overlap:g}" if name in self.groups else ""
            cells = [f"{found[key]:.2f}" if key in found else "-" for key in RANGES]
            lines.append(f"| {name} | {overlap} | {' | '.join(cells)} |")
        counts = {name: int(np.isin(self.truth.kind, group.classes).sum()) for name, group in self.groups.items()}
        objects = ", ".join(f"{name} {count}" for name, count in counts.items())
        return "\n".join([*lines, "", f"Objects in {len(self.frames)} frames: {objects}."]) + "\n"

    def saved(self, found: Boxes) -> bytes:
        """All detections for other evaluators, .npz without pickle: arrays of N rows, names of frames and classes."""
        content = io.BytesIO()
        names = {"frames": np.array(self.frames.names), "classes": np.array(self.classes)}
        np.savez_compressed(content, **found._asdict(), **names)
        return content.getvalue()


def _joined(frames: Sequence[Found]) -> Boxes:
    """Boxes of all frames one after the other."""
    return Boxes(
        frame=np.repeat(np.arange(len(frames)), [len(found.boxes) for found in frames]),
        boxes=np.concatenate([found.boxes for found in frames]),
        kind=np.concatenate([found.labels for found in frames]),
        score=np.concatenate([found.scores for found in frames]),
    )
