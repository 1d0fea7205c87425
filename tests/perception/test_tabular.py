from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Categorical, Composite, MultiCategorical, Unbounded

from perception.tabular import FlatTable, TabularEncoder


def spec(numbers: int = 3, cards: tuple[int, ...] = (4, 7)) -> Composite:
    parts = {}
    if numbers:
        parts |= {"numerical": Unbounded((numbers,)), "missing": Categorical(2, shape=(numbers,), dtype=torch.bool)}
    if cards:
        parts["categorical"] = MultiCategorical(cards)
    return Composite({"observation": Composite(parts)})


def rows(num: int = 6, **kinds) -> TensorDict:
    torch.manual_seed(0)
    return spec(**kinds).expand(num).rand()["observation"]


@pytest.mark.parametrize("kinds", [{}, {"numbers": 0}, {"cards": ()}])
def test_one_token_a_column_and_registers_in_front(kinds):
    encoder = TabularEncoder(spec(**kinds), dim=16, depth=2, hidden=32, num_registers=2)
    out = encoder(rows(**kinds))
    (columns,) = encoder.grid
    assert out["tokens"].shape == (6, columns, 16)
    assert out["registers"].shape == (6, 2, 16)
    assert out["pooled"].shape == (6, 16)


def test_columns_that_are_not_kept_have_no_influence():
    encoder = TabularEncoder(spec(), dim=16, depth=2, hidden=32)
    obs, keep = rows(), torch.tensor([[1, 3]]).expand(6, -1)
    other = obs.clone()
    other["numerical"][:, [0, 2]] += 5
    other["categorical"][:, 1] = (other["categorical"][:, 1] + 1) % 7  # column 4
    for name, value in encoder(obs, keep).items():
        torch.testing.assert_close(encoder(other, keep)[name], value)
    changed = obs.clone()
    changed["numerical"][:, 1] += 5
    assert not torch.allclose(encoder(changed, keep)["registers"], encoder(obs, keep)["registers"])


def test_padding_changes_nothing():
    encoder = TabularEncoder(spec(), dim=16, depth=2, hidden=32)
    short, long = torch.tensor([[2, 0]]).expand(6, -1), torch.tensor([[2, 0, -1, -1]]).expand(6, -1)
    a, b = encoder(rows(), short), encoder(rows(), long)
    torch.testing.assert_close(a["tokens"], b["tokens"][:, :2])
    torch.testing.assert_close(a["pooled"], b["pooled"])
    assert float(b["tokens"][:, 2:].detach().abs().sum()) == 0


def test_keeping_all_columns_in_order_is_keeping_nothing_back():
    encoder = TabularEncoder(spec(), dim=16, depth=2, hidden=32)
    torch.testing.assert_close(
        encoder(rows(), torch.arange(5).expand(6, -1))["tokens"], encoder(rows())["tokens"], rtol=1e-4, atol=1e-5
    )


def test_a_missing_number_hides_its_value():
    encoder = TabularEncoder(spec(cards=()), dim=16, depth=1, hidden=32)
    obs = rows(cards=())
    obs["missing"] = torch.ones_like(obs["missing"])
    other = obs.clone()
    other["numerical"] += 1
    torch.testing.assert_close(encoder(obs)["tokens"], encoder(other)["tokens"])


def test_flat_features_are_numbers_marks_and_one_hot_categories():
    obs = rows(num=2)
    flat = FlatTable(spec())
    assert flat.dim == 3 + 3 + 4 + 7
    out = flat(obs)["pooled"]
    torch.testing.assert_close(out[:, :3], obs["numerical"])
    assert out[:, 6:].sum(1).tolist() == [2, 2]
    assert out[0, 6:10].argmax() == obs["categorical"][0, 0]


def test_data_without_columns_are_refused():
    other = Composite({"observation": Composite({"state": Unbounded((2,))})})
    for make in (TabularEncoder, FlatTable):
        with pytest.raises(ValueError, match="needs columns of a table"):
            make(other)
