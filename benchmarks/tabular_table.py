"""T-JEPA against raw features and an untrained encoder, for several downstream models, over seeds.

Each cell but those of trees is an ordinary run: pre-training is ``objective=t_jepa``, a downstream model
``objective=supervised`` with a head on raw features or on latents of the frozen encoder. FT-Transformer is the encoder
itself, trained on labels from the start ("raw") or from what T-JEPA learned. The test score is that of the step with
the best validation score. CatBoost is asked for by name and is no part of the tabular extra: 100 MB.

    python -m benchmarks.tabular_table --data adult california jannis --seeds 0 1 2 --data-dir ../shared/data/tabular
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.runs import (
    mean_and_error,
    run_all,
    save_figure,
    save_table,
    summary_of,
    table_parser,
    today,
    version_list,
)
from perception.tabular import FlatTable
from worldmodels import build
from worldmodels.environment import device_name
from worldmodels.evals.pictures import new_figure, png
from worldmodels.evals.probes import judged
from worldmodels.evals.relevance import boosted_trees
from worldmodels.files import atomic_write_json
from worldmodels.keys import POOLED, TOKENS
from worldmodels.pretrained import Embedded

FEATURES = ("raw", "t_jepa", "random")
COLORS = {"raw": "#5b6472", "t_jepa": "#1f4e9c", "random": "#f2a900"}
LABELS = {"raw": "raw features", "t_jepa": "T-JEPA", "random": "untrained encoder"}
MODELS = ("linear", "mlp", "resnet", "ft_transformer", "xgboost")
TREES = ("xgboost", "catboost")


def main() -> None:
    """Run what is missing, print and save the table."""
    parser = table_parser(__doc__, runs="tabular_table", settings="every pre-training run")
    parser.add_argument("--data", nargs="+", default=["adult", "california", "jannis"])
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=[*MODELS, "catboost"])
    parser.add_argument("--name", default="tabular", help="of the file in benchmarks/results")
    parser.add_argument("--downstream", nargs="*", default=[], help="settings of every downstream run: steps=1000 ...")
    options = parser.parse_args()
    if "catboost" in options.models:
        try:
            load_catboost()  # before the hours of the other cells
        except ImportError as error:
            parser.error(str(error))
    started = time.time()
    both = [(d, s) for s in options.seeds for d in options.data]
    run_all(pretrain, both, options, jobs=options.jobs)
    cells = [(d, s, m, f) for d, s in both for m in options.models for f in features_of(m)]
    scores = run_all(score, cells, options, jobs=options.jobs)
    table = render(scores, options, hours=(time.time() - started) / 3600)
    save_figure(options.name, picture(scores, options), out=options.out)
    save_table(options.name, table, out=options.out)


def features_of(model: str) -> tuple[str, ...]:
    """What a model is tried on: training an untrained encoder on labels is the FT-Transformer on raw features."""
    return FEATURES[:2] if model == "ft_transformer" else FEATURES


def common(data: str, seed: int, options: argparse.Namespace) -> list[str]:
    """Settings of every run on a data set."""
    where = [f"env.data_dir={options.data_dir.resolve()}"] if options.data_dir else []
    return ["env=tables", f"env.dataset={data}", f"seed={seed}", "threads=1", "resume=true", *where]


def pretrain(data: str, seed: int, options: argparse.Namespace) -> Path:
    """Folder of the pre-training run."""
    folder = options.runs / f"{data}-{seed}" / "t_jepa"
    summary_of(folder, "objective=t_jepa", *common(data, seed, options), *options.settings)
    return folder


def score(data: str, seed: int, model: str, features: str, options: argparse.Namespace) -> dict[str, float] | None:
    """Test metrics of one downstream model on one kind of features; None if it failed."""
    folder, run_dir = options.runs / f"{data}-{seed}" / f"{model}-{features}", pretrain(data, seed, options)
    if model in TREES:
        return boosted(folder, run_dir, seed, features, catboost_trees if model == "catboost" else boosted_trees)
    if model == "ft_transformer":
        encoder = {k: v for k, v in build.load_config(run_dir).encoder.items() if not str(k).startswith("_")}
        sizes = ["encoder=tabular", *(f"encoder.{name}={value}" for name, value in encoder.items())]
        own = ["head=linear", *(sizes if features == "raw" else ["encoder=pretrained", f"encoder.run_dir={run_dir}"])]
    else:
        own = [f"head={model}"]
        if features != "raw":
            own += ["objective.read=tokens", "encoder=frozen", f"relabel.run_dir={run_dir}"]
            own += [f"relabel.is_random={features == 'random'}"]
    summary = summary_of(folder, "objective=supervised", *common(data, seed, options), *own, *options.downstream)
    if summary is None:
        return None
    best = max(summary["evaluations"]["labels"], key=lambda block: block["metrics"]["score"])["metrics"]
    return {name.removeprefix("test/"): value for name, value in best.items() if name.startswith("test/")}


def boosted(folder: Path, run_dir: Path, seed: int, features: str, fit: Callable[..., Any]) -> dict[str, float]:
    """Test metrics of trees from ``fit``, stopped early on validation rows."""
    path = folder / "score.json"
    if path.is_file():
        return json.loads(path.read_text())
    torch.set_num_threads(1)
    source: Any = build.build_source(build.load_config(run_dir), torch.device("cpu"))
    if features == "raw":
        flat = FlatTable(source.spec)
        parts = {name: (flat(part.obs)[POOLED], part.target) for name, part in source.parts.items()}
    else:
        embedded = Embedded(source, run_dir=str(run_dir), is_random=features == "random", seed=seed)
        parts = {name: (part.obs[TOKENS].flatten(1), part.target) for name, part in embedded.parts.items()}
    x, y = zip(*(parts[name] for name in ("train", "val", "test")), strict=True)
    predict = fit(x[:2], y[:2], num_classes=source.num_classes, seed=seed)
    found = judged(predict(x[2]), y[2], num_classes=source.num_classes)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, found)
    return found


def catboost_trees(
    features: Sequence[Tensor], targets: Sequence[Tensor], *, num_classes: int, seed: int
) -> Callable[[Tensor], Tensor]:
    """CatBoost on the first part, stopped early on the second; maps features to the target, or to log-probabilities.

    Its defaults but for the number of trees and their stop, which are those of XGBoost here. Categories come one-hot,
    as to every model of the table.

    Raises:
        ImportError: without CatBoost.
    """
    catboost = load_catboost()
    kind = catboost.CatBoostClassifier if num_classes else catboost.CatBoostRegressor
    model = kind(
        iterations=2000,
        early_stopping_rounds=50,
        random_seed=seed,
        thread_count=torch.get_num_threads(),
        allow_writing_files=False,
        verbose=False,
    )
    x, y = ([part.cpu().numpy() for part in parts] for parts in (features, targets))
    model.fit(x[0], y[0], eval_set=(x[1], y[1]))

    def predict(rows: Tensor) -> Tensor:
        array = rows.cpu().numpy()
        output = model.predict_log_proba(array) if num_classes else model.predict(array)
        return torch.from_numpy(output).float().to(rows.device)

    return predict


def load_catboost() -> Any:
    """The library, or one line that says how to get it."""
    try:
        import catboost
    except ImportError as error:
        raise ImportError(f"--models catboost needs CatBoost ({error}): pip install catboost") from error
    return catboost


def render(scores: dict[tuple[str, int, str, str], Any], options: argparse.Namespace, *, hours: float) -> str:
    """The table in Markdown."""
    seeds = ", ".join(map(str, options.seeds))
    lines = [
        f"# {options.name}: downstream scores on test rows, {today()}",
        "",
        f"- {device_name(torch.device('cpu'))}, one thread a run, {options.jobs} at a time; {hours:.1f} h this time.",
        f"- {version_list('python', 'torch')}; seeds {seeds}.",
        f"- Pre-training: `objective=t_jepa {' '.join(options.settings)}`; downstream: `objective=supervised "
        f"{' '.join(options.downstream)}`.",
        "- Mean over seeds (standard error). Accuracy and macro-F1 in %, higher is better; RMSE lower is better.",
        "- raw: numbers, marks of missing ones, one-hot categories. t_jepa, random: all tokens of the frozen encoder.",
        "",
        "| data | metric | model | " + " | ".join(FEATURES) + " |",
        "|---" * (3 + len(FEATURES)) + "|",
    ]
    for data in options.data:
        for model in options.models:
            rows = {f: [scores.get((data, s, model, f)) for s in options.seeds] for f in FEATURES}
            names = {name for cells in rows.values() for cell in cells if cell for name in cell}
            for metric in sorted(names):
                scale, digits = (1.0, 4) if metric == "rmse" else (100.0, 2)
                cells = [
                    mean_and_error([c[metric] for c in rows[f] if c], scale=scale, digits=digits) for f in FEATURES
                ]
                lines.append(f"| {data} | {metric} | {model} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(scores: dict[tuple[str, int, str, str], Any], options: argparse.Namespace) -> bytes:
    """One axes a data set: a row a model, a colour a kind of features, a dot a seed."""
    figure = new_figure(3.6 * len(options.data), 2.8)
    for axes, data in zip(figure.subplots(1, len(options.data), squeeze=False)[0], options.data, strict=True):
        metric = "rmse"
        for (name, _, model, features), found in scores.items():
            if name != data or not found:
                continue
            metric = "rmse" if "rmse" in found else "accuracy"
            height = options.models.index(model) + 0.2 * (FEATURES.index(features) - 1)
            axes.plot(found[metric], height, "o", color=COLORS[features], markersize=4, alpha=0.8)
        axes.set_yticks(range(len(options.models)), [m.replace("_", " ") for m in options.models], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(f"{data}: {metric}, {'lower' if metric == 'rmse' else 'higher'} is better", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", color="#e3e6ea", linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for features in FEATURES:
        figure.axes[0].plot([], [], "o", color=COLORS[features], markersize=4, label=LABELS[features])
    figure.legend(loc="outside lower center", ncols=len(FEATURES), fontsize=8, frameon=False)
    return png(figure)


if __name__ == "__main__":
    main()
