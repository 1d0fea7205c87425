"""ExoRL episodes as pictures: drawn from physics, kept packed, stacked, and the same ones while a policy is tried."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from tensordict import TensorDict

from envs.dmc import DMC
from envs.dmc_collect import collect
from envs.dmc_domains import DOMAINS, find_domain, make
from envs.dmc_pixels import Pictures, draw_episodes, painter, pictures_folder, read_pictures
from envs.dmc_tasks import DMCTasks
from perception.clips import ClipViews
from perception.video import VideoTransformer
from worldmodels import build

pytestmark = pytest.mark.skipif(os.environ.get("MUJOCO_GL") not in ("egl", "osmesa"), reason="needs a renderer")

ROWS = 6


def write_episode(path: Path, domain: str, *, seed: int, rows: int = ROWS, **changes: object) -> np.ndarray:
    """An episode in ExoRL's layout, of random actions; returns its physics [rows, P]."""
    facts, rng = find_domain(domain), np.random.default_rng(seed)
    env = make(domain, facts.tasks[0], random=seed)
    env.reset()
    actions = np.concatenate([np.zeros((1, facts.action_dim)), rng.uniform(-1, 1, (rows - 1, facts.action_dim))])
    states = [env.physics.get_state()]
    for action in actions[1:]:
        for _ in range(10):  # far enough to be seen
            env.step(action)
        states.append(env.physics.get_state())
    columns = {"action": actions.astype(np.float32), "physics": np.stack(states)}
    np.savez_compressed(path, **(columns | changes))  # type: ignore[arg-type]
    return columns["physics"]


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("maze")
    paths = [folder / f"episode_{i:06d}_{ROWS - 1}.npz" for i in range(2)]
    return paths, [write_episode(path, "point_mass_maze", seed=i) for i, path in enumerate(paths)]


@pytest.mark.parametrize("domain", DOMAINS)
def test_default_pictures_are_dm_controls(domain: str) -> None:
    facts = DOMAINS[domain]
    env = make(domain, facts.tasks[0], random=0)
    env.reset()
    for _ in range(3):
        env.step(np.full(facts.action_dim, 0.5))
    wanted = env.physics.render(64, 64, camera_id=facts.camera).transpose(2, 0, 1)
    state = env.physics.get_state()
    env.close()
    paint = painter(facts, is_fast=False)
    assert np.array_equal(paint(state), wanted)
    paint.close()


def test_episodes_are_drawn_once_and_come_back_to_the_bit(maze: tuple[list[Path], list[np.ndarray]]) -> None:
    paths, physics = maze
    files = draw_episodes("point_mass_maze", paths, workers=1, is_shown=False)
    assert [file.parent for file in files] == [pictures_folder(paths[0].parent)] * 2
    paint = painter(find_domain("point_mass_maze"))
    for file, states in zip(files, physics, strict=True):
        pixels = read_pictures(file)
        assert np.array_equal(pixels, np.stack([paint(state) for state in states]))
        assert all((pixels[i] != pixels[i + 1]).any() for i in range(ROWS - 1)), "every state looks different"
        assert file.stat().st_size < pixels.nbytes / 10
    paint.close()
    before = [file.stat().st_mtime_ns for file in files]
    draw_episodes("point_mass_maze", paths, workers=1, is_shown=False)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert (files[0].parent / "pictures.json").exists()
    assert not list(files[0].parent.glob(".*.tmp"))


def test_only_what_is_missing_or_changed_is_drawn(tmp_path: Path) -> None:
    paths = [tmp_path / f"episode_{i:06d}_2.npz" for i in range(3)]
    for i, path in enumerate(paths):
        write_episode(path, "point_mass_maze", seed=i, rows=3)
    files = draw_episodes("point_mass_maze", paths, workers=1, is_shown=False)
    kept = files[0].stat().st_mtime_ns
    write_episode(paths[1], "point_mass_maze", seed=7, rows=3)  # another episode under the same name
    files[2].write_bytes(files[2].read_bytes()[:100])  # cut short
    old = read_pictures(files[1])
    draw_episodes("point_mass_maze", paths, workers=1, is_shown=False)
    assert files[0].stat().st_mtime_ns == kept
    assert not np.array_equal(read_pictures(files[1]), old)
    assert read_pictures(files[2]).std() > 10


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        (np.zeros((3, 18)), r"physics has shape \[3, 18\], but point_mass_maze needs \[rows, 4\]"),
        (np.full((3, 4), np.nan), "physics is not finite in row 0"),
    ],
)
def test_bad_physics_is_named(tmp_path: Path, physics: np.ndarray, message: str) -> None:
    path = tmp_path / "episode_000000_2.npz"
    write_episode(path, "point_mass_maze", seed=0, rows=3, physics=physics)
    with pytest.raises(ValueError, match=message):
        draw_episodes("point_mass_maze", [path], workers=1, is_shown=False)


def test_pictures_that_came_with_an_episode_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "episode_000000_2.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), np.uint8)
    write_episode(path, "point_mass_maze", seed=0, rows=3, pixels=pixels)
    (file,) = draw_episodes("point_mass_maze", [path], is_fast=False, is_shown=False)
    assert np.array_equal(read_pictures(file), pixels)


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "episode_000000_2.npz"
    np.savez_compressed(path, pixels=np.zeros((3, 64, 64, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"pixels are uint8 \[3, 64, 64, 3\], but uint8 \[T \+ 1, 3, 64, 64\] is needed"
    ):
        read_pictures(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"cannot read pixels .* delete it, then it is drawn again"):
        read_pictures(path)


def test_environments_show_the_pictures_of_the_data() -> None:
    """Stack by brute force from the physics that the rows report; in this process and in another."""
    facts = find_domain("point_mass_maze")
    tasks = DMCTasks(facts, pictures=Pictures(frame_stack=3))
    actions = [torch.full((2, 2), value) for value in (1.0, -1.0, 0.5, 0.5)]
    seen: list[list[torch.Tensor]] = []
    for workers in (0, 1):
        with tasks.make("loop", num_envs=2, seed=0, workers=workers) as env:
            rows = [env.reset()] + [env.step(TensorDict({"action": action}, [2])) for action in actions]
        seen.append([row["observation", "pixels"] for row in rows])
        states = [row["physics", "qpos"].numpy() for row in rows]
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    paint = painter(facts)
    for t, pixels in enumerate(seen[0]):
        assert pixels.shape == (2, 9, 64, 64)
        assert pixels.dtype == torch.uint8
        for row in range(2):
            frames = [paint(states[max(0, t + back)][row]) for back in (-2, -1, 0)]
            assert np.array_equal(pixels[row].numpy(), np.concatenate(frames))
    paint.close()
    goal = tasks.goal_of("reach_top_left")["pixels"]
    assert goal.shape == (9, 64, 64)
    assert torch.equal(goal[:3], goal[6:])
    tasks.close()


def test_pictures_without_a_renderer_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(ValueError, match="pictures are off; set MUJOCO_GL=egl"):
        DMCTasks(find_domain("walker"), pictures=Pictures(frame_stack=3))
    DMCTasks(find_domain("walker"))  # states need none


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of 1000 steps, as env=dmc collects them."""
    return collect("point_mass_maze", folder=tmp_path_factory.mktemp("exorl"), episodes=2, workers=1, is_shown=False)


def source(folder: Path, **changes: Any) -> DMC:
    settings = {"observation": "pixels", "frame_stack": 3, "collect": False, "workers": 1} | changes
    return DMC(domain="point_mass_maze", data_dir=folder, **settings)


def test_data_are_stacks_of_drawn_pictures_in_memory_and_on_disk(collected: Path) -> None:
    memory, states = source(collected), source(collected, observation="state", frame_stack=1)
    disk = source(collected, max_device_bytes=1000)
    first = torch.tensor([0, 1, 500, 999, 1001, 1002, 2000], dtype=memory.store.starts(2).dtype)
    drawn = [read_pictures(path) for path in sorted(pictures_folder(collected).glob("*.npz"))]
    frames = torch.from_numpy(np.concatenate(drawn))
    for data in (memory, disk):
        pixels = data.store.windows(first, 2)["observation", "pixels"]
        assert data.spec["observation", "pixels"].expand(*pixels.shape).is_in(pixels)
        for row, begin in enumerate(first.tolist()):
            for t in range(2):
                at = [max(1001 * ((begin + t) // 1001), begin + t + back) for back in (-2, -1, 0)]
                assert torch.equal(pixels[row, t], frames[at].flatten(0, 1))
    for key in ("action", "terminated"):
        assert torch.equal(memory.store.windows(first, 2)[key], states.store.windows(first, 2)[key])
    assert len(list(pictures_folder(collected).glob(".unpacked-*"))) == 1
    labelled = memory.labelled(4, torch.Generator().manual_seed(0))
    paint = painter(find_domain("point_mass_maze"))
    for row in range(4):
        shown = labelled["observation", "pixels"][row, 6:].numpy()
        assert np.array_equal(shown, paint(labelled["physics", "qpos"][row].numpy())), "picture and physics agree"
    paint.close()


def test_windows_of_pictures_are_clips_with_actions(collected: Path) -> None:
    data = source(collected, frame_stack=1)
    views = ClipViews(data.spec, num_frames=5, size=32, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    made = views(data.sample(6, views.window, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1))
    windows = data.sample(6, views.window, torch.Generator().manual_seed(0))
    assert made["observation", "pixels"].shape == (6, 1, 5, 3, 32, 32)
    assert views.spec.expand(6, 1).is_in(made)
    assert torch.equal(made["actions"][:, 0], windows["action"])
    assert made["actions"].flatten(0, 2).std(0).min() > 0
    whole = views.fitted(windows["observation"])["pixels"].int()
    assert (made["observation", "pixels"][:, 0] - whole).abs().max() <= 1
    encoder = VideoTransformer(views.spec, patch=8, tubelet=5, dim=24, depth=1, num_heads=2)
    assert encoder(made["observation"][:, 0])["tokens"].shape == (6, 16, 24)


def test_an_agent_learns_from_pictures_and_is_tried(collected: Path) -> None:
    """Two updates and a short evaluation of the experiment of docs/pixels.md, with smaller nets."""
    with initialize_config_module("conf", version_base="1.3"):
        small = ["encoder.channels=2", "encoder.dim=8", "batch_size=4", "steps=2", "eval.zero_shot.episodes=1"]
        short = [
            "eval.zero_shot.max_steps=3",
            "eval.zero_shot.num_labelled=8",
            f"env.data_dir={collected}",
            "env.collect=false",
        ]
        cfg = compose("config", ["experiment=td_jepa/point_mass_maze_pixels_small", *small, *short, "env.workers=1"])
    device = torch.device("cpu")
    data = build.build_source(cfg, device)
    agent = build.build_objective(cfg, data, device)
    learner, generator = build.build_learner(cfg, agent, device), torch.Generator().manual_seed(0)
    weights = [param.clone() for param in agent.encoder.parameters()]
    for step in range(2):
        batch = data.sample(4, agent.window, generator)
        for transform in build.build_transforms(cfg, agent):
            batch = transform(batch, generator)
        learner.update(batch, step)
    assert all(value == value for value in learner.metrics().values())
    assert all(not torch.equal(a, b) for a, b in zip(weights, agent.encoder.parameters(), strict=True))
    evaluator = next(e for e in build.build_evaluators(cfg, data) if e.name == "zero_shot")
    result = evaluator(agent, 2)
    assert float(result["length"]) == 3
    data.tasks.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pictures": "nice"}, "env.pictures=nice: there are fast and default"),
        ({"observation": "sound"}, "env.observation=sound: there are state and pixels"),
        ({"frame_stack": 0}, "frame_stack=0"),
        ({"observation": "state", "frame_stack": 3}, "only pictures are stacked"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(tmp_path, **settings)


def test_drawing_without_a_renderer_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "episode_000000_2.npz"
    write_episode(path, "point_mass_maze", seed=0, rows=3)
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(ValueError, match="apt-get install libegl1"):
        draw_episodes("point_mass_maze", [path], workers=1, is_shown=False)
