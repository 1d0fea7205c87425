"""ExoRL's files as a source: alignment, folders, collection, replay, and every kind of bad input."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

import envs.regenerate as regenerating
from envs.dmc import DMC
from envs.dmc_collect import collect, held_actions, random_episode
from envs.dmc_domains import DOMAINS, EPISODE_STEPS
from envs.dmc_envs import DMCEnv
from envs.exorl_files import (
    KEYS,
    PROVENANCE,
    DamagedError,
    Episode,
    EpisodeFile,
    find_folder,
    list_episodes,
    read,
    write_episode,
)

MAZE, WALKER = DOMAINS["point_mass_maze"], DOMAINS["walker"]


@pytest.fixture(scope="session")
def episodes() -> dict[str, list[Episode]]:
    """Real ones: three of the maze, one of each other domain."""
    made = {}
    for facts in DOMAINS.values():
        env = DMCEnv(facts, facts.tasks[0])
        made[facts.name] = [random_episode(env, seed=0, index=i) for i in range(3 if facts is MAZE else 1)]
    return made


@pytest.fixture
def folder(tmp_path: Path, episodes: dict[str, list[Episode]]) -> Path:
    """Three episodes of the maze, where ExoRL's unzipped files would be."""
    where = tmp_path / "point_mass_maze" / "rnd" / "buffer"
    for index, episode in enumerate(episodes["point_mass_maze"]):
        write_episode(where, index, episode)
    return where


def maze(folder: Path, **choices: Any) -> DMC:
    return DMC(domain="point_mass_maze", data_dir=folder, collect=False, **choices)


def test_transitions_are_aligned(folder: Path, episodes: dict[str, list[Episode]]) -> None:
    """Row t's action led to row t in the file, and is taken from row t in the store; replay says which is which."""
    source = maze(folder)
    assert (source.store.num_trajectories, source.store.num_transitions) == (3, 3000)
    batch = source.sample(64, 2, Generator().manual_seed(0))
    assert source.spec.expand(64, 2).contains(batch)
    assert not bool(batch["terminated"].any())
    state, action = batch["observation", "state"], batch["action"]
    env = DMCEnv(MAZE, "loop")
    for i in range(8):
        env.begin_from(state[i, 0].double().numpy())
        np.testing.assert_allclose(env.step(action[i, 0].numpy())[0], state[i, 1], atol=1e-4)
    first = episodes["point_mass_maze"][0]
    row = source.store.rows(torch.tensor([5]))
    assert torch.equal(row["action"][0], torch.from_numpy(first.action[6]))
    assert torch.equal(row["observation", "state"][0], torch.from_numpy(first.observation[5]))


def test_labelled_states_carry_their_physics_and_the_action_before(folder: Path) -> None:
    source = maze(folder)
    labelled = source.labelled(50, Generator().manual_seed(1))
    torch.testing.assert_close(labelled["physics", "qpos"].float(), labelled["observation", "state"][:, :2])
    assert labelled["physics", "qpos"].dtype == torch.float64
    state, found = labelled["observation", "state"], 0
    for episode in (read(file, MAZE) for file in list_episodes(folder)):
        for row, action in zip(state, labelled["action"], strict=True):
            for t in np.flatnonzero((episode.observation == row.numpy()).all(-1)):
                found += 1
                assert np.array_equal(episode.action[t], action.numpy())
    assert found == 50
    again = source.labelled(50, Generator().manual_seed(1))
    assert torch.equal(again["action"], labelled["action"])


def test_every_domain_loads_and_relabels(tmp_path: Path, episodes: dict[str, list[Episode]]) -> None:
    for facts in DOMAINS.values():
        write_episode(tmp_path / facts.name / "rnd" / "buffer", 7, episodes[facts.name][0])
        source = DMC(domain=facts.name, data_dir=tmp_path, collect=False)
        labelled = source.labelled(20, Generator().manual_seed(0))
        assert set(labelled["physics"].keys()) == set(facts.split(np.zeros((1, facts.physics_dim))))
        for task in source.tasks.names:
            assert source.tasks.reward(task, labelled).shape == (20,)
        assert source.describe()["episodes"] == 1


def test_files_are_found_where_exorl_puts_them(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in (tmp_path, tmp_path / "point_mass_maze", folder.parent, folder):
        assert find_folder("point_mass_maze", root) == folder
    assert find_folder("walker", tmp_path) is None
    shutil.copytree(folder, tmp_path / "point_mass_maze" / "random" / "buffer")
    shutil.copytree(folder, tmp_path / "point_mass_maze" / "aps" / "buffer")
    assert find_folder("point_mass_maze", tmp_path) == folder, "rnd before all others"
    shutil.rmtree(folder)
    assert find_folder("point_mass_maze", tmp_path) == tmp_path / "point_mass_maze" / "aps" / "buffer", "random last"
    monkeypatch.setenv("EXORL_DATA_DIR", str(tmp_path))
    source = DMC(domain="point_mass_maze", explorer="random", collect_episodes=1, max_episodes=2)
    assert source.folder == tmp_path / "point_mass_maze" / "random" / "buffer"
    assert source.store.num_trajectories == 2


def test_files_come_in_sorted_order(folder: Path, episodes: dict[str, list[Episode]]) -> None:
    (folder / "episode_000000_1000.npz").rename(folder / "episode_000009_1000.npz")
    source = maze(folder)
    start = source.store.rows(torch.tensor([0]))["observation", "state"][0]
    assert torch.equal(start, torch.from_numpy(episodes["point_mass_maze"][1].observation[0]))


def test_nothing_found_says_what_to_do(tmp_path: Path) -> None:
    message = r"no episodes of walker in .*walker/rnd/buffer/episode_000000_1000.npz.*envs.dmc_collect domain=walker"
    with pytest.raises(ValueError, match=message):
        DMC(domain="walker", data_dir=tmp_path, collect=False)
    with pytest.raises(ValueError, match="walker/proto/buffer"):
        DMC(domain="walker", data_dir=tmp_path, explorer="proto")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"domain": "pointmass"}, "did you mean point_mass_maze"),
        ({"observation": "lidar"}, "there are state and pixels"),
        ({"frame_stack": 3}, "only pictures are stacked"),
        ({"max_episodes": -1}, "max_episodes=-1"),
        ({"action_chunk": 0}, "action_chunk=0"),
    ],
)
def test_impossible_settings(choices: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        DMC(**{"domain": "walker", "data_dir": tmp_path, "collect": False, **choices})


def rewrite(folder: Path, **changes: Any) -> Path:
    """The first file with other columns; None leaves one out."""
    path = folder / "episode_000000_1000.npz"
    with np.load(path) as archive:
        columns = {key: archive[key] for key in KEYS} | changes
    np.savez(path, **{key: value for key, value in columns.items() if value is not None})
    return path


def _with(array: np.ndarray, row: Any, value: float) -> np.ndarray:
    array = array.copy()
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"physics": None}, "physics is missing; it has observation, action"),
        (lambda e: {"physics": _with(e.physics, (3, 1), np.nan)}, "physics is not finite in row 3"),
        (lambda e: {"observation": _with(e.observation, (4, 0), np.inf)}, "observation is not finite in row 4"),
        (lambda e: {"action": _with(e.action, (4, 0), 3.0)}, "an action of 3, but"),
        (lambda e: {"discount": np.full((1001, 1), 0.99, np.float32)}, "discount is 0.99 in row 0; 1 .* or 0"),
        (lambda e: {"action": e.action[:-1]}, "action has 1000 rows, but the name says 1000 steps and one more"),
        (
            lambda e: {"observation": e.observation[:, :3]},
            r"observation has shape \[1001, 3\], but point_mass_maze needs",
        ),
        (
            lambda e: {"physics": np.roll(e.physics, 30, axis=0)},
            r"physics does not reproduce the observation: in row \d+, entry \d is .*, but physics gives .*regenerate",
        ),
    ],
)
def test_odd_files(folder: Path, episodes: dict[str, list[Episode]], change: Any, message: str) -> None:
    path = rewrite(folder, **change(episodes["point_mass_maze"][0]))
    with pytest.raises(ValueError, match=message) as caught:
        maze(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_another_domain(tmp_path: Path, episodes: dict[str, list[Episode]]) -> None:
    write_episode(tmp_path, 0, episodes["walker"][0])
    with pytest.raises(ValueError, match=r"these are sizes of walker: env.domain=walker"):
        maze(tmp_path)


def test_episodes_of_another_length(tmp_path: Path, episodes: dict[str, list[Episode]]) -> None:
    whole = episodes["point_mass_maze"][0]
    write_episode(tmp_path, 0, Episode(*(part[:501] for part in whole[:4])))
    with pytest.raises(ValueError, match="an episode of 500 steps, but those of ExoRL have 1000"):
        maze(tmp_path)


def test_ends_of_episodes_are_no_ends_of_tasks(folder: Path, episodes: dict[str, list[Episode]]) -> None:
    """A discount of 0 in row t ends the task with the action taken from row t - 1."""
    discount = np.ones((1001, 1), np.float32)
    discount[6] = 0
    rewrite(folder, discount=discount)
    assert torch.nonzero(maze(folder).store.rows(torch.arange(3003))["terminated"]).flatten().tolist() == [5]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"<html>not found</html>", None])
def test_files_that_are_not_whole_are_left_out(
    folder: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "episode_000001_1000.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    (folder / ".episode_000005_1000.npz.123.tmp").write_bytes(b"unfinished")
    source = maze(folder)
    assert source.store.num_trajectories == 2
    assert len(source.left_out) == 1
    said = capsys.readouterr().err
    assert "1 files are left out" in said
    assert "episode_000001_1000.npz is not whole" in said
    with pytest.raises(DamagedError):
        read(EpisodeFile(path, 1, 1000), MAZE)
    for file in folder.glob("episode*"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="none of its 3 files is whole"):
        maze(folder)


def test_stored_rewards_may_have_any_width(folder: Path) -> None:
    rewrite(folder, reward=np.zeros((1001, 4), np.float32))
    maze(folder)
    with_reward = read(EpisodeFile(folder / "episode_000000_1000.npz", 0, 1000), MAZE, with_reward=True)
    assert with_reward.reward is not None
    assert with_reward.reward.shape == (1001, 4)


def test_writing_reads_back(tmp_path: Path, episodes: dict[str, list[Episode]]) -> None:
    for name, (episode, *_) in episodes.items():
        path = write_episode(tmp_path / name, 3, episode)
        (file,) = list_episodes(tmp_path / name)
        assert file == EpisodeFile(path, 3, EPISODE_STEPS)
        for stored, again in zip(episode[:4], read(file, DOMAINS[name])[:4], strict=True):
            assert np.array_equal(stored, again)
        with np.load(path) as archive:
            assert {key: archive[key].shape[:1] for key in archive.files} == dict.fromkeys(KEYS, (1001,))


# --- collection -----------------------------------------------------------------------------------------------------
def test_collection_is_resumable_and_a_function_of_its_seed(tmp_path: Path) -> None:
    first = collect("point_mass_maze", folder=tmp_path / "a", episodes=3, workers=1, seed=4, is_shown=False)
    (first / "episode_000001_1000.npz").unlink()
    source = DMC(domain="point_mass_maze", data_dir=first, collect_episodes=4, workers=2, seed=4)
    assert source.store.num_trajectories == 4, "the missing one, and one more"
    second = collect("point_mass_maze", folder=tmp_path / "b", episodes=4, workers=2, seed=4, is_shown=False)
    for name in (f"episode_{i:06d}_1000.npz" for i in range(4)):
        with np.load(first / name) as a, np.load(second / name) as b:
            assert all(np.array_equal(a[key], b[key]) for key in KEYS)
    assert "random actions" in source.describe()["provenance"]["made_by"]
    with pytest.raises(ValueError, match="holds episodes with seed=4"):
        collect("point_mass_maze", folder=first, episodes=5, seed=5, is_shown=False)
    (first / PROVENANCE).unlink()
    with pytest.raises(ValueError, match="not made here"):
        collect("point_mass_maze", folder=first, episodes=5, seed=4, is_shown=False)
    with pytest.raises(ValueError, match="explorer=rnd"):
        collect("point_mass_maze", folder=tmp_path / "c", explorer="rnd")


def test_held_actions() -> None:
    rng = np.random.default_rng(0)
    drawn = [held_actions(1000, 3, rng) for _ in range(200)]
    changes = [int((np.diff(actions, axis=0) != 0).any(-1).sum()) for actions in drawn]
    assert min(changes) < 20 < 700 < max(changes)
    everything = np.concatenate(drawn)
    assert abs(everything).max() <= 1
    assert abs(everything.mean(0)).max() < 0.05


# --- replay ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("domain", DOMAINS)
def test_replay_in_the_same_mujoco_is_exact(domain: str, episodes: dict[str, list[Episode]]) -> None:
    """Except the cheetah, whose starts are settled for 200 steps: what the solver remembers of these is lost."""
    facts, (episode, *_) = DOMAINS[domain], episodes[domain]
    replayed, deviation = regenerating.replay(DMCEnv(facts, facts.tasks[0]), episode)
    assert deviation[0] < 1e-6
    assert deviation[:50].max() < 1e-4
    if domain != "cheetah":
        assert deviation.max() < 1e-6
        np.testing.assert_allclose(replayed.physics, episode.physics, atol=1e-6)


def test_regeneration_reports_deviations_and_replaces_files(
    tmp_path: Path, folder: Path, episodes: dict[str, list[Episode]]
) -> None:
    """Actions of another episode after step 100: observations deviate from there on, and are replaced."""
    actions = episodes["point_mass_maze"][0].action.copy()
    actions[101:] = -actions[101:]
    rewrite(folder, action=actions, reward=np.full((1001, 4), 2.0, np.float32))
    path = folder / "episode_000002_1000.npz"
    path.write_bytes(path.read_bytes()[:1000])
    kept = path.read_bytes()
    text = regenerating.regenerate(folder=folder, domain="point_mass_maze", workers=1, is_shown=False)
    assert text.startswith("2 episodes replayed")
    worst = [float(number) for number in re.findall(r"worst (\S+)", text)]
    assert worst[:3] == [0.0, 0.0, 0.0]
    assert worst[3] > 1e-3
    assert "1 files are not whole and stay as they are" in text
    assert path.read_bytes() == kept
    again = read(EpisodeFile(folder / "episode_000000_1000.npz", 0, 1000), MAZE, with_reward=True)
    assert np.array_equal(again.action, actions)
    assert again.reward is not None
    assert (again.reward == 2).all()
    assert not np.array_equal(again.observation, episodes["point_mass_maze"][0].observation)
    assert regenerating.regenerate(folder=folder, domain="point_mass_maze", is_shown=False) == text, "done once"
    with pytest.raises(ValueError, match="holds no episode"):
        regenerating.regenerate(folder=tmp_path, domain="point_mass_maze")
