"""Counted operations against torch's counter on the modules themselves, and against the published totals."""

from __future__ import annotations

import functools

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import Bounded, Composite

from perception.video import VideoTransformer
from worldmodels.flops import Size, forward_flops, shares_of, size_of, step_flops
from worldmodels.nn.rotary import RotaryPositions
from worldmodels.predictors.masked_tokens import MaskedTokenPredictor

N = 8 * 14 * 14
SHARES = {"short": (0.24, 0.47), "long": (0.07, 0.70)}


def networks() -> tuple[VideoTransformer, MaskedTokenPredictor]:
    pixels = Bounded(0, 255, (8, 3, 48, 48), dtype=torch.uint8)
    spec = Composite({"observation": Composite({"pixels": pixels})})
    encoder = VideoTransformer(spec, patch=8, dim=96, depth=3, num_heads=3, positions=RotaryPositions)
    return encoder, MaskedTokenPredictor(96, encoder.grid, width=48, depth=6, num_heads=3, hidden=192)


def counted(step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize("sizes", [(37, 60), (16, 100)])
def test_a_step_costs_what_torchs_counter_counts(sizes):
    encoder, predictor = networks()
    num, batch = 144, 2
    obs = TensorDict({"pixels": torch.randint(0, 256, (batch, 8, 3, 48, 48), dtype=torch.uint8)}, [batch])
    order = torch.stack([torch.randperm(num) for _ in range(batch)])
    keep, asked = order[:, : sizes[0]], order[:, None, sizes[0] : sum(sizes)]
    shares = shares_of({"one": sizes}, num)

    def train(has_teacher: bool) -> None:
        if has_teacher:
            with torch.no_grad():
                encoder(obs)
        predictor(encoder(obs, keep)["tokens"], keep, asked).sum().backward()

    sized = {"encoder": size_of(encoder), "predictor": size_of(predictor)}
    forward = counted(lambda: encoder(obs).detach())
    assert batch * forward_flops(sized["encoder"], num) == pytest.approx(forward, rel=0.01)
    for has_teacher in (False, True):
        teacher = sized["encoder"] if has_teacher else None
        found = batch * step_flops(**sized, num_tokens=num, shares=shares, teacher=teacher)
        assert found == pytest.approx(counted(functools.partial(train, has_teacher)), rel=0.08)


@pytest.mark.parametrize(
    ("size", "quoted"),
    [(Size(303_000_000, 24, 1024), 1.9), (Size(632_000_000, 32, 1280), 3.5), (Size(1_010_000_000, 40, 1408), 5.3)],
)
def test_totals_of_v_jepa_2_are_the_quoted_ones(size, quoted):
    """Sheet salt_video, section 1.7: 240k steps of 3072 clips, in units of 1e21."""
    predictor = Size(22_000_000, 12, 384)
    step = step_flops(size, predictor, num_tokens=N, shares=SHARES, teacher=size)
    assert step * 3072 * 240_000 / 1e21 == pytest.approx(quoted, rel=0.03)


def test_parts_of_a_vit_l_step_are_those_of_the_sheet():
    large, predictor = Size(303_000_000, 24, 1024), Size(22_000_000, 12, 384)
    assert forward_flops(large, N) / 1e12 == pytest.approx(1.19, abs=0.005)
    without = step_flops(large, predictor, num_tokens=N, shares=SHARES, teacher=None)
    assert without / 1e12 == pytest.approx(0.93 + 0.46, abs=0.01)


def test_what_is_no_transformer_of_one_width_is_refused():
    with pytest.raises(ValueError, match="Linear has attentions of widths"):
        size_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"widths \[48, 96\]"):
        size_of(nn.ModuleList(networks()))
