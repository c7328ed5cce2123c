"""Slow libraries are imported only when they are needed; pyproject.toml's import contracts hold the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each costs seconds to import.
SLOW = {"tensorflow", "ray", "torch", "jax", "keras", "mlflow", "matplotlib"}


def _imported_by(program: str) -> str:
    report = f"import sys; print(sorted({SLOW!r} & set(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, check=True, timeout=60
    )
    return ended.stdout.splitlines()[-1]


def test_rooms_import_nothing_slow() -> None:
    rooms = ("config", "training", "tracking", "study", "runner", "evaluation", "report", "predict", "cli", "api")
    assert _imported_by(f"import {', '.join(f'digitcnn.{room}' for room in rooms)}") == "[]"


@pytest.mark.parametrize("module", ["experiments.article", "experiments.benchmarks"])
def test_help_of_an_experiment_imports_nothing_slow(module: str) -> None:
    program = f"""
import contextlib, runpy, sys
sys.argv = [{module!r}, "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
    assert _imported_by(program) == "[]"
