"""How well boxes are found: KITTI's average precision on frames that were not trained on."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tensordict import TensorDict

from perception.detection.kitti_ap import CLASSES, DIFFICULTIES, count_objects, evaluate
from worldmodels.core import Objective
from worldmodels.evals.found_boxes import draw_boxes, find_boxes, need_scans
from worldmodels.evals.results import pack
from worldmodels.formats.kitti_text import Objects, format_objects

MAIN = "moderate"


class DetectionScore:
    """AP (R40, R11) of each class at three difficulties, in per cent, with what a perfect detector would get.

    With few objects even perfect boxes score below 100: 40 recall points cannot all be reached (sheet ad_l_jepa, 3.3).
    "score", to keep the best by, is the mean over classes of moderate 3D AP R40 divided by that of the truth itself.

    Args:
        source: with ``frames(split)`` in KITTI's terms (``envs.kitti``, ``envs.lidar_scenes``).
        every: steps between two looks; 0 looks at the end only.
        split: "val", or "train" to see whether frames can be learned by heart at all.
        batch_size: scans at a time.
        num_pictures: frames drawn from above; the first one also as a 3D view, if plotly is installed.
        name: of this evaluator in logs and files.

    Raises:
        ValueError: if the source has no such frames, or frames without a camera or without labels.
    """

    def __init__(
        self,
        *,
        source: Any,
        every: int,
        split: str = "val",
        batch_size: int = 4,
        num_pictures: int = 4,
        name: str = "detection",
    ) -> None:
        need_scans(source, name=name, instead="env=lidar_scenes")
        self.frames, self.classes = source.frames(split), source.classes
        if any(frame.calibration is None for frame in self.frames.labels):
            hint = "Use eval=[range_detection,bev_map]"
            raise ValueError(f"{name} needs a camera calibration for KITTI's AP; {source.where} has none. {hint}")
        if any(frame.objects is None for frame in self.frames.labels):
            raise ValueError(f"{name} needs labels; those of {source.where} were not read. Set env.is_labelled=true")
        self.every, self.batch_size, self.num_pictures, self.name = every, batch_size, num_pictures, name
        self.truth = [frame.objects for frame in self.frames.labels]

    def __call__(self, objective: Objective, step: int) -> TensorDict:
        """Detect in all frames."""
        found = find_boxes(objective, self.frames, batch_size=self.batch_size, name=self.name)
        results = [self.objects_of(i, *boxes) for i, boxes in enumerate(found)]
        mine = evaluate(self.truth, results)
        metrics = self.metrics(mine)
        metrics["boxes"] = float(np.mean([len(result) for result in results]))
        files = {"ap.md": self.table(mine).encode(), "results.zip": self.zipped(results)}
        return pack(metrics, files=files | draw_boxes(objective, self.frames, found, num=self.num_pictures))

    @cached_property
    def best(self) -> dict[str, dict[str, list[float]]]:
        """What the truth itself scores, as ``evaluate`` returns it; the same in every evaluation."""
        return evaluate(self.truth, [with_scores(truth) for truth in self.truth])

    def objects_of(self, index: int, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Objects:
        """Detections of frame ``index`` as lines of a result file."""
        frame = self.frames.labels[index]
        names = [self.classes[label] for label in labels]
        return frame.calibration.objects_of(boxes, names, frame.image_size, scores)

    def metrics(self, mine: dict[str, Any]) -> dict[str, float]:
        """R40 at strict overlaps, of the classes that occur, and the score."""
        metrics, shares = {}, []
        for kind in self.classes:
            if f"strict/{kind}/3d" not in mine:  # KITTI scores three classes
                continue
            for metric in ("3d", "bev"):
                values = mine[f"strict/{kind}/{metric}"]["R40"]
                metrics |= {f"{kind}/{metric}/{d}": v for d, v in zip(DIFFICULTIES, values, strict=True)}
            most = self.best[f"strict/{kind}/3d"]["R40"][DIFFICULTIES.index(MAIN)]
            metrics[f"{kind}/3d/{MAIN}_of_truth"] = most
            if most > 0:
                shares.append(metrics[f"{kind}/3d/{MAIN}"] / most)
        return metrics | {"score": float(np.mean(shares)) if shares else 0.0}

    def table(self, mine: dict[str, Any]) -> str:
        """All AP in Markdown."""
        counts = count_objects(self.truth)
        lines = [
            "| class | overlap | metric | "
            + " | ".join(f"{r} {d}" for r in ("R40", "R11") for d in DIFFICULTIES)
            + " |",
            "|---" * 9 + "|",
        ]
        for key, found in mine.items():
            if key not in self.best:  # orientation, where labels do not know it
                continue
            level, kind, metric = key.split("/")
            cells = [
                f"{value:.2f} of {most:.2f}"
                for r in ("R40", "R11")
                for value, most in zip(found[r], self.best[key][r], strict=True)
            ]
            lines.append(f"| {kind} | {level} | {metric} | {' | '.join(cells)} |")
        objects = "; ".join(f"{kind} {', '.join(map(str, counts[kind]))}" for kind in CLASSES)
        return "\n".join([*lines, "", f"Objects (easy, moderate, hard) in {len(self.truth)} frames: {objects}."]) + "\n"

    def zipped(self, results: Sequence[Objects]) -> bytes:
        """A KITTI result file a frame, one ZIP file."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, objects in zip(self.frames.names, results, strict=True):
                archive.writestr(zipfile.ZipInfo(f"{name}.txt"), format_objects(objects))
        return content.getvalue()


def with_scores(truth: Objects) -> Objects:
    """Labels as if a perfect detector had found them."""
    named = truth.select([i for i, kind in enumerate(truth.type) if kind in CLASSES])
    return Objects(**{**vars(named), "score": np.linspace(1, 0.5, len(named))})
