"""Push-T: the geometry is right, people's recorded actions have their recorded effects, bad input is named."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tensordict import TensorDict

from worldmodels.core import Policy
from worldmodels.evals.tasks import episode_list, play, score

pytest.importorskip("pymunk", reason="needs the imitation extra: pip install 'worldmodels[imitation]'")

from envs.pusht import PushT, entries, read_columns
from envs.pusht_env import GOAL, PushTEnv, PushTMaker, coverage, keypoints, overlap, pictures

places = st.floats(150, 360)
angles = st.floats(-math.pi, math.pi)


def _columns(lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Episodes of a simulated agent that wanders, as the file has them."""
    random, env, states, actions = np.random.default_rng(seed), PushTEnv(), [], []
    for number, length in enumerate(lengths):
        env.reset(seed=number)
        for _ in range(length):
            states.append(env.state)
            actions.append(random.uniform(0, 512, 2))
            env.step(actions[-1] / 256 - 1)
    return {"state": np.stack(states), "action": np.stack(actions), "episode_ends": np.cumsum(lengths)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight episodes."""
    np.savez(tmp_path / "pusht_lowdim.npz", **_columns([3, 5, 4, 7, 2, 6, 3, 4]))
    return tmp_path


@pytest.fixture
def source(folder: Path) -> Iterator[PushT]:
    made = PushT(path=folder, test_demonstrations=2)
    yield made
    made.tasks.close()


@pytest.fixture(scope="module")
def people() -> dict[str, np.ndarray]:
    path = Path(__file__).resolve().parents[3] / "shared/data/pusht/pusht_lowdim.npz"
    if not path.is_file():
        pytest.skip(f"needs the real data: {path}")
    return read_columns(path) | {"keypoint": np.load(path)["keypoint"]}


# --- geometry -----------------------------------------------------------------------------------------------------
def test_the_goal_covers_itself_and_nothing_covers_it_from_afar() -> None:
    assert coverage(GOAL) == pytest.approx(1)
    assert coverage((100, 100, 0)) == 0
    # Turned by half a turn and moved along the stem until stems lie on each other: 30 x 90 of 6300 are common.
    x, y, angle = GOAL
    assert coverage((x - 150 * math.sin(angle), y + 150 * math.cos(angle), angle + math.pi)) == pytest.approx(3 / 7)


@given(places, places, angles)
@settings(max_examples=8)
def test_coverage_is_the_share_of_the_goals_pixels(x: float, y: float, angle: float) -> None:
    """Counted in a drawing without agent, in which block hides goal."""
    away = np.array([-100.0, -100.0])
    states = np.array([[*away, *away, 0.0], [*away, x, y, angle]])
    empty, full = pictures(states, 256, is_smooth=False)
    goal = (empty == (144, 238, 144)).all(-1)
    hidden = goal & (full == (119, 136, 153)).all(-1)
    assert coverage((x, y, angle)) == pytest.approx(hidden.sum() / goal.sum(), abs=0.05)


@given(places, places, angles)
@settings(max_examples=50)
def test_coverage_is_a_share_that_full_turns_and_exchange_do_not_change(x: float, y: float, angle: float) -> None:
    found = coverage((x, y, angle))
    assert 0 <= found <= 1
    assert coverage((x, y, angle + 2 * math.pi)) == pytest.approx(found, abs=1e-9)
    # The goal as a block of this pose sees it, brought to where goals are drawn: both Ts have changed places.
    gx, gy, goal_angle = GOAL
    turn = goal_angle - angle
    cos, sin = math.cos(turn), math.sin(turn)
    dx, dy = gx - x, gy - y
    swapped = (gx + cos * dx - sin * dy, gy + sin * dx + cos * dy, goal_angle + turn)
    assert coverage(swapped) == pytest.approx(found, abs=1e-9)


@given(st.floats(0, 3), st.floats(0, 3))
def test_squares_overlap_in_the_product_of_their_sides(x: float, y: float) -> None:
    first, second = [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)], [(x, y), (x + 2, y), (x + 2, y + 2), (x, y + 2)]
    wanted = max(2 - x, 0) * max(2 - y, 0)
    assert overlap(first, second) == pytest.approx(wanted, abs=1e-9)
    assert overlap(second, first) == pytest.approx(wanted, abs=1e-9)


@given(places, places, angles, st.floats(-100, 100), angles)
def test_keypoints_move_with_the_block(x: float, y: float, angle: float, by: float, turn: float) -> None:
    before = keypoints(np.array([x, y, angle])).reshape(9, 2)
    moved = keypoints(np.array([x + by, y, angle + turn])).reshape(9, 2)
    distances = [np.linalg.norm(points[:, None] - points, axis=-1) for points in (before, moved)]
    np.testing.assert_allclose(distances[0], distances[1], atol=1e-9)
    assert np.linalg.norm(before - (x, y), axis=1).max() < 130, "none lies off the block"


# --- the simulator ------------------------------------------------------------------------------------------------
def test_the_agent_goes_where_it_is_sent_and_pushes_the_block() -> None:
    env = PushTEnv()
    seen, info = env.begin(np.array([100, 300, 256, 300, 0]))
    assert info == {"coverage": pytest.approx(coverage((256, 300, 0))), "success": 0.0}
    assert seen[:2].tolist() == [100, 300]
    np.testing.assert_allclose(env.state, [100, 300, 256, 300, 0], atol=1e-9)
    for _ in range(10):
        seen, reward, terminated, truncated, info = env.step(np.array([200, 315]) / 256 - 1)
        assert reward == pytest.approx(info["coverage"] / 0.95)
        assert not terminated
        assert not truncated
    np.testing.assert_allclose(env.state[:2], [200, 315], atol=0.5)
    assert env.state[2] > 256, "the bar's end was at 196"
    assert seen.tolist() == env.state.tolist()


def test_success_is_coverage_above_the_wanted_share() -> None:
    near = (260.0, 256.0, math.pi / 4)
    share, still = coverage(near), np.array([20.0, 20.0]) / 256 - 1
    for wanted, is_solved in ((share - 0.01, True), (share + 0.01, False)):
        maker = PushTMaker(success_coverage=wanted)
        env = maker.make(1)
        env.begin(np.array([20, 20, *near]))
        _, reward, terminated, _, info = env.step(still)
        assert maker.is_solved(env) == terminated == bool(info["success"]) == is_solved
        assert reward == pytest.approx(min(share / wanted, 1))


def test_starts_are_those_of_the_demonstrations() -> None:
    env, starts = PushTEnv(), []
    for seed in range(200):
        env.reset(seed=seed)
        starts.append(env.state)
    agent, pose = np.split(np.stack(starts), [2], 1)
    centre = pose[:, :2] + 45 * np.stack([-np.sin(pose[:, 2]), np.cos(pose[:, 2])], 1)
    assert ((agent >= 50) & (agent < 450)).all()
    free = np.linalg.norm(agent - centre, axis=1) > 120  # of others the start pushes the block aside
    assert ((centre[free] > (99, 144)) & (centre[free] < (400, 445))).all()
    assert np.ptp(pose[:, 2]) > 6


def test_an_episode_is_a_function_of_its_seed() -> None:
    def played(env: PushTEnv, seed: int) -> np.ndarray:
        actions = np.random.default_rng(seed).uniform(-1, 1, (30, 2))
        return np.stack([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])

    env = PushTEnv()
    first = played(env, 3)
    assert not np.array_equal(first, played(env, 4))
    assert np.array_equal(first, played(env, 3)), "nothing is left of another episode"


def test_pictures_show_agent_block_and_goal() -> None:
    maker = PushTMaker()
    env = maker.make(1)
    env.begin(np.array([100, 400, 150, 150, 0]))
    assert (maker.render(env) == pictures(env.state[None], 240)[0]).all()
    image = pictures(env.state[None], 240, is_smooth=False)[0]
    assert image.shape == (240, 240, 3)
    assert image.dtype == np.uint8
    shares = [(image == colour).all(-1).mean() for colour in ((65, 105, 225), (119, 136, 153))]
    assert shares == pytest.approx([math.pi * 15**2 / 512**2, 6300 / 512**2], rel=0.03)
    assert image[int(400 * 240 / 512), int(100 * 240 / 512)].tolist() == [65, 105, 225], "rows are y"


def test_small_pictures_are_large_ones_with_less_detail() -> None:
    """Smooth edges: a picture of 48 pixels is the mean of the pixels of one of 480, but for corners."""
    states = np.stack([PushTEnv().reset(seed=seed)[0] for seed in range(70)])  # more than are drawn at once
    small = pictures(states, 24).astype(float)
    large = pictures(states, 192, is_smooth=False).reshape(70, 24, 8, 24, 8, 3).mean((2, 4))
    smooth, sharp = (np.abs(drawn - large).mean() for drawn in (small, pictures(states, 24, is_smooth=False)))
    assert smooth < sharp / 4


# --- people's demonstrations --------------------------------------------------------------------------------------
@pytest.mark.data
def test_recorded_actions_have_their_recorded_effects(people: dict[str, np.ndarray]) -> None:
    """Every twentieth episode, from its first state to its end; they end where people were content."""
    ends = people["episode_ends"]
    states, actions = (np.split(people[key], ends[:-1]) for key in ("state", "action"))
    env, best = PushTEnv(), []
    for number in range(1, len(ends), 20):
        env.begin(states[number][0])
        seen, covered = [], []
        for action in actions[number]:
            seen.append(env.state)
            covered.append(env.step(action / 256 - 1)[4]["coverage"])
        best.append(max(covered))
        np.testing.assert_allclose(np.stack(seen)[:, :4], states[number][:, :4], atol=0.01)
    assert min(best) > 0.85
    assert np.median(best) == pytest.approx(0.89, abs=0.02)


@pytest.mark.data
def test_recorded_keypoints_are_those_of_the_recorded_pose(people: dict[str, np.ndarray]) -> None:
    errors = np.abs(keypoints(people["state"][:, 2:]) - people["keypoint"].reshape(-1, 18)).max(1)
    assert np.median(errors) < 1e-3
    assert (errors > 0.05).mean() < 0.01, "a few rows where the recorded points are those of another moment"


@pytest.mark.data
def test_pictures_are_the_recorded_ones(people: dict[str, np.ndarray], shared_data: Path) -> None:
    """But for the block's shade, its edges and the table's, which are drawn there."""
    file = shared_data / "pusht" / "pusht_img96.npz"
    if not file.is_file():
        pytest.skip(f"needs the real data: {file}")
    with np.load(file) as arrays:
        recorded = arrays["img"][::500]
    difference = np.abs(pictures(people["state"][::500], 96) - recorded.astype(float)).mean((1, 2, 3))
    assert difference.max() < 3
    turned = pictures(people["state"][::500] * [1, 1, 1, 1, -1], 96)
    assert np.median(np.abs(turned - recorded.astype(float)).mean((1, 2, 3))) > 4


@pytest.mark.data
def test_people_are_imitated_whatever_they_covered(shared_data: Path) -> None:
    path = shared_data / "pusht"
    if not path.is_dir():
        pytest.skip(f"needs the real data in {path}")
    made = PushT(path=path)
    assert made.num_demonstrations == made.store.num_trajectories == 190
    assert made.store.num_rows + made.split("test").store.num_rows == 25_650
    assert made.statistics()["std"]["environment_state"].min() > 30
    few, other = PushT(path=path / "pusht_lowdim.npz", demonstrations=20), PushT(path=path, seed=1)
    assert few.describe()["demonstrations"]["train"] == made.describe()["demonstrations"]["train"][:20]
    assert few.describe()["demonstrations"]["test"] != other.describe()["demonstrations"]["test"]


# --- the source ---------------------------------------------------------------------------------------------------
def test_rows_are_the_files(folder: Path, source: PushT) -> None:
    columns, used = read_columns(folder), json.loads(json.dumps(source.describe()))["demonstrations"]
    assert sorted(used["train"] + used["test"]) == list(range(8))
    assert len(used["test"]) == 2
    assert source.num_demonstrations == 6
    pieces = {key: np.split(columns[key], columns["episode_ends"][:-1]) for key in ("state", "action")}
    for part in ("train", "test"):
        state, action = (np.concatenate([pieces[key][i] for i in used[part]]) for key in ("state", "action"))
        store = source.split(part).store
        rows = store.rows(torch.arange(store.num_rows))
        np.testing.assert_allclose(rows["observation", "state"], state[:, :2], atol=1e-4)
        np.testing.assert_allclose(rows["observation", "environment_state"], keypoints(state[:, 2:]), atol=1e-4)
        np.testing.assert_allclose((rows["action"] + 1) * 256, action, atol=1e-4)
        assert rows["has_action"].all()


def test_rollouts_show_what_the_data_show(source: PushT) -> None:
    with source.tasks.make("push-t", num_envs=3, seed=1, max_steps=2) as env:
        rows = [env.reset(), *(env.step(TensorDict({"action": torch.zeros(3, 2)}, [3])) for _ in range(2))]
        assert env.render(2).shape == (240, 240, 3)
    for row in rows:
        assert set(row["observation"].keys()) == set(source.spec["observation"].keys())
        for key, entry in source.spec["observation"].items():
            assert row["observation", key].dtype == entry.dtype
            assert row["observation", key].shape == (3, *entry.shape)
        wanted = [coverage(qpos[2:].tolist()) for qpos in row["physics", "qpos"]]
        assert row["coverage"].tolist() == pytest.approx(wanted, abs=1e-6)
    assert rows[-1]["truncated"].all()


def test_data_and_rollouts_show_the_same_pictures(folder: Path) -> None:
    source = PushT(path=folder, observation="pixels", size=24, test_demonstrations=2)
    rows = source.store.rows(torch.arange(source.store.num_rows))["observation"]
    assert rows["pixels"].shape == (source.store.num_rows, 3, 24, 24)
    assert rows["pixels"].dtype == torch.uint8
    with source.tasks.make("push-t", num_envs=3, seed=1, max_steps=1) as env:
        out = env.reset()
    drawn = pictures(out["physics", "qpos"].numpy(), 24)
    assert torch.equal(out["observation", "pixels"], torch.from_numpy(drawn).movedim(-1, 1))
    assert set(out["observation"].keys()) == set(rows.keys()) == set(source.spec["observation"].keys())
    assert set(source.statistics()["mean"].keys()) == {"state", "environment_state", "action"}
    source.tasks.close()


class _Pushes(Policy):
    """Sends the agent through the block's points, which moves it."""

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        return TensorDict({"action": td["observation", "environment_state"][:, :2] / 256 - 1}, td.batch_size)


def test_processes_change_nothing_and_the_greatest_coverage_is_told(source: PushT) -> None:
    def tried(workers: int) -> dict[str, Any]:
        options = {"episodes": 6, "seed": 2, "device": torch.device("cpu"), "max_steps": 60}
        return play(_Pushes(), source, ["push-t"], workers=workers, **options)[0]

    played, parallel = tried(0), tried(2)
    metrics, _ = score(played, seed=0)
    assert metrics == score(parallel, seed=0)[0]
    one = played["push-t"]
    assert one.coverage is not None
    assert torch.equal(one.paths, parallel["push-t"].paths)
    assert not bool(one.success.any())
    assert 0 < metrics["push-t/coverage_low"] < metrics["coverage"] < metrics["coverage_high"] < 1
    assert (one.coverage * 60 / 0.95 >= one.returns - 1e-4).all(), "the greatest is no less than the mean"
    listed = json.loads(episode_list(played, seeds={"push-t": 0}))
    assert [row["coverage"] for row in listed] == one.coverage.tolist()


def test_entries_are_agent_and_keypoints() -> None:
    states = torch.arange(10.0).view(2, 5)
    found = entries(states)
    assert set(found) == {"state", "environment_state"}
    assert found["state"].tolist() == [[0, 1], [5, 6]]
    np.testing.assert_allclose(found["environment_state"], keypoints(states[:, 2:].numpy()), rtol=1e-6)


def test_the_configuration_names_what_the_source_takes(folder: Path, root: Path) -> None:
    cfg = OmegaConf.create({"env": OmegaConf.load(root / "conf" / "env" / "pusht.yaml")})
    cfg.env.update({"path": str(folder), "test_demonstrations": 1, "demonstrations": 3})
    made = instantiate(cfg.env.source, device="cpu")
    assert made.num_demonstrations == 3
    assert made.tasks.max_steps == made.tasks._maker.max_steps == cfg.env.max_steps == 300
    assert made.tasks._maker.success_coverage == 0.95


# --- bad input ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": None}, r"env.path=null: give the people's demonstrations, env.path=FOLDER with pusht_lowdim.npz"),
        ({"demonstrations": 8}, "env.demonstrations=8, env.test_demonstrations=2: .* there are 8"),
        ({"demonstrations": 0}, "env.demonstrations=0"),
        ({"test_demonstrations": 8}, "env.test_demonstrations=8"),
        ({"success_coverage": 1.0}, "env.success_coverage=1.0"),
        ({"max_steps": 0}, "env.max_steps=0"),
        ({"observation": "pixels", "size": 0}, "env.size=0"),
        ({"observation": "picture"}, "env.observation=picture: policies see the state, or pixels"),
        ({"seed": -1}, "env.seed=-1"),
        ({"labelled_share": 0}, "env.labelled_share=0"),
    ],
)
def test_wrong_settings_are_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PushT(**({"path": folder, "test_demonstrations": 2} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": None}, "cannot be read .*state.* an npz with state"),
        ({"action": np.zeros((13, 2))}, r"action is \[13, 2\], needed is \[14, 2\]"),
        ({"state": np.zeros((14, 4))}, r"state is \[14, 4\], needed is \[14, 5\]"),
        ({"episode_ends": np.array([4, 4, 14])}, "episode_ends must grow"),
        ({"episode_ends": np.array([], np.int64)}, "episode_ends must grow"),
        ({"action": np.full((14, 2), 600.0)}, "an action of 1.34; actions lie within"),
        ({"state": np.full((14, 5), np.nan)}, "state is not finite in row 0"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    columns = {"state": np.zeros((14, 5)), "action": np.full((14, 2), 9.0), "episode_ends": np.array([4, 9, 14])}
    np.savez(tmp_path / "some.npz", **{key: value for key, value in (columns | changes).items() if value is not None})
    with pytest.raises(ValueError, match=message):
        PushT(path=tmp_path / "some.npz", test_demonstrations=1)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"env.path=.*: there is no .*pusht_lowdim.npz"):
        PushT(path=tmp_path)
    (tmp_path / "pusht_lowdim.npz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="cannot be read"):
        PushT(path=tmp_path)


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymunk", None)
    with pytest.raises(ImportError, match=r"pip install 'worldmodels\[imitation\]'"):
        PushT(path=folder, test_demonstrations=2)


def test_there_is_one_task(source: PushT) -> None:
    with pytest.raises(ValueError, match="Push-T has no task 'pusht'; did you mean push-t"):
        source.tasks.make("pusht", num_envs=1, seed=0)
