"""Moving scenes: what is painted is what the labels say, and no single frame gives them away."""

from __future__ import annotations

import functools
import math
import sys

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Generator, Tensor

pytest.importorskip("skimage.data", reason="needs the images extra: pip install 'worldmodels[images]'")
pytest.importorskip("sklearn.datasets", reason="needs the images extra: pip install 'worldmodels[images]'")

from envs.moving_scenes import MovingScenes
from envs.scene_draws import SHORTEST
from envs.scene_rendering import FLAT
from envs.scene_surprises import SURPRISES
from worldmodels.core import Source
from worldmodels.keys import LABEL, OBSERVATION, PIXELS

# One disc on flat grey, nothing else: what is painted can be measured.
CLEAN = {"num_objects": (1, 1), "camera_speed": 0, "light": 0, "background_contrast": 0, "occluder_chance": 0}
OF_A_FRAME = ("position", "angle", "opacity", "glow", "camera", "light")
INTEGERS = ("direction", "identity", "event_order", "collision", "num_objects")


@functools.cache
def made(**settings) -> MovingScenes:
    return MovingScenes(**{"size": 32, **settings})


def batch(source: MovingScenes, num: int = 8, window: int = 8, seed: int = 0):
    return source.sample(num, window, Generator().manual_seed(seed))


def centres(pixels: Tensor) -> Tensor:
    """Where what is not flat grey has its centre, [B, T, 2] x, y in pixels of the torus; frames [B, T, 3, S, S]."""
    size = pixels.shape[-1]
    is_disc = (pixels.double() - FLAT).abs().amax(2) / 255  # [B, T, S, S]
    is_disc = (is_disc > 0.02).double()
    turn = torch.exp(2j * math.pi * (torch.arange(size) + 0.5) / size)
    angles = [(is_disc.sum(axis) * turn).sum(-1).angle() for axis in (-2, -1)]
    return torch.stack(angles, -1) / (2 * math.pi) * size


def test_it_is_a_source_of_clips():
    source = made()
    assert isinstance(source, Source)
    source.attach(None)
    clips = batch(source)
    assert clips.batch_size == (8,)
    assert clips[OBSERVATION, PIXELS].shape == (8, 8, 3, 32, 32)
    assert source.spec.expand(8, 8).is_in(clips)
    assert set(clips[LABEL].keys()) == {*INTEGERS, "speed"} == {*source.label_classes, "speed"}
    for name, label in clips[LABEL].items():
        assert label.dtype == (torch.float32 if name == "speed" else torch.int64)
        assert (label == label[:, :1]).all()


@pytest.mark.parametrize("window", [1, 2, SHORTEST - 1, SHORTEST, 33])
@pytest.mark.parametrize("num_objects", [(1, 1), (1, 2), (3, 5)])
def test_labels_are_missing_where_nothing_can_happen(window, num_objects):
    source = made(num_objects=num_objects)
    clips = batch(source, 64, window)
    assert source.spec.expand(64, window).is_in(clips)
    label, count = clips[LABEL][:, 0], clips[LABEL, "num_objects"][:, 0] + num_objects[0]
    assert ((label["direction"] < 0) == (window == 1)).all()
    assert (label["speed"].isnan() == (window == 1)).all()
    assert torch.equal(label["event_order"] >= 0, (count > 1) & (window >= SHORTEST))
    assert torch.equal(label["collision"] >= 0, (count > 2) & (window >= SHORTEST))
    assert (label["identity"] >= 0).all()
    assert set(count.tolist()) == set(range(num_objects[0], num_objects[1] + 1))


def test_a_batch_depends_on_its_generator_only():
    source = made()
    state = torch.get_rng_state()
    first = batch(source)
    assert torch.equal(state, torch.get_rng_state())
    assert (first == batch(source)).all()
    assert (first == batch(made(seed=3))).all()  # ``seed`` is that of the clips for evaluation
    assert (first[OBSERVATION, PIXELS] != batch(source, seed=1)[OBSERVATION, PIXELS]).any()
    again = source.split("val").split("train")
    assert (first == batch(again)).all()


@pytest.mark.parametrize("size", [32, 64])
def test_the_painted_disc_moves_as_the_labels_say(size):
    """Direction and speed are measured in the frames, to a thirtieth of a pixel a frame."""
    source = made(**CLEAN, size=size)
    clips = batch(source, 64, 8)
    centre = centres(clips[OBSERVATION, PIXELS])
    way = centre[:, 1:] - centre[:, :-1]
    way = way - size * (way / size).round()
    mean = way.mean(1)  # [B, 2] pixels a frame
    angle = torch.atan2(mean[:, 1], mean[:, 0])
    direction = (angle / (math.pi / 4)).round().long() % 8
    assert torch.equal(direction, clips[LABEL, "direction"][:, 0])
    speed = mean.norm(dim=-1) * source.rules.frame_rate / size
    torch.testing.assert_close(speed.float(), clips[LABEL, "speed"][:, 0], atol=0.03 * 8 / size, rtol=0)
    assert way.std(1).max() < 0.25  # of a pixel: the motion is even, without jumps from pixel to pixel


def test_motion_by_a_fraction_of_a_pixel_shows():
    source = made(**CLEAN, speed=(0.01, 0.01), max_spin=0)  # a twenty-fifth of a pixel a frame
    pixels = batch(source, 16, 8)[OBSERVATION, PIXELS]
    assert (pixels[:, 1:] != pixels[:, :-1]).flatten(2).any(2).all()


def test_identity_is_the_digit_that_is_painted():
    """The digits of another part are recognised in still, upright, clean discs by their nearest neighbours."""
    source = made(**CLEAN, max_spin=0, size=64)
    train, test = (clean_digits(source.part(name, num, window=1)) for name, num in (("train", 1000), ("test", 200)))
    nearest = torch.cdist(test[0], train[0]).argmin(1)
    assert (train[1][nearest] == test[1]).float().mean() > 0.7


def clean_digits(part) -> tuple[Tensor, Tensor]:
    """The darkness of discs moved to the middle [N, 400], and their labels."""
    pixels = part.obs[PIXELS][:, 0].float()  # [N, 3, S, S]
    shift = 32 - centres(part.obs[PIXELS])[:, 0].round().long()
    rolled = [torch.roll(picture, (int(y), int(x)), (-2, -1)) for picture, (x, y) in zip(pixels, shift, strict=True)]
    middle = torch.stack(rolled).amax(1)[:, 24:40, 24:40].flatten(1)
    return torch.nn.functional.normalize(middle.amax(1, keepdim=True) - middle), part.target["identity"]


def test_labels_are_balanced():
    drawn = made().draw(6000, 16, Generator().manual_seed(0))
    for name, classes in made().label_classes.items():
        share = drawn.labels[name].bincount(minlength=len(classes)).double() / 6000
        expected = 1 / len(classes)
        tolerance = 4.5 * math.sqrt(expected * (1 - expected) / 6000) + (0.01 if name == "identity" else 0)
        assert (share - expected).abs().max() < tolerance, (name, share)
    low, high = made().rules.speed
    assert drawn.labels["speed"].min() >= low - 1e-6
    assert drawn.labels["speed"].max() <= high + 1e-6
    for one in INTEGERS:  # no label tells another
        for other in INTEGERS:
            if one < other:
                a, b = drawn.labels[one], drawn.labels[other]
                table = torch.zeros(a.max() + 1, b.max() + 1).index_put((a, b), torch.tensor(1.0), accumulate=True)
                expected = table.sum(1, keepdim=True) * table.sum(0) / 6000
                freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
                squares = ((table - expected) ** 2 / expected).sum()
                assert squares < freedom + 5 * math.sqrt(2 * freedom), (one, other, squares)


TOLD = {**CLEAN, "max_spin": 0, "has_walls": True}


@pytest.mark.parametrize(
    ("settings", "frame", "is_told"), [({}, 0, False), ({}, -1, False), (TOLD, 0, False), (TOLD, -1, True)]
)
def test_no_single_frame_tells_the_direction(unchecked, settings, frame, is_told):
    """A linear classifier of frames is at chance. With walls the last frame does tell, and the classifier finds it."""
    chance, error = 1 / 8, math.sqrt(7 / 64 / 1000)
    source = made(**settings)
    drawn = source.draw(3000, 8, Generator().manual_seed(5))
    moment = {key: getattr(drawn.scene, key)[:, frame, None] for key in OF_A_FRAME}
    x = source.paint(drawn.scene._replace(**moment))[:, 0].double().mean(1)  # [N, S, S]
    x = torch.nn.functional.avg_pool2d((x - FLAT).abs(), 4).flatten(1)
    accuracy = linear_accuracy(x, drawn.labels["direction"])
    if is_told:
        assert accuracy > chance + 8 * error
    else:
        assert abs(accuracy - chance) < 4 * error


def linear_accuracy(x: Tensor, label: Tensor, train: int = 2000) -> float:
    """Of a ridge regression onto one-hot labels, on the rows after the first ``train``."""
    x = (x - x[:train].mean(0)) / (x[:train].std(0) + 1e-6)
    x = torch.cat((x, torch.ones_like(x[:, :1])), 1)
    wanted = torch.nn.functional.one_hot(label).double()
    gram = x[:train].mT @ x[:train] + 10 * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, x[:train].mT @ wanted[:train])
    return float(((x[train:] @ weight).argmax(1) == label[train:]).double().mean())


@pytest.mark.parametrize("has_walls", [False, True])
def test_a_collision_is_a_change_of_velocity_of_the_two_solid_objects(has_walls):
    source = made(has_walls=has_walls, num_objects=(3, 4))
    drawn = source.draw(400, 16, Generator().manual_seed(1))
    # Without a collision the two coast; with one at least one of them is elsewhere at the end.
    from envs.scene_physics import coast

    times = torch.arange(16) / source.rules.frame_rate
    straight = coast(drawn.position, drawn.velocity, drawn.scene.radius, times, has_walls=has_walls)
    way = (drawn.scene.position - straight).abs()
    strays = torch.minimum(way, 1 - way) if not has_walls else way
    assert torch.equal(strays[:, -1, :2].amax((1, 2)) > 1e-4, drawn.labels["collision"] == 1)
    assert strays[:, :, 2:].max() < 1e-4  # nothing else is disturbed
    assert strays[:, 0].max() < 1e-5
    assert 0.4 < drawn.labels["collision"].float().mean() < 0.6


@pytest.mark.parametrize("chance", [0, 1])
def test_collisions_happen_as_often_as_told(chance):
    drawn = made(collision_chance=chance, radius=(0.12, 0.12)).draw(3000, 16, Generator().manual_seed(0))
    assert ((drawn.labels["collision"] == chance).float().mean()) > 0.995


def test_the_order_of_events_is_that_of_the_flashes():
    """White pixels are counted in frames: the main object's flash has about twice the area of the other's."""
    source = made(**{**CLEAN, "num_objects": (2, 2)}, speed=(0.01, 0.02), size=64)
    for window in (SHORTEST, 8, 16):
        clips = batch(source, 64, window)
        pixels, order = clips[OBSERVATION, PIXELS].float(), clips[LABEL, "event_order"][:, 0]
        white = (pixels.amin(2) > 200).float().flatten(2).sum(2)  # [B, T]; the other's white rim is always there
        first, second = (half.amax(1) for half in (white[:, : window // 2], white[:, window // 2 :]))
        assert torch.equal((first < second).long(), order)
        torch.testing.assert_close(white[:, 0], white[:, -1], atol=40, rtol=0)  # nobody flashes first or last


def test_the_number_of_objects_is_what_is_painted():
    source = made(num_objects=(1, 4), background_contrast=0, occluder_chance=0, camera_speed=0)
    drawn = source.draw(50, 3, Generator().manual_seed(0))
    assert torch.equal(drawn.scene.opacity[:, 0].sum(1).long(), drawn.labels["num_objects"] + 1)
    assert (drawn.scene.opacity[..., -1] == 1).all()  # the main object is always there
    alone = drawn.labels["num_objects"] == 0
    opacity = drawn.scene.opacity.clone()
    opacity[..., :-1] = 0
    bare = source.paint(drawn.scene._replace(opacity=opacity))
    shown = source.paint(drawn.scene)
    assert torch.equal((shown != bare).flatten(1).any(1), ~alone)


def test_nearer_objects_hide_farther_ones_and_the_bar_hides_all():
    source = made(num_objects=(3, 3), occluder_chance=1, size=64, light=0)
    drawn = source.draw(4, 2, Generator().manual_seed(0))
    middle = torch.full_like(drawn.scene.position, 0.5) + drawn.scene.camera[:, :, None]
    scene = drawn.scene._replace(position=middle)
    shown = source.paint(scene, has_bars=False)
    gone = torch.zeros_like(scene.opacity)
    gone[..., -1] = 1
    assert torch.equal(source.paint(scene._replace(opacity=gone), has_bars=False), shown)  # all behind the main one
    corner = scene.camera[:, 0]
    over = torch.where(scene.is_upright, corner[:, 0], corner[:, 1]) + 0.5
    hidden = scene._replace(
        bar=torch.stack((over, torch.full_like(over, 0.24)), -1), camera=scene.camera[:, :1].expand(-1, 2, -1)
    )
    nothing = hidden._replace(opacity=torch.zeros_like(gone))
    assert torch.equal(source.paint(hidden), source.paint(nothing))


def test_the_camera_moves_the_background_and_light_scales_it():
    source = made(num_objects=(1, 1), occluder_chance=0, light=0, background_contrast=1)
    drawn = source.draw(4, 3, Generator().manual_seed(0))
    pixel = 1 / 32
    camera = torch.tensor([[0.0, 0.0], [3 * pixel, 0.0], [0.0, 5 * pixel]]).expand(4, 3, 2)
    scene = drawn.scene._replace(camera=camera, opacity=torch.zeros_like(drawn.scene.opacity))
    frames = source.paint(scene)
    assert torch.equal(frames[:, 1], frames[:, 0].roll(-3, -1))
    assert torch.equal(frames[:, 2], frames[:, 0].roll(-5, -2))
    half = scene._replace(camera=camera + pixel / 2 * torch.tensor([1.0, 0.0]))
    between = (frames[:, 0].float() + frames[:, 0].roll(-1, -1).float()) / 2
    assert (source.paint(half)[:, 0] - between).abs().max() <= 0.5
    dark = source.paint(scene._replace(light=torch.full_like(scene.light, 0.5)))
    assert (dark - frames.float() / 2).abs().max() <= 0.5


def test_parts_share_no_pictures_and_are_always_the_same():
    source = made()
    pictures = source._pictures
    for kind in ("ink", "background"):
        rows = {name: {row.numpy().tobytes() for row in getattr(pictures[name], kind)} for name in pictures}
        assert not rows["train"] & rows["test"]
        assert not rows["train"] & rows["val"]
        assert not rows["val"] & rows["test"]
    part = source.part("val", 6)
    assert part.obs[PIXELS].shape == (6, 16, 3, 32, 32)
    assert (part.target.batch_size, part.target["speed"].shape) == ((6,), (6,))
    again = MovingScenes(size=32).part("val", 6)
    assert torch.equal(part.obs[PIXELS], again.obs[PIXELS])
    assert (part.target == again.target).all()
    assert source.part("test", 6, window=4).obs[PIXELS].shape[1] == 4
    assert (source.part("test", 6).target["speed"] != part.target["speed"]).any()
    assert (made(seed=1).part("val", 6).target["speed"] != part.target["speed"]).any()
    assert set(source.describe()["pictures"]) == {"train", "val", "test"}
    with pytest.raises(ValueError, match="there is no part dev; parts are train, val, test"):
        source.part("dev", 3)


@pytest.mark.parametrize("has_walls", [False, True])
@pytest.mark.parametrize("kind", list(SURPRISES))
def test_impossible_twins_differ_only_by_the_impossible(kind, has_walls):
    source = made(has_walls=has_walls, size=64).split("test")
    pairs = source.pairs(12, kind, window=8)
    possible, impossible = pairs.possible[PIXELS], pairs.impossible[PIXELS]
    assert possible.shape == impossible.shape == (12, 8, 3, 64, 64)
    does_differ = (possible != impossible).flatten(2).any(2)  # [N, T]
    assert does_differ.any(1).all()
    assert torch.equal(does_differ.to(torch.uint8).argmax(1), pairs.first)
    if kind == "appear":
        assert (pairs.first == 0).all()
        assert not does_differ[:, 4:].any()  # from behind the bar it comes out as it should
    else:
        assert (pairs.first > 0).all()
    if kind in ("vanish", "teleport", "identity"):
        assert (pairs.first > 4).all()  # in the middle frame it is behind the bar
    again = source.pairs(12, kind, window=8)
    assert torch.equal(again.impossible[PIXELS], impossible)
    other = made(has_walls=has_walls, size=64).pairs(12, kind, window=8)
    assert (other.possible[PIXELS] != possible).any()


def test_surprises_that_cannot_be():
    with pytest.raises(ValueError, match="surprise levitate: there are vanish, appear"):
        made().pairs(2, "levitate")
    with pytest.raises(ValueError, match="clips of 5 frames are too short for a surprise: 6 or more"):
        made().pairs(2, "vanish", window=5)
    with pytest.raises(ValueError, match="pass_through needs 3"):
        made(num_objects=(1, 2)).pairs(2, "pass_through")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 8}, "env.size=8: at least 16"),
        ({"num_frames": 0}, "env.num_frames=0"),
        ({"frame_rate": 1, "speed": (0.2, 0.6)}, "env.frame_rate=1,.*higher frame rate"),
        ({"frame_rate": -1}, "env.frame_rate=-1"),
        ({"num_objects": (4, 3)}, r"env.num_objects=\[4, 3\]"),
        ({"num_objects": (3,)}, r"env.num_objects=\[3\]: two numbers"),
        ({"num_objects": (1, 9)}, r"env.num_objects=\[1, 9\].*8"),
        ({"radius": (0.1, 0.2)}, "main object is the largest"),
        ({"main_radius": 0.4}, "env.main_radius=0.4"),
        ({"speed": (0, 0.5)}, r"env.speed=\[0, 0.5\]"),
        ({"collision_chance": 1.5}, "env.collision_chance=1.5"),
        ({"occluder_chance": -0.1}, "env.occluder_chance=-0.1"),
        ({"light": 1}, "env.light=1"),
        ({"camera_speed": -1}, "env.camera_speed=-1"),
        ({"max_spin": -1}, "env.max_spin=-1"),
        ({"background_contrast": 2}, "env.background_contrast=2"),
        ({"val_share": 0.0}, "env.val_share=0.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        MovingScenes(**settings)


def test_a_clip_has_at_least_one_frame():
    with pytest.raises(ValueError, match="window=0"):
        batch(made(), 2, 0)
    with pytest.raises(ValueError, match="window=0"):
        made().part("val", 2, window=0)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ImportError, match=r"env=moving_scenes needs .*worldmodels\[images\]"):
        MovingScenes(size=17)  # of which no pictures are kept


def test_it_composes():
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", ["objective=t_jepa", "env=moving_scenes", "env.size=32", "env.num_objects=[2,3]"])
    source = instantiate(cfg.env.source, device="cpu")
    assert source.rules.num_objects == (2, 3)
    assert source.spec[OBSERVATION, PIXELS].shape == (3, 32, 32)
    defaults = MovingScenes()
    cfg.env.size, cfg.env.num_objects = 64, [3, 5]
    assert instantiate(cfg.env.source, device="cpu").describe() == defaults.describe()


@pytest.mark.gpu
def test_on_a_gpu_a_batch_never_waits_and_parts_are_the_same():
    source = MovingScenes(size=32, device="cuda")
    generator = Generator("cuda").manual_seed(0)
    source.sample(4, 8, generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        clips = source.sample(64, 8, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert clips.device is None or clips.device.type == "cuda"
    assert clips[OBSERVATION, PIXELS].is_cuda
    ours, theirs = source.part("val", 8), made().part("val", 8)
    assert torch.equal(ours.target["direction"].cpu(), theirs.target["direction"])
    gap = (ours.obs[PIXELS].cpu().float() - theirs.obs[PIXELS].float()).abs()
    assert (gap > 1).float().mean() < 1e-3
