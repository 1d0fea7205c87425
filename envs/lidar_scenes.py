"""Simulated LiDAR frames as a source: what is missing is simulated, then read as any data in KITTI's layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from envs.kitti import Kitti
from envs.lidar_collect import PROVENANCE, collect_scenes, default_folder, settings_of


class LidarScenes(Kitti):
    """Streets seen by a simulated 64-beam LiDAR, labelled as KITTI is.

    Args:
        frames, val_frames: of training and validation.
        seed: of the streets; frame i is a function of (seed, i), so that more frames add to those there are.
        data_dir: where they are kept; None: a folder below ~/.worldmodels/lidar_scenes for these settings.
        sweep: degrees scanned around forward; the camera sees 82, a whole turn is 360 and needs four times the disk.
        min_points: objects with fewer points in the image have no label, but a DontCare region.
        workers: processes that simulate; None takes one a core.
        chosen: classes, is_cropped, label_fraction, device, max_points, limits, max_device_bytes: see ``Kitti``.

    Raises:
        ImportError: frames are missing and open3d is, too; it names what to install.
        ValueError: impossible settings, or a folder with frames of other ones.
    """

    def __init__(
        self,
        *,
        frames: int,
        val_frames: int,
        seed: int = 0,
        data_dir: str | os.PathLike[str] | None = None,
        sweep: int | float = 100,
        min_points: int = 5,
        workers: int | None = None,
        **chosen: Any,
    ) -> None:
        self.settings = settings_of(seed=seed, sweep=sweep, min_points=min_points)
        folder = default_folder(self.settings) if data_dir is None else Path(data_dir).expanduser()
        collect_scenes(folder, self.settings, frames=frames, val_frames=val_frames, workers=workers)
        super().__init__(data_dir=folder, train_frames=frames, val_frames=val_frames, **chosen)

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, for JSON."""
        return {**super().describe(), "settings": self.settings, "provenance": str(self.data_dir / PROVENANCE)}
