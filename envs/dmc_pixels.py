"""ExoRL episodes seen as pictures: rendered once from their physics, and by the same painter while a policy is tried.

Pictures lie beside the episodes they show, one file each, in a folder named after how they were drawn::

    walker/rnd/buffer/episode_000000_1000.npz                     observation, action, reward, discount, physics
    walker/rnd/buffer/pixels_64_fast/episode_000000_1000.npz      pixels uint8 [1001, 3, 64, 64]; physics_crc

A picture depends on the state alone, so they can be made later, in parallel, and again for what is missing or whose
episode changed: "physics_crc" tells. The same command goes on after a Ctrl-C.

Source: sheet td_jepa, section 3.1: 64 x 64, camera 0, of the quadruped 2.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.dmc_domains import Domain, find_domain, make
from envs.parallel import disk_errors, exclusive, num_workers, progress, run_jobs
from envs.rendering import StatePainter, find_backend, ready
from envs.stepping import Arrays, Maker
from worldmodels.files import atomic_write, atomic_write_json

SIZE = 64
KEY, CRC = "pixels", "physics_crc"
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OSError)


class Pictures(NamedTuple):
    """How episodes are seen."""

    frame_stack: int = 1
    """Pictures joined along channels, oldest first."""
    is_fast: bool = True
    """See ``StatePainter``; false gives dm_control's own pictures, to the bit."""


def painter(domain: Domain, *, is_fast: bool = True, size: int = SIZE) -> StatePainter:
    """What draws a domain's states, from the camera of ExoRL's pictures.

    Raises:
        RenderError: if there is no renderer here; says what to install.
    """
    ready()
    env = make(domain.name, domain.tasks[0])
    model = env.physics.model.ptr
    return StatePainter(model, camera=domain.camera, size=size, is_fast=is_fast, of=domain.name)


def pictures_folder(folder: Path, *, is_fast: bool = True) -> Path:
    """Where the pictures of the episodes in ``folder`` lie."""
    return folder / f"pixels_{SIZE}_{'fast' if is_fast else 'default'}"


def draw_episodes(
    domain: str,
    episodes: Sequence[Path],
    *,
    is_fast: bool = True,
    workers: int | None = None,
    is_shown: bool = True,
) -> list[Path]:
    """Make sure every episode has its pictures, and return their files, in the same order.

    Episodes that come with "pixels" of their own keep them where dm_control's pictures are wanted.

    Args:
        domain: by name.
        episodes: files in ExoRL's format, all in one folder.
        is_fast: see ``StatePainter``.
        workers: processes that draw; None takes one a core.
        is_shown: whether to show progress on stderr.

    Raises:
        RenderError: if pictures are missing and there is no renderer.
        ValueError: if an episode's physics is not this domain's.
        DiskFullError: no room; finished files are kept.
    """
    facts = find_domain(domain)
    if not episodes:
        raise ValueError(f"{domain}: there are no episodes to draw")
    folder = pictures_folder(episodes[0].parent, is_fast=is_fast)
    targets = [p if not is_fast and _holds_pictures(p) else folder / p.name for p in episodes]
    pairs = list(zip(episodes, targets, strict=True))

    def missing() -> list[tuple[str, str]]:
        return [(str(p), str(t)) for p, t in pairs if not _is_drawn(t, p, _physics(p, facts))]

    if not missing():
        return targets
    ready()
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        with exclusive(folder / ".lock"):
            jobs = missing()  # another process may have drawn them meanwhile
            name, total = f"pictures of {domain}", len(episodes)
            with progress(name, total=total, done=total - len(jobs), unit="episodes", is_shown=is_shown) as advance:
                run_jobs(
                    _draw,
                    jobs,
                    workers=num_workers(workers),
                    advance=lambda _: advance(1),
                    name=name,
                    prepare=_start_worker,
                    prepare_arguments=(domain, is_fast),
                )
            atomic_write_json(folder / "pictures.json", _provenance(facts, is_fast=is_fast))
    return targets


def read_pictures(path: Path) -> np.ndarray:
    """Pictures uint8 [T + 1, 3, 64, 64] of one file.

    Raises:
        ValueError: damaged, of another shape or type; says to delete it.
    """
    try:
        pixels = _column(path, KEY)
    except _DAMAGE as error:
        raise ValueError(f"{path}: cannot read pixels ({error}); delete it, then it is drawn again") from error
    if pixels.shape[1:] != (3, SIZE, SIZE) or pixels.dtype != np.uint8:
        need = f"uint8 [T + 1, 3, {SIZE}, {SIZE}]"
        raise ValueError(f"{path}: pixels are {pixels.dtype} {list(pixels.shape)}, but {need} is needed")
    return pixels


class PictureEnv:
    """An environment whose observation is a picture of its state."""

    def __init__(self, inner: Any, maker: PictureMaker) -> None:
        self.inner, self._maker = inner, maker
        self.action_space = inner.action_space

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; the observation is uint8 [64, 64, 3]."""
        _, info = self.inner.reset(seed=seed)
        return self._maker.picture(self.inner), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act; see ``reset``."""
        _, *rest = self.inner.step(action)
        return self._maker.picture(self.inner), *rest


class PictureMaker:
    """Builds environments that are seen; a ``Maker`` of ``envs.stepping`` around another. A process has one painter.

    Args:
        inner: builds the environments; their ``physics`` has "qpos".
        domain: what they simulate.
        is_fast: as the training data were drawn.
    """

    def __init__(self, inner: Maker, domain: Domain, *, is_fast: bool = True) -> None:
        self._inner, self._domain, self._is_fast = inner, domain, is_fast
        self.max_steps: int = inner.max_steps
        self._painter: StatePainter | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_painter": None}  # another process draws with its own

    def paint(self, qpos: np.ndarray) -> np.ndarray:
        """A picture of positions [nq], uint8 [3, 64, 64]."""
        if self._painter is None:
            self._painter = painter(self._domain, is_fast=self._is_fast)
        return self._painter(qpos)

    def picture(self, env: Any) -> np.ndarray:
        """The present state of an inner environment, uint8 [64, 64, 3]."""
        return np.moveaxis(self.paint(self._inner.physics(env)["qpos"]), 0, -1)

    def make(self, task: int) -> PictureEnv:
        """A new environment for one task, counted from 1."""
        return PictureEnv(self._inner.make(task), self)

    def enter(self, env: PictureEnv) -> None:
        """As the inner maker."""
        self._inner.enter(env.inner)

    def leave(self, env: PictureEnv) -> None:
        """As the inner maker."""
        self._inner.leave(env.inner)

    def physics(self, env: PictureEnv) -> Arrays:
        """As the inner maker."""
        return self._inner.physics(env.inner)

    def is_solved(self, env: PictureEnv) -> Any:
        """As the inner maker."""
        return self._inner.is_solved(env.inner)

    def render(self, env: PictureEnv) -> np.ndarray:
        """As the inner maker."""
        return self._inner.render(env.inner)

    def close(self, env: PictureEnv) -> None:
        """As the inner maker."""
        self._inner.close(env.inner)

    def finish(self) -> None:
        """Free the painter of this process; it is made again when needed."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None
        self._inner.finish()


def _column(path: Path, key: str) -> np.ndarray:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        return archive[key]


def _physics(path: Path, facts: Domain) -> np.ndarray:
    """Physics [T + 1, P] of an episode, checked."""
    try:
        physics = _column(path, "physics")
    except _DAMAGE as error:
        raise ValueError(f"{path}: cannot read physics ({error}); pictures are drawn from it") from error
    if physics.shape[1:] != (facts.physics_dim,):
        need = f"[rows, {facts.physics_dim}]"
        raise ValueError(f"{path}: physics has shape {list(physics.shape)}, but {facts.name} needs {need}")
    is_good = np.isfinite(physics).all(-1)
    if not is_good.all():
        raise ValueError(f"{path}: physics is not finite in row {int(np.flatnonzero(~is_good)[0])}")
    return physics.astype(np.float64, copy=False)


def _holds_pictures(episode: Path) -> bool:
    try:
        with zipfile.ZipFile(episode) as archive:
            return f"{KEY}.npy" in archive.namelist()
    except _DAMAGE:
        return False


def _is_drawn(target: Path, episode: Path, physics: np.ndarray) -> bool:
    """Whether ``target`` has the pictures of this very episode."""
    if target == episode:
        return True
    try:
        return int(_column(target, CRC)) == zlib.crc32(physics.tobytes())
    except _DAMAGE:  # missing, cut short, or not ours
        return False


_painter: StatePainter | None = None  # of this worker process
_facts: Domain | None = None


def _start_worker(domain: str, is_fast: bool) -> None:
    import atexit

    global _painter, _facts
    _facts = find_domain(domain)
    _painter = painter(_facts, is_fast=is_fast)
    atexit.register(_painter.close)  # before MuJoCo ends EGL itself


def _draw(episode: str, target: str) -> None:
    """Write the pictures of one episode, atomically."""
    assert _painter is not None
    assert _facts is not None
    physics = _physics(Path(episode), _facts)
    pixels = np.stack([_painter(state) for state in physics])
    file = io.BytesIO()
    np.savez_compressed(file, **{KEY: pixels, CRC: np.uint32(zlib.crc32(physics.tobytes()))})
    atomic_write(target, file.getvalue())


def _provenance(facts: Domain, *, is_fast: bool) -> dict[str, Any]:
    return {
        "made_by": "envs.dmc_pixels, from the physics of the episodes beside this folder",
        "domain": facts.name,
        "camera": facts.camera,
        "size": SIZE,
        "is_fast": is_fast,
        "backend": os.environ.get("MUJOCO_GL") or find_backend(),
        "versions": {name: version(name) for name in ("mujoco", "dm_control")},
        "command": " ".join(sys.orig_argv),
    }
