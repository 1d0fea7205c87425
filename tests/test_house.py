"""The house's own rules: configs parse, files stay small, updates never wait for the device, help answers at once."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("worldmodels", "agents", "envs", "perception", "benchmarks", "tests")
# What runs in every update. Evaluation code may read numbers back to the host; a loss may not.
HOT_ROOMS = ("worldmodels/objectives", "worldmodels/predictors", "agents")
SYNCS = {"item", "cpu", "tolist", "numpy"}
MAX_LINES = 400


def _python_files(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_configs_parse() -> None:
    configs = sorted((ROOT / "conf").rglob("*.yaml"))
    wrong = [_name(path) for path in configs if not isinstance(OmegaConf.load(path), DictConfig)]
    assert wrong == [], "a config file is one mapping"


def test_files_are_small() -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in _python_files(*PACKAGES)}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}, "one idea a file"


def _sync_calls(source: str) -> list[str]:
    """Calls that copy from the device to the host, with their lines; functions named ``infer_*`` run once a task."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("infer_"):
            return
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr in SYNCS:
                found.append(f"line {node.lineno}: .{called.attr}()")
            if isinstance(called, ast.Name) and called.id == "print":
                found.append(f"line {node.lineno}: print()")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def test_updates_never_wait_for_the_device() -> None:
    found = {_name(path): _sync_calls(path.read_text()) for path in _python_files(*HOT_ROOMS)}
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_sync_check_finds_what_it_looks_for() -> None:
    source = "def loss(x):\n    print(x.mean().item())\n    return x.cpu()\ndef infer_task(x):\n    return x.tolist()\n"
    assert _sync_calls(source) == ["line 2: print()", "line 2: .item()", "line 3: .cpu()"]


def test_every_module_has_a_layer() -> None:
    """A module of worldmodels that no layer names would escape the import contract."""
    text = (ROOT / "pyproject.toml").read_text()
    contract = text[text.index('type = "layers"') :].split("[[", 1)[0]
    named = set(contract.replace("(", " ").replace(")", " ").replace('"', " ").split())
    modules = [path.stem for path in (ROOT / "worldmodels").glob("*.py") if path.stem != "__init__"]
    modules += [path.parent.name for path in (ROOT / "worldmodels").glob("*/__init__.py")]
    missing = [name for name in modules if f"worldmodels.{name}" not in named]
    assert missing == [], "name these in the layers contract of pyproject.toml"


def test_help_answers_at_once() -> None:
    """Under 3 s of processor time, and without torch, whose import alone takes a second."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['run', '--help']\n"
        "try:\n    runpy.run_module('worldmodels.run', run_name='__main__', alter_sys=False)\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'help imported torch'\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    assert "agent=" in result.stdout
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 3.0
