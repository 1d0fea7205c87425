"""The evaluators of pictures as their files in conf/eval configure them."""

from __future__ import annotations

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.systems import CONF
from tests.worldmodels.evals.toy_pictures import SPEC, Pictures, Reader, Walker
from tests.worldmodels.evals.toy_scenes import Looker, Scenes, dense, patchwork
from worldmodels.core import Evaluator
from worldmodels.evals.results import unpack

SMALL = {
    "image_probe": {},
    "knn": {},
    "view_probe": {"num_train": 100, "num_test": 50, "regressor.steps": 20, "lengths": [1, 2]},
    "path_integration": {"num_train": 100, "num_test": 50, "regressor.steps": 20, "lengths": [1, 2]},
    "retrieval": {"num": 20},
    "patch_pictures": {"num": 2, "num_pool": 20},
    "dense_probe": {},
    "label_propagation": {"length": 3},
}


DENSE = ("dense_probe", "label_propagation")


class Source(Pictures):
    """Pictures of objects."""

    num_views = 4


@pytest.mark.parametrize("name", SMALL)
def test_evaluator_is_built_and_runs_as_configured(name):
    views = {"_target_": "tests.worldmodels.evals.toy_pictures.ToyViews", "_partial_": True, "num_views": 2}
    cfg = OmegaConf.create({"eval_every": 50, "steps": 100, "views": views, "eval": {}})
    cfg.eval = OmegaConf.load(CONF / "eval" / f"{name}.yaml")
    (key,) = cfg.eval
    assert key == ("probe" if name == "image_probe" else name)
    for option, value in SMALL[name].items():
        OmegaConf.update(cfg.eval[key], option, value, force_add=False)
    evaluator = instantiate(cfg.eval[key])(source=Scenes(dense(patchwork(12))) if name in DENSE else Source())
    assert isinstance(evaluator, Evaluator)
    assert evaluator.name == key
    assert evaluator.every == (100 if name == "path_integration" else 50)
    objective = Looker() if name in DENSE else Reader() if name == "patch_pictures" else Walker()
    found = unpack(evaluator(objective, 0))
    assert found.metrics or found.files


def test_toy_views_are_as_views_of_pictures_are():
    """What evaluators ask of views in these tests is what they get in runs."""
    from perception.augment import AugmentedViews
    from tests.worldmodels.evals.toy_pictures import ToyViews

    toy, real = ToyViews(SPEC, num_views=3), AugmentedViews(SPEC, num_views=3)
    assert (toy.num, toy.window) == (real.num, real.window)
    assert set(map(str, toy.spec.keys())) == set(map(str, real.spec.keys()))
