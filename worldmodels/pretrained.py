"""What finished runs have learned, for use in other runs.

``encoder=pretrained encoder.run_dir=runs/a`` is the encoder itself, to be trained further; ``encoder=frozen
relabel.run_dir=runs/a`` replaces the rows of a table by their latents, computed once.
"""

from __future__ import annotations

import re
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
from worldmodels.core import Encoder
from worldmodels.evals.results import CHUNK, in_chunks, require_parts
from worldmodels.keys import LABEL, OBSERVATION, TOKENS
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
        spec: of the data it will see; must be the one it was trained on.
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
    steps = checkpoint.steps(folder / "checkpoints")
    if not steps:
        raise FileNotFoundError(f"{folder} has no checkpoint yet")
    path = checkpoint.path_of(folder / "checkpoints", steps[-1] if checkpoint_step is None else checkpoint_step)
    if plain(str(spec[OBSERVATION])) not in plain(checkpoint.read_state(path)["spec"]):
        raise ValueError(f"the run in {folder} was trained on other columns or pictures than these data have")
    with torch.random.fork_rng(devices=[]):  # on the CPU, where weights are made
        torch.manual_seed(seed)
        encoder: Encoder = instantiate(cfg.encoder)(spec)
    if is_random:
        return encoder
    checkpoint.load_part(path, encoder, part)
    return encoder


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


def plain(spec: str) -> str:
    """A spec as text, without layout and devices."""
    return re.sub(r"device=[^,)]*|\s", "", spec)
