from __future__ import annotations

import functools

import pytest
import torch
from torch import Generator
from torchrl.data import Categorical, Composite, MultiCategorical, Unbounded

from perception.tabular import TabularEncoder
from worldmodels.objectives.t_jepa import TJEPA
from worldmodels.predictors.masked_tokens import MaskedTokenPredictor
from worldmodels.targets import EMA


def spec(numbers: int = 5) -> Composite:
    missing = Categorical(2, shape=(numbers,), dtype=torch.bool)
    columns = {"numerical": Unbounded((numbers,)), "missing": missing, "categorical": MultiCategorical((4, 7))}
    return Composite({"observation": Composite(columns)})


def make(**choices) -> TJEPA:
    torch.manual_seed(0)
    return TJEPA(
        spec(),
        predictor=functools.partial(MaskedTokenPredictor, width=8, depth=1, num_heads=2, hidden=16),
        target=functools.partial(EMA, tau=0.1),
        **{
            "encoder": functools.partial(TabularEncoder, dim=8, depth=1, num_heads=2, hidden=16),
            "context_share": (0.2, 0.5),
            "target_share": (0.2, 0.6),
            "num_targets": 3,
            **choices,
        },
    )


def batch(objective: TJEPA, num: int = 8):
    torch.manual_seed(1)
    rows = spec().expand(num, 1).rand()
    rows.batch_size = [num]
    return objective.draw_masks(rows, Generator().manual_seed(0))


def test_loss_is_the_mean_over_hidden_columns():
    objective = make().double()
    rows = batch(objective)
    rows["observation", "numerical"] = rows["observation", "numerical"].double()
    found = objective.loss(rows)["loss", "prediction"]
    obs, errors = rows["observation"][:, 0], []
    for row in range(8):
        one = obs[row : row + 1]
        shown = rows["context"][row]
        shown = shown[shown >= 0]
        seen = objective.encoder(one, shown[None])
        context = torch.cat([seen["registers"], seen["tokens"]], 1)
        whole = objective.target.module(one)["tokens"][0]
        for asked in rows["targets"][row]:
            asked = asked[asked >= 0]
            guess = objective.predictor(context, shown[None], asked[None, None])[0, 0]
            errors += list((guess - whole[asked]).square().mean(-1))
    torch.testing.assert_close(found.double(), torch.stack(errors).mean(), rtol=1e-5, atol=1e-8)


def test_hidden_columns_reach_the_loss_through_the_target_only():
    objective = make()
    rows = batch(objective)
    rows["observation", "numerical"].requires_grad_(True)
    objective.loss(rows)["loss", "prediction"].backward()
    gradient = rows["observation", "numerical"].grad[:, 0]
    for row in range(8):
        shown = set(rows["context"][row].tolist())
        for column in range(5):
            if column not in shown:
                assert float(gradient[row, column]) == 0
    assert all(p.grad is None for p in objective.target.parameters())


def test_embeds_whole_rows_with_the_target():
    objective = make()
    with torch.no_grad():
        for parameter in objective.encoder.parameters():
            parameter.zero_()
    latent = objective.embed(batch(objective)["observation"][:, 0])
    assert latent["row"].shape == (8, 8 * 8)
    assert float(latent["row"].std(0).mean()) > 0


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"context_share": (0.9, 1.0), "target_share": (0.5, 0.6)}, "cannot leave"),
        ({"context_share": (0.0, 0.5)}, "context_share"),
    ],
)
def test_impossible_masks_are_refused_before_training(choices, message):
    with pytest.raises(ValueError, match=message):
        make(**choices)


def test_masks_of_the_released_code():
    encoder = functools.partial(TabularEncoder, dim=8, depth=1, num_heads=2, hidden=16, are_registers_columns=True)
    objective = make(encoder=encoder, official_compat=True)
    rows = batch(objective, num=400)
    assert bool((rows["targets"] == rows["targets"][:, :1]).all())
    for name in ("context", "targets"):
        assert sorted(set(rows[name].flatten().tolist())) == list(
            range(7)
        )  # of 8 tokens: the register is 0, column 7 is out
    assert objective.loss(rows)["loss", "prediction"] > 0
    with pytest.raises(ValueError, match="are_registers_columns"):
        make(official_compat=True)


def test_padding_of_masks_changes_no_loss():
    objective = make()
    rows = batch(objective)
    expected = objective.loss(rows)
    padded = rows.clone()
    for name in ("context", "targets"):
        padded[name] = torch.nn.functional.pad(rows[name], (0, 2), value=-1)  # as on a GPU
    torch.testing.assert_close(objective.loss(padded)["loss"], expected["loss"])
    torch.testing.assert_close(objective.loss(padded)["stat"], expected["stat"])
