"""What a finished run has learned, in other runs and in a plain scikit-learn script."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch import Generator

from perception.latents import Latents
from tests.commands import launch
from worldmodels import build
from worldmodels.nn.transformer import all_tokens
from worldmodels.pretrained import Embedded, pretrained

pytest.importorskip("sklearn", reason="needs the tabular extra: pip install 'worldmodels[tabular]'")
pytest.importorskip("pandas", reason="needs the tabular extra: pip install 'worldmodels[tabular]'")

SCRIPT = """
import sys
import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from worldmodels.export import TableEmbedding

rows, labels = load_iris(return_X_y=True, as_frame=True)
embedding = TableEmbedding(sys.argv[1])
model = make_pipeline(embedding, StandardScaler(), LogisticRegression(max_iter=1000)).fit(rows, labels)
assert model.score(rows, labels) > 0.9, model.score(rows, labels)
np.save(sys.argv[2], embedding.transform(rows))
try:
    TableEmbedding(sys.argv[1]).fit(rows.drop(columns="petal width (cm)"))
except ValueError as error:
    assert "lacks the columns ['petal width (cm)']" in str(error)
else:
    raise AssertionError("a column is missing")
"""


def module(name: str, *arguments: str) -> None:
    done = launch(*arguments, module=name)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A short T-JEPA run on iris."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    settings = ["encoder.dim=8", "encoder.depth=1", "batch_size=32", "steps=5", "threads=1"]
    module("worldmodels.run", "objective=t_jepa", "env.dataset=iris", *settings, f"run_dir={folder}")
    return folder


@pytest.fixture
def source(run_dir):
    return instantiate(build.load_config(run_dir).env.source)


@pytest.mark.slow
def test_exported_embedding_in_a_pipeline(run_dir, source, tmp_path):
    module("worldmodels.export", f"run_dir={run_dir}", f"to={tmp_path / 'exported'}")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "exported"), str(tmp_path / "rows.npy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "exported").glob("*.pkl"))
    encoder, part = pretrained(source.spec, run_dir=str(run_dir)).eval(), source.part("train")
    expected = all_tokens(encoder(part.obs)).flatten(1).detach().numpy()
    found = np.load(tmp_path / "rows.npy")[part.frame.index]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_run_keeps_its_preprocessing(run_dir, source):
    about = json.loads((run_dir / "source.json").read_text())
    assert about["preprocessing"] == source.preprocessor.to_dict()
    assert about["classes"] == ["0", "1", "2"]
    assert about["rows"] == {"train": 120, "val": 15, "test": 15}


def test_latents_in_place_of_rows(run_dir, source):
    embedded = Embedded(source, run_dir=str(run_dir), chunk=50)
    encoder = pretrained(source.spec, run_dir=str(run_dir)).eval()
    for name in ("train", "val", "test"):
        part = embedded.part(name)
        torch.testing.assert_close(part.obs["tokens"], all_tokens(encoder(source.part(name).obs)).detach())
        assert torch.equal(part.target, source.part(name).target)
    batch = embedded.sample(7, 1, Generator().manual_seed(0))
    assert batch["observation", "tokens"].shape == (7, 1, 5, 8)  # a register and four columns
    row = batch["observation", "tokens"][0, 0]
    match = (embedded.part("train").obs["tokens"] == row).all(-1).all(-1)
    assert bool((embedded.part("train").target[match] == batch["label"][0, 0]).all())
    assert embedded.task == "classification"
    out = Latents(embedded.spec)(batch["observation"][:, 0])
    torch.testing.assert_close(out["pooled"], out["tokens"].mean(1))
    with pytest.raises(ValueError, match="window=2"):
        embedded.sample(7, 2, Generator())


def test_a_run_starts_from_the_encoder_of_another_and_so_do_targets(run_dir, source):
    cfg = build.load_config(run_dir)
    cfg.init, cfg.seed = str(run_dir), 1
    objective = build.build_objective(cfg, source, torch.device("cpu"))
    learned = pretrained(source.spec, run_dir=str(run_dir), part="encoder").state_dict()
    for module in (objective.encoder, objective.target.module):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, learned[name]), name


def test_fresh_weights_are_the_control(run_dir, source):
    load = functools.partial(pretrained, source.spec, run_dir=str(run_dir))
    learned, fresh, again, other = load(), *(load(is_random=True, seed=seed) for seed in (0, 0, 1))
    for a, b in zip(fresh.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(fresh.registers, other.registers)
    assert any(not torch.equal(a, b) for a, b in zip(learned.parameters(), fresh.parameters(), strict=True))
    for a, b in zip(learned.parameters(), load(part="target.module").parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_head_on_frozen_latents(run_dir, tmp_path):
    settings = ["objective=supervised", "env.dataset=iris", "encoder=frozen", f"relabel.run_dir={run_dir}"]
    small = ["objective.read=tokens", "head=linear", "batch_size=32", "steps=20", "eval_every=10", "threads=1"]
    module("worldmodels.run", *settings, *small, f"run_dir={tmp_path / 'head'}")
    labels = json.loads((tmp_path / "head" / "summary.json").read_text())["evaluations"]["labels"]
    assert [block["step"] for block in labels][-1] == 20
    assert 0 <= labels[-1]["metrics"]["test/accuracy"] <= 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"run_dir": "nowhere"}, FileNotFoundError, "holds no run"),
        ({"part": "nothing"}, ValueError, "nothing"),
        ({"checkpoint_step": 3}, FileNotFoundError, "3"),
    ],
)
def test_what_is_not_there_is_named(run_dir, source, options, error, message):
    with pytest.raises(error, match=message):
        pretrained(source.spec, **{"run_dir": str(run_dir), **options})
