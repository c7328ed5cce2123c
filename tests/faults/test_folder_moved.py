"""A records folder that was moved or copied: everything in it works at its new place."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from digitcnn.files import sqlite_url
from tests.conftest import Command
from tests.support.overrides import STUDY
from tests.support.recorded import STRANGE


@pytest.mark.soak
def test_moved_and_copied_study_works_with_its_champion(tmp_path: Path, command: Command) -> None:
    """In a folder whose name has spaces, % and other letters, with the commands and real Keras."""
    first, moved, copied = tmp_path / "a" / "records", tmp_path / STRANGE / "b", tmp_path / "c" / "records"
    space = ["study.space.training.epochs=null", "study.space.training.batch_size=[50,100]"]
    made = command("sweep", *STUDY, *space, "study.trials=2", f"tracking.root={first}", timeout=900)
    assert made.returncode == 0, made.stderr
    confirm = ["study=moved", "confirm.top=1", "confirm.seeds=2", "workers.count=1"]
    made = command("confirm", *confirm, f"tracking.root={first}", timeout=900)
    assert made.returncode == 0, made.stderr

    moved.parent.mkdir()
    shutil.move(first, moved)
    root = f"tracking.root={moved}"
    again = command("reproduce", "run=champion", root, timeout=900)
    assert again.returncode == 0, again.stderr
    assert f"the records were in {first}: the store now names their places in {moved}" in again.stdout
    assert "IDENTICAL: run" in again.stdout
    program = f"""
import mlflow, numpy
mlflow.set_tracking_uri({sqlite_url(moved / "mlflow.db")!r})
print(mlflow.keras.load_model("models:/digitcnn@champion").predict(numpy.zeros((1, 28, 28)), verbose=0).shape)
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert loaded.stdout.endswith("(1, 10)\n"), loaded.stderr
    more = command("sweep", *STUDY, *space, "study.trials=3", root, timeout=900)
    assert more.returncode == 0, more.stderr
    assert "3 trials, 2 recorded before" in more.stdout
    more = command("confirm", *confirm, root, timeout=900)
    assert more.returncode == 0, more.stderr
    assert "all 4 runs are recorded" in more.stdout

    before = {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()}
    shutil.copytree(moved, copied)
    for name, overrides in (("confirm", confirm), ("reproduce", ["run=best", "study=moved"])):
        there = command(name, *overrides, f"tracking.root={copied}", timeout=900)
        assert there.returncode == 0, there.stderr
    assert {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()} == before
    shutil.rmtree(moved)
    there = command("reproduce", "run=champion", f"tracking.root={copied}", timeout=900)
    assert there.returncode == 0, there.stderr
    assert "IDENTICAL: run" in there.stdout
