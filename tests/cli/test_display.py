"""Displays: messages of the library as lines, with a live picture or without."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pandas as pd
import pytest
from rich.console import Console
from rich.live import Live
from rich.text import Text

from digitcnn.cli import messages, tables
from digitcnn.cli.display import SweepScreen, _TrainingTable
from digitcnn.evaluation import ComparedMetric
from digitcnn.formatting import format_duration
from digitcnn.report import RunComparison
from digitcnn.values import EpochMetrics

LOGGER = logging.getLogger("digitcnn.somewhere")


def test_messages_are_lines_only_while_a_command_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    # When
    LOGGER.warning("before")
    with messages():
        LOGGER.info("100 % of [them] are there")
        LOGGER.debug("a detail")
        LOGGER.error("a\x1b[2J.png: is no picture")
        logging.getLogger("somebody.else").info("of another library")
    LOGGER.warning("after")
    # Then
    shown = capsys.readouterr()
    assert shown.out == "100 % of [them] are there\n"
    assert shown.err == "error: a\\x1b[2J.png: is no picture\n"
    assert logging.getLogger("digitcnn").level == logging.NOTSET


def test_messages_stand_above_a_live_picture(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, width=40)
    with messages(), Live("the picture", console=console, auto_refresh=False):
        LOGGER.warning("the store [mlflow.db] does not answer")
    lines = capsys.readouterr().out.split("\n")
    (place,) = [index for index, line in enumerate(lines) if "the store [mlflow.db] does not answer" in line]
    assert "the picture" in lines[place + 1]


def test_messages_are_silent_in_a_program_that_shows_none() -> None:
    program = "import logging, digitcnn.tracking; logging.getLogger('digitcnn.tracking').warning('away')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout + ended.stderr == ""


def test_time_left_of_a_resumed_training_counts_its_own_epochs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given 20 epochs, ten of them trained before, and a clock by which one takes 40 s."""
    clock = iter([100.0, 120.0])
    monkeypatch.setattr("digitcnn.cli.display.time.perf_counter", lambda: next(clock))
    shown = _TrainingTable(20, "TensorFlow")
    for fraction in (0.1, 0.6):
        shown.on_progress(11, fraction)
    assert shown.bar.tasks[0].fields["left"] == f"{format_duration(9.4 * 40)} left"


# What Rich would take for styles, closed styles and emoji: TensorFlow names its devices like this.
BRACKETS = "[/job:CPU:0] in /[old]/[red]/:smile:"


@pytest.mark.parametrize("terminal", [True, False])
def test_sweep_screen_shows_brackets_as_they_are(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    screen = SweepScreen("tensorflow")
    if terminal:
        screen.console = Console(force_terminal=True, markup=False, emoji=False, highlight=False)
    # When
    screen.began(f"name {BRACKETS}", 3, 0, 2, "validation_accuracy")
    screen.trial_began(0, f"job {BRACKETS}", {"training.engine": f"value {BRACKETS}"}, 2)
    screen.trial_ended(1, 1, f"failed: {BRACKETS}\nand\x1b[2J more", None, f"best {BRACKETS}")
    screen.close()
    # Then
    shown = Text.from_ansi(capsys.readouterr().out).plain
    for place in ("study name", "job", "engine value", "failed:", "best"):
        assert f"{place} {BRACKETS}" in shown
    assert f"{BRACKETS}\\x0aand\\x1b[2J more" in shown


def test_tables_show_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    row = {"rank": None, "trial": 3, "state": "failed", "run_id": BRACKETS, "note": f"note {BRACKETS}"}
    tables.print_leaderboard(pd.DataFrame([row]), [], [])
    differing = pd.DataFrame(
        [[f"1 {BRACKETS}", f"2 {BRACKETS}"]], index=[f"key {BRACKETS}"], columns=["[red]1", "[/]2"]
    )
    tables.print_comparison(RunComparison(differing, 0))
    tables.print_line(f"line {BRACKETS}")
    shown = capsys.readouterr().out
    for place in ("note", "1", "2", "key", "line"):
        assert f"{place} {BRACKETS}" in shown
    assert "[red]1" in shown
    assert "[/]2" in shown


def _compared(runs: int) -> RunComparison:
    names = {
        "name": [f"around-{number}" for number in range(runs)],
        "training.batch_size": [str(32 + number) for number in range(runs)],
        **{f"model.some_long_parameter_{each}": [str(number) for number in range(runs)] for each in range(20)},
        "validation_accuracy": [(9000 + number) / 10_000 for number in range(runs)],
        "weights_sha256": [f"{number:064x}" for number in range(runs)],
    }
    ids = [f"{number:08d}{'0' * 24}" for number in range(runs)]
    return RunComparison(pd.DataFrame.from_dict(names, orient="index", columns=ids, dtype=object), 1)


@pytest.mark.parametrize("width", [30, 80, 160])
@pytest.mark.parametrize("runs", [2, 6, 7, 30, 500])
def test_comparison_is_readable_with_any_number_of_runs(
    runs: int, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # When
    monkeypatch.setenv("COLUMNS", str(width))
    tables.print_comparison(_compared(runs))
    # Then
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "the same in all: 1 other value"
    table = [line for line in lines[:-1] if not line.startswith("no room for")]
    assert max(map(len, table)) <= width
    if runs > 6 or width == 30 or (runs, width) == (6, 80):
        rows = [line.split() for line in table if line[:8].isdigit()]
        assert [row[0] for row in rows] == [f"{number:08d}" for number in range(runs)]
        assert [float(row[1]) for row in rows] == [(9000 + number) / 100 for number in range(runs)]
        assert any(line.startswith("no room for") for line in lines)
    else:
        assert any(line.startswith("training.batch_size") and line.split()[1:3] == ["32", "33"] for line in lines)


def _terminal(width: int) -> Console:
    return Console(force_terminal=True, width=width, color_system=None, file=io.StringIO())


EPOCH = EpochMetrics(1, 2.1234, 0.5, 1.9876, 0.9, 12.3, 1234.0)


@pytest.mark.parametrize("width", [30, 45, 60, 80, 200])
def test_live_tables_show_whole_words_at_any_width(width: int) -> None:
    # Given
    training, screen = _TrainingTable(12, "TensorFlow"), SweepScreen("tensorflow")
    screen.console = _terminal(width)
    console = _terminal(width)
    # When
    training.on_epoch(EPOCH)
    training.on_progress(1, 0.5)
    screen.began("around_article", 12, 0, 2, "validation_accuracy")
    screen.trial_began(0, 0, {"training.batch_size": 250, "model.conv1_filters": 32}, 12)
    screen.epoch(0, 0, EPOCH)
    screen.close()
    console.print(training, screen)
    # Then
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= width
    assert "\u2026" not in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for heading, row in (("epoch", "val. accuracy"), ("1", "90.00 %"), ("trial 0", "90.00 %")):
        assert any(heading in line and row in line for line in lines), heading


@pytest.mark.parametrize("width", [30, 62, 80, 100])
def test_tables_of_results_show_whole_words_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal of 30 columns breaks the lines itself."""
    monkeypatch.setenv("COLUMNS", str(width))
    parameters = {
        "training.batch_size": 250,
        "training.epochs": 10,
        "model.conv1_filters": 32,
        "model.conv2_filters": 64,
    }
    results = {"validation_accuracy": 0.9876, "cpu_seconds": 12.3, "epochs_run": 10, "state": "complete"}
    row = {"rank": 1, "trial": 0, **parameters, **results, "run_id": "0a" * 16, "note": "baseline"}
    tables.print_leaderboard(pd.DataFrame([row]), list(parameters), ["validation_accuracy"])
    tables.print_reproduction([ComparedMetric(1, "validation_accuracy", 0.98, 0.97, 0.001)])
    words = capsys.readouterr().out.split()
    for word in ("filters", "accuracy", "98.76", "complete", "baseline", "difference", "validation_accuracy", "-0.01"):
        assert word in words
    assert width < 100 or "12.3" in words
