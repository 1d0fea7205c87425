"""Every YAML of a group keeps the contract of its group: a new system is tested by existing."""

from __future__ import annotations

import math

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from torch import Generator
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, Unbounded

from tests.systems import CONF, SYSTEMS, composed, fixed_source
from worldmodels import build, checkpoint
from worldmodels.core import Embeds, Encoder, Objective, Policy, Source
from worldmodels.evals.results import unpack
from worldmodels.keys import (
    CATEGORICAL,
    MISSING,
    NUM_POINTS,
    NUMERICAL,
    OBSERVATION,
    PIXELS,
    POINTS,
    POOLED,
    STATE,
    TOKENS,
)
from worldmodels.learner import Learner
from worldmodels.trainer import batch_seed

CPU = torch.device("cpu")
SPECS = {
    "state": Composite({OBSERVATION: Composite({STATE: Unbounded((5,))}), "action": Bounded(-1, 1, (3,))}),
    "pixels": Composite({OBSERVATION: Composite({PIXELS: Bounded(0, 255, (3, 32, 32), dtype=torch.uint8)})}),
    "clips": Composite({OBSERVATION: Composite({PIXELS: Bounded(0, 255, (4, 3, 32, 32), dtype=torch.uint8)})}),
    "latents": Composite({OBSERVATION: Composite({TOKENS: Unbounded((3, 4))})}),
    "table": Composite(
        {
            OBSERVATION: Composite(
                {
                    NUMERICAL: Unbounded((3,)),
                    MISSING: Categorical(2, shape=(3,), dtype=torch.bool),
                    CATEGORICAL: MultiCategorical((4, 7)),
                }
            )
        }
    ),
    "points": Composite(
        {OBSERVATION: Composite({POINTS: Unbounded((200, 4)), NUM_POINTS: Bounded(0, 201, (), dtype=torch.int64)})}
    ),
}
SMALL = {
    **{f"vit_{size}": ["encoder.depth=1", "encoder.dim=96"] for size in ("small", "base", "large", "huge", "giant")},
    "vit_huge": ["encoder.depth=1", "encoder.dim=96", "encoder.patch=16"],
    **{
        f"video_{size}": ["encoder.depth=1", "encoder.dim=96"]
        for size in ("small", "base", "large", "huge", "gigantic", "at_paper")
    },
    "video_giant": ["encoder.depth=1", "encoder.dim=132"],
    "resnet18": ["encoder.width=8"],
    "lidar_voxels": ["encoder.low=[-4,-4,-1.2]", "encoder.high=[4,4,1.2]", "encoder.voxel_size=[0.25,0.25,0.1]"],
}
TRACED: set[object] = set()  # losses that several systems inherit are compiled for the first of them


class Bench:
    """A system on small data, stepped by hand. Several may have one source of fixed data."""

    def __init__(self, cfg: DictConfig, source: Source | None = None) -> None:
        self.cfg = cfg
        self.source = build.build_source(cfg, CPU) if source is None else source
        self.objective: Objective = build.build_objective(cfg, self.source, CPU)
        self.source.attach(self.objective if isinstance(self.objective, Policy) else None)
        self.learner: Learner = build.build_learner(cfg, self.objective, CPU)
        self.transforms = build.build_transforms(cfg, self.objective)

    def batch(self, step: int):
        generator = Generator().manual_seed(batch_seed(0, step, 0))
        batch = self.source.sample(self.cfg.batch_size, self.objective.window, generator)
        for transform in self.transforms:
            batch = transform(batch, generator)
        return batch

    def run(self, first: int, last: int) -> None:
        for step in range(first, last):
            self.learner.update(self.batch(step), step)


@pytest.fixture(params=SYSTEMS)
def cfg(request) -> DictConfig:
    return composed(request.param.replace("/", "="))


def test_every_key_is_read(cfg):
    """A group's file without its package header would leave its settings at the root, unread."""
    known = {*OmegaConf.load(CONF / "config.yaml"), "env", "optim", "logger"}
    text = OmegaConf.to_yaml(cfg)
    unread = [key for key, value in cfg.items() if value is not None and key not in known and f"${{{key}}}" not in text]
    assert not unread


@pytest.mark.parametrize("actor", sorted(path.stem for path in (CONF / "actor").glob("*.yaml")))
def test_every_key_of_an_actor_is_read(actor):
    test_every_key_is_read(composed("agent=td_jepa", f"actor={actor}"))


def test_resumes_bit_for_bit_from_a_checkpoint(cfg, tmp_path):
    whole = Bench(cfg, fixed_source(cfg))
    whole.run(0, 1)
    optimizer = whole.learner.optimizer_tensors()
    gathered = whole.source.gathered() if hasattr(whole.source, "gathered") else None
    path = checkpoint.save(tmp_path, 1, model=whole.objective, optimizer=optimizer, state={}, source=gathered)
    whole.run(1, 2)
    again = Bench(cfg)  # with a source of its own, as another process has
    for parameter in again.objective.parameters():
        parameter.data.zero_()  # nothing may survive but what was saved
    checkpoint.load_model(path, again.objective)
    again.learner.load_optimizer_tensors(checkpoint.load_optimizer(path))
    if gathered is not None:
        again.source.restore(checkpoint.load_source(path))
    again.run(1, 2)
    mine, theirs = checkpoint.model_tensors(again.objective), checkpoint.model_tensors(whole.objective)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


def test_every_phase_trains_its_parameters_and_nothing_else(cfg):
    bench = Bench(cfg, fixed_source(cfg))
    batch = bench.objective.prepare(bench.batch(0))
    for phase in bench.objective.phases():
        bench.objective.zero_grad()
        sum(phase.loss(batch)["loss"].values()).backward()
        own = {id(p) for group in phase.params.values() for p in group}
        for name, parameter in bench.objective.named_parameters():
            has_gradient = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert not has_gradient or id(parameter) in own, f"{phase.name} leaks a gradient into {name}"
            if id(parameter) in own:
                assert parameter.grad is not None, f"{phase.name} does not reach {name}"


def test_losses_and_stats_are_finite_scalars_and_the_batch_stays_as_it_was(cfg):
    bench = Bench(cfg, fixed_source(cfg))
    batch = bench.batch(0)
    before = batch.clone()
    bench.learner.update(batch, 0)
    assert (batch == before).all()
    assert all(abs(value) < float("inf") for value in bench.learner.metrics().values())


def test_no_loss_reaches_beyond_its_part_of_a_batch(cfg):
    """What mixes samples by index must happen in ``prepare``, or accumulating would mix up the parts."""
    if cfg.batch_size < 2:
        pytest.skip("its data set is a single sample")
    cfg.accumulate = min(4, cfg.batch_size)
    bench = Bench(cfg, fixed_source(cfg))
    bench.run(0, 1)
    assert all(torch.isfinite(p).all() for p in bench.objective.parameters())
    whole = bench.objective.prepare(bench.batch(1))
    for phase in bench.objective.phases():
        phase.loss(whole[: cfg.batch_size // cfg.accumulate])


def test_phases_compile_whole(cfg, unchecked):
    if cfg.encoder is not None and cfg.encoder._target_.endswith("ResNet18"):
        if "ResNet18" in TRACED:  # its many layers are traced once: losses do not see which encoder they have
            cfg.encoder = composed("objective=i_jepa", "encoder.depth=1", "encoder.patch=8").encoder
        TRACED.add("ResNet18")
    for path in ("encoder.depth", "objective.teacher.depth", "objective.predictor.depth"):
        if (OmegaConf.select(cfg, path) or 0) > 1:
            OmegaConf.update(cfg, path, 1)  # blocks are alike
    source = fixed_source(cfg)
    plain, compiled = Bench(cfg, source), Bench(cfg, source)  # two, because a phase may move running statistics
    batch = plain.objective.prepare(plain.batch(0))
    compiled.objective.prepare(compiled.batch(0))
    for phase, twin in zip(plain.objective.phases(), compiled.objective.phases(), strict=True):
        if phase.loss.__func__ in TRACED:
            continue
        TRACED.add(phase.loss.__func__)
        torch._dynamo.reset()
        expected = phase.loss(batch)["loss"]
        found = torch.compile(twin.loss, fullgraph=True, backend="eager")(batch)["loss"]
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)


def test_compiled_gradients_are_those_of_the_plain_loss(unchecked):
    """Whole graphs of losses say nothing about what is compiled of their gradients; one system stands for all."""
    cfg = composed("agent=td_jepa")
    plain, compiled = Bench(cfg), Bench(cfg)
    batch = plain.objective.prepare(plain.batch(0))
    compiled.objective.prepare(compiled.batch(0))  # moves running statistics
    torch._dynamo.reset()
    for phase, twin in zip(plain.objective.phases(), compiled.objective.phases(), strict=True):
        sum(phase.loss(batch)["loss"].values()).backward()
        sum(torch.compile(twin.loss, fullgraph=True, backend="aot_eager")(batch)["loss"].values()).backward()
    theirs = dict(plain.objective.named_parameters())
    for name, parameter in compiled.objective.named_parameters():
        wanted = theirs[name].grad
        assert wanted is None or (parameter.grad - wanted).norm() <= 1e-4 * wanted.norm(), name


def test_embeds_one_row_a_sample(cfg):
    bench = Bench(cfg, fixed_source(cfg))
    assert isinstance(bench.objective, Embeds)
    batch = bench.batch(0)
    obs = batch[OBSERVATION][:, 0] if OBSERVATION in batch.keys() else None
    latents = bench.objective.embed(obs)
    assert all(latent.shape[0] == cfg.batch_size and latent.ndim == 2 for latent in latents.values())


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted((CONF / "encoder").glob("*.yaml")) if path.stem != "pretrained"]
)
def test_encoder_gives_what_it_promises(name):
    from hydra.utils import instantiate

    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", overrides=["env=toy", f"encoder={name}", *SMALL.get(name, [])])
    make = instantiate(cfg.encoder)
    built, refusals = {}, []
    for kind, spec in SPECS.items():
        try:
            built[kind] = make(spec)
        except ValueError as error:
            refusals.append(str(error))
    assert all("Use encoder=" in refusal for refusal in refusals)
    ((kind, encoder),) = built.items()  # one kind of data suits it
    spec = SPECS[kind]
    assert isinstance(encoder, Encoder)
    obs = spec.expand(6).rand()[OBSERVATION]
    encoder.observe(obs)
    out = encoder.eval()(obs)
    assert out[POOLED].shape == (6, encoder.dim)
    assert out[TOKENS].shape[0] == 6
    assert out[TOKENS].shape[-1] == encoder.dim
    alone = encoder(obs[2:3])[POOLED]
    torch.testing.assert_close(alone, out[POOLED][2:3], rtol=1e-4, atol=1e-5)  # no batch mate leaks in


@pytest.mark.parametrize("positions", ["rotary.RotaryPositions", "positions.SinusoidalPositions"])
def test_an_encoder_of_clips_compiles_whole(positions, unchecked):
    from hydra.utils import instantiate

    small = ["encoder.depth=2", "encoder.dim=96", f"encoder.positions._target_=worldmodels.nn.{positions}"]
    encoder = instantiate(composed("agent=td_jepa", "encoder=video_tiny", *small).encoder)(SPECS["clips"])
    obs = SPECS["clips"].expand(3).rand()[OBSERVATION]
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    for keep in (None, torch.tensor([[0, 5]]).expand(3, -1), torch.tensor([[7, -1]]).expand(3, -1)):
        for name, value in encoder(obs, keep).items():
            torch.testing.assert_close(compiled(obs, keep)[name], value)


def test_joint_training_shares_one_encoder():
    bench = Bench(composed("agent=td_jepa", "objective=latent_prediction"))
    agent, ssl = bench.objective.objectives["agent"], bench.objective.objectives["objective"]
    assert agent.encoder is ssl.encoder
    bench.run(0, 2)
    assert {"loss/td_state", "loss/prediction"} <= set(bench.learner.metrics())
    obs = bench.batch(0)["agent", OBSERVATION][:, 0]
    assert {"agent/task", "objective/latent"} <= set(bench.objective.embed(obs).keys())


def test_every_published_setting_composes():
    folder = CONF / "experiment"
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*.yaml")) if path.parent.name != "base"]
    with initialize_config_module("conf", version_base="1.3"):
        for path in files:
            cfg = compose("config", overrides=[f"experiment={path.with_suffix('').as_posix()}"])
            assert OmegaConf.to_container(cfg, resolve=True)["steps"] > 0, path


@pytest.mark.parametrize("data", ["kitti", "once", "waymo"])
@pytest.mark.parametrize("system", ["ad_l_jepa", "lidar_detection"])
def test_settings_of_real_scans_train_and_are_evaluated(system: str, data: str):
    """Whatever the format and the channels of a point, on hand-made scans and a coarse grid."""
    coarse = ["encoder.low=[-32,-32,-3]", "encoder.high=[32,32,3]", "encoder.voxel_size=[0.5,0.5,0.15]"]
    few = ["encoder.max_voxels={train: 300, test: 300}", "encoder.widths=[4,4,4,8,8,8]"]
    cfg = composed(f"experiment={system}/{data}", *coarse, *few, batch_size=2)
    assert OmegaConf.select(cfg, "transforms.flip.along_y") == (0.0 if data == "kitti" else 0.5)
    bench = Bench(cfg)
    bench.run(0, 2)
    assert all(torch.isfinite(p).all() for p in bench.objective.parameters())
    assert bench.objective.encoder.convs[0].weight.shape[-1] == (5 if data == "waymo" else 4)
    for evaluator in build.build_evaluators(cfg, bench.source):
        result = unpack(evaluator(bench.objective, 2))
        assert all(math.isfinite(value) for value in result.metrics.values()), evaluator
        assert "/" not in "".join(result.files)
