"""Diffusion policy: levels of noise, the loss, and steps back to a chunk, against explicit formulas."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator, nn

from agents.diffusion_policy import DiffusionPolicy, NoiseDecoder, cosine_schedule
from perception.context import ContextEncoder
from tests.reaching import Reaching
from worldmodels.evals.tasks import play
from worldmodels.schedules import Power
from worldmodels.targets import EMA

CHUNK = 6
ENCODER = partial(ContextEncoder, dim=8, depth=1, num_heads=2, hidden=8)
DECODER = partial(NoiseDecoder, width=8, depth=1, num_heads=2, hidden=8)


@pytest.fixture(scope="module")
def source() -> Reaching:
    return Reaching(trajectories=20)


def make_agent(source: Any, **options: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    choices: dict[str, Any] = {"encoder": ENCODER, "decoder": DECODER, "target": partial(EMA, tau=1.0)}
    choices |= {"chunk": CHUNK, "num_executed": 3, "is_normalized": False, "num_levels": 20, "num_denoising": 5}
    agent = DiffusionPolicy(source.spec, **{**choices, **options})
    agent.study(source)
    return agent


def draw(source: Any, agent: DiffusionPolicy) -> TensorDict:
    generator = Generator().manual_seed(0)
    return agent.draw_noise(source.sample(32, CHUNK, generator), generator)


def test_levels_keep_ever_less() -> None:
    kept = cosine_schedule(100).tolist()

    def signal(step: int) -> float:
        return math.cos((step / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    assert kept[49] == pytest.approx(signal(50) / signal(0), rel=1e-5)
    assert sorted(kept, reverse=True) == kept
    assert kept[-1] == pytest.approx(kept[-2] * 0.001, rel=1e-4)  # the last level takes at most 0.999


def test_the_loss_is_the_square_of_what_is_wrong_about_the_noise(source: Reaching) -> None:
    agent = make_agent(source)
    batch = draw(source, agent)
    noise, level, valid = batch["noise", "action"], batch["noise", "level"], ~batch["is_padded"]
    assert 0 <= level.min() < level.max() < 20
    kept = cosine_schedule(20)[level].view(-1, 1, 1)
    noisy = kept.sqrt() * batch["action"] + (1 - kept).sqrt() * noise
    found = agent.decoder(agent.encoder(batch["observation"][:, 0])["tokens"], noisy, level, valid)
    out = agent.loss(batch)
    torch.testing.assert_close(out["loss", "denoising"], (found - noise).square()[valid].mean())
    wild = torch.where(valid[..., None], batch["action"], torch.full_like(noise, 5.0))
    torch.testing.assert_close(
        agent.loss(batch.copy().set("action", wild))["loss", "denoising"], out["loss", "denoising"]
    )


class Oracle(nn.Module):
    """Knows the chunk, and so the noise in whatever it is shown."""

    def __init__(self, chunk: torch.Tensor, kept: torch.Tensor) -> None:
        super().__init__()
        self.chunk, self.kept, self.levels = chunk, kept, []

    def forward(self, obs: TensorDict, noisy: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        self.levels.append(int(level[0]))
        kept = self.kept[level].view(-1, 1, 1)
        return (noisy - kept.sqrt() * self.chunk) / (1 - kept).sqrt()


def test_steps_back_find_the_chunk_that_the_network_means(source: Reaching) -> None:
    agent, chunk = make_agent(source).eval(), torch.rand(4, CHUNK, 2) * 1.8 - 0.9
    agent.average = Oracle(chunk, agent.kept)
    obs = source.sample(4, 1, Generator().manual_seed(0))["observation"][:, 0]
    noise = TensorDict({"action": torch.randn(4, CHUNK * 2)}, [4])
    action = agent.act(TensorDict({"observation": obs, "noise": noise}, [4]))["action"]
    torch.testing.assert_close(action, chunk[:, :3].flatten(1), atol=1e-3, rtol=1e-3)
    assert agent.average.levels == [19, 14, 10, 5, 0]


def test_a_step_back_is_that_of_ddim(source: Reaching) -> None:
    agent = make_agent(source, num_denoising=2).eval()
    td = TensorDict({"observation": source.sample(4, 1, Generator().manual_seed(0))["observation"][:, 0]}, [4])
    x = torch.randn(4, CHUNK, 2)
    kept, tokens = cosine_schedule(20), agent.encoder(td["observation"])["tokens"]
    for now, then in ((19, 0), (0, None)):
        found = agent.decoder(tokens, x, torch.full((4,), now))
        guess = ((x - (1 - kept[now]).sqrt() * found) / kept[now].sqrt()).clamp(-1, 1)
        if then is not None:
            rest = (x - kept[now].sqrt() * guess) / (1 - kept[now]).sqrt()
            td["noise"] = TensorDict({"action": x.flatten(1)}, [4])
            x = kept[then].sqrt() * guess + (1 - kept[then]).sqrt() * rest
    torch.testing.assert_close(agent.predict(td), guess)


def test_a_rollout_draws_noise_for_a_whole_chunk(source: Reaching) -> None:
    agent = make_agent(source)
    assert agent.num_noise == CHUNK
    agent.eval()
    options = {"episodes": 2, "seed": 0, "device": torch.device("cpu"), "max_steps": 6}
    (first, _), (second, _) = (play(agent, source, ["task1"], **options) for _ in range(2))
    torch.testing.assert_close(first["task1"].paths, second["task1"].paths, rtol=0, atol=0, equal_nan=True)
    (other, _) = play(agent, source, ["task1"], **{**options, "seed": 1})
    assert not torch.equal(first["task1"].paths, other["task1"].paths)


def test_the_average_that_acts_has_the_units_of_the_data(source: Reaching) -> None:
    agent = make_agent(source, target=partial(EMA, tau=Power(0.75, least=1e-4)))
    theirs, mine = agent.average.module.encoder.norms["state"], agent.encoder.norms["state"]
    assert torch.equal(theirs.mean, mine.mean)
    assert bool(mine.is_fitted)
    assert [Power(0.75, least=0.1)(step) for step in (0, 1, 10**6)] == [1.0, pytest.approx(2**-0.75), 0.1]


def test_settings_that_make_no_sense_are_refused(source: Reaching) -> None:
    for options, message in (
        ({"num_denoising": 21}, "1 to num_levels=20"),
        ({"is_normalized": True}, "set it to false"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent(source, **options)
