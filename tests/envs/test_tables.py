from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

pd = pytest.importorskip("pandas", reason="needs the tabular extra: pip install 'worldmodels[tabular]'")
pytest.importorskip("sklearn", reason="needs the tabular extra: pip install 'worldmodels[tabular]'")

from envs.table_columns import Columns, TablePreprocessor, encode_target, infer_columns  # noqa: E402
from envs.table_files import NAMED, read_table  # noqa: E402
from envs.tables import Tables  # noqa: E402

SHARED = Path(__file__).resolve().parents[3] / "shared/data/tabular"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/tabular")


def frame(num: int = 200, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    age = random.integers(18, 90, num).astype(float)
    age[::17] = np.nan
    city = random.choice(["Basel", "Chur", "Genf"], num).astype(object)
    city[::13] = None
    return pd.DataFrame(
        {
            "age": age,
            "income": random.lognormal(10, 1, num),
            "city": city,
            "member": random.random(num) < 0.3,
            "label": random.choice(["no", "yes"], num),
        }
    )


def test_reads_a_file_and_gives_rows_of_it(tmp_path):
    frame().to_csv(tmp_path / "my.csv", index=False)
    table = Tables(path=tmp_path / "my.csv", target="label")
    assert table.columns.numerical == ("age", "income")
    assert table.columns.categorical == ("city", "member")
    assert [len(table.part(name).obs) for name in ("train", "val", "test")] == [160, 20, 20]
    assert (table.task, table.num_classes, table.classes) == ("classification", 2, ["no", "yes"])
    batch = table.sample(64, 1, Generator().manual_seed(0))
    assert batch.batch_size == (64,)
    assert table.spec.expand(64, 1).is_in(batch)
    again = table.sample(64, 1, Generator().manual_seed(0))
    assert (batch == again).all()
    with pytest.raises(ValueError, match="window=2"):
        table.sample(4, 2, Generator())


def test_parts_are_disjoint_and_preprocessing_knows_training_rows_only():
    data = frame(400)
    data.loc[:, "income"] = np.arange(400.0)
    table = Tables(path=data, target="label", scale="minmax")
    index = [set(table.part(name).frame.index) for name in ("train", "val", "test")]
    assert sum(map(len, index)) == 400
    assert len(set.union(*index)) == 400
    train = table.part("train")
    income = train.obs["numerical"][:, 1]
    assert float(income.min()) == 0
    assert float(income.max()) == 1
    beyond = data.assign(income=1e6)
    assert float(table.encode(beyond)["numerical"][0, 1]) > 1


def test_missing_unseen_and_known_values_are_told_apart():
    table = Tables(path=frame(), target="label")
    new = pd.DataFrame({"age": [np.nan, 30.0], "income": [1.0, 2.0], "city": [None, "Zug"], "member": [True, False]})
    obs = table.encode(new)
    assert obs["missing"].tolist() == [[True, False], [False, False]]
    assert obs["numerical"][0, 0] == 0
    assert obs["categorical"][:, 0].tolist() == [1, 0]  # missing, unseen
    assert int(obs["categorical"][:, 1].min()) >= 2
    with pytest.raises(ValueError, match=r"lacks the columns \['city'\]"):
        table.encode(new.drop(columns="city"))


def test_preprocessor_survives_json():
    data = frame()
    for scale in ("quantile", "standard", "minmax"):
        table = Tables(path=data, target="label", scale=scale)
        saved = json.loads(json.dumps(table.preprocessor.to_dict()))
        mine, theirs = (p.transform(data) for p in (table.preprocessor, TablePreprocessor.from_dict(saved)))
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_uninformative_columns_are_left_out_with_a_note():
    data = frame().assign(empty=np.nan, constant=3, text="same")
    found = infer_columns(data.drop(columns="label"))
    assert found.names == ("age", "income", "city", "member")
    assert len(found.notes) == 3
    assert any("empty is left out: all" in note for note in found.notes)
    with pytest.raises(ValueError, match="no column is left"):
        infer_columns(data[["empty", "constant"]])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"age": "old"}, {"types": {"age": "numerical"}}, "column age is numerical but 160 of its 160 values are not"),
        ({"income": np.inf}, {}, "income holds infinite"),
        ({"label": "yes"}, {}, "single value, 'yes'"),
        ({"label": [None, *["yes", "no"] * 99, "no"]}, {}, "label is missing in 1 of 200 rows"),
        ({"when": pd.Timestamp("2026-01-01")}, {}, "when holds dates"),
        ({"name": [f"n{i}" for i in range(200)]}, {}, "column name has 160 distinct texts in 160 rows"),
        ({}, {"types": {"aeg": "ignore"}}, r"types names \['aeg'\]"),
        ({}, {"types": {"age": "text"}}, "types.age=text"),
        ({}, {"target": "outcome"}, "env.target=outcome: the table has age"),
        ({}, {"scale": "log"}, "scale=log"),
        ({}, {"split_column": "city"}, "column city names the parts"),
        ({}, {"val_share": 0.9}, "a rest for training"),
        ({}, {"task": "ranking"}, "env.task=ranking"),
    ],
)
def test_bad_tables_are_refused_by_name(change, settings, message):
    with pytest.raises(ValueError, match=message):
        Tables(path=frame().assign(**change), **{"target": "label", **settings})


def test_unknown_or_absent_named_tables(tmp_path):
    with pytest.raises(ValueError, match="both are null"):
        Tables()
    with pytest.raises(ValueError, match="did you mean adult"):
        Tables(dataset="adlut")
    with pytest.raises(FileNotFoundError, match=r"adult: none of adult.csv.*Give env.data_dir="):
        Tables(dataset="adult", data_dir=tmp_path, download=False)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "no.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="has no rows"):
        read_table(tmp_path / "no.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"broken\.parquet is no readable table"):
        read_table(tmp_path / "broken.parquet")


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_the_same_table_from_every_kind_of_file(ending, tmp_path):
    rows, path = frame(), tmp_path / f"rows.{ending}"
    rows.to_parquet(path) if ending == "parquet" else rows.to_csv(path, index=False)
    found, expected = Tables(path=path, target="label"), Tables(path=rows, target="label")
    assert found.columns == expected.columns
    for name in ("train", "val", "test"):
        assert (found.part(name).obs == expected.part(name).obs).all()
        assert torch.equal(found.part(name).target, expected.part(name).target)


def test_split_column_and_regression():
    data = frame().assign(part=["train"] * 120 + ["test"] * 80)
    table = Tables(path=data.drop(columns="label"), target="income", split_column="part")
    assert table.task == "regression"
    assert [len(table.part(name).obs) for name in ("train", "val", "test")] == [108, 12, 80]
    assert "part" not in table.columns.names
    assert table.part("test").target.dtype == torch.float32


def test_a_transductive_source_shows_all_rows_and_no_label():
    plain, all_rows = (Tables(path=frame(), target="label", is_transductive=flag) for flag in (False, True))
    assert (plain.num_rows, all_rows.num_rows) == (160, 200)
    assert "label" in plain.spec.keys()
    assert "label" not in all_rows.spec.keys()
    assert "label" not in all_rows.sample(2, 1, Generator()).keys()


def test_targets_with_few_numbers_are_classes():
    task, codes, classes = encode_target(pd.Series([3, 1, 1, 3], name="t"), task=None)
    assert (task, codes.tolist(), classes) == ("classification", [1, 0, 0, 1], ["1", "3"])
    assert encode_target(pd.Series([3, 1, 1, 3], name="t"), task="regression")[0] == "regression"


def test_embedded_tables_need_no_network():
    table = Tables(dataset="digits")
    assert table.num_classes == 10
    assert isinstance(table.columns, Columns)
    assert len(table.notes) == 3  # pixels that are always white


@pytest.mark.parametrize(("name", "columns", "classes"), [("helena", 27, 100), ("aloi", 128, 1000), ("higgs", 28, 2)])
def test_other_named_tables_load_from_a_folder(name, columns, classes, tmp_path):
    """Their files hold numbers and a column of classes; these are made up, in that layout."""
    random = np.random.default_rng(0)
    rows = pd.DataFrame(random.normal(size=(4 * classes + 40, columns)), columns=[f"V{i}" for i in range(columns)])
    if name == "higgs":  # its one incomplete row
        rows.iloc[-1, 5] = np.nan
    rows[NAMED[name].target] = np.arange(len(rows)) % classes
    rows.to_csv(tmp_path / f"{name}.csv.gz", index=False)
    table = Tables(dataset=name, data_dir=tmp_path, download=False)
    assert (len(table.columns.numerical), len(table.columns.categorical)) == (columns, 0)
    assert table.num_classes == classes
    assert len(table.part("test").obs) == len(table.part("val").obs) == int(0.1 * len(rows))


@shared
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "parts", "columns"),
    [
        ("adult", (29305, 3256, 16281), (6, 8)),
        ("california", (13209, 3303, 4128), (8, 0)),
        ("jannis", (12059, 1339, 16747), (54, 0)),
    ],
)
def test_published_tables(name, parts, columns):
    table = Tables(dataset=name, data_dir=SHARED)
    assert tuple(len(table.part(part).obs) for part in ("train", "val", "test")) == parts
    assert (len(table.columns.numerical), len(table.columns.categorical)) == columns
    if name == "california":
        assert float(table.part("test").target.std()) == pytest.approx(1.142, abs=2e-3)  # in 100k$
    if name == "adult":
        assert table.preprocessor.cardinalities == tuple(n + 2 for n in (9, 16, 7, 15, 6, 5, 2, 42))
