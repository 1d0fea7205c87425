"""Actions between rendered views, against scipy's rotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from scipy.spatial.transform import Rotation
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Bounded, Categorical, Composite, Unbounded

from perception.poses import PoseViews
from worldmodels.core import Views

SPEC = Composite(
    {
        "observation": Composite({"pixels": Bounded(0, 255, (3, 8, 8), dtype=torch.uint8)}),
        "transformation": Unbounded((7,)),
        "label": Categorical(5, shape=()),
    }
)


def batch_of(num: int, rows: int) -> TensorDict:
    return TensorDict(
        {
            "observation": {"pixels": torch.randint(0, 256, (num, rows, 3, 8, 8), dtype=torch.uint8)},
            "transformation": 3 * torch.rand(num, rows, 7) - 1.5,
            "label": torch.randint(0, 5, (num, 1)).expand(-1, rows),
        }
    ).auto_batch_size_(1)


def test_actions_are_relative_rotations_then_differences():
    views = PoseViews(SPEC, num_views=3, action=["rotation", "hue", "spot"])
    assert isinstance(views, Views)
    assert (views.num, views.window) == (3, 3)
    batch = batch_of(6, 3)
    before = batch.clone()
    made = views(batch, Generator())
    assert (batch == before).all()
    assert views.spec.expand(6, 3).is_in(made)
    assert made["action"].shape == (6, 3, 8)
    assert (made["action"][:, -1] == 0).all()
    for index in range(6):
        turns = Rotation.from_euler("xyz", batch["transformation"][index, :, :3].numpy())
        expected = (turns[:2].inv() * turns[1:]).as_quat(canonical=True)
        np.testing.assert_allclose(made["action"][index, :2, :4].numpy(), expected, atol=1e-5)
    steps = batch["transformation"].diff(dim=1)[..., [3, 6, 4, 5]]
    torch.testing.assert_close(made["action"][:, :2, 4:], steps)
    first, last = batch["transformation"][:, 0], batch["transformation"][:, 2]
    way = Rotation.from_euler("xyz", first[:, :3].numpy()).inv() * Rotation.from_euler("xyz", last[:, :3].numpy())
    found = views.action_between(first, last)
    np.testing.assert_allclose(found[:, :4].numpy(), way.as_quat(canonical=True), atol=1e-5)
    torch.testing.assert_close(found[:, 4:], (last - first)[:, [3, 6, 4, 5]])
    alone = views.action_between(torch.zeros_like(first), first)  # from no rotation: the pose's own
    own = Rotation.from_euler("xyz", first[:, :3].numpy()).as_quat(canonical=True)
    np.testing.assert_allclose(alone[:, :4].numpy(), own, atol=1e-5)


@pytest.mark.parametrize(("action", "size"), [(["rotation"], 4), (["rotation", "hue"], 6), (["hue"], 2)])
def test_parts_of_the_action_are_chosen(action, size):
    views = PoseViews(SPEC, num_views=2, action=action)
    assert views.spec["action"].shape == (size,)
    whole = PoseViews(SPEC, num_views=2, action=["rotation", "hue"])(batch := batch_of(3, 2), Generator())
    made = views(batch, Generator())["action"]
    torch.testing.assert_close(made, whole["action"][..., -size:] if "hue" in action else whole["action"][..., :4])


def test_the_settings_of_the_group_make_views():
    for name in ("poses", "of_rendered_objects"):
        with initialize_config_module("conf", version_base="1.3"):
            cfg = compose("config", [f"views={name}", "env=toy", "agent=td_jepa"])
        assert instantiate(cfg.views)(SPEC).window == 4


def test_other_data_and_settings_are_refused():
    with pytest.raises(ValueError, match=r"views=poses needs a transformation \[7\].*env=rendered_objects"):
        PoseViews(Composite({"observation": SPEC["observation"]}), num_views=2)
    with pytest.raises(ValueError, match=r"views.action=\['colour'\]: its parts are rotation, hue, spot"):
        PoseViews(SPEC, num_views=2, action=["colour"])
    with pytest.raises(ValueError, match="num_views=3, but windows of 2 rows"):
        PoseViews(SPEC, num_views=3)(batch_of(2, 2), Generator())
