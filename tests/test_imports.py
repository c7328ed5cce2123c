"""The structure: who may import what, and what is not imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, command_line

# Each module may import those before it. A new module needs a place here.
ORDER = [
    *("words", "errors", "addresses", "files", "processes", "signals", "locks", "embedded"),
    *("config", "frozen", "architecture", "space", "data", "backends", "environment"),
    *("model", "convolution", "plan", "compiled"),
    *("engines", "training", "plots", "outbox", "writes", "store", "tracking", "records", "runs", "workers"),
    *(
        "storage",
        "samplers",
        "study",
        "trials",
        "reconcile",
        "study_run",
        "leaderboard",
        "statistics",
        "sweep",
    ),
    *(
        "references",
        "reproduction",
        "verdicts",
        "confirmation",
        "findings",
        "charts",
        "markdown",
        "prose",
        "report",
        "comparison",
    ),
    *("provenance", "effects", "answers", "results", "figures", "publication"),
    *("display", "printing", "preview"),
    *("timing", "measurement", "study_timing", "benchmark"),
    *("loading", "preparation", "prediction"),
]
# Which of our own modules may import these packages.
ONLY: dict[str, set[str]] = {
    "mlflow": {"writes", "store", "tracking"},
    "optuna": {"storage", "samplers", "study", "trials", "leaderboard", "charts"},
    "plotly": {"charts"},
    "jinja2": {"report", "results"},
    "matplotlib": {"plots", "figures"},
    "hydra": set(),
    "tensorflow": {"backends", "compiled", "convolution", "timing"},
    "torch": {"backends"},
    "jax": set(),
    "keras": {"backends", "environment", "model", "engines", "compiled", "plan", "runs", "timing"},
    "rich": {"display", "printing"},
    "multiprocessing": {"workers"},
}
# What costs seconds to import is imported inside functions.
SLOW = {"tensorflow", "torch", "jax", "keras", "mlflow", "matplotlib", "plotly"}


def _imports(path: Path) -> list[tuple[str, bool]]:
    """The modules that a file imports, and whether at its top level when it runs."""
    tree = ast.parse(path.read_text())
    at_top = {id(node) for node in tree.body}
    for_types = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    only_types = {id(inner) for node in for_types for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in at_top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "digitcnn" else []
            found += [(name, id(node) in at_top) for name in names or [node.module]]
    return found


MODULES = sorted((REPOSITORY / "digitcnn").glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_what_it_may(path: Path) -> None:
    if path.stem == "__init__":
        assert _imports(path) == []
        return
    allowed = set(ORDER[: ORDER.index(path.stem)])
    for name, at_top in _imports(path):
        package, _, rest = name.partition(".")
        if package == "digitcnn":
            assert rest.partition(".")[0] in allowed, f"{path.name} imports {name}"
        assert package != "experiments"
        assert not (at_top and rest in ("compiled", "convolution", "plan") and path.stem not in ("compiled", "plan"))
        assert path.stem in ONLY.get(package, {path.stem}), f"{path.name} imports {name}"
        # These two are imported inside functions themselves.
        assert not (at_top and package in SLOW and path.stem not in ("compiled", "convolution", "plan")), (
            f"{path.name} imports {name} at its top"
        )


def test_only_the_commands_import_hydra_and_they_are_short() -> None:
    for path in (REPOSITORY / "experiments").glob("*.py"):
        packages = {name.partition(".")[0] for name, _ in _imports(path)}
        if path.stem not in ("command", "arguments"):
            assert "hydra" not in packages


def test_nothing_slow_is_imported_before_it_is_needed() -> None:
    program = "import sys, digitcnn, digitcnn.config, digitcnn.sweep, digitcnn.display, digitcnn.preview\n"
    program += f"print(sorted({SLOW!r} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


@pytest.mark.parametrize(
    "name", ["train", "sweep", "confirm", "report", "reproduce", "predict", "benchmark", "publish"]
)
def test_help_imports_nothing_slow(name: str) -> None:
    script = command_line(name)[1]
    program = f"""
import atexit, runpy, sys
atexit.register(lambda: print("slow:", sorted({SLOW!r} & set(sys.modules))))
sys.path.insert(0, {str(Path(script).parent)!r})
sys.argv = [{script!r}, "--help"]
runpy.run_path({script!r}, run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("slow: []\n")
