"""Make ExoRL-like episodes with random actions: ``python -m envs.dmc_collect domain=walker episodes=300 workers=2``.

The plainest explorer there is, so that env=dmc runs at once without any file. It does not seek novelty as ExoRL's RND
did: it wanders as far as random actions go. Settings and defaults are in ``conf/dmc_collect.yaml``.

Random actions that change every step cancel out and go nowhere. So an action is drawn uniformly and held for some
steps, k ~ Geometric(1 / hold), and ``hold`` itself is drawn anew for every episode, log-uniformly from 1 to 100 steps:
some episodes tremble, some push one way for seconds.

An episode depends on (domain, seed, its index) only. Every file is written atomically, so the same command goes on
after a Ctrl-C, and a greater ``episodes`` adds to what is there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from envs.command import run_command
from envs.dmc_domains import EPISODE_STEPS, find_domain
from envs.dmc_envs import DMCEnv
from envs.exorl_files import Episode, claim, default_data_dir, list_episodes, provenance, write_episode
from envs.parallel import disk_errors, exclusive, num_workers, progress, run_jobs

_MAX_HOLD = 100  # steps


def collect(
    domain: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    episodes: int = 300,
    workers: int | None = None,
    seed: int = 0,
    explorer: str = "random",
    is_shown: bool = True,
) -> Path:
    """Make episodes of random actions, those that are not there yet, and return their folder.

    Args:
        domain: by name.
        folder: of the files; None: DOMAIN/random/buffer in $EXORL_DATA_DIR, else in ~/.worldmodels/exorl.
        episodes: to be there in the end, of 1000 steps each.
        workers: processes; None: one a core.
        seed: of everything random.
        explorer: "random".
        is_shown: whether to show progress on stderr.

    Raises:
        ValueError: unknown domain or explorer; other episodes in the folder.
        DiskFullError: no room; finished episodes are kept.
    """
    facts = find_domain(domain)
    if explorer != "random":
        raise ValueError(f"explorer={explorer}: this collector only takes random actions")
    if episodes < 1 or seed < 0:
        raise ValueError(f"episodes={episodes}, seed={seed}: at least one episode, and a seed of at least 0")
    target = default_data_dir() / domain / "random" / "buffer" if folder is None else Path(folder).expanduser()
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        with exclusive(target / ".lock"):
            wanted = {"domain": domain, "explorer": explorer, "seed": seed, "episodes": episodes}
            episodes = _claim(target, wanted)
            there = {file.index for file in list_episodes(target)}
            missing = [index for index in range(episodes) if index not in there]
            done = episodes - len(missing)
            with progress(facts.name, total=episodes, done=done, unit="episodes", is_shown=is_shown) as advance:
                run_jobs(
                    _make_episode,
                    [(domain, seed, index, str(target)) for index in missing],
                    workers=num_workers(workers),
                    advance=lambda job: advance(1),
                    name=facts.name,
                    prepare=_start_worker,
                    prepare_arguments=(domain,),
                )
    return target


def _claim(folder: Path, settings: dict[str, Any]) -> int:
    """Note in ``folder`` what is made there; refuse a folder of other episodes. Returns how many are to be there."""
    note = provenance(folder)
    if note is None and any(list_episodes(folder)):
        raise ValueError(f"{folder} holds episodes that were not made here; choose another folder")
    if note is not None:
        found = note["settings"]
        fixed = ("domain", "explorer", "seed")
        different = [f"{key}={found.get(key)}" for key in fixed if found.get(key) != settings[key]]
        if different:
            raise ValueError(f"{folder} holds episodes with {', '.join(different)}; choose another folder")
        settings = settings | {"episodes": max(settings["episodes"], found["episodes"])}
    made_by = "random actions of envs.dmc_collect, not ExoRL's explorer"
    claim(folder, made_by=made_by, settings=settings, packages=("mujoco", "dm_control", "numpy"))
    return settings["episodes"]


_env: Any = None  # of this worker process


def _start_worker(domain: str) -> None:
    os.environ["MUJOCO_GL"] = "disabled"  # states only: no renderer needed
    global _env
    facts = find_domain(domain)
    _env = DMCEnv(facts, facts.tasks[0])


def _make_episode(domain: str, seed: int, index: int, folder: str) -> None:
    write_episode(Path(folder), index, random_episode(_env, seed=seed, index=index))


def random_episode(env: DMCEnv, *, seed: int, index: int) -> Episode:
    """One episode of held random actions."""
    first, second = np.random.SeedSequence([seed, index]).generate_state(2)
    rng = np.random.default_rng(int(second))
    actions = np.zeros((EPISODE_STEPS + 1, env.domain.action_dim), np.float32)
    actions[1:] = held_actions(EPISODE_STEPS, env.domain.action_dim, rng)
    seen, states = [env.reset(seed=int(first))[0]], [env.state()]
    for action in actions[1:]:
        seen.append(env.step(action)[0])
        states.append(env.state())
    return Episode(np.stack(seen), actions, np.ones(EPISODE_STEPS + 1, np.float32), np.stack(states))


def held_actions(steps: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform actions [steps, dim], each held for a random number of steps; see the module."""
    hold = np.exp(rng.uniform(0, np.log(_MAX_HOLD)))
    is_new = rng.random(steps) < 1 / hold
    is_new[0] = True
    drawn = rng.uniform(-1, 1, (int(is_new.sum()), dim))
    return drawn[np.cumsum(is_new) - 1].astype(np.float32)


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:], config="dmc_collect", function=collect, help=str(__doc__)))
