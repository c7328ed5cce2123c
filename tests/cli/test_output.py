"""Output that goes elsewhere: its reader may be gone, no terminal, or none that can move its cursor."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import REPOSITORY, command_line

# Prints far more than a pipe holds, and leaves a file when all is done.
PRINTER = """
import logging, pathlib, sys
from digitcnn.output import lost_output, messages, survive_readers
survive_readers()
with messages():
    for number in range(3000):
        print(f"line {number}", "x" * 70)
        print("error line", file=sys.stderr)
        logging.getLogger("digitcnn.x").warning("a message")
database = open(sys.argv[1], "w")
print("printed, and in no file")
database.write(f"done, {lost_output()}")
"""


@contextmanager
def _without_reader(ends: Callable[[], tuple[int, int]]) -> Iterator[int]:
    reading, writing = ends()
    os.close(reading)
    yield writing
    os.close(writing)


@contextmanager
def _full_device() -> Iterator[int]:
    with Path("/dev/full").open("w") as file:
        yield file.fileno()


GONE = {
    "pipe": partial(_without_reader, os.pipe),
    "full": _full_device,
    "terminal": partial(_without_reader, pty.openpty),
}


@pytest.mark.parametrize(("place", "lost"), [("pipe", "None"), ("terminal", "None"), ("full", "[Errno 28] No space")])
def test_work_outlives_the_reader_of_its_output(place: str, lost: str, tmp_path: Path) -> None:
    with GONE[place]() as gone:
        line = [sys.executable, "-c", PRINTER, str(tmp_path / "done")]
        ended = subprocess.run(line, cwd=REPOSITORY, stdout=gone, stderr=gone, timeout=60, check=False)
    assert ended.returncode == 0
    assert (tmp_path / "done").read_text().startswith(f"done, {lost}")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_stream_is_no_other_file(closed: str, tmp_path: Path) -> None:
    # Given
    line = f'exec "$0" -c "$1" "$2" {closed}'
    # When
    ended = subprocess.run(
        ["bash", "-c", line, sys.executable, PRINTER, str(tmp_path / "done")],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=60,
        check=False,
    )
    # Then
    assert ended.returncode == 0
    assert (tmp_path / "done").read_text() == "done, None"


def test_reader_that_is_slow_gets_every_line(tmp_path: Path) -> None:
    # Given a pipe whose writers do not wait, as a program that shares it may have made it
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    line = [sys.executable, "-c", PRINTER, str(tmp_path / "done")]
    # When
    with subprocess.Popen(line, cwd=REPOSITORY, stdout=writing, stderr=subprocess.DEVNULL) as process:
        os.close(writing)
        time.sleep(0.5)
        with os.fdopen(reading) as file:
            lines = file.read().splitlines()
    # Then
    assert process.returncode == 0
    assert [each.split()[1] for each in lines if each.startswith("line ")] == [str(each) for each in range(3000)]


def test_errors_and_results_are_in_the_order_they_happened() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PRINTER, os.devnull],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    words = [line.partition(" ")[0] for line in ended.stdout.splitlines()]
    assert words[:-1] == ["line", "error", "a"] * 3000


def test_characters_that_the_encoding_has_not_are_written_in_ascii() -> None:
    program = "from digitcnn.output import survive_readers\nsurvive_readers()\nprint('a \\u2501')"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, check=True
    )
    assert (ended.stdout, ended.stderr) == (b"a \\u2501\n", b"")


def test_start_that_takes_long_is_said_to_go_on() -> None:
    program = """
import time
from digitcnn import output
output.START_SECONDS = 0.2
lines = output.StartLines("2 workers (TensorFlow)")
time.sleep(0.7)
lines.close()
print("began")
time.sleep(0.5)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    *starting, last = ended.stdout.splitlines()
    assert last == "began"
    assert set(starting) <= {"starting 2 workers (TensorFlow): 0 s", "starting 2 workers (TensorFlow): 1 s"}
    assert 2 <= len(starting) <= 3


# The command with a trainer that needs no Keras in its workers.
SWEEP = """
import functools, os
from digitcnn import runner
from digitcnn.cli import main
from tests.support import trainers
if __name__ == "__main__":
    trainer = getattr(trainers, os.environ.get("TRAINER", "InstantTrainer"))()
    runner.run_sweep = functools.partial(runner.run_sweep, trainer=trainer)
    main()
"""


@pytest.fixture
def sweep_program(tmp_path: Path) -> Path:
    """A file with the command `digitcnn`, whose sweeps train in no time."""
    path = tmp_path / "sweep_program.py"
    path.write_text(SWEEP)
    return path


def _statuses(root: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return sorted(run.info.status for run in found)


def test_sweep_goes_on_after_its_reader_has_gone(
    sweep_program: Path, small_overrides: list[str], tmp_path: Path
) -> None:
    # Given a reader that takes the first line only
    line = [sys.executable, str(sweep_program), "sweep", "study=quick", *small_overrides]
    line += ["data.train_size=500", "workers.count=1", "study.trials=3"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    # When
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        status = process.wait(240)
    # Then
    assert status == 0
    assert _statuses(tmp_path / "records") == ["FINISHED"] * 4


def test_sweep_without_a_result_names_the_cause(
    sweep_program: Path, small_overrides: list[str], tmp_path: Path
) -> None:
    line = [sys.executable, str(sweep_program), "sweep", "study=quick", *small_overrides]
    line += ["data.train_size=500", "workers.count=1", "study.trials=2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TRAINER": "DivergingTrainer"}
    ended = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "error: no trial has completed: the loss became nan in epoch 1 (2 of 2 that failed)\n"
    assert "next:" not in ended.stdout
    assert _statuses(tmp_path / "records") == ["FAILED"] * 3


def test_training_goes_on_after_its_reader_has_gone(small_overrides: list[str], tmp_path: Path) -> None:
    with GONE["pipe"]() as gone:
        line = command_line("train", *small_overrides)
        ended = subprocess.run(line, stdout=gone, stderr=gone, timeout=240, check=False)
    assert ended.returncode == 0
    assert _statuses(tmp_path / "records") == ["FINISHED"]


SCREEN = """
from digitcnn.cli.display import SweepScreen
from digitcnn.output import survive_readers
from digitcnn.values import EpochMetrics
survive_readers()
screen = SweepScreen("tensorflow")
screen.began("small", 1, 0, 1, "validation_accuracy")
screen.trial_began(0, 0, {"training.batch_size": 50}, 1)
screen.epoch(0, 0, EpochMetrics(1, 1.0, 0.5, 0.5, 0.9, 1.0, 100.0))
screen.trial_ended(0, 0, "complete", 0.9, "0.9000 (trial 0)")
screen.close()
"""
PLAIN = """study small: 1 trial, 1 worker
trial 0 began: batch_size 50
trial 0 epoch 1/1: validation accuracy 90.00 %, 100 images/s
trial 0 complete, validation_accuracy 0.9; best 0.9000 (trial 0)
"""


def _in_a_terminal(program: str, environment: dict[str, str]) -> str:
    """Return what a program prints in a terminal, without the terminal's carriage returns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 10_000):
            shown += part
    except OSError:
        # The last one has closed it.
        pass
    os.close(ours)
    assert process.wait(60) == 0, shown
    return shown.decode().replace("\r", "")


def _to_a_pipe(program: str, environment: dict[str, str]) -> str:
    line = [sys.executable, "-c", program]
    return subprocess.run(
        line, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    ).stdout


TERMINAL = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"TERM": "xterm-256color"}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"FORCE_COLOR": "1"},
        {"TTY_COMPATIBLE": "1"},
        {"TTY_INTERACTIVE": "1"},
        {"CI": "true"},
        {"NO_COLOR": "1"},
        {"COLUMNS": "30"},
        {"TERM": "dumb"},
    ],
    ids=str,
)
def test_no_terminal_gets_plain_lines(variables: dict[str, str]) -> None:
    assert _to_a_pipe(SCREEN, TERMINAL | variables) == PLAIN


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": ""}, {"TTY_COMPATIBLE": "0"}], ids=str)
def test_terminal_that_cannot_move_its_cursor_gets_plain_lines(variables: dict[str, str]) -> None:
    assert _in_a_terminal(SCREEN, TERMINAL | variables) == PLAIN


@pytest.mark.parametrize(
    "variables", [{}, {"CI": "true"}, {"NO_COLOR": "1"}, {"COLUMNS": "30"}, {"COLUMNS": "200"}], ids=str
)
def test_terminal_gets_a_live_picture(variables: dict[str, str]) -> None:
    shown = _in_a_terminal(SCREEN, TERMINAL | variables)
    # The cursor is hidden, moved up, and shown again.
    assert "\x1b[?25l" in shown
    assert "\x1b[1A" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "best validation_accuracy" in shown.replace("\n", " ")
