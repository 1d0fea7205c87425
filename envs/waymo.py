"""Data of the Waymo Open Dataset as OpenPCDet processes them: an array a frame, a pickle of labels a sequence.

::

    DATA_DIR/ImageSets/{train,val}.txt                      a sequence a line, such as segment-1005_..._labels.tfrecord
    DATA_DIR/waymo_processed_data_v0_5_0/SEQUENCE/0000.npy  float32 [P, 6]: x, y, z, intensity, elongation, zone flag
    DATA_DIR/waymo_processed_data_v0_5_0/SEQUENCE/SEQUENCE.pkl   a list of frames, see below

A frame of the pickle is a dict with "point_cloud" {"sample_idx": 0, ...} and "annos", arrays of M rows: "name",
"location" [M, 3] (the centre), "dimensions" [M, 3] (length, width, height), "heading_angles", all in the frame of this
package; "num_points_in_gt", which infos made before November 2020 lack; "difficulty", Waymo's level, 0 where nobody
set one: then it is 1 for more than 5 points, else 2. Poses, cameras and tracks are not read. The zone flag is -1
outside no-label zones. Sequences may be named with a split before "segment" or without "_with_camera_labels".

Known from OpenPCDet's own reader and configuration (Apache-2.0; read, not copied) and from sheet ad_l_jepa, section
3.5. Not verified on real files: these need Waymo's licence, and TensorFlow to be processed.

Waymo's AP and APH come from its own TensorFlow package (Hungarian matching), which is no dependency of this one; AP
here is that of ``perception.detection.once_ap`` at Waymo's overlaps: near it, not the same number.

Source: Sun et al., Scalability in Perception for Autonomous Driving: Waymo Open Dataset, CVPR 2020.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.scans import Frame, LabelledScans, Layout
from worldmodels.formats.plain_pickle import read_plain_pickle

LAYOUT = Layout(
    name="Waymo",
    types=("Vehicle", "Pedestrian", "Cyclist", "Sign"),
    channels=5,
    folder="ImageSets",
    files="ImageSets/{train,val}.txt and PROCESSED/SEQUENCE/{SEQUENCE.pkl,0000.npy}",
)
COLUMNS = 6  # of a file; the last one is no feature
LABELLED = -1  # flag of points outside no-label zones
LEVEL_1 = 5  # objects with more points are easy, if nobody says otherwise
_HEADERS = threading.Lock()  # numpy reads a header with ast, which Python 3.11 cannot do in two threads at once
_WIDTHS = {"location": 3, "dimensions": 3, "heading_angles": 1, "num_points_in_gt": 1, "difficulty": 1}


class Annotation(NamedTuple):
    """Labels of a frame; M objects."""

    kinds: list[str]
    boxes: np.ndarray  # float64 [M, 7]
    level: np.ndarray  # int64 [M], 1 or 2
    num_points: np.ndarray  # int64 [M]


class Waymo(LabelledScans):
    """Frames of a folder in this layout; a frame's name is SEQUENCE/0000, its points have five numbers.

    Intensity is replaced by its tanh. Objects in which Waymo counts no point are left out: they teach nothing, and
    its own evaluation does not look for them. "difficulty" of a ``Frame`` is Waymo's level, 1 or 2.

    Args:
        processed: folder of the sequences below ``data_dir``.
        train_every, val_every: use every n-th frame, counted over all sequences of the list. Published: 5 for
            training, or 1 (all); 20 for 5 % of the labels.
        is_labelled: whether labels are read; without, frames have no boxes, and no pickle is opened.
        are_unlabelled_zones_kept: whether points are kept where nobody labelled; published: true.
        is_missing_skipped: whether listed sequences without a folder are counted and left out, not refused.
        chosen: data_dir, label_fraction, device, max_points, limits, max_device_bytes: see ``LabelledScans``.

    Raises:
        FileNotFoundError: no such folder, list, sequence or scan.
        ValueError: a damaged scan or pickle, a pickle of anything but plain data, labels that do not fit together.
    """

    def __init__(
        self,
        *,
        classes: Sequence[str] = ("Vehicle", "Pedestrian", "Cyclist"),
        processed: str = "waymo_processed_data_v0_5_0",
        train_every: int = 5,
        val_every: int = 1,
        is_labelled: bool = True,
        are_unlabelled_zones_kept: bool = True,
        is_missing_skipped: bool = False,
        **chosen: Any,
    ) -> None:
        for split, every in (("train", train_every), ("val", val_every)):
            if every < 1:
                raise ValueError(f"env.{split}_every={every}: every n-th frame is used, n at least 1")
        self.processed, self._every = processed, {"train": train_every, "val": val_every}
        self.is_labelled, self.are_unlabelled_zones_kept = is_labelled, are_unlabelled_zones_kept
        self.is_missing_skipped = is_missing_skipped
        self._annotations: dict[str, Annotation | None] = {}  # of the frames of the splits read so far
        super().__init__(LAYOUT, classes=classes, **chosen)

    def _names(self, split: str) -> list[str]:
        if split not in self._every:
            raise ValueError(f"split={split!r}: there are {', '.join(self._every)}")
        names, every, seen = [], self._every[split], 0
        for line in self._listed(split):
            if (folder := self._folder(line)) is None:
                self.counted[f"sequences of {split}.txt that are absent were left out"] += 1
                continue
            if self.is_labelled:
                frames = _labelled(folder / f"{folder.name}.pkl")
            else:
                frames = [(int(path.stem), None) for path in sorted(folder.glob("[0-9]" * 4 + ".npy"))]
            for number, labels in frames[-seen % every :: every]:  # as if all sequences were one
                names.append(name := f"{folder.name}/{number:04d}")
                self._annotations[name] = None if labels is None else _annotation(labels, name)
            seen += len(frames)
        return self._first(names) if split == "train" else names

    def _folder(self, listed: str) -> Path | None:
        """Where a sequence of a list lies."""
        root, name = self.data_dir / self.processed, listed.removesuffix(".tfrecord")
        names = (name, f"training_{name}", f"validation_{name}", name.replace("_with_camera_labels", ""))
        for folder in (root / name for name in names):
            if folder.is_dir():
                return folder
        if self.is_missing_skipped:
            return None
        hint = "Remove it from the list, or set env.is_missing_skipped=true"
        raise FileNotFoundError(f"{root / name}: there is no such folder; Waymo data need {LAYOUT.files}. {hint}")

    def _read(self, name: str) -> tuple[Frame, Mapping[str, int]]:
        left_out = Counter[str]()
        points, num_bad = read_array(self.data_dir / self.processed / f"{name}.npy")
        if num_bad:
            left_out["points that are not finite were left out"] += num_bad
        if not self.are_unlabelled_zones_kept:
            is_labelled = points[:, 5] == LABELLED
            left_out["points of no-label zones were left out"] += int((~is_labelled).sum())
            points = points[is_labelled]
        points = points[:, :5].copy()
        points[:, 3] = np.tanh(points[:, 3])
        labels = self._annotations[name] or Annotation([], np.zeros((0, 7)), *np.zeros((2, 0), dtype=np.int64))
        chosen = []
        for i, kind in enumerate(labels.kinds):
            if kind not in LAYOUT.types:
                left_out[f"objects of the type {kind}, which Waymo does not have, were left out"] += 1
            elif kind not in self.classes:
                left_out[f"objects of the type {kind} were left out"] += 1
            elif not labels.num_points[i]:
                left_out["objects without a point were left out"] += 1
            else:
                chosen.append(i)
        index = np.array(chosen, dtype=np.int64)
        return Frame(
            name=name,
            points=torch.from_numpy(points),
            boxes=torch.from_numpy(labels.boxes[index]).float(),
            box_class=torch.tensor([self.classes.index(labels.kinds[i]) for i in chosen], dtype=torch.int64),
            difficulty=torch.from_numpy(labels.level[index]),
        ), left_out


def read_array(path: Path) -> tuple[np.ndarray, int]:
    """Finite rows of a .npy scan, float32 [P, 6], and how many others were dropped.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, or no float array of six columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with _HEADERS:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no whole .npy file: {error}") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != COLUMNS or rows.dtype.kind != "f":
        found = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else "an archive"
        raise ValueError(f"{path}: x, y, z, intensity, elongation, zone flag are float [P, {COLUMNS}], not {found}")
    rows = np.array(rows, np.float32)
    is_good = np.isfinite(rows).all(1)
    return (rows if is_good.all() else rows[is_good]), int(len(rows) - is_good.sum())


def _labelled(path: Path) -> list[tuple[int, Any]]:
    """Number and labels of each frame of a pickle."""
    infos = read_plain_pickle(path)
    try:
        return [(int(info["point_cloud"]["sample_idx"]), info["annos"]) for info in infos]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} must hold [{{"point_cloud": {{"sample_idx": ...}}, "annos": ...}}], not {error!r}. '
            f"Without labels: env.is_labelled=false"
        ) from error


def _annotation(labels: Any, frame: str) -> Annotation:
    """Labels checked and put together; ``frame`` names them in errors."""
    if not isinstance(labels, Mapping):
        raise ValueError(f"frame {frame}: annos is {type(labels).__name__}, not a dict of arrays")
    if missing := [key for key in ("name", *_WIDTHS) if key not in labels]:
        raise ValueError(f"frame {frame}: annos has no {missing[0]}")
    kinds, columns = [str(kind) for kind in labels["name"]], {}
    for key, width in _WIDTHS.items():
        try:
            values = np.asarray(labels[key], dtype=np.float64)
        except ValueError as error:
            raise ValueError(f"frame {frame}: annos/{key} holds something that is not a number") from error
        if len(values) != len(kinds) or values.size != len(kinds) * width:
            raise ValueError(f"frame {frame}: {len(kinds)} names but annos/{key} {list(values.shape)}")
        if not np.isfinite(values).all():
            raise ValueError(f"frame {frame}: annos/{key} must be finite")
        columns[key] = values.reshape(-1, width)
    if (columns["dimensions"] <= 0).any():
        raise ValueError(f"frame {frame}: annos/dimensions must be positive: length, width and height")
    num_points, level = (columns[key][:, 0].astype(np.int64) for key in ("num_points_in_gt", "difficulty"))
    return Annotation(
        kinds=kinds,
        boxes=np.concatenate([columns[key] for key in ("location", "dimensions", "heading_angles")], 1),
        level=np.where(level > 0, level, np.where(num_points > LEVEL_1, 1, 2)),
        num_points=num_points,
    )
