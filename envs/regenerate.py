"""Replay ExoRL's actions in the MuJoCo installed here: ``python -m envs.regenerate folder=... domain=walker``.

Each episode starts from its stored ``physics[0]``; observation, physics and nothing else are replaced. Another version
of MuJoCo moves bodies a little differently, and in contact small differences grow: a table says how far the replayed
observations are from the stored ones. Rewards of the explorer stay as they are. Files are replaced atomically; which
are done is noted in the folder, so the same command goes on after a Ctrl-C. Settings are in ``conf/regenerate.yaml``.

Source: sheet td_jepa, section 3.1 and pitfall 15: data, relabelling and evaluation must share one simulator.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from envs.command import run_command
from envs.dmc_domains import find_domain
from envs.dmc_envs import DMCEnv
from envs.exorl_files import DamagedError, Episode, EpisodeFile, list_episodes, read, write_episode
from envs.parallel import disk_errors, num_workers, progress, run_jobs
from worldmodels.files import atomic_write

_STEPS = (1, 10, 100, 1000)  # after how many steps deviations are reported


def replay(env: DMCEnv, episode: Episode) -> tuple[Episode, np.ndarray]:
    """Play an episode's actions again from its first state.

    Returns:
        the episode as it goes now, and in each row the largest deviation of an entry of the observation, float64
        [T + 1]: |replayed - stored| / (1 + |stored|).
    """
    seen, states = [env.begin_from(episode.physics[0])], [env.state()]
    for action in episode.action[1:]:
        seen.append(env.step(action)[0])
        states.append(env.state())
    replayed = episode._replace(observation=np.stack(seen), physics=np.stack(states))
    stored, exact = episode.observation.astype(np.float64), env.domain.num_exact
    deviation = np.abs(replayed.observation - stored) / (1 + np.abs(stored))
    return replayed, deviation[:, :exact].max(-1)


def regenerate(
    *,
    folder: str | os.PathLike[str],
    domain: str,
    to: str | os.PathLike[str] | None = None,
    max_episodes: int | None = None,
    workers: int | None = None,
    is_shown: bool = True,
) -> str:
    """Replay a folder's episodes.

    Args:
        folder: of the files.
        domain: by name.
        to: where to write; None replaces the files.
        max_episodes: only so many, from the first.
        workers: processes; None: one a core.
        is_shown: whether to show progress on stderr.

    Returns:
        the report: deviations after 1, 10, 100 and 1000 steps, and files that are not whole.

    Raises:
        ValueError: no episodes in the folder; another domain's, or odd ones.
    """
    facts = find_domain(domain)
    source = Path(folder).expanduser()
    target = source if to is None else Path(to).expanduser()
    files = list(list_episodes(source))[:max_episodes]
    if not files:
        raise ValueError(f"{source} holds no episode_000000_1000.npz, ...; give the folder of the files themselves")
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        notes = target / ".regenerated"
        notes.mkdir(exist_ok=True)
        todo = [file for file in files if not (notes / _note_name(file)).exists()]
        with progress(
            facts.name, total=len(files), done=len(files) - len(todo), unit="episodes", is_shown=is_shown
        ) as bar:
            run_jobs(
                _replay_file,
                [(file, str(target), str(notes)) for file in todo],
                workers=num_workers(workers),
                advance=lambda job: bar(1),
                name=facts.name,
                prepare=_start_worker,
                prepare_arguments=(domain,),
            )
        return _report(files, notes)


def _note_name(file: EpisodeFile) -> str:
    import mujoco

    return f"{file.path.stem}-mujoco-{mujoco.__version__}.txt"


_env: Any = None  # of this worker process


def _start_worker(domain: str) -> None:
    os.environ["MUJOCO_GL"] = "disabled"
    global _env
    facts = find_domain(domain)
    _env = DMCEnv(facts, facts.tasks[0])


def _replay_file(file: EpisodeFile, target: str, notes: str) -> None:
    note = Path(notes) / _note_name(file)
    try:
        episode = read(file, _env.domain, with_reward=True)
    except DamagedError as error:
        atomic_write(note, str(error))
        return
    replayed, deviation = replay(_env, episode)
    write_episode(Path(target), file.index, replayed)
    atomic_write(note, " ".join(f"{deviation[step]:.9g}" for step in _STEPS))


def _report(files: list[EpisodeFile], notes: Path) -> str:
    texts = [(notes / _note_name(file)).read_text() for file in files]
    numbers = [[float(word) for word in text.split()] for text in texts if text[:1].isdigit()]
    broken = [text for text in texts if not text[:1].isdigit()]
    lines = [
        f"{len(numbers)} episodes replayed; largest deviation of an observation's entry, |new - old| / (1 + |old|):"
    ]
    for step, values in zip(_STEPS, np.array(numbers).T, strict=False):
        lines.append(f"  after {step:4d} steps: median {np.median(values):.2g}, worst {values.max():.2g}")
    if broken:
        lines.append(f"{len(broken)} files are not whole and stay as they are, such as: {broken[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:], config="regenerate", function=regenerate, help=str(__doc__)))
