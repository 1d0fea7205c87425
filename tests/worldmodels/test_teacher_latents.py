"""Clips with a teacher's latents, computed once, give the same losses as a teacher that looks at them anew."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import Generator

from tests.systems import composed
from worldmodels import build, checkpoint
from worldmodels.evals.results import judging

pytest.importorskip("skimage", reason="needs the images extra: pip install 'worldmodels[images]'")
pytest.importorskip("sklearn", reason="needs the images extra: pip install 'worldmodels[images]'")

CPU = torch.device("cpu")
TINY = [
    "env.size=32",
    "env.num_frames=4",
    "encoder.dim=24",
    "encoder.depth=1",
    "encoder.num_heads=2",
    "encoder.patch=4",
]
TINY += ["objective.predictor.width=16", "objective.predictor.num_heads=2", "objective.predictor.depth=1"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """The folder of a V-Pixel, as a run of no steps leaves it."""
    folder = tmp_path_factory.mktemp("teacher")
    cfg = composed("objective=v_pixel", *TINY)
    source = build.build_source(cfg, CPU)
    objective = build.build_objective(cfg, source, CPU)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    checkpoint.save(folder / "checkpoints", 0, model=objective, optimizer={}, state={"spec": str(source.spec)})
    return str(folder)


@pytest.fixture
def cfg(teacher):
    few = ["relabel.num_clips=10", "relabel.num_held_out=3", "+relabel.chunk=4"]
    return composed(
        "experiment=salt/cached_latents", "scale=small", f"objective.teacher.run_dir={teacher}", *TINY, *few
    )


def drawn(source, objective, num: int, seed: int = 0):
    generator = Generator().manual_seed(seed)
    batch = source.sample(num, objective.window, generator)
    for transform in objective.transforms():
        batch = transform(batch, generator)
    return batch


def test_the_student_learns_from_stored_latents_what_it_would_from_the_teacher(cfg):
    source = build.build_source(cfg, CPU)
    objective = build.build_objective(cfg, source, CPU)
    assert objective.window == 1
    batch = drawn(source, objective, 6)
    clips = batch["observation", "pixels"]
    assert clips.shape == (6, 1, 4, 3, 32, 32)
    assert batch["teacher"].shape == (6, 1, 2 * 8 * 8, 24)
    with torch.no_grad():
        tokens = objective.teacher(batch["observation"][:, 0])["tokens"]
    torch.testing.assert_close(batch["teacher"][:, 0].float(), tokens, rtol=1e-2, atol=1e-3)
    with judging(objective):
        stored = objective.loss(batch)["loss", "prediction"]
        objective.is_cached = False
        torch.testing.assert_close(objective.loss(batch)["loss", "prediction"], stored, rtol=1e-3, atol=1e-3)


def test_clips_are_the_same_in_every_run_and_others_in_other_parts(cfg):
    source, again = build.build_source(cfg, CPU), build.build_source(cfg, CPU)
    objective = build.build_objective(cfg, source, CPU)
    first, second = drawn(source, objective, 40), drawn(again, objective, 40)
    assert (first == second).all()
    clips = first["observation", "pixels"].flatten(1)
    assert 5 < len(clips.unique(dim=0)) <= 10
    held_out = drawn(source.split("val"), objective, 20)["observation", "pixels"].flatten(1)
    assert len(held_out.unique(dim=0)) <= 3
    assert not (held_out[:, None] == clips[None]).all(-1).any()


def test_an_update_costs_no_pass_of_the_teacher(cfg, teacher):
    source = build.build_source(cfg, CPU)
    objective = build.build_objective(cfg, source, CPU)
    learner = build.build_learner(cfg, objective, CPU)
    calls = []
    objective.teacher.register_forward_hook(lambda *_: calls.append(1))
    before = objective.encoder.embed_patch.weight.clone()
    learner.update(drawn(source, objective, 4), 0)
    assert not torch.equal(before, objective.encoder.embed_patch.weight)
    assert not calls
    usual = composed("objective=salt", "encoder@objective.teacher=pretrained", *TINY, "objective.teacher_share=0")
    usual.objective.teacher.update(run_dir=teacher, part="encoder")
    looking = build.build_objective(usual, build.build_source(usual, CPU), CPU)
    assert objective.costs(16)["student"] < looking.costs(16)["student"]


def test_a_teacher_must_be_named(cfg):
    cfg.objective.teacher.run_dir = None
    with pytest.raises(ValueError, match="Give objective"):
        build.build_source(cfg, CPU)


def test_stored_latents_leave_no_time_for_the_teacher(cfg):
    cfg.objective.teacher_share = 0.2
    with pytest.raises(ValueError, match=r"teacher_share=0\.2: latents are of a teacher that stands still"):
        build.build_objective(cfg, build.build_source(cfg, CPU), CPU)
