import importlib.util
import io

import numpy as np
import pytest
import torch
from PIL import Image

from worldmodels.evals.pictures import _gif, film, maze_picture

FRAMES = [np.full((31, 40, 3), value, dtype=np.uint8) for value in (0, 128, 255)]


def test_gif_holds_every_frame():
    picture = Image.open(io.BytesIO(_gif(FRAMES, 12)))
    assert picture.n_frames == 3
    assert picture.size == (40, 31)


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs the video extra")
def test_mp4_holds_every_frame_in_even_size():
    import av

    ending, content = film(FRAMES)
    with av.open(io.BytesIO(content)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert ending == ".mp4"
    assert [frame.shape for frame in frames] == [(30, 40, 3)] * 3
    assert abs(float(frames[1].mean()) - 128) < 8


def test_maze_picture_puts_walls_and_paths_where_they_are():
    walls = np.zeros((3, 5), dtype=bool)
    walls[0, 4] = True  # row 0 is at the bottom, column 4 at the right
    paths = torch.zeros(2, 1, 2, dtype=torch.float64)
    paths[:, 0, 0] = torch.tensor([0.0, 8.0])  # along row 0, from column 0 to 2
    content = maze_picture(walls, paths, unit=4.0, origin=(0.0, 0.0), success=torch.tensor([True]), goal=[8.0, 8.0])
    image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    is_wall = (abs(image - np.array([0x5B, 0x64, 0x72])).max(-1) < 12).nonzero()
    height, width = image.shape[:2]
    assert is_wall[0].mean() > 0.6 * height
    assert is_wall[1].mean() > 0.8 * width
    is_green = (image[..., 1] > image[..., 0] + 40).nonzero()
    assert is_green[0].mean() > 0.6 * height
    assert is_green[1].mean() < 0.5 * width
