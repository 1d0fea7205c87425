"""Explored episodes are ExoRL's files, written once and resumed to the byte; coverage counts what they visited."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from envs import online
from envs.dmc import DMC
from envs.dmc_coverage import Cells
from envs.dmc_domains import find_domain
from envs.dmc_envs import DMCEnv
from envs.dmc_explore import EpisodeWriter
from envs.exorl_files import list_episodes, read
from envs.online import Online
from worldmodels.core import Objective, Phase
from worldmodels.evals.coverage import CoverageEvaluator
from worldmodels.evals.results import unpack

MAZE = find_domain("point_mass_maze")
SIZE = {"num_envs": 2, "capacity": 4_000, "first_transitions": 100, "transitions_per_update": 20}  # of ten steps each


class Drift:
    """Pushes by what it sees, with a little of the noise: a policy whose episodes depend on everything before."""

    def act(self, td: TensorDict, explore: bool) -> TensorDict:
        state = td["observation", "state"]
        action = torch.sin(9 * state[:, :2] + 5 * state[:, 2:]).repeat(1, 10) + 0.3 * td["noise", "action"]
        return TensorDict({"action": action}, td.batch_size)  # also beyond 1, as no actor's: clipped where it is played


class Untrained(Objective):
    """What coverage asks nothing of."""

    window = 2

    def phases(self) -> tuple[Phase, ...]:
        return ()


def body(**options: Any) -> DMC:
    return DMC(domain="point_mass_maze", max_episodes=0, **options)


def explore(root: Path, **options: Any) -> Online:
    source = Online(body(action_chunk=10), recorder=partial(EpisodeWriter, data_dir=root), **{**SIZE, **options})
    source.attach(Drift())
    return source


def run(source: Online, first: int, last: int) -> list[TensorDict]:
    return [source.sample(16, 2, Generator().manual_seed(step)) for step in range(first, last)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TensorDict], Online]:
    """4,200 steps of two environments: four episodes, and the batches of 17 updates."""
    root = tmp_path_factory.mktemp("explored")
    source = explore(root)
    return root, run(source, 0, 17), source


def test_episodes_are_read_back_and_are_what_happened(whole: tuple[Path, list[TensorDict], Online]) -> None:
    root, batches, _ = whole
    folder = root / "point_mass_maze" / "rnd" / "buffer"
    files = list(list_episodes(folder))
    assert [file.path.name for file in files] == [f"episode_{i:06d}_1000.npz" for i in range(4)]
    env, starts = DMCEnv(MAZE, "loop"), set()
    for file in files:
        episode = read(file, MAZE)
        starts.add(episode.observation[0].tobytes())
        assert np.array_equal(env.begin_from(episode.physics[0]), episode.observation[0])
        for t in range(1, 200):  # the action in row t led to row t
            assert np.array_equal(env.step(episode.action[t])[0], episode.observation[t])
        assert np.array_equal(episode.physics.astype(np.float32), episode.observation)
        assert not episode.action[0].any()
        assert (episode.discount == 1).all()
    assert len(starts) == 4
    data = DMC(domain="point_mass_maze", data_dir=root)  # takes rnd where it is, and checks physics
    assert data.store.num_trajectories == 4
    assert data.provenance is not None
    assert "agent=rnd" in data.provenance["made_by"]
    known = {row.tobytes() for row in data.store.rows(torch.arange(4004))["observation", "state"].numpy()}
    drawn = batches[-1]["observation", "state"].flatten(0, 1).numpy()
    assert all(row.tobytes() in known for row in drawn)
    assert "reward" not in batches[0].keys()


@pytest.mark.parametrize(("stop", "last", "num_files"), [(2, 8, 2), (9, 17, 4)])
def test_a_resumed_run_goes_on_to_the_byte(
    tmp_path: Path, whole: tuple[Path, list[TensorDict], Online], stop: int, last: int, num_files: int
) -> None:
    """Stopped in the first and in the second episodes, also where files came after the checkpoint."""
    root, expected, _ = whole
    first = explore(tmp_path)
    run(first, 0, stop)
    saved = {key: value.clone() for key, value in first.gathered().items()}
    run(first, stop, stop + 6)  # a run that was killed before its next checkpoint
    again = explore(tmp_path)
    again.restore(saved)
    assert again.recorder is not None
    found = run(again, stop, last)
    assert all((a == b).all() for a, b in zip(expected[stop:last], found, strict=True))
    mine, theirs = (sorted((r / "point_mass_maze" / "rnd" / "buffer").glob("*.npz")) for r in (tmp_path, root))
    assert len(mine) == num_files
    for a, b in zip(mine, theirs[:num_files], strict=True):
        with np.load(a) as one, np.load(b) as other:
            assert all(np.array_equal(one[key], other[key]) for key in other.files)
    assert again.recorder.num_episodes == num_files


def test_other_processes_step_the_same_episodes(tmp_path: Path, whole: tuple[Path, list[TensorDict], Online]) -> None:
    source = explore(tmp_path, workers=2)
    found = run(source, 0, 2)
    source.env.close()
    source.tasks.close()
    assert all((a == b).all() for a, b in zip(whole[1][:2], found, strict=True))


def test_no_run_writes_among_episodes_of_another(whole: tuple[Path, list[TensorDict], Online]) -> None:
    root, _, source = whole
    with pytest.raises(ValueError, match="holds episodes already; move them away, or write elsewhere"):
        run(explore(root), 0, 1)
    other = explore(root, seed=1)
    with pytest.raises(ValueError, match="holds episodes of another run than the one that goes on here"):
        other.restore(source.gathered())


def test_a_body_without_data(tmp_path: Path) -> None:
    source = body(data_dir=tmp_path)
    assert not any(tmp_path.iterdir())
    assert str(source.spec) == str(DMC(domain="point_mass_maze", data_dir=tmp_path, collect_episodes=1).spec)
    assert source.describe() == {"domain": "point_mass_maze", "episodes": 0}
    with pytest.raises(ValueError, match="max_episodes=0 reads no episodes, but this needs some"):
        source.sample(4, 2, Generator())
    with pytest.raises(ValueError, match="action_chunk=3 does not divide an episode's 1000 steps"):
        Online(body(action_chunk=3), recorder=EpisodeWriter, **SIZE)
    assert issubclass(EpisodeWriter, online.Recorder)


def test_coverage_is_that_of_a_count_by_hand(whole: tuple[Path, list[TensorDict], Online]) -> None:
    root, _, source = whole
    judge = CoverageEvaluator(source=source, every=0)
    result = unpack(judge(Untrained(), 0))
    visited, in_first, num = set(), 0, 0
    for file in list_episodes(root / "point_mass_maze" / "rnd" / "buffer"):
        for x, y in read(file, MAZE).physics[:, :2].tolist():
            visited.add((int((x + 0.3 + 1e-9) // 0.02), int((y + 0.3 + 1e-9) // 0.02)))
            in_first, num = in_first + (x < 0 <= y), num + 1
    assert result.metrics["explorer/cells"] == len(visited) > 10
    assert result.metrics["explorer/share"] == pytest.approx(len(visited) / 832)  # 30 x 30 less 2 x 18 + 2 x 16
    assert result.metrics["explorer/time_top_left"] == pytest.approx(in_first / num)
    assert result.metrics["random/episodes"] == 4
    assert result.files["visits.png"][:4] == b"\x89PNG"
    again = unpack(judge(Untrained(), 1))
    assert again.metrics == result.metrics  # nothing is counted twice


@pytest.mark.parametrize("domain", ["walker", "cheetah", "quadruped"])
def test_other_bodies_are_counted_in_boxes(domain: str) -> None:
    facts = find_domain(domain)
    env = DMCEnv(facts, facts.tasks[0])
    env.reset(seed=0)
    states = [env.state()]
    for _ in range(30):
        env.step(np.full(facts.action_dim, 0.5, np.float32))
        states.append(env.state())
    cells = Cells(facts)
    found, shares = cells(np.stack(states))
    assert found.shape == (31, len(cells.axes))
    assert shares == {}
    assert cells.total is None
    measured = cells._meter(np.stack(states))
    assert np.array_equal(found[:, 0], np.floor(measured["speed"] / 0.5 + 1e-9))


def test_coverage_needs_a_recorder() -> None:
    with pytest.raises(ValueError, match="needs a source that records its episodes"):
        CoverageEvaluator(source=Online(body(), **SIZE), every=0)
