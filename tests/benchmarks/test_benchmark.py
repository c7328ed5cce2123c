"""The benchmark measures what it says: small rounds of it, end to end. No time is asserted."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from digitcnn.config import RunConfig
from experiments.benchmarks.benchmark import markdown
from experiments.benchmarks.measurement import Measurement
from experiments.benchmarks.timing import flops_per_image
from tests.conftest import Command

SMALL = ("data.train_size=600", "data.validation_size=100", "images=500", "rounds=1", "trials=[2]")


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ("a,b,c,h", ["a", "b", "c", "c", "c", "h"]),
        # Whole studies, of this project and of its peer.
        pytest.param("e,g", ["e", "g", "g"], marks=pytest.mark.soak),
    ],
)
def test_benchmark_measures_and_writes_its_rows(command: Command, tmp_path: Path, rows: str, lines: list[str]) -> None:
    ended = command("benchmark", *SMALL, f"rows=[{rows}]", f"tracking.root={tmp_path}/records", timeout=1200)
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "records" / "reports" / "benchmark"
    measured = json.loads((folder / "benchmark.json").read_text())["measurements"]
    assert [each["row"] for each in measured] == lines
    assert all(len(each["values"]) == 1 for each in measured)
    assert all(math.isfinite(value) and value > 0 for each in measured for value in each["values"])
    ratio = measured[0]
    sides = zip(ratio["ours"], ratio["theirs"], strict=True)
    # Rates are ours to theirs, seconds theirs to ours.
    assert ratio["values"] == [theirs / ours if rows == "e,g" else ours / theirs for ours, theirs in sides]
    assert (folder / "benchmark.md").read_text() in ended.stdout


@pytest.mark.soak
def test_idiomatic_script_records_a_whole_study(tmp_path: Path) -> None:
    words = ["experiments.benchmarks.idiomatic", "1", "1", "300", "100", str(tmp_path)]
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (1,)
        names = {name for (name,) in database.execute("select distinct key from metrics")}
    assert {"val_accuracy", "val_loss", "accuracy", "loss"} <= names


def test_measurement_shows_the_median_and_the_spread() -> None:
    measurement = Measurement("a", "speed", "x", [3.0, 2.0, 2.5], "2 x", ours=[30, 20, 25], theirs=[10, 10, 10])
    assert measurement.markdown() == "| a | speed | 25 against 10 | **2.5 x** (2 to 3, n = 3) | 2 x |"
    assert markdown([measurement]).count("\n| ") == 2


def test_flops_per_image_are_those_of_the_articles_network() -> None:
    # 26^2 * 9 * 32 + 10^2 * 9 * 32 * 64 + 1600 * 512 + 512 * 10 multiply-adds forward, three times that with backward.
    assert flops_per_image(RunConfig()) == pytest.approx(6 * (194_688 + 1_843_200 + 819_200 + 5_120))
