"""Hand-made views of objects in 3DIEBench's layout: two classes of two objects, ten pictures and their numbers each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

OBJECTS = ("chair/000", "chair/001", "lamp/000", "lamp/001")
VIEWS, SIZE = 10, 32


def write_objects(folder: Path) -> None:
    """Write coarse random colours as "tree/<class>/<object>/image_<n>.jpg", with random poses and hues."""
    from PIL import Image  # of the images extra

    rng = np.random.default_rng(0)
    for name in OBJECTS:
        path = folder / "tree" / name
        path.mkdir(parents=True)
        for view in range(VIEWS):
            coarse = rng.integers(0, 256, (SIZE // 8, SIZE // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)).save(path / f"image_{view}.jpg", quality=95)
            np.save(path / f"latent_{view}.npy", rng.uniform(-1, 1, 7))
