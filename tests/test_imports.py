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


@pytest.mark.parametrize(
    "room", ["config", "training", "tracking", "study", "runner", "evaluation", "report", "predict", "cli"]
)
def test_room_imports_nothing_slow(room: str) -> None:
    assert _imported_by(f"import digitcnn.{room}") == "[]"


@pytest.mark.parametrize(
    "name", ["train", "sweep", "confirm", "report", "reproduce", "predict", "benchmark", "publish"]
)
def test_help_imports_nothing_slow(name: str) -> None:
    modules = {"publish": ["experiments.article"], "benchmark": ["experiments.benchmarks"]}
    module, *words = modules.get(name, ["digitcnn", name])
    program = f"""
import contextlib, runpy, sys
sys.argv = [{module!r}, *{words!r}, "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
    assert _imported_by(program) == "[]"
