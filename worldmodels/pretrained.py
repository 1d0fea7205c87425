"""What finished runs have learned, for use in other runs.

``encoder=pretrained encoder.run_dir=runs/a`` is the encoder itself, to be trained further; ``encoder=frozen
relabel.run_dir=runs/a`` replaces the rows of a table by their latents, computed once; with
``experiment=salt/cached_latents`` a teacher's lie beside clips; ``agent=adapt agent.start.run_dir=runs/a`` goes on with
a whole agent.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torch import Generator
from torchrl.data import Composite, Unbounded

from envs.relabel import Wrapper
from envs.replay import draw_rows
from worldmodels import build, checkpoint
from worldmodels.core import Encoder, Objective, Views
from worldmodels.evals.results import CHUNK, in_chunks, require_parts
from worldmodels.keys import ACTION, LABEL, OBSERVATION, TEACHER, TOKENS
from worldmodels.nn.transformer import all_tokens


def pretrained(
    spec: Composite,
    *,
    run_dir: str,
    part: str = "target.module",
    checkpoint_step: int | None = None,
    is_random: bool = False,
    seed: int = 0,
) -> Encoder:
    """The encoder of the run in ``run_dir``.

    Args:
        spec: of the data it will see; must be the one it was trained on. An encoder of views may see other ones whose
            sizes suit it.
        run_dir: of the finished run.
        part: where it stands in that run's objective: "target.module" (what followed by moving average) or "encoder".
        checkpoint_step: None is the newest.
        is_random: the control: the same architecture with fresh weights; seed: of these.

    Raises:
        FileNotFoundError: if there is no run or checkpoint.
        ValueError: if the data differ, or the run has no such part.
    """
    folder = Path(run_dir)
    cfg = build.load_config(folder)
    if cfg.encoder is None:
        raise ValueError(f"the run in {folder} has no encoder")
    path = checkpoint_path(folder, checkpoint_step)
    has_views = cfg.get("views") is not None  # it saw what they made of the data; the encoder itself says what it takes
    if not has_views and plain(str(spec[OBSERVATION])) not in plain(checkpoint.read_state(path)["spec"]):
        raise ValueError(f"the run in {folder} was trained on other columns or pictures than these data have")
    with torch.random.fork_rng(devices=[]):  # on the CPU, where weights are made
        torch.manual_seed(seed)
        encoder: Encoder = instantiate(cfg.encoder)(spec)
    if is_random:
        return encoder
    checkpoint.load_part(path, encoder, part)
    return encoder


def agent(spec: Composite, *, run_dir: str | None, checkpoint_step: int | None = None) -> Objective:
    """The agent of the run in ``run_dir``, whole: networks, targets and statistics.

    Args:
        spec: of the data it will see; observations and actions must be those it was trained on.
        run_dir: of the finished run; must be given.
        checkpoint_step: None takes the newest checkpoint.

    Raises:
        FileNotFoundError: if there is no run or no checkpoint.
        ValueError: if the run trained no agent, something else beside it, or on other data.
    """
    if run_dir is None:
        raise ValueError("which run shall be adapted? Give agent.start.run_dir=RUN_DIR of a finished one")
    folder = Path(run_dir)
    cfg = build.load_config(folder)
    if cfg.agent is None or cfg.objective is not None:
        raise ValueError(f"the run in {folder} must have trained an agent, and nothing else")
    path = checkpoint_path(folder, checkpoint_step)
    trained_on = plain(checkpoint.read_state(path)["spec"])
    if different := [key for key in (OBSERVATION, ACTION) if plain(f"{key}: {spec[key]}") not in trained_on]:
        chunk, data = cfg.env.get("action_chunk", 1), cfg.env.get("dataset", cfg.env.source._target_)
        raise ValueError(
            f"the run in {folder} was trained with another {' and '.join(different)} than these data have: its "
            f"env.action_chunk was {chunk}, its data {data}"
        )
    with torch.random.fork_rng(devices=[]):  # weights are made only to be written over
        encoder = instantiate(cfg.encoder) if cfg.encoder is not None else None
        objective: Objective = instantiate(cfg.agent)(spec, encoder=encoder)
    checkpoint.load_model(path, objective)
    return objective


class Embedded(Wrapper):
    """A source of labelled parts with latents for observations: "tokens" [R + N, D], registers first.

    Args:
        source: with ``part(name)`` of "train", "val" and "test", and labels (see ``envs.tables``).
        chunk: rows encoded at a time.
        options: of ``pretrained``.

    Raises:
        ValueError: if the source has no labelled parts.
    """

    def __init__(self, source: Any, *, chunk: int = CHUNK, **options: Any) -> None:
        require_parts(source, "encoder=frozen")
        super().__init__(source)
        encoder = pretrained(source.spec, **options).to(source.device).eval()

        def encode(obs: TensorDict) -> TensorDict:
            return TensorDict({TOKENS: all_tokens(encoder(obs))}, batch_size=obs.batch_size)

        with torch.no_grad():
            self.parts = {
                name: part._replace(obs=in_chunks(encode, part.obs, chunk)) for name, part in source.parts.items()
            }
        train = self.parts["train"]
        tokens = train.obs[TOKENS]  # [N, R + N', D]
        rows = {OBSERVATION: {TOKENS: tokens[:, None]}, LABEL: train.target[:, None]}
        self._rows = TensorDict(rows, batch_size=[len(tokens)], device=tokens.device)
        self.spec = source.spec.clone()
        self.spec[OBSERVATION] = Composite({TOKENS: Unbounded(tokens.shape[1:], device=tokens.device)})

    def part(self, name: str) -> Any:
        """Labelled rows of "train", "val" or "test"."""
        return self.parts[name]

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw training rows uniformly: "observation" and "label", [B, 1]; ``window`` must be 1."""
        return draw_rows(self._rows, batch_size, window, generator)


class TeacherLatents(Wrapper):
    """Clips cut out once, with a finished run's tokens of them: what the second stage of SALT needs of its teacher.

    Rows are clips: "observation" [B, 1, T, C, S, S] and "teacher" float16 [B, 1, N, D], and the clips' labels. An
    update then saves the teacher's pass, about a third of it; a moving average cannot be stored so.

    Args:
        source: of frames, with ``split``.
        views: factory of the transform that cuts clips out; crops are drawn here, once.
        num_clips: for training; num_held_out: of each other part.
        run_dir: of the teacher's run; must be given.
        chunk: clips encoded at a time. seed: of clips and crops.
        options: of ``pretrained``.

    Raises:
        ValueError: if the source has no parts, or there are no clips.
    """

    def __init__(
        self,
        source: Any,
        *,
        views: Callable[[Composite], Views],
        num_clips: int,
        run_dir: str | None,
        num_held_out: int = 256,
        chunk: int = 64,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if run_dir is None:
            raise ValueError("whose latents shall be stored? Give objective.teacher.run_dir=RUN_DIR of a finished run")
        if not hasattr(source, "split"):
            raise ValueError(f"{type(source).__name__} has no split(name), parts to judge by. Use env=moving_scenes")
        if min(num_clips, num_held_out) < 1:
            raise ValueError(f"relabel.num_clips={num_clips}, relabel.num_held_out={num_held_out}: at least one each")
        super().__init__(source)
        self.make, self.num_clips, self.num_held_out = views(source.spec), num_clips, num_held_out
        self.chunk, self.seed = chunk, seed
        self.teacher = pretrained(self.make.spec, run_dir=run_dir, **options).to(source.device).eval()
        self._rows = self._encoded(num_clips)
        self.spec = source.spec.clone()
        self.spec[TEACHER] = Unbounded(self._rows[TEACHER].shape[2:], dtype=torch.float16, device=source.device)

    @torch.no_grad()
    def _encoded(self, num: int) -> TensorDict:
        generator = Generator(self.source.device).manual_seed(self.seed)
        found = []
        for start in range(0, num, self.chunk):
            frames = self.source.sample(min(self.chunk, num - start), self.make.window, generator)
            rows = self.make(frames, generator)
            found.append(rows.set(TEACHER, self.teacher(rows[OBSERVATION][:, 0])[TOKENS].half()[:, None]))
        return torch.cat(found)

    def announce(self, batch_size: int, window: int, seeds: Sequence[int]) -> None:
        """Nothing is read ahead: all clips are here."""

    def split(self, name: str) -> TeacherLatents:
        """Clips of "train", "val" or "test", with latents of the same teacher."""
        other = copy.copy(self)
        other.source = self.source.split(name)
        other._rows = other._encoded(self.num_held_out)
        return other

    def sample(self, batch_size: int, window: int, generator: Generator) -> TensorDict:
        """Draw clips uniformly, leaves [B, 1, ...]; ``window`` must be 1."""
        return draw_rows(self._rows, batch_size, window, generator)


def checkpoint_path(run_dir: Path, step: int | None) -> Path:
    """The folder of the run's checkpoint of ``step``; None takes the newest.

    Raises:
        FileNotFoundError: if there is none.
    """
    saved = checkpoint.steps(run_dir / "checkpoints")
    if not saved:
        raise FileNotFoundError(f"{run_dir} has no checkpoint yet")
    if step is not None and step not in saved:
        raise FileNotFoundError(f"{run_dir} has no checkpoint of step {step}; it has {', '.join(map(str, saved))}")
    return checkpoint.path_of(run_dir / "checkpoints", saved[-1] if step is None else step)


def plain(spec: str) -> str:
    """A spec as text, without layout and devices."""
    return re.sub(r"device=[^,)]*|\s", "", spec)
