"""``report.html``: one self-contained page about a run, made only of what lies in its folder.

``summary.json`` holds {"evaluations": {name: [block, ...]}}, oldest first, blocks as ``save_evaluation`` gives them.
The page needs no network and no script and is readable on a phone, in light and dark. Call ``write_report`` again when
the folder has changed.
"""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from worldmodels.charts import compact, line_chart
from worldmodels.evals.results import save_evaluation
from worldmodels.files import atomic_write
from worldmodels.logging import read_metrics

__all__ = ["save_evaluation", "write_report"]

MAX_EMBEDDED = 30_000_000  # bytes of pictures and videos in one page; the rest is linked
_PICTURES = {".png": "image/png", ".svg": "image/svg+xml", ".gif": "image/gif"}
_VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm"}
_LAST = ("time", "collapse")  # groups of curves that come after the losses and evaluations
_OPEN_CURVES = 24  # a group of more is folded: its table says more

Curves = Mapping[str, tuple[list[int], list[float]]]


def write_report(run_dir: str | Path) -> Path:
    """Write ``run_dir/report.html`` from summary.json, metrics.csv, config.yaml and media/; absent parts are left out.

    Returns:
        The path of the page.
    """
    run_dir = Path(run_dir)
    summary = _read_json(run_dir / "summary.json")
    curves = read_metrics(run_dir / "metrics.csv")
    blocks: dict[str, Any] = {n: history[-1] for n, history in summary.get("evaluations", {}).items() if history}
    config = run_dir / "config.yaml"
    title = _title(config) or run_dir.resolve().name
    body = [
        f"<header><h1>{escape(title)}</h1>{_command(summary)}</header>",
        _tiles(summary, blocks),
        _warnings(blocks),
        _comparison(blocks),
        *(
            _evaluation(run_dir, name, block, _Budget(MAX_EMBEDDED // max(len(blocks), 1)))
            for name, block in blocks.items()
        ),
        *_own_evaluations(run_dir),
        _all_curves(curves),
        _facts(summary),
        _folded("Configuration", f"<pre>{escape(config.read_text())}</pre>") if config.exists() else "",
    ]
    page = _PAGE.replace("{{title}}", escape(title)).replace("{{style}}", _STYLE).replace("{{body}}", "\n".join(body))
    path = run_dir / "report.html"
    atomic_write(path, page)
    return path


def _title(config: Path) -> str:
    """What was trained on what; empty without a configuration."""
    if not config.exists():
        return ""
    cfg = OmegaConf.load(config)
    nodes = [OmegaConf.select(cfg, f"{group}._target_") for group in ("agent", "objective")]
    what = " and ".join(str(node).rpartition(".")[2] for node in nodes if node)
    data = (
        OmegaConf.select(cfg, "env.dataset")
        or OmegaConf.select(cfg, "env.domain")
        or str(OmegaConf.select(cfg, "env.source._target_") or "").rpartition(".")[2]
    )
    return " on ".join(str(part) for part in (what, data) if part)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


# --- the top of the page --------------------------------------------------------------------------------------------
def _command(summary: Mapping[str, Any]) -> str:
    command = summary.get("command")
    if not command:
        return ""
    text = command if isinstance(command, str) else shlex.join(command)
    return f"<pre class='command'>{escape(text)}</pre>"


def _tiles(summary: Mapping[str, Any], blocks: Mapping[str, Any]) -> str:
    tiles = []
    for name, block in blocks.items():
        metrics = block["metrics"]
        judged = _judged_by([metrics])
        if judged and not name.startswith("floor"):
            tiles.append((f"{name} {judged}", _shown(metrics, judged)))
    if "steps" in summary:
        tiles.append(("steps", f"{summary['steps']:,}"))
    if summary.get("seconds"):
        tiles.append(("duration", _duration(summary["seconds"])))
    if summary.get("updates_per_second"):
        tiles.append(("updates a second", compact(summary["updates_per_second"])))
    peak = summary.get("peak_memory_bytes")
    for name, size in (peak if isinstance(peak, dict) else {"process": peak} if peak else {}).items():
        tiles.append((f"peak memory, {name}", f"{size / 1e9:.2f} GB"))
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in tiles)
    return f"<section class='tiles'>{cells}</section>" if tiles else ""


def _warnings(blocks: Mapping[str, Any]) -> str:
    lines = [f"{name}: {line}" for name, block in blocks.items() for line in block.get("warnings", [])]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<section class='warning'><h2>Warnings</h2><ul>{items}</ul></section>" if lines else ""


# --- evaluations ----------------------------------------------------------------------------------------------------
def _comparison(blocks: Mapping[str, Any]) -> str:
    """Success of every evaluator side by side, so that each number stands beside its floor; else the return."""
    judged = _judged_by([block["metrics"] for block in blocks.values()])
    rivals = {name: block["metrics"] for name, block in blocks.items() if block["metrics"].get(judged) is not None}
    if len(rivals) < 2:
        return ""
    ending = f"/{judged}"
    tasks = list(dict.fromkeys(key[: -len(ending)] for m in rivals.values() for key in m if key.endswith(ending)))
    rows = [[task, *(_shown(m, f"{task}{ending}") for m in rivals.values())] for task in tasks]
    rows.append(["mean", *(_shown(m, judged) for m in rivals.values())])
    title = judged.capitalize()
    note = f"<p class='note'>{title} with 95 % bootstrap intervals over episodes.</p>"
    return f"<section><h2>{title}</h2>{_table(['task', *rivals], rows)}{note}</section>"


def _judged_by(blocks: Sequence[Mapping[str, float | None]]) -> str:
    """What tasks played are judged by: success where they define one, else the return; "" if none were played."""
    return next((name for name in ("success", "return") if any(b.get(name) is not None for b in blocks)), "")


def _evaluation(run_dir: Path, name: str, block: Mapping[str, Any], budget: _Budget) -> str:
    rows, columns = tabulate(block["metrics"])
    table = _table([name, *columns], rows)
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in block.get("notes", []))
    newest = [run_dir / path for path in block.get("media", [])]
    shown = "".join(_figure(run_dir, path, budget) for path in newest)
    links = [path for path in newest if path.suffix not in _PICTURES | _VIDEOS]
    notes += "".join(f"<p class='note'>{_link(run_dir, path)}</p>" for path in links)
    folder = run_dir / "media" / name
    earlier = [p for p in sorted(folder.glob("*/*")) if p not in newest and p.suffix in _PICTURES]
    history = "".join(_figure(run_dir, path, budget, caption=f"step {int(path.parent.name)}") for path in earlier)
    history = _folded("Earlier evaluations", f"<div class='figures'>{history}</div>") if history else ""
    cost = f", {block['operations']:.3g} floating-point operations" if block.get("operations") else ""
    title = f"{name} <small>after step {block.get('step', 0):,}{cost}</small>"
    return f"<section><h2>{title}</h2>{table}{notes}<div class='figures'>{shown}</div>{history}</section>"


def _own_evaluations(run_dir: Path) -> list[str]:
    """What ``worldmodels.evaluate`` left in run_dir/evaluations: tasks, rewards and goals a user asked for."""
    sections = []
    for path in sorted((run_dir / "evaluations").glob("*/summary.json")):
        summary, budget = _read_json(path), _Budget(MAX_EMBEDDED // 4)
        rows, columns = tabulate(summary.get("metrics", {}))
        figures = "".join(_figure(run_dir, file, budget) for file in sorted(path.parent.iterdir()))
        title = escape(str(summary.get("title", path.parent.name)))
        content = f"{_table(['', *columns], rows)}<div class='figures'>{figures}</div>"
        sections.append(f"<section><h2>{title}</h2>{content}</section>")
    return sections


def tabulate(metrics: Mapping[str, float | None]) -> tuple[list[list[str]], list[str]]:
    """Rows and columns of "row/column" metrics; a column's _low and _high become its interval; no row means "mean"."""
    cells: dict[str, dict[str, str]] = {}
    for key in metrics:
        row, _, column = key.rpartition("/")
        if column.endswith(("_low", "_high")) and key.rsplit("_", 1)[0] in metrics:
            continue
        cells.setdefault(row or "mean", {})[column] = _shown(metrics, key)
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    names = sorted(cells, key=lambda name: name == "mean")  # the mean comes last
    return [[name, *(cells[name].get(column, "") for column in columns)] for name in names], columns


def _shown(metrics: Mapping[str, float | None], key: str) -> str:
    return (_percent if key.rpartition("/")[2] == "success" else _interval)(metrics, key)


def _interval(metrics: Mapping[str, float | None], key: str) -> str:
    value, low, high = metrics.get(key), metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    if value is None:
        return "–"
    return compact(value) + (f" [{compact(low)}, {compact(high)}]" if low is not None and high is not None else "")


def _percent(metrics: Mapping[str, float | None], key: str) -> str:
    value, low, high = metrics.get(key), metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.0%}" + (f" [{low:.0%}, {high:.0%}]" if low is not None and high is not None else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{escape(cell.replace('_', ' '))}</th>" for cell in head)
    body = "".join(
        f"<tr{' class=mean' if row[0] == 'mean' else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<div class='scroll'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


class _Budget:
    """Bytes that may still be embedded."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, size: int) -> bool:
        fits = size <= self.left
        self.left -= size if fits else 0
        return fits


def _figure(run_dir: Path, path: Path, budget: _Budget, *, caption: str = "") -> str:
    kind = (_PICTURES | _VIDEOS).get(path.suffix)
    if kind is None or not path.exists():
        return ""
    label = escape(caption or path.stem.replace("_", " "))
    if not budget.take(path.stat().st_size):
        return f"<p class='note'>{_link(run_dir, path)}</p>"
    data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if path.suffix in _VIDEOS:
        content = f"<video controls muted loop playsinline preload='metadata' src='{data}'></video>"
    else:
        content = f"<img alt='{label}' src='{data}'>"
    return f"<figure>{content}<figcaption>{label}</figcaption></figure>"


def _link(run_dir: Path, path: Path) -> str:
    relative = escape(path.relative_to(run_dir).as_posix())
    return f"<a href='{relative}'>{relative}</a>"


# --- curves ---------------------------------------------------------------------------------------------------------
def _all_curves(curves: Curves) -> str:
    groups: dict[str, list[str]] = {}
    for name in curves:
        if name.endswith(("_low", "_high")) and name.rsplit("_", 1)[0] in curves:
            continue
        if len(curves[name][0]) < 2:  # the tables have it
            continue
        groups.setdefault(name.partition("/")[0] if "/" in name else "other", []).append(name)
    ordered = sorted(groups, key=lambda group: group in _LAST)
    sections = []
    for group in ordered:
        names = sorted(groups[group], key=lambda name: name.count("/"))  # means before single tasks
        cards = "".join(_card(curves, name) for name in names)
        drawings = f"<div class='curves'>{cards}</div>"
        is_many = len(names) > _OPEN_CURVES
        title = f"{group}: {len(names)} curves" if is_many else group
        sections.append(_folded(title, drawings) if is_many else f"<h3>{escape(title)}</h3>{drawings}")
    return f"<section><h2>Curves</h2>{''.join(sections)}</section>" if sections else ""


def _card(curves: Curves, name: str) -> str:
    steps, values = curves[name]
    band = None
    low, high = curves.get(f"{name}_low"), curves.get(f"{name}_high")
    if low is not None and high is not None and len(low[0]) == len(high[0]) == len(steps):
        band = (low[1], high[1])
    bad = sum(not math.isfinite(value) for value in values)
    label = name.partition("/")[2] or name
    note = f"<p class='bad'>{bad} values are not finite</p>" if bad else ""
    newest, limits = compact(values[-1]), (0.0, 1.0) if label.endswith("success") else None
    drawing = line_chart(steps, values, band=band, limits=limits)
    return f"<div class='card'><h4>{escape(label)}<b>{newest}</b></h4>{drawing}{note}</div>"


# --- the bottom of the page -----------------------------------------------------------------------------------------
def _facts(summary: Mapping[str, Any]) -> str:
    left_out = {"command", "evaluations", "peak_memory_bytes"}
    rows: list[list[str]] = []
    for name, value in summary.items():
        if name in left_out or value is None:
            continue
        if isinstance(value, dict):
            rows += [[f"{name}: {key}", str(item)] for key, item in value.items()]
        else:
            rows.append([name, compact(value) if isinstance(value, float) else str(value)])
    table = _table(["fact", "value"], rows)
    return f"<section class='facts'><h2>How it was made</h2>{table}</section>" if rows else ""


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _duration(seconds: float | int) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title><style>{{style}}</style></head><body><main>
{{body}}
</main></body></html>
"""

_STYLE = """
:root{color-scheme:light dark;--back:#f6f7f9;--card:#fff;--text:#1a1d23;--dim:#667080;--rule:#e1e5ea;--accent:#2563c9;
--warn:#8a5a00;--warnback:#fff5dc;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--back:#12151a;--card:#1b2027;--text:#e7eaee;--dim:#95a0b0;--rule:#2d343e;
--accent:#7fb0ff;--warn:#ffd27a;--warnback:#3a2f14;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:26px;line-height:1.2;margin:8px 0 10px;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 10px}h2 small{color:var(--dim);font-weight:400;font-size:13px}
h3{font-size:14px;color:var(--dim);font-weight:600;margin:18px 0 8px}
section,details{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:16px;margin:14px 0}
pre{overflow-x:auto;font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace;margin:0}
.command{color:var(--dim);white-space:pre-wrap;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:14px}
.tiles b{display:block;font-size:20px;line-height:1.3}.tiles span{color:var(--dim);font-size:13px}
.warning{background:var(--warnback);color:var(--warn);border-color:var(--warn)}.warning ul{margin:0;padding-left:18px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th{color:var(--dim);font-weight:600;font-size:13px}
th,td{text-align:right;padding:5px 14px 5px 0;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left}tr.mean td{font-weight:700;border-bottom:0}
.facts td:last-child{text-align:left;white-space:normal;overflow-wrap:anywhere}.facts th:last-child{text-align:left}
.note,.empty{color:var(--dim);font-size:13px;margin:8px 0 0}.bad{color:var(--bad);font-size:12px;margin:2px 0 0}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:14px;margin-top:12px}
figure{margin:0;min-width:0}
figure img,figure video{width:100%;border-radius:8px;display:block;border:1px solid var(--rule)}
figcaption{color:var(--dim);font-size:13px;margin-top:4px}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:16px}
.card{min-width:0}
.card h4{margin:0 0 2px;font-size:13px;font-weight:600;display:flex;justify-content:space-between;gap:8px}
.card h4 b{color:var(--accent);font-variant-numeric:tabular-nums}
svg{width:100%;height:auto;display:block}svg text{font-size:10.5px;fill:var(--dim)}
.grid{stroke:var(--rule);stroke-width:1}.line{fill:none;stroke:var(--accent);stroke-width:1.8;stroke-linejoin:round}
.raw{fill:none;stroke:var(--accent);stroke-width:1;opacity:.3}.dot{fill:var(--accent)}.band{fill:var(--accent);opacity:.16}
summary{cursor:pointer;font-weight:600}details pre,details .figures{margin-top:12px}a{color:var(--accent)}
section details{padding:10px 12px;margin:12px 0 0}
"""
