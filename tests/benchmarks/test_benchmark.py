"""The benchmark measures what it says: small rounds of it, end to end. No time is asserted."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from digitcnn.config import RunConfig
from digitcnn.errors import ConfigError
from experiments.benchmarks import benchmark
from experiments.benchmarks.measurement import BenchmarkConfig, Measurement, markdown, read_table, write_table
from experiments.benchmarks.timing import flops_per_image
from tests.conftest import Command

SMALL = ("data.train_size=1000", "data.validation_size=100", "images=500", "grid_images=1000", "rounds=1", "trials=[2]")


@pytest.mark.parametrize(
    ("rows", "kinds"),
    [
        ("a,b,c,f,i", ["images/s", "of the matrix-product peak", "bookkeeping"]),
        # Whole studies, of this project and of its peer; fifteen networks.
        pytest.param(
            "d,e,g,h,j", ["images/s", "seconds", "memory", "not epochs", "with shift"], marks=pytest.mark.soak
        ),
    ],
)
def test_benchmark_measures_and_writes_its_rows(command: Command, tmp_path: Path, rows: str, kinds: list[str]) -> None:
    ended = command("benchmark", *SMALL, f"rows=[{rows}]", f"tracking.root={tmp_path}/records", timeout=1200)
    assert ended.returncode == 0, ended.stderr
    (path,) = (tmp_path / "records" / "reports" / "benchmark").glob("*.csv")
    machine, _, measured = read_table(path)
    # Row b is of processors with bfloat16, row e of frameworks that are installed.
    assert {each.row for each in measured} >= set(rows.split(",")) - {"b", "e"}
    assert all(kind in " ".join(each.what for each in measured) for kind in kinds)
    assert all(len(each.values) == 1 and math.isfinite(each.values[0]) for each in measured)
    assert all(value > 0 for each in measured if each.row != "h" for value in each.values)
    for each in measured:
        if each.ours:
            # Rates are ours to theirs, seconds theirs to ours.
            sides = (each.theirs, each.ours) if each.what.startswith("seconds") else (each.ours, each.theirs)
            assert each.values == pytest.approx([a / b for a, b in zip(*sides, strict=True)], rel=1e-3)
    assert machine in ended.stdout
    assert markdown(measured) in ended.stdout


def test_rows_that_cannot_be_measured_are_refused_before_any_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a processor without bfloat16, and neither PyTorch nor JAX."""
    monkeypatch.setattr(benchmark, "has_bfloat16", lambda: False)
    monkeypatch.setattr(benchmark, "_peers", list)
    with pytest.raises(ConfigError, match="^rows=b,e: none of these rows can be measured here; row b needs"):
        benchmark.measure(BenchmarkConfig(rows=["b", "e"], trials=[2]))


def test_table_keeps_the_rows_that_were_not_measured_again(tmp_path: Path) -> None:
    first = [
        Measurement("a", "speed", "x", [3.0, 2.0], "2 x", [30.0, 20.0], [10.0, 10.0]),
        Measurement("h", "s", "s", [1]),
    ]
    for measured in (first, [Measurement("a", "speed", "x", [4.0])]):
        write_table(tmp_path / "table.csv", "a machine", "versions", measured)
    assert read_table(tmp_path / "table.csv") == (
        "a machine",
        "versions",
        [Measurement("a", "speed", "x", [4.0]), Measurement("h", "s", "s", [1.0])],
    )


def test_pages_hold_the_committed_tables(tmp_path: Path) -> None:
    page, readme = tmp_path / "performance.md", tmp_path / "README.md"
    page.write_text(benchmark.PAGE.read_text())
    readme.write_text(benchmark.README.read_text())
    benchmark.write_pages(page, readme)
    assert page.read_text() == benchmark.PAGE.read_text()
    assert "| a | images/s" in page.read_text()
    assert readme.read_text() == benchmark.README.read_text()
    (line,) = [line for line in readme.read_text().splitlines() if line.startswith("| Intel")]
    assert line.count(" x (") == 3


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
    assert markdown([measurement]).splitlines()[2:] == [measurement.markdown()]


def test_flops_per_image_are_those_of_the_articles_network() -> None:
    # 26^2 * 9 * 32 + 10^2 * 9 * 32 * 64 + 1600 * 512 + 512 * 10 multiply-adds forward, three times that with backward.
    assert flops_per_image(RunConfig()) == pytest.approx(6 * (194_688 + 1_843_200 + 819_200 + 5_120))
