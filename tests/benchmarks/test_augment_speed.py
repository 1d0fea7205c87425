"""The benchmark of views compares equals, and the augmentation is cheaper than the encoder that sees its views."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Bounded, Composite

pytest.importorskip("PIL", reason="needs the images extra: pip install 'worldmodels[images]'")

from benchmarks.augment_speed import measure, pillow_views
from perception.augment import AugmentedViews


def small() -> tuple[AugmentedViews, TensorDict]:
    spec = Composite({"observation": Composite({"pixels": Bounded(0, 255, (3, 32, 32), dtype=torch.uint8)})})
    chances = {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 1.0}
    views = AugmentedViews(spec, num_views=4, chances=chances, target={"blur": 0.1, "solarise": 0.2})
    coarse = torch.rand(32, 3, 6, 6)
    pixels = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    return views, TensorDict({"observation": {"pixels": pixels[:, None]}}).auto_batch_size_(1)


def test_both_make_the_same_views():
    """But for Pillow's roundings, and its blur, which is made of boxes and reaches farther than three pixels."""
    views, batch = small()
    how = views.draw(32, Generator().manual_seed(0))
    how = how._replace(sigma=torch.zeros_like(how.sigma), is_solarised=torch.zeros_like(how.is_solarised))
    pictures = batch["observation", "pixels"][:, 0]
    ours = views.render(pictures, how).movedim(2, -1).int().numpy()
    difference = np.abs(ours - pillow_views(pictures, how, 32).astype(int))
    assert difference.mean() < 1.5
    assert np.percentile(difference, 99) <= 8  # hue is a byte to Pillow


@pytest.mark.skipif(find_spec("perception.image") is None, reason="needs perception/image.py")
def test_the_augmentation_takes_less_time_than_the_encoder(unchecked):
    views, batch = small()
    found = measure(views, batch, share=4, rounds=2)
    assert found["ours"] < found["encoder"]
    assert found["ours"] < found["pillow"]
